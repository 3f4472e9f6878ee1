"""JAX's way to resize images, in torch: each axis is a product with a matrix of weights that sum to one."""

from collections.abc import Callable

import torch
from torch import Tensor


def resized(images: Tensor, size: tuple[int, ...], method: str, antialias: bool) -> Tensor:
    """Images `(batch, channels, *window)` at another size; `method` is linear, cubic, lanczos3 or nearest."""
    for axis, length in enumerate(size, 2):
        weights = _weights(images, images.shape[axis], length, method, antialias)
        images = torch.matmul(images.movedim(axis, -1), weights).movedim(-1, axis)
    return images


def _weights(like: Tensor, before: int, after: int, method: str, antialias: bool) -> Tensor:
    """`(before, after)`."""
    stretch = before / after
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
