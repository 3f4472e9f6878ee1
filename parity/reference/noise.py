"""Errors of rounding: how large they are, where there are none, and which value errs how."""

import functools
import operator
import struct
import zlib
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.utils._pytree import tree_flatten

from parity.reference.operations import LINEAR, PRODUCTS, SUMS

UNIT = {torch.float32: 2.0**-24, torch.bfloat16: 2.0**-9, torch.float16: 2.0**-12, torch.float64: 2.0**-53}
"""Half the distance from 1 to the next number."""
TF32 = 2.0**-11


@dataclass(frozen=True)
class Rounding:
    """How operations err: not at all (`run` 0), or as one of many runs does."""

    run: int = 0
    narrow: bool = True
    """float32 errors; else those of float64, for ports that compute in it."""
    precision: str = "float32"
    """What is computed in on purpose where a program says float32: bfloat16 or float16, or tf32 in products."""

    @property
    def key(self) -> int:
        return _mixed(self.run)

    def unit(self, name: str, dtype: torch.dtype) -> float:
        """Of an operation whose result says that dtype."""
        if not self.narrow:
            # Sixteen times float64's: what is put in has to be seen beside what float64 rounds by itself.
            return 2.0**-49
        if self.precision == "tf32":
            return TF32 if name in PRODUCTS else UNIT[dtype]
        return max(UNIT[dtype], UNIT[getattr(torch, self.precision)])


EXACTLY = Rounding()


def erred(rounding: Rounding, name: str, out: Any, said: torch.dtype, args: Any, kwargs: Any, func: Any) -> Any:
    """The result of an operation with an error of its dtype put in."""
    leaves = list(out) if isinstance(out, tuple) else [out]
    if name in LINEAR:
        magnitudes = func(*map(_magnitude, args), **{key: _magnitude(value) for key, value in kwargs.items()})
        bounds = list(magnitudes) if isinstance(magnitudes, tuple) else [magnitudes]
    else:
        bounds = [_magnitude(leaf) for leaf in leaves]
    unit = rounding.unit(name, said)
    key = rounding.key ^ _name_key(name)
    for index, leaf in enumerate(leaves):
        if not isinstance(leaf, Tensor) or leaf.dtype != torch.float64 or not leaf.numel():
            continue
        bound = bounds[index]
        if name in LINEAR:
            # Partial sums grow with the sum itself, however it is ordered, and each of them errs.
            bound = bound + leaf.abs() * (_terms(name, index, leaf, args) ** 0.5 / 3)
        errors = _hashed(leaf, key).mul_(bound).mul_(unit)
        if rounding.narrow:
            exact = _exact(name, leaf, bound, unit, args)
            if exact is not None:
                errors.masked_fill_(exact, 0)
        # A mask's infinities and largest numbers stay what they are.
        leaves[index] = leaf + errors.nan_to_num_(nan=0.0, posinf=0.0, neginf=0.0)
    return tuple(leaves) if isinstance(out, tuple) else leaves[0]


def _magnitude(leaf: Any) -> Any:
    if isinstance(leaf, list | tuple):
        return [_magnitude(one) for one in leaf]
    return leaf.abs() if isinstance(leaf, Tensor) and leaf.dtype == torch.float64 else leaf


def _terms(name: str, index: int, out: Tensor, args: Any) -> float:
    """How many numbers were added up for one of the result."""
    if name in ("mm", "bmm", "mv", "dot"):
        return float(args[0].shape[-1])
    if name == "convolution":
        return float(args[1].numel() / args[1].shape[0])
    if name == "convolution_backward":
        grad, values, weight = args[:3]
        return float(weight.numel() / values.shape[1] if index == 0 else grad.numel() / grad.shape[1])
    largest = max(leaf.numel() for leaf in tree_flatten(args)[0] if isinstance(leaf, Tensor))
    return max(1.0, largest / out.numel())


