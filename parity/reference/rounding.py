"""Tensors that say float32 and hold float64, with an error of float32's size put in after every operation.

Real programs ask for `torch.float32` by name, cast by `.float()` and take `finfo(x.dtype).min`: they have to take their
float32 path while their numbers are kept in float64. Every operation runs on the values held; its dtype is the one that
the program would have seen.
"""

import contextlib
import functools
import warnings
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode
from torch.utils._mode_utils import no_dispatch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_flatten, tree_map_only

from parity.reference.noise import EXACTLY, UNIT, Rounding, erred, rounded_number
from parity.reference.operations import DECOMPOSED, DRAWS, EXACT, name_of

# It is said by whatever switches oneDNN off, of a GPU that nobody asked for.
warnings.filterwarnings("ignore", "TF32 acceleration on top of oneDNN")

NARROW = (torch.float32, torch.bfloat16, torch.float16)


class Wide(torch.Tensor):
    """Says float32, bfloat16 or float16, and holds float64."""

    held: Tensor

    @staticmethod
    def __new__(cls, held: Tensor, dtype: torch.dtype) -> "Wide":
        wide = torch.Tensor._make_wrapper_subclass(
            cls, held.size(), strides=held.stride(), storage_offset=held.storage_offset(), dtype=dtype
        )
        wide.held = held
        return wide

    def __init__(self, held: Tensor, dtype: torch.dtype) -> None:
        pass

    __torch_function__ = torch._C._disabled_torch_function_impl  # type: ignore[assignment]

    @classmethod
    def __torch_dispatch__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:  # type: ignore[override]
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

    def __repr__(self, **_: Any) -> str:  # type: ignore[override]
        return f"Wide({self.held}, {self.dtype})"


class _Dispatch(TorchDispatchMode):
    """Reaches tensors that are made from nothing, too: constants, tables, fresh parameters."""

    def __init__(self, rounding: Rounding) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
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


_DEEPCOPY: Any = Tensor.__deepcopy__


class _Constants(TorchFunctionMode):
    """`torch.tensor(0.1)` holds 0.1, not the nearest float32: a port in float64 would not round it. And what a program
    copies with `copy.deepcopy` is copied as it is."""

    @staticmethod
    def rms_norm(
        input: Tensor, normalized_shape: Any, weight: Tensor | None = None, eps: float | None = None
    ) -> Tensor:
        """torch takes it apart itself, and makes a float32 of epsilon on the way."""
        axes = tuple(range(-len(normalized_shape), 0))
        small = torch.finfo(input.dtype).eps if eps is None else eps
        normed = input * torch.rsqrt(input.pow(2).mean(axes, keepdim=True) + small)
        return normed if weight is None else normed * weight

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if func in (torch.rms_norm, torch.nn.functional.rms_norm):
            return self.rms_norm(*args, **kwargs)
        if func is _DEEPCOPY and not isinstance(args[0], Wide):
            with torch.utils._python_dispatch._disable_current_modes():
                copied = widened(func(*args, **kwargs))
            args[1][id(args[0])] = copied
            return copied
        if func is torch.tensor and args and not isinstance(args[0], Tensor) and len(args) == 1:
            dtype = kwargs.get("dtype") or torch.tensor(args[0], device="cpu").dtype
            if dtype in NARROW and not any(isinstance(leaf, Tensor) for leaf in tree_flatten(args[0])[0]):
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
    packet = getattr(torch.ops.aten, base[:-1], None)
    found = [getattr(packet, name) for name in packet.overloads()] if packet else []
    # The overload of the same name first: `pow_.Scalar` is `pow.Tensor_Scalar`, and `pow.Scalar` takes a number first.
    found.sort(key=lambda one: one._overloadname != func._overloadname)
    return next((one for one in found if _takes(one) == _takes(func)), None)


def _takes(func: Any) -> list[str]:
    """The types of an operation's arguments."""
    return [str(argument.type) for argument in func._schema.arguments]


def _run(rounding: Rounding, func: Any, args: Any, kwargs: Any) -> Any:
    """One operation on the values held."""
    known = _known(func)
    if known.draws:
        return _drawn(func, args, kwargs)
    said = _said(args, kwargs)
    if said is None:
        return _made(rounding, known.name, func, args, kwargs)
    opened = _unwrapped if said == torch.float64 else functools.partial(_opened, rounding)
    wide_args = [_each(value, opened) for value in args]
    wide_kwargs = {key: _each(value, opened) for key, value in kwargs.items()}
    if said == torch.float64:
        return func(*wide_args, **wide_kwargs)
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
    # A cast errs where it goes to fewer bits.
    narrows = known.name == "_to_copy" and args[0].is_floating_point() and UNIT[args[0].dtype] < UNIT[said]
    if rounding.run and (not known.exact or narrows):
        out = erred(rounding, known.name, out, said, wide_args, wide_kwargs, func)
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
        made = [function(item) for item in value]
        return made if isinstance(value, list) else tuple(made)
    return function(value)


def _unwrapped(leaf: Any) -> Any:
    return leaf.held if isinstance(leaf, Wide) else leaf


def _wrapped(tensor: Any, said: torch.dtype) -> Any:
    if not isinstance(tensor, Tensor) or tensor.dtype != torch.float64 or isinstance(tensor, Wide):
        return tensor
    return Wide(tensor, said)


def _said(args: Any, kwargs: Any) -> torch.dtype | None:
    """The dtype that the program would have seen; None where nothing floating goes in."""
    asked: torch.dtype | None = None
    promoted: dict[bool, torch.dtype] = {}  # of tensors with dimensions, and of those without
    for value in (*args, *kwargs.values()):
        for leaf in value if isinstance(value, (list, tuple)) else (value,):
            if isinstance(leaf, torch.dtype):
                asked = leaf
            elif isinstance(leaf, Tensor) and (dtype := leaf.dtype).is_floating_point:
                kind = leaf.dim() > 0
                known = promoted.get(kind, dtype)
                promoted[kind] = dtype if known == dtype else torch.promote_types(known, dtype)
    found = promoted.get(True) or promoted.get(False)
    if asked == torch.float64 or (asked in NARROW and found is not None):
        return asked
    return found


def _opened(rounding: Rounding, leaf: Any) -> Any:
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
        out = erred(rounding, name, out, said, args, kwargs, func)
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
