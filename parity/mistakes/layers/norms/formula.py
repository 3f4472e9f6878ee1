"""What a normalization computes, written out."""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from parity.reference.rewrite import Call

AFFINE = "layer_norm group_norm batch_norm rms_norm"


def epsilon_of(call: Call) -> float:
    """The epsilon of a normalization's call."""
    if call["eps"] is not None:
        return float(call["eps"])
    return torch.finfo(call["input"].dtype).eps if call.site.function == "rms_norm" else 1e-5


def normalized(
    call: Call,
    factor: Callable[[Tensor], Tensor],
    axes: tuple[int, ...] = (),
    centre: bool = True,
    by_difference: bool = False,
) -> Any:
    """What a normalization returns that multiplies by another factor of the variance, or reduces over other axes, or
    takes the variance for the mean of the squares less the square of the mean."""
    x, shape = call["input"], call["input"].shape
    affine: tuple[int, ...] = ()
    if call.site.function == "batch_norm":
        affine = (1, -1, *(1 for _ in shape[2:]))
        axes = (0, *range(2, x.ndim))
    elif call.site.function == "group_norm":
        affine = (1, -1, *(1 for _ in shape[2:]))
        x, axes = x.reshape(shape[0], call["num_groups"], -1), (-1,)
    else:
        axes = axes or tuple(range(-len(call["normalized_shape"]), 0))
        centre = centre and call.site.function != "rms_norm"
    if call.site.function == "batch_norm" and not call["training"]:
        mean, variance = call["running_mean"].view(affine), call["running_var"].view(affine)
    else:
        mean = x.mean(axes, keepdim=True) if centre else torch.zeros_like(x)
        exact = variance = (x - mean).square().mean(axes, keepdim=True)
        if by_difference:
            variance = (x.square().mean(axes, keepdim=True) - mean.square()).clamp(min=0)
    if call.site.function == "batch_norm" and call["training"]:
        call.run()  # moves the running statistics
        if by_difference and call["running_var"] is not None:
            share = 0.1 if call["momentum"] is None else float(call["momentum"])
            call["running_var"].add_(share * (variance - exact).detach().flatten())
    x = ((x - mean) * factor(variance)).reshape(shape)
    for name, operation in (("weight", torch.mul), ("bias", torch.add)):
        if call[name] is not None:
            x = operation(x, call[name].view(affine) if affine else call[name])
    normed: Tensor = x
    return normed
