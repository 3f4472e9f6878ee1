"""Optimizers that step in another way than torch's."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor

from parity.mistakes.tries import optimized
from parity.reference.rewrite import Rewrite

Group = dict[str, Any]


class Stepped(torch.optim.Optimizer):
    """Another optimizer, with the same groups, that steps as it is told to."""

    def __init__(self, inner: torch.optim.Optimizer, do: Callable[["Stepped"], None]) -> None:
        super().__init__(inner.param_groups, inner.defaults)
        self.inner, self.do, self.count = inner, do, 0

    @torch.no_grad()
    def step(self, closure: Any = None) -> None:  # type: ignore[override]
        self.count += 1
        self.do(self)

    def params(self) -> Iterator[tuple[Tensor, Group]]:
        """Every parameter that has a gradient, with its group."""
        for group in self.param_groups:
            for param in group["params"]:
                if param.grad is not None:
                    yield param, group


def innermost(optimizer: torch.optim.Optimizer) -> torch.optim.Optimizer:
    """torch's own one."""
    return innermost(optimizer.inner) if isinstance(optimizer, Stepped) else optimizer


def stepped(do: Callable[[Stepped], None]) -> Rewrite:
    """A reference whose optimizer steps in another way."""
    return optimized(lambda optimizer: Stepped(optimizer, do))


@contextmanager
def changed(optimizer: torch.optim.Optimizer, change: Callable[[Group], Group]) -> Iterator[None]:
    """Other settings, for one step."""
    kept = [dict(group) for group in optimizer.param_groups]
    try:
        for group in optimizer.param_groups:
            group.update(change(group))
        yield
    finally:
        for group, before in zip(optimizer.param_groups, kept, strict=True):
            group.update(before)
