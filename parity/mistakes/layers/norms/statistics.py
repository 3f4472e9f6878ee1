"""What a normalization takes the mean and variance of, and whether it centres."""

from typing import Any

import torch
from torch import nn

from parity.mistakes.layers.norms.formula import epsilon_of, normalized
from parity.mistakes.mistake import Diff, Mistake
from parity.mistakes.tries import argument, calls, modules, several
from parity.reference.rewrite import Call


def _over_less(call: Call, part: str) -> Any:
    """Groups of channels that are normalized in each pixel, or each row of pixels, by itself."""
    axis = {"pixel": -1, "row": -2}[part]
    last = call["input"].movedim(1, axis)
    alone = call.run(input=last.reshape(-1, *last.shape[axis:]))
    return alone.reshape(last.shape).movedim(axis, 1)


def _corrected(call: Call, correction: int) -> Any:
    kept = {"keepdim": True} if call["keepdim"] else {}
    return call.function(call["input"], dim=call["dim"], correction=correction, **kept)


def _correction(call: Call) -> int:
    return int(call["correction"]) if call["correction"] is not None else int(call["unbiased"] is not False)


def _norm_of_own(module: nn.Module) -> bool:
    """Whether it is a layer of the program's own whose only tensor is a vector of scales."""
    vectors = [*module.parameters(), *module.buffers()]
    own = not type(module).__module__.startswith("torch.nn") and not list(module.children())
    return own and len(vectors) == 1 and vectors[0].ndim == 1


def _centre_inputs(module: nn.Module, _: Any) -> None:
    inner = module.forward
    module.forward = lambda x, *rest: inner(x - x.mean(-1, keepdim=True), *rest)


def _centred(call: Call, _: Any) -> Any:
    axes = tuple(range(-len(call["normalized_shape"]), 0))
    return call.run(input=call["input"] - call["input"].mean(axes, keepdim=True))


