"""A reference without chance: dropout off, or all kept and scaled, or every random number drawn as its median."""

from collections.abc import Callable
from typing import Any, Literal

import torch
from torch import nn
from torch.nn import functional
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode

Dropout = Literal["off", "kept", "median"]

_HALF, _ZERO = 0.5 - 2.0**-23, -2.2411e-7
"""What a uniform and a normal number in float32 are, drawn with `parity.port.median_key`."""

_FUNCTIONS = frozenset(
    getattr(place, name)
    for place in (functional, torch)
    for name in ("dropout", "dropout1d", "dropout2d", "dropout3d", "alpha_dropout", "feature_alpha_dropout")
    if hasattr(place, name)
)


def without_chance(make: Callable[[], nn.Module], dropout: Dropout) -> Callable[[], nn.Module]:
    """The same modules, whose own dropout rates are 0 where dropout is off."""

    def module() -> nn.Module:
        made = make()
        if dropout == "off":
            for part in made.modules():
                if isinstance(part, nn.modules.dropout._DropoutNd):
                    part.p = 0.0
                elif isinstance(part, nn.MultiheadAttention | nn.RNNBase):
                    part.dropout = 0.0
        return made

    return module


class Off(TorchFunctionMode):
    """Dropout that a program calls itself returns what it is given."""

    was_used = False

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        attends = func is functional.scaled_dot_product_attention
        self.was_used |= func in _FUNCTIONS or attends
        if func in _FUNCTIONS:
            return args[0] if args else kwargs["input"]
        if attends and len(args) > 4:
            args = (*args[:4], 0.0, *args[5:])
        elif attends:
            kwargs = kwargs | {"dropout_p": 0.0}
        return func(*args, **kwargs)


class Kept(TorchDispatchMode):
    """Nothing is dropped, and all of it is scaled by 1 / (1 - p): a dropout that sits elsewhere shows. Other random
    numbers are drawn as their medians."""

    most = 1.0
    """The highest rate at which a dropout still keeps all."""

    @classmethod
    def _should_skip_dynamo(cls) -> bool:
        return False  # as in rounding

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs, name = kwargs or {}, func._schema.name
        if name == "aten::native_dropout":
            values, rate, train = args[:3]
            mask = torch.full_like(values, rate <= self.most, dtype=torch.bool)
            return (values / (1 - rate) * mask if train and rate < 1 else values * (not train)), mask
        if name in ("aten::bernoulli", "aten::bernoulli_"):
            default = 0.5 if name.endswith("_") else args[0]  # a rate that is the default is not handed on
            kept = torch.as_tensor((args[1] if len(args) > 1 else default) >= 1 - self.most).expand(args[0].shape)
            return args[0].copy_(kept) if name.endswith("_") else kept.to(args[0].dtype)
        drawn = func(*args, **kwargs)
        if name in ("aten::rand", "aten::rand_like"):
            return drawn.fill_(_HALF)
        if name in ("aten::randn", "aten::randn_like"):
            return drawn.fill_(_ZERO)
        return drawn


class Median(Kept):
    """As `Kept`, but a dropout of more than a half drops everything: what it draws is just under a half."""

    most = 0.5


WITHOUT_CHANCE = {"off": Off, "kept": Kept, "median": Median}
