"""A reference without chance: dropout off, or everything kept and scaled as if some had been dropped."""

from collections.abc import Callable
from typing import Any, Literal

import torch
from torch import nn
from torch.nn import functional
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode

Dropout = Literal["off", "kept"]

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
    """Nothing is dropped, and all of it is scaled by 1 / (1 - p): a dropout that sits elsewhere shows."""

    @classmethod
    def _should_skip_dynamo(cls) -> bool:
        return False  # as in rounding

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func._schema.name in ("aten::bernoulli_", "aten::bernoulli"):
            return args[0].fill_(1) if func._schema.name.endswith("_") else torch.ones_like(args[0])
        if func._schema.name == "aten::native_dropout":
            values, rate, train = args[:3]
            mask = torch.ones_like(values, dtype=torch.bool)
            return (values / (1 - rate) if train else values.clone()), mask
        return func(*args, **(kwargs or {}))