MISTAKES = (
    Mistake(
        "F006",
        "group-norm-groups",
        "{place} normalizes {value} groups of channels, the reference {was}",
        "The number of groups is a setting that ports accept and then ignore: flax's default is 32, and a configured "
        "4 goes unread. Every shape fits, whatever the number is.",
        (Diff("unet", "nn.GroupNorm(GROUPS,", "nn.GroupNorm(2,"),),
        ("diffusers#621", "diffusers#789"),
        argument("group_norm", "num_groups", None, (1, 2, 4, 8, 16, 32)),
    ),
    Mistake(
        "F007",
        "group-norm-over-less",
        "{place} normalizes every {value} by itself, the reference a group's channels over the whole image",
        "A normalization written for channels-last arrays that reduces over the last axis alone is a layer "
        "normalization of each pixel. Shapes, parameters and the size of the outputs stay as they are.",
        (
            Diff("", "nn.GroupNorm(4)(x)", "nn.GroupNorm(4, reduction_axes=(-1,))(x)"),
            Diff("unet", "nn.GroupNorm(GROUPS,", "nn.GroupNorm(GROUPS, reduction_axes=(-2, -1),"),
        ),
        ("flax: GroupNorm, reduction_axes", "torch: GroupNorm"),
        calls("group_norm", _over_less, ("pixel", "row"), when=lambda call: call["input"].ndim > 2),
    ),
    Mistake(
        "F011",
        "rms-norm-centred",
        "{place} takes the mean off its input, the reference divides by the root mean square alone",
        "A layer normalization stands where the reference has an RMS normalization: features of zero mean make them "
        "equal, and in a fresh network they nearly are.",
        (
            Diff(
                "decoder",
                "wide *= jax.lax.rsqrt(jnp.mean(wide**2,",
                "wide -= jnp.mean(wide, axis=-1, keepdims=True)\n        wide *= jax.lax.rsqrt(jnp.mean(wide**2,",
            ),
        ),
        ("torch: RMSNorm", "flax: RMSNorm"),
        several(calls("rms_norm", _centred), modules(_centre_inputs, _norm_of_own)),
    ),
    Mistake(
        "F012",
        "std-correction",
        "{place} divides its sum of squares by n - {value}, the reference by n - {was}",
        "torch's std and var divide by n - 1, NumPy's and jax.numpy's by n unless told ddof=1. The ratio √((n-1)/n) "
        "is half a percent at a hundred values: below a loose tolerance, and gone in a test with many rows.",
        (Diff("regression", "rows.std(axis=0, ddof=1)", "rows.std(axis=0)"),),
        ("pytorch#50010", "pytorch#2436", "pytorch#8284", "Morphology-Informed-HGNN#11"),
        calls("std var", _corrected, (0, 1), was=_correction),
    ),
    Mistake(
        "F016",
        "reduction-axis",
        "{place} reduces over axis {value}, the reference over {was}",
        "With keepdims=True a mean over the wrong axis broadcasts as well as one over the right axis does, and the "
        "shapes say nothing: axis 1 is the channels in torch's layout and a row of the image in JAX's.",
        (Diff("decoder", "jnp.mean(wide**2, axis=-1, keepdims=True)", "jnp.mean(wide**2, axis=-2, keepdims=True)"),),
        ("jax: numpy.mean, axis and keepdims",),
        argument("mean sum std var amax", "dim", None, (-1, -2, 1, 0, (-2, -1))),
    ),
    Mistake(
        "F017",
        "layer-norm-axes",
        "{place} normalizes over axes {value} together, the reference over the features of each position",
        "flax reduces over reduction_axes, torch over the axes of normalized_shape. A normalization of all positions "
        "together keeps shapes and sizes, and mixes examples of a sequence that must not know each other.",
        (Diff("transformer", "nn.LayerNorm, epsilon=1e-5,", "nn.LayerNorm, reduction_axes=(-2, -1), epsilon=1e-5,"),),
        ("flax: LayerNorm, reduction_axes", "torch: LayerNorm, normalized_shape"),
        calls(
            "layer_norm rms_norm",
            lambda call, axes: normalized(call, lambda variance: torch.rsqrt(variance + epsilon_of(call)), axes),
            ((-2, -1), (-3, -2, -1)),
            when=lambda call: call["input"].ndim > len(call["normalized_shape"]) + 1,
        ),
    ),
    Mistake(
        "F019",
        "layer-norm-not-centred",
        "{place} divides by the root mean square without taking off the mean, which the reference does",
        "An RMS normalization stands where the reference has a layer normalization. Features of zero mean make them "
        "equal, so that a check on random numbers sees little.",
        (Diff("", "nn.LayerNorm(epsilon=1e-5)(x)", "nn.RMSNorm(epsilon=1e-5)(x)"),),
        ("torch: LayerNorm, RMSNorm",),
        calls(
            "layer_norm",
            lambda call, _: normalized(call, lambda variance: torch.rsqrt(variance + epsilon_of(call)), centre=False),
        ),
    ),
    Mistake(
        "F124",
        "variance-by-difference",
        "{place} takes the variance for the mean of the squares less the square of the mean, which loses digits",
        "flax's norms do so by default (use_fast_variance=True): one pass over the data in place of two. Where the "
        "mean is large beside the spread, most digits cancel: at a mean of 1000 none is left. In exact arithmetic the "
        "two are the same.",
        (Diff("", "nn.LayerNorm(use_fast_variance=False)(x)", "nn.LayerNorm()(x)"),),
        ("flax: BatchNorm and LayerNorm, use_fast_variance",),
        calls(
            "layer_norm group_norm batch_norm",
            lambda call, _: normalized(
                call, lambda variance: torch.rsqrt(variance + epsilon_of(call)), by_difference=True
            ),
            when=lambda call: call.site.function != "batch_norm" or bool(call["training"]),
        ),
        rounds=True,
    ),
)