def _hashed(values: Tensor, key: int) -> Tensor:
    """Numbers in [-1, 1) that depend on nothing but the values' first 40 bits and the key: equal values err equally.

    Two equal sums that float64 added up in another order may differ in the last bits.
    """
    bits = values.contiguous().view(torch.int64).add(2048) >> 12
    bits = (bits ^ key) * 0x369DEA0F31A53F85
    # Shifts of negative numbers bring ones in from the left, which would leave no number negative in the end.
    bits = (bits ^ (bits >> 29 & 2**35 - 1)) * 0x1B03738712FAD5C9
    return (bits ^ (bits >> 32 & 2**32 - 1)).to(torch.float64).mul_(2.0**-63)


def rounded_number(value: float, rounding: Rounding) -> float:
    """A number of the program as a port might hold it: off by float32's rounding, unless float32 holds it exactly."""
    if not abs(value) < 3e38 or struct.unpack("f", struct.pack("f", value))[0] == value:
        return value
    bits = struct.unpack("q", struct.pack("d", value))[0]
    error = (_mixed(bits ^ rounding.key) % 2**32) / 2**31 - 1
    return value * (1 + error * rounding.unit("number", torch.float32))


def _erring(operation: Callable[[Any, Any], Any], reverse: bool = False) -> Callable[["Number", Any], Any]:
    def method(number: "Number", other: Any) -> Any:
        value = operation(other, float(number)) if reverse else operation(float(number), other)
        return Number.of(value, number.rounding) if isinstance(value, float) else value

    return method


class Number(float):
    """A rate, decay or beta of an optimizer that errs with every operation, as in a port that computes it in float32.

    1 - 0.999**t loses three digits there; torch has Python's numbers.
    """

    rounding: Rounding

    @staticmethod
    def of(value: float, rounding: Rounding) -> "Number":
        number = Number(rounded_number(float(value), rounding))
        number.rounding = rounding
        return number

    __add__ = __radd__ = _erring(operator.add)
    __sub__, __rsub__ = _erring(operator.sub), _erring(operator.sub, reverse=True)
    __mul__ = __rmul__ = _erring(operator.mul)
    __truediv__, __rtruediv__ = _erring(operator.truediv), _erring(operator.truediv, reverse=True)
    __pow__ = _erring(operator.pow)  # type: ignore[assignment]


def _exact(name: str, out: Tensor, bound: Tensor, unit: float, args: Any) -> Tensor | None:
    """Where the dtype gives the very bits: the result is one of its numbers, and nothing on the way could round."""
    if name in ("add", "sub", "mul", "sqrt", "_to_copy", "pow", "div", "exp"):
        digits = torch.frexp(out).mantissa / unit
        exact = digits == digits.round()
        if name == "div":
            divisor = torch.as_tensor(args[1], dtype=torch.float64)
            exact = exact & (torch.frexp(divisor).mantissa.abs() == 0.5)
        return exact & (out == 1) if name == "exp" else exact
    if name in PRODUCTS or name in SUMS:
        operands = [leaf for leaf in tree_flatten(args)[0] if isinstance(leaf, Tensor) and leaf.dtype == torch.float64]
        room = 0.5 / unit
        largest = float(bound.max())
        # Most tensors are told by their first few values.
        for sample in (16, None):
            grid = 1.0
            for operand in operands:
                grid *= _grid(operand.flatten()[:sample])
            if not largest < room * grid:
                return None
        return torch.ones_like(out, dtype=torch.bool)
    return None


def _grid(values: Tensor) -> float:
    """The largest power of two, at most 1, that all values are whole multiples of."""
    mantissa, exponent = torch.frexp(values)
    whole = (mantissa * 2.0**53).to(torch.int64)
    lowest = (whole & -whole).to(torch.float64)
    units = torch.ldexp(lowest, exponent - 53)[values != 0]
    return min(1.0, float(units.min())) if units.numel() else 1.0


@functools.cache
def _name_key(name: str) -> int:
    return _mixed(zlib.crc32(name.encode()))


def _mixed(number: int) -> int:
    """A 62-bit hash: splitmix64's finish."""
    number = (number + 0x9E3779B97F4A7C15) % 2**64
    number = (number ^ (number >> 30)) * 0xBF58476D1CE4E5B9 % 2**64
    number = (number ^ (number >> 27)) * 0x94D049BB133111EB % 2**64
    return (number ^ (number >> 31)) >> 2
