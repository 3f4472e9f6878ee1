"""The learning rates that a schedule gives, and schedules that give others."""

import inspect
import warnings
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import torch
from torch import nn

from parity.mistakes.mistake import Subject
from parity.reference.program import Reference
from parity.reference.rewrite import Rewrite

Rates = list[list[float]]
"""The learning rates of all groups, by step."""


class Tabled:
    """A schedule that gives other learning rates, and leaves the rest to the one that it stands for."""

    def __init__(self, inner: Any, optimizer: torch.optim.Optimizer, rates: Rates) -> None:
        self.inner, self.optimizer, self.rates, self.count = inner, optimizer, rates, 0
        self._set()

    def step(self) -> None:
        self.count += 1
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            self.inner.step()
        self._set()

    def _set(self) -> None:
        rates = self.rates[min(self.count, len(self.rates) - 1)]
        for group, rate in zip(self.optimizer.param_groups, rates, strict=True):
            group["lr"] = rate


def rates_of(reference: Reference, module: nn.Module, steps: int = 64) -> Rates:
    """The learning rates of a reference's first steps; all of them the first where nothing is scheduled."""
    optimizer = reference.optimizer(module)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        scheduler = reference.scheduler(optimizer) if reference.scheduler else None
        rates = []
        for _ in range(steps):
            rates.append([float(group["lr"]) for group in optimizer.param_groups])
            if scheduler is not None:
                scheduler.step()
    return rates


def tabled(change: Callable[[Rates], Rates]) -> Rewrite:
    """A reference with other learning rates, made of its own."""

    def rewrite(reference: Reference) -> Reference:
        make = reference.scheduler
        assert make is not None
        rates: list[Rates] = []

        def scheduler(optimizer: torch.optim.Optimizer) -> Tabled:
            if not rates:
                with torch.random.fork_rng(devices=[]):
                    rates.append(change(rates_of(reference, reference.module())))
            return Tabled(make(optimizer), optimizer, rates[0])

        return replace(reference, scheduler=scheduler)

    return rewrite


def rebuilt(**settings: Any) -> Rewrite:
    """A reference whose schedule, one of torch's, is made with other arguments."""

    def rewrite(reference: Reference) -> Reference:
        make = reference.scheduler
        assert make is not None

        def scheduler(optimizer: torch.optim.Optimizer) -> Any:
            own = make(optimizer)
            for group in optimizer.param_groups:
                group["lr"] = group.pop("initial_lr")
            return type(own)(optimizer, **arguments(own) | settings)

        return replace(reference, scheduler=scheduler)

    return rewrite


def arguments(scheduler: Any) -> dict[str, Any]:
    """What a schedule of torch was made with."""
    names = [name for name in inspect.signature(type(scheduler)).parameters if name not in ("optimizer", "last_epoch")]
    return {name: getattr(scheduler, name) for name in names if hasattr(scheduler, name)}


def is_schedule(kind: type) -> Callable[[Subject], bool]:
    def when(subject: Subject) -> bool:
        make = subject.reference.scheduler
        return make is not None and isinstance(make(subject.reference.optimizer(subject.module)), kind)

    return when
