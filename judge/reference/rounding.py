"""Tensors that say float32 and hold float64, with an error of float32's size put in after every operation.

Real programs ask for `torch.float32` by name, cast by `.float()` and take `finfo(x.dtype).min`: they have to take their
float32 path while their numbers are kept in float64. Every operation runs on the values held; its dtype is the one that
the program would have seen.
"""

import contextlib
import functools
import struct
import zlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode
from torch.utils._mode_utils import no_dispatch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_flatten, tree_map_only

from .operations import DECOMPOSED, DRAWS, EXACT, LINEAR, PRODUCTS, SUMS, name_of

UNIT = {torch.float32: 2.0**-24, torch.bfloat16: 2.0**-9, torch.float16: 2.0**-12, torch.float64: 2.0**-53}
"""Half the distance from 1 to the next number."""

NARROW = (torch.float32, torch.bfloat16, torch.float16)


def _mixed(number: int) -> int:
    """A 62-bit hash: splitmix64's finish."""
    number = (number + 0x9E3779B97F4A7C15) % 2**64
    number = (number ^ (number >> 30)) * 0xBF58476D1CE4E5B9 % 2**64
    number = (number ^ (number >> 27)) * 0x94D049BB133111EB % 2**64
    return (number ^ (number >> 31)) >> 2


class Wide(torch.Tensor):
    """Says float32, bfloat16 or float16, and holds float64."""

    held: Tensor

    @staticmethod
    def __new__(cls, held: Tensor, dtype: torch.dtype) -> "Wide":
        wide = torch.Tensor._make_wrapper_subclass(
            cls, held.size(), strides=held.stride(), storage_offset=held.storage_offset(), dtype=dtype
        )
        wide.held = held
        return wide  # type: ignore[no-any-return]

    def __init__(self, held: Tensor, dtype: torch.dtype) -> None:
        pass

    __torch_function__ = torch._C._disabled_torch_function_impl

    @classmethod
    def __torch_dispatch__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        return _run(EXACTLY, func, args, kwargs or {})

    def __deepcopy__(self, memo: dict[int, Any]) -> "Wide":
        if id(self) not in memo:
            copy = Wide(self.held.clone(), self.dtype)
            if isinstance(self, torch.nn.Parameter):
                copy = torch.nn.Parameter(copy, self.requires_grad)  # type: ignore[assignment]
            memo[id(self)] = copy
        return memo[id(self)]  # type: ignore[no-any-return]

    def numpy(self, *, force: bool = False) -> Any:
        """What programs report is often made of arrays: float64 here."""
        return self.held.numpy(force=force)

    def __repr__(self, **_: Any) -> str:
        return f"Wide({self.held}, {self.dtype})"


@dataclass(frozen=True)
class Rounding:
    """How operations err: not at all (`run` 0), or as one of many runs does."""

    run: int = 0
    narrow: bool = True
    """float32 errors; else those of float64, for ports that compute in it."""
    product: float | None = None
    """Another unit for the operands of products: 2**-11 is TF32's."""

    @property
    def key(self) -> int:
        return _mixed(self.run)

    def unit(self, dtype: torch.dtype) -> float:
        # Sixteen times float64's: what is put in has to be seen beside what float64 rounds by itself.
        return UNIT[dtype] if self.narrow else 2.0**-49


EXACTLY = Rounding()


class _Dispatch(TorchDispatchMode):
    """Reaches tensors that are made from nothing, too: constants, tables, fresh parameters."""

    def __init__(self, rounding: Rounding) -> None:
        super().__init__()
        self.rounding = rounding

    @classmethod
    def _should_skip_dynamo(cls) -> bool:
        return False  # else every operation goes through a wrapper that keeps compilers out

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        functional = _functional(func)
        if functional is not None and isinstance(args[0], Wide):
            with self:
                result = functional(*args, **kwargs)
            args[0].held.copy_(held(result))
            return args[0]
        if func in DECOMPOSED or _is_composite(func):
            with self:
                return DECOMPOSED.get(func, func.decompose)(*args, **kwargs)
        return _run(self.rounding, func, args, kwargs)


