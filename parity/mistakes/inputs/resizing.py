"""Images resized with another kernel, with or without antialiasing, or by their corners."""

from typing import Any

import torch

from parity.mistakes.layers.resizing import resized
from parity.mistakes.mistake import Diff, Mistake
from parity.mistakes.tries import calls
from parity.reference.rewrite import Call


def _resized(call: Call, value: str) -> Any:
    method, _, antialias = value.partition(", ")
    size = tuple(call.run().shape[2:])
    if method == "aligned":
        return call.run(mode=call["mode"], align_corners=True)
    return resized(call["input"], size, method, antialias == "antialiased")


def _shrinks(call: Call) -> bool:
    return call.run().shape[2] < call["input"].shape[2] and call["mode"] in ("bilinear", "bicubic")


def _scaled(call: Call, added: float) -> Any:
    method = {"bilinear": "linear", "bicubic": "cubic"}[call["mode"]]
    return resized(call["input"], tuple(call.run().shape[2:]), method, bool(call["antialias"]), added)


def _smoothed(call: Call) -> Any:
    method = {"bilinear": "linear", "bicubic": "cubic"}[call["mode"]]
    return resized(call["input"], tuple(call.run().shape[2:]), method, antialias=True)


MISTAKES = (
    Mistake(
        "D014",
        "resize-antialiased",
        "{place} smooths before it makes images smaller in the port, and the reference does not",
        "`jax.image.resize` smooths by default where it shrinks, torch's `interpolate` does not unless it is told to, "
        "and Pillow always does. Enlarged images agree. Loaders that differ in it cost a pretrained network percents.",
        (Diff("unet", "antialias=False", "antialias=True"),),
        ("DALI#2966", "DALI#400", "jax: image.resize", "torch: nn.functional.interpolate"),
        calls("interpolate", lambda call, _: _smoothed(call), when=_shrinks),
    ),
    Mistake(
        "D015",
        "resize-kernel",
        "{place} interpolates by a {value} kernel in the port, the reference by a {was} one",
        "Nearest, bilinear, bicubic: a word in another place of the configuration. Even the same word differs: JAX's "
        "cubic kernel has a = -0.5, torch's -0.75; torch's `nearest` rounds down, JAX's takes the nearest. A constant "
        "image agrees under all of them.",
        (
            Diff("unet", '(x, shape, "bilinear", antialias=False', '(x, shape, "cubic", antialias=False'),
            Diff("unet", '(x, shape, "bilinear", antialias=False', '(x, shape, "nearest", antialias=False'),
            Diff("unet", '(x, shape, "bilinear", antialias=False', '(x, shape, "lanczos3"'),
        ),
        ("jax#15768", "jax#11206", "HF#20430"),
        calls(
            "interpolate",
            _resized,
            ("cubic", "nearest", "linear", "lanczos3", "cubic, antialiased", "lanczos3, antialiased"),
            was=lambda call: call["mode"],
        ),
    ),
    Mistake(
        "D016",
        "resize-aligned-corners",
        "{place} aligns the corners in the port, and not in the reference",
        "With `align_corners=True` the first and the last pixel stay where they are; without, pixels are squares with "
        "their centre in the middle. The difference is largest at the edge and nothing in the middle.",
        (
            Diff(
                "unet",
                'resized: jax.Array = jax.image.resize(x, shape, "bilinear", antialias=False, precision="highest")',
                "scale = jnp.array([(height - 1) / (x.shape[1] - 1), (width - 1) / (x.shape[2] - 1)], x.dtype)\n"
                "    resized: jax.Array = jax.image.scale_and_translate(\n"
                '        x, shape, (1, 2), scale, 0.5 - 0.5 * scale, "bilinear", antialias=False, precision="highest"\n'
                "    )",
            ),
        ),
        ("torch: nn.functional.interpolate, align_corners",),
        calls(
            "interpolate",
            lambda call, _: torch.nn.functional.interpolate(
                call["input"], tuple(call.run().shape[2:]), mode=call["mode"], align_corners=True
            ),
            when=lambda call: call["mode"] in ("bilinear", "bicubic", "linear") and not call["align_corners"],
        ),
    ),
    Mistake(
        "D023",
        "resize-scale",
        "{place} scales in the port as if {value} were added to the new size",
        "DINO's code added 0.1 to the new size and resized by the ratio of the two, so that rounding could not take a "
        "pixel off; the size of the result is the same, and every pixel is read from a little further in. Ports keep "
        "the 0.1 that the reference has long dropped.",
        (
            Diff(
                "unet",
                'resized: jax.Array = jax.image.resize(x, shape, "bilinear", antialias=False, precision="highest")',
                """scale = jnp.array([(height + 0.1) / x.shape[1], (width + 0.1) / x.shape[2]], x.dtype)
    resized: jax.Array = jax.image.scale_and_translate(
        x, shape, (1, 2), scale, jnp.zeros(2, x.dtype), "linear", antialias=False, precision="highest"
    )""",
            ),
        ),
        ("transformers: Dinov2, interpolate_pos_encoding",),
        calls(
            "interpolate",
            _scaled,
            (0.1, 1.0, -1.0),
            "linear",
            was=lambda call: 0.0,
            when=lambda call: call["mode"] in ("bilinear", "bicubic") and not call["align_corners"],
        ),
    ),
)
