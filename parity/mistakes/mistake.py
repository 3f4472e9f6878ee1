"""A mistake: bug, hypothesis, fix and documentation in one place."""

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any, Literal

import torch
from torch import nn

from parity.cases import Tensors
from parity.reference.program import Reference
from parity.reference.rewrite import Call, Rewrite, Site

Scale = Literal["log", "linear"]


@dataclass(frozen=True)
class Diff:
    """Two versions of a line or two of JAX, and a program that has the right one."""

    host: str
    """A folder of `tests/pairs/`, in whose `mirror.py` the right version stands once; "" where it only documents."""
    right: str
    wrong: str


@dataclass(frozen=True)
class Mistake:
    """What a port does in place of what the reference does."""

    code: str
    """By where it first shows: L layout, D data and draw, F forward, T training mode and statistics, C criterion and
    its gradient, O optimizer and schedule, E epoch and evaluation; three digits, never used again."""
    name: str
    """What is wrong: `layer-norm-epsilon`."""
    message: str
    """One sentence; `{place}`, `{value}` and `{was}` are the port's and the reference's."""
    why: str
    """A paragraph: why people fall into it, what it does, and why common checks miss it."""
    diffs: tuple[Diff, ...]
    """The first is shown to users."""
    sources: tuple[str, ...]
    """Where it happened to somebody: `flax#2993`; or the documentation that says how it is."""
    tries: "Tries | None" = None
    """How it is looked for; None where it can be caught, but not yet named."""
    rounds: bool = False
    """Whether it is equal in exact arithmetic, and loses digits."""


@dataclass(frozen=True)
class Try:
    """One experiment, or a family of them: the reference rewritten with a value."""

    place: str
    rewrite: Callable[[Any], Rewrite]
    values: tuple[Any, ...] = (None,)
    """Those that people choose; the reference's own is left out."""
    fit: Scale | None = None
    """How to search where none of them explains what is seen; None: not at all."""
    was: Any = None
    """The reference's value."""
    size: int = 1
    """How many places are changed."""


@dataclass(frozen=True)
class Subject:
    """A reference that is looked through for what a mistake could be in."""

    reference: Reference
    module: nn.Module
    """A fresh one."""
    calls: Mapping[Site, Call]
    """Every call of its loss and outputs on the first batch, with its arguments."""
    state: Tensors

    @cached_property
    def optimizer(self) -> torch.optim.Optimizer:
        """A fresh one of the module's."""
        return self.reference.optimizer(self.module)

    def where(self, sites: frozenset[Site], name: str) -> str:
        """A place in words: `layers.*.norm1 (program.py:31)`."""
        lines = sorted({site.line for site in self.calls if site in sites and site.line})
        return f"{name or 'the network'} ({', '.join(lines[:3])})" if lines else name or "the network"


Tries = Callable[[Subject], Iterable[Try]]
