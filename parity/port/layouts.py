"""How torch lays a tensor out and how JAX programs do: by the name of a pytree's leaf and its shape. NumPy only."""

import math
from collections.abc import Callable
from typing import NamedTuple

import numpy as np

from parity.cases import Array
from parity.errors import PortError
from parity.port.names import Shape, inverse

_KERNELS = ("kernel", "recurrent_kernel", "w")
"""Leaves that are laid out as flax does, (in, out) and (*window, in, out); all others are laid out as torch's."""


class Leaf(NamedTuple):
    """A leaf whose layout no rule knows: its path, and the two ways between torch's tensor and it."""

    path: str
    to_port: Callable[[Array], Array]
    to_torch: Callable[[Array], Array]


def by_rule(path: str, torch: Shape, leaf: Shape) -> Leaf | None:
    """The leaf at `path` of shape `leaf` beside torch's tensor of shape `torch`; None where no rule fits.

    Linear ↔ kernel (in, out), also of several axes; Conv1d to 3d ↔ kernel (*window, in, out); ConvTranspose ↔ kernel
    (*window, out, in) with `transpose_kernel=True`, else (*window, in, out) with the window reversed; where in = out
    that last one looks like the first and has to be named by a `Leaf`. Everything else is laid out as in torch, but
    for axes of length 1 and for biases of several axes.
    """
    window = tuple(range(2, len(torch)))
    if path.rpartition("/")[2] in _KERNELS and len(torch) >= 2:
        axes = (*window, 1, 0)
        kernel = tuple(torch[axis] for axis in axes)
        if (len(torch) == 2 and math.prod(kernel) == math.prod(leaf)) or _squeezed(kernel) == _squeezed(leaf):
            return _permuted(path, axes, torch, leaf)
        axes = (*window, 0, 1)
        if window and tuple(torch[axis] for axis in axes) == leaf:
            return _permuted(path, axes, torch, leaf, reverse=tuple(range(len(window))))
    is_bias = path.rpartition("/")[2] in ("bias", "b") and math.prod(torch) == math.prod(leaf)
    if is_bias or _squeezed(torch) == _squeezed(leaf):
        return _permuted(path, tuple(range(len(torch))), torch, leaf)
    return None


def stacked(name: str, torch: Shape, paths: tuple[str, ...], leaves: dict[str, Shape]) -> list[tuple[Leaf, slice]]:
    """The leaves that lie one after the other along the first axis of a torch tensor, such as `in_proj_weight`.

    Raises:
        PortError: they do not fill it, or one of them fits by no rule.
    """
    found, begin, row = [], 0, max(math.prod(torch[1:]), 1)
    for path in paths:
        rows = math.prod(leaves[path]) // row
        leaf = by_rule(path, (rows, *torch[1:]) if torch else (), leaves[path])
        if leaf is None:
            raise PortError(
                f"{name} {torch} is laid out as {path} {leaves[path]} in no way that is known; "
                f'give it as Leaf("{path}", to_port, to_torch) in names'
            )
        found.append((leaf, slice(begin, begin + rows)))
        begin += rows
    if torch and begin != torch[0]:
        raise PortError(f"{name} {torch}: {', '.join(paths)} have {begin} rows together, expected {torch[0]}")
    return found


def _permuted(path: str, axes: tuple[int, ...], torch: Shape, leaf: Shape, reverse: tuple[int, ...] = ()) -> Leaf:
    kernel = tuple(torch[axis] for axis in axes)
    return Leaf(
        path,
        lambda tensor: np.flip(tensor.transpose(axes), reverse).reshape(leaf),
        lambda array: np.flip(array.reshape(kernel), reverse).transpose(inverse(axes)),
    )


def _squeezed(shape: Shape) -> Shape:
    return tuple(size for size in shape if size != 1)
