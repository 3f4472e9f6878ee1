"""Resizing: JAX's way, in torch, each axis by weights that sum to one; and a way without half pixels."""

from collections.abc import Callable

import torch
from torch import Tensor

from parity.mistakes.mistake import Diff, Mistake
from parity.mistakes.tries import calls
from parity.reference.rewrite import Call


def resized(images: Tensor, size: tuple[int, ...], method: str, antialias: bool, added: float = 0.0) -> Tensor:
    """Images `(batch, channels, *window)` at another size; `method` is linear, cubic, lanczos3 or nearest. They are
    scaled as if `added` were added to the new size."""
    for axis, length in enumerate(size, 2):
        weights = _weights(images, images.shape[axis], length, method, antialias, added)
        images = torch.matmul(images.movedim(axis, -1), weights).movedim(-1, axis)
    return images


def _weights(like: Tensor, before: int, after: int, method: str, antialias: bool, added: float) -> Tensor:
    """`(before, after)`."""
    stretch = before / (after + added)
    places = (torch.arange(after, dtype=torch.float64) + 0.5) * stretch - 0.5
    if method == "nearest":
        chosen = torch.floor(places + 0.5).clamp(0, before - 1).long()
        weights = torch.nn.functional.one_hot(chosen, before).T
    else:
        distance = (places - torch.arange(before, dtype=torch.float64)[:, None]).abs()
        weights = KERNELS[method](distance / max(stretch if antialias else 1.0, 1.0))
        weights = weights / weights.sum(0)
    return weights.to(like.dtype)


def _linear(x: Tensor) -> Tensor:
    return (1 - x).clamp(min=0)


def _cubic(x: Tensor) -> Tensor:
    """Keys' kernel with a = -0.5, where torch's bicubic interpolation has -0.75."""
    near = (1.5 * x - 2.5) * x * x + 1
    far = ((-0.5 * x + 2.5) * x - 4) * x + 2
    return torch.where(x < 1, near, torch.where(x < 2, far, torch.zeros_like(x)))


def _lanczos3(x: Tensor) -> Tensor:
    return torch.where(x < 3, torch.sinc(x) * torch.sinc(x / 3), torch.zeros_like(x))


KERNELS: dict[str, Callable[[Tensor], Tensor]] = {"linear": _linear, "cubic": _cubic, "lanczos3": _lanczos3}


def _without_half_pixels(call: Call) -> Tensor:
    """An image whose pixel i is read at i times the ratio of the sizes, axis by axis."""
    x: Tensor = call["input"]
    for axis, after in enumerate(call.run().shape[2:], 2):
        before = x.shape[axis]
        places = torch.arange(after, dtype=torch.float64) * before / after
        lower = places.floor().clamp(max=before - 1).long()
        share = (places - lower).to(x.dtype).view(-1, *(1 for _ in range(axis + 1, x.ndim)))
        upper = x.index_select(axis, (lower + 1).clamp(max=before - 1))
        x = x.index_select(axis, lower) * (1 - share) + upper * share
    return x


MISTAKES = (
    Mistake(
        "F048",
        "resize-without-half-pixels",
        "{place} takes a pixel to be at its corner, the reference in its middle",
        "TensorFlow 1's resize, and many that are written by hand, read old pixel i·ratio for new pixel i; torch and "
        "jax.image read (i + ½)·ratio - ½. The picture is shifted by half a pixel at most.",
        (
            Diff(
                "unet",
                'resized: jax.Array = jax.image.resize(x, shape, "bilinear", antialias=False, precision="highest")',
                """scale = jnp.array([height / x.shape[1], width / x.shape[2]], x.dtype)
    resized: jax.Array = jax.image.scale_and_translate(
        x, shape, (1, 2), scale, 0.5 - 0.5 * scale, "linear", antialias=False, precision="highest"
    )""",
            ),
        ),
        ("torch: nn.functional.interpolate", "tensornets#25"),
        calls(
            "interpolate",
            lambda call, _: _without_half_pixels(call),
            when=lambda call: (
                call["mode"] in ("linear", "bilinear", "trilinear") and not (call["align_corners"] or call["antialias"])
            ),
        ),
    ),
)
