"""When a schedule moves: not at all, a step early or late, from zero."""

import warnings
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import torch
from torch.optim import lr_scheduler

from parity.mistakes.mistake import Diff, Mistake, Subject, Try
from parity.mistakes.optimizers.schedules.rates import Rates, is_schedule, rates_of, tabled
from parity.mistakes.tries import program, several
from parity.reference.program import Reference
from parity.reference.rewrite import Rewrite


def _is_scheduled(subject: Subject) -> bool:
    return subject.reference.scheduler is not None


def _rates(subject: Subject) -> Rates:
    try:
        return rates_of(subject.reference, subject.module) if _is_scheduled(subject) else []
    except Exception:  # a schedule that wants more than a step: a metric, say
        return []


def _changes(subject: Subject) -> bool:
    rates = _rates(subject)
    return any(one != rates[0] for one in rates)


def _constant(subject: Subject) -> Iterator[Try]:
    """The first group's rate stays what it is, and the others' in proportion."""
    rates = _rates(subject)
    if not rates or not any(one != rates[0] for one in rates):
        return
    group = subject.reference.optimizer(subject.module).param_groups[0]
    values = tuple(dict.fromkeys((float(group["lr"]), rates[0][0], max(one[0] for one in rates))))

    def rewrite(value: float) -> Rewrite:
        return tabled(lambda own: [[value * rate / own[0][0] for rate in own[0]]])

    yield Try("the optimizer", rewrite, tuple(value for value in values if value), "log", "by step")


def _shifted(value: int) -> Rewrite:
    return tabled(lambda own: [own[min(max(at + value, 0), len(own) - 1)] for at in range(len(own))])


def _ahead(reference: Reference, value: int) -> Reference:
    """The schedule of the momentum is ahead, too."""
    make = reference.scheduler
    assert make is not None

    def scheduler(optimizer: torch.optim.Optimizer) -> Any:
        own = make(optimizer)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            for _ in range(value):
                own.step()
        return own

    return replace(reference, scheduler=scheduler)


def _peak(rates: Rates) -> int:
    """How long the first group's rate rises from the start."""
    steps = range(1, len(rates))
    return next((at - 1 for at in steps if not rates[at][0] > rates[at - 1][0]), len(rates) - 1)


def _rises(subject: Subject) -> bool:
    rates = _rates(subject)
    return bool(rates) and rates[0][0] > 0 and _peak(rates) > 0


def _from_zero(value: str) -> Rewrite:
    """The rise begins with 0: a step later, or steeper."""

    def change(own: Rates) -> Rates:
        peak = _peak(own)
        later = [[0.0] * len(own[0]), *own[:peak]]
        steeper = [
            [high * (rate - low) / (high - low) for rate, low, high in zip(rates, own[0], own[peak], strict=True)]
            for rates in own[: peak + 1]
        ]
        return [*(later if value == "later" else steeper), *own[peak + 1 :]]

    return tabled(change)


MISTAKES = (
    Mistake(
        "O044",
        "schedule-not-followed",
        "the learning rate stays {value}, the reference's changes from step to step",
        "There is no schedule, or it is stepped by the epoch where the reference steps it after every update, or its "
        "count is not kept. The first steps agree wherever a schedule begins with its base rate.",
        (
            Diff("transformer", "optax.adamw(learning_rate, ", "optax.adamw(2e-3, "),
            Diff("mlp", "lambda step: 0.1 * 0.8 ** (step // 2)", "0.1"),
            Diff("convnet", "optax.adam(learning_rate)", "optax.adam(3e-3)"),
            Diff("rnn", "lambda step: 2e-3 * 0.9**step", "2e-3"),
            Diff("unet", "optax.scale_by_learning_rate(learning_rate)", "optax.scale_by_learning_rate(0.02)"),
            Diff("decoder", "learning_rate=one_cycle(3e-3 / 25, 3e-3, 3e-3 / 25 / 1e4)", "learning_rate=3e-3"),
            Diff(
                "regression",
                "optax.adamax(lambda step: learning_rate * (0.25 + 0.75 * jnp.minimum(step / 3.0, 1.0)))",
                "optax.adamax(learning_rate)",
            ),
            Diff("transformer", "optax.adamw(learning_rate, ", "optax.adamw(lambda step: learning_rate(step // 5), "),
        ),
        ("mlx#1623",),
        _constant,
    ),
    Mistake(
        "O045",
        "schedule-shifted",
        "the schedule is {value} steps ahead of the reference's (negative: behind)",
        "optax calls a schedule with the number of updates before this one, torch's schedulers move after the update, "
        "and hand-written loops count from 1. In a plot of the learning rate one step is invisible.",
        (
            Diff("mlp", "0.8 ** (step // 2)", "0.8 ** ((step + 1) // 2)"),
            Diff("convnet", "(step >= 2).astype(int) + (step >= 4)", "(step > 2).astype(int) + (step > 4)"),
            Diff("transformer", "optax.adamw(learning_rate, ", "optax.adamw(lambda step: learning_rate(step + 1), "),
            Diff("rnn", "2e-3 * 0.9**step", "2e-3 * 0.9 ** (step + 1)"),
            Diff(
                "unet",
                "optax.scale_by_learning_rate(learning_rate)",
                "optax.scale_by_learning_rate(lambda step: learning_rate(step + 1))",
            ),
            Diff("regression", "jnp.minimum(step / 3.0, 1.0)", "jnp.minimum((step + 1) / 3.0, 1.0)"),
            Diff(
                "decoder",
                "learning_rate=one_cycle(3e-3 / 25, 3e-3, 3e-3 / 25 / 1e4)",
                "learning_rate=lambda step: one_cycle(3e-3 / 25, 3e-3, 3e-3 / 25 / 1e4)(step + 1)",
            ),
            Diff("decoder", "rising = between(start, peak, step /", "rising = between(start, peak, (step + 1) /"),
        ),
        ("optax documentation: scale_by_schedule", "linhaowei1/NLPDL-2025Fall#13"),
        several(
            program(
                lambda reference, value: _shifted(value)(reference), (1, -1, 2, -2), place="the schedule", when=_changes
            ),
            program(_ahead, (1, 2), place="the schedule", when=is_schedule(lr_scheduler.OneCycleLR)),
        ),
    ),
    Mistake(
        "O046",
        "warm-up-from-zero",
        "the warm-up begins with a learning rate of 0, the reference's does not ({value})",
        "optax.warmup schedules begin at `init_value`, 0 by default, and a warm-up of step/steps does so, too: the "
        "first update moves nothing but the moments.",
        (
            Diff("transformer", "(step + 1) * (1 / WARMUP_STEPS), cosine", "step * (1 / WARMUP_STEPS), cosine"),
            Diff("regression", "(0.25 + 0.75 * jnp.minimum(step / 3.0, 1.0))", "jnp.minimum(step / 3.0, 1.0)"),
        ),
        ("google-research/bert#1293", "optax documentation: warmup_cosine_decay_schedule"),
        program(
            lambda reference, value: _from_zero(value)(reference),
            ("later", "steeper"),
            place="the schedule",
            when=_rises,
        ),
    ),
)