class _Constants(TorchFunctionMode):
    """`torch.tensor(0.1)` holds 0.1, not the nearest float32: a port in float64 would not round it."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if func is torch.tensor and args and not isinstance(args[0], Tensor) and len(args) == 1:
            dtype = kwargs.get("dtype") or torch.tensor(args[0], device="cpu").dtype
            if dtype in NARROW and not _holds_tensors(args[0]):
                with torch.utils._python_dispatch._disable_current_modes():
                    held = torch.tensor(args[0], dtype=torch.float64)
                return Wide(held, dtype).requires_grad_(kwargs.get("requires_grad", False))
        return func(*args, **kwargs)


@contextlib.contextmanager
def wide(rounding: Rounding) -> Iterator[None]:
    """Everything computed within is held in float64, erring as `rounding` says."""
    # oneDNN's fused kernels refuse float64; attention in its plain form can be taken apart.
    with (
        torch.backends.mkldnn.flags(enabled=False),
        torch.nn.attention.sdpa_kernel(torch.nn.attention.SDPBackend.MATH),
        _Constants(),
        _Dispatch(rounding),
    ):
        yield


@contextlib.contextmanager
def own_precision() -> Iterator[None]:
    """Within it a program computes in its own precision, and what comes of it errs by nothing.

    For what is done to data before a network sees it, such as pixels that are made of bytes: a port has to have the
    very same bits.
    """
    with torch.utils._python_dispatch._disable_current_modes():
        yield


def widened(tensor: Tensor, dtype: torch.dtype | None = None) -> Tensor:
    """The same values, held in float64; a tensor that is not floating as it is."""
    if isinstance(tensor, Wide) or not tensor.is_floating_point():
        return tensor
    said = dtype or (torch.float32 if tensor.dtype == torch.float64 else tensor.dtype)
    return Wide(tensor.detach().to(torch.float64, copy=True), said)


def held(tensor: Tensor) -> Tensor:
    """The values of a tensor, float64 where it is wide."""
    tensor = tensor.detach()
    return tensor.held if isinstance(tensor, Wide) else tensor


def _holds_tensors(data: Any) -> bool:
    return any(isinstance(leaf, Tensor) for leaf in tree_flatten(data)[0])


@functools.cache
def _is_composite(func: Any) -> bool:
    """Whether torch itself would take an operation apart before any kernel sees it."""
    return torch._C._dispatch_has_kernel_for_dispatch_key(func.name(), "CompositeImplicitAutograd")


@functools.cache
def _functional(func: Any) -> Any:
    """`aten.add.Tensor` for `aten.add_.Tensor`: where an operation in place rounds, it is made of one that is not."""
    base = func._schema.name[6:]
    if not base.endswith("_") or base.startswith("__") or name_of(func) in EXACT or base in DRAWS:
        return None
    return getattr(getattr(torch.ops.aten, base[:-1], None), func._overloadname, None)


def _run(rounding: Rounding, func: Any, args: Any, kwargs: Any) -> Any:
    """One operation on the values held."""
    known = _known(func)
    if known.draws:
        return _drawn(func, args, kwargs)
    said = _said(args, kwargs)
    if said is None:
        return _made(rounding, known.name, func, args, kwargs)
    if said == torch.float64:
        return func(*_mapped(args, _unwrapped), **{key: _unwrapped(value) for key, value in kwargs.items()})

    def opened(leaf: Any) -> Any:
        return _opened(leaf, rounding)

    wide_args = _mapped(args, opened)
    wide_kwargs = {key: _each(value, opened) for key, value in kwargs.items()}
    try:
        out = func(*wide_args, **wide_kwargs)
    except RuntimeError:
        if known.name not in ("view", "_unsafe_view"):
            raise
        # float64's kernel returned other strides than float32's would have.
        out = func(wide_args[0].contiguous(), *wide_args[1:], **wide_kwargs)
    if known.in_place:
        if not isinstance(args[0], Wide):
            args[0].copy_(out)
        elif torch.Tag.inplace_view in func.tags:
            with no_dispatch():  # the wrapper's own sizes and strides
                func(*args, **kwargs)
        return args[0]
    if rounding.run and (not known.exact or _narrows(known.name, args, said)):
        out = _erred(rounding, known.name, out, said, wide_args, wide_kwargs, func)
    return _each(out, lambda tensor: _wrapped(tensor, said))


class _Known(NamedTuple):
    """What is asked of an operation again and again."""

    name: str
    exact: bool
    draws: bool
    in_place: bool


@functools.cache
def _known(func: Any) -> _Known:
    base, name = func._schema.name[6:], name_of(func)
    return _Known(name, name in EXACT, base in DRAWS, base.endswith("_"))


def _each(value: Any, function: Callable[[Any], Any]) -> Any:
    """A value, or the values of a list, under a function."""
    if isinstance(value, (list, tuple)):
        return (
            type(value)([function(item) for item in value])
            if type(value) in (list, tuple)
            else tuple(map(function, value))
        )
    return function(value)


def _mapped(args: Any, function: Callable[[Any], Any]) -> list[Any]:
    return [_each(value, function) for value in args]


def _unwrapped(leaf: Any) -> Any:
    return leaf.held if isinstance(leaf, Wide) else leaf


def _wrapped(tensor: Any, said: torch.dtype) -> Any:
    if not isinstance(tensor, Tensor) or tensor.dtype != torch.float64 or isinstance(tensor, Wide):
        return tensor
    return Wide(tensor, said)


def _said(args: Any, kwargs: Any) -> torch.dtype | None:
    """The dtype that the program would have seen; None where nothing floating goes in."""
    asked, scalar, dimensioned = None, None, None
    for value in (*args, *kwargs.values()):
        for leaf in value if isinstance(value, (list, tuple)) else (value,):
            if isinstance(leaf, Tensor):
                dtype = leaf.dtype
                if dtype.is_floating_point:
                    if leaf.dim():
                        dimensioned = dtype if dimensioned in (None, dtype) else torch.promote_types(dimensioned, dtype)
                    else:
                        scalar = dtype if scalar in (None, dtype) else torch.promote_types(scalar, dtype)
            elif isinstance(leaf, torch.dtype):
                asked = leaf
    found = dimensioned or scalar
    if asked == torch.float64 or (asked in NARROW and found is not None):
        return asked
    return found


def _floats(leaf: Any) -> bool:
    return isinstance(leaf, Tensor) and leaf.is_floating_point()


def _opened(leaf: Any, rounding: Rounding) -> Any:
    if isinstance(leaf, Wide):
        return leaf.held
    if isinstance(leaf, Tensor) and leaf.dtype in NARROW:
        return leaf.to(torch.float64)
    if isinstance(leaf, torch.dtype) and leaf in NARROW:
        return torch.float64
    if isinstance(leaf, float) and rounding.run:
        return rounded_number(leaf, rounding) if type(leaf) is float else float(leaf)
    return leaf


def _made(rounding: Rounding, name: str, func: Any, args: Any, kwargs: Any) -> Any:
    """A tensor that is made of numbers or integers: constants, positions, quotients of counts."""
    out = func(*args, **kwargs)
    if not isinstance(out, Tensor) or out.dtype not in NARROW or func._schema.name.endswith("_"):
        return out
    if name in ("empty", "lift_fresh", "empty_strided"):
        return widened(out)
    said = out.dtype
    if any(argument.name == "dtype" for argument in func._schema.arguments):
        out = func(*args, **kwargs | {"dtype": torch.float64})
    else:
        args, kwargs = tree_map_only(
            Tensor, lambda tensor: tensor if tensor.dtype == torch.bool else tensor.double(), (args, kwargs)
        )
        out = func(*args, **kwargs)
    if rounding.run:
        out = _erred(rounding, name, out, said, args, kwargs, func)
    return Wide(out, said)


def _drawn(func: Any, args: Any, kwargs: Any) -> Any:
    """A draw as the program would have made it: float64 would take other numbers from the generator."""
    narrowed = tree_map_only(Wide, lambda tensor: tensor.held.to(tensor.dtype), (args, kwargs))
    out = func(*narrowed[0], **narrowed[1])
    if func._schema.name.endswith("_"):
        if isinstance(args[0], Wide):
            args[0].held.copy_(out)
        return args[0]
    return tree_map_only(Tensor, widened, out)


def _narrows(name: str, args: Any, said: torch.dtype) -> bool:
    """Whether a cast goes to fewer bits."""
    return name == "_to_copy" and _floats(args[0]) and UNIT[args[0].dtype] < UNIT[said]


def _erred(rounding: Rounding, name: str, out: Any, said: torch.dtype, args: Any, kwargs: Any, func: Any) -> Any:
    """The result of an operation with an error of its dtype put in."""
    leaves = list(out) if isinstance(out, tuple) else [out]
    if name in LINEAR:
        magnitudes = func(*_mapped(args, _magnitude), **{key: _magnitude(value) for key, value in kwargs.items()})
        bounds = list(magnitudes) if isinstance(magnitudes, tuple) else [magnitudes]
    else:
        bounds = [_magnitude(leaf) for leaf in leaves]
    unit = rounding.unit(said)
    if rounding.product is not None and name in PRODUCTS:
        unit = rounding.product
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
            exact = _exact(name, leaf, bound, said, args)
            if exact is not None:
                errors.masked_fill_(exact, 0)
        # A mask's infinities and largest numbers stay what they are.
        leaves[index] = leaf + errors.nan_to_num_(nan=0.0, posinf=0.0, neginf=0.0)
    return tuple(leaves) if isinstance(out, tuple) else leaves[0]


def _magnitude(leaf: Any) -> Any:
    return leaf.abs() if isinstance(leaf, Tensor) and leaf.dtype == torch.float64 else leaf


def _terms(name: str, index: int, out: Tensor, args: Any) -> float:
    """How many numbers were added up for one of the result."""
    if name in ("mm", "bmm", "mv", "dot"):
        return float(args[0].shape[-1])
    if name == "convolution":
        return args[1].numel() / args[1].shape[0]
    if name == "convolution_backward":
        grad, values, weight = args[:3]
        return weight.numel() / values.shape[1] if index == 0 else grad.numel() / grad.shape[1]
    largest = max(leaf.numel() for leaf in tree_flatten(args)[0] if isinstance(leaf, Tensor))
    return max(1.0, largest / out.numel())


def _hashed(values: Tensor, key: int) -> Tensor:
    """Numbers in [-1, 1) that depend on nothing but the values' first 40 bits and the key: equal values err equally.

    Two equal sums that float64 added up in another order may differ in the last bits.
    """
    bits = values.contiguous().view(torch.int64).add(2048) >> 12
    bits = (bits ^ key) * 0x369DEA0F31A53F85
    bits = (bits ^ (bits >> 29)) * 0x1B03738712FAD5C9
    return (bits ^ (bits >> 32)).to(torch.float64).mul_(2.0**-63)


def rounded_number(value: float, rounding: Rounding) -> float:
    """A number of the program as a port might hold it: off by float32's rounding, unless float32 holds it exactly."""
    if not abs(value) < 3e38 or struct.unpack("f", struct.pack("f", value))[0] == value:
        return value
    bits = struct.unpack("q", struct.pack("d", value))[0]
    error = (_mixed(bits ^ rounding.key) % 2**32) / 2**31 - 1
    return value * (1 + error * rounding.unit(torch.float32))


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

    def _result(self, value: Any) -> Any:
        return Number.of(value, self.rounding) if isinstance(value, float) else value

    def __add__(self, other: Any) -> Any:
        return self._result(float(self) + other)

    def __sub__(self, other: Any) -> Any:
        return self._result(float(self) - other)

    def __rsub__(self, other: Any) -> Any:
        return self._result(other - float(self))

    def __mul__(self, other: Any) -> Any:
        return self._result(float(self) * other)

    def __truediv__(self, other: Any) -> Any:
        return self._result(float(self) / other)

    def __rtruediv__(self, other: Any) -> Any:
        return self._result(other / float(self))

    def __pow__(self, other: Any, modulo: None = None) -> Any:
        return self._result(float(self) ** other)

    __radd__, __rmul__ = __add__, __mul__


def _exact(name: str, out: Tensor, bound: Tensor, said: torch.dtype, args: Any) -> Tensor | None:
    """Where float32 gives the very bits: the result is one of its numbers, and nothing on the way could round."""
    if name in ("add", "sub", "mul", "sqrt", "_to_copy", "pow", "div", "exp"):
        exact = out.to(said).to(torch.float64) == out
        if name == "div":
            divisor = torch.as_tensor(args[1], dtype=torch.float64)
            exact = exact & (torch.frexp(divisor).mantissa.abs() == 0.5)
        return exact & (out == 1) if name == "exp" else exact
    if name in PRODUCTS or name in SUMS:
        operands = [leaf for leaf in tree_flatten(args)[0] if isinstance(leaf, Tensor) and leaf.dtype == torch.float64]
        room = 2.0**-1 / UNIT[said]
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
