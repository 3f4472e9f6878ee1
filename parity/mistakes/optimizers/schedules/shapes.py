"""The shape of a schedule: stairs, lines, cycles, and the momentum that moves along."""

from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import torch
from torch.optim import lr_scheduler

from parity.mistakes.mistake import Diff, Mistake, Subject, Try
from parity.mistakes.optimizers.schedules.rates import Rates, is_schedule, tabled
from parity.mistakes.optimizers.stepped import Stepped
from parity.mistakes.tries import program
from parity.reference.program import Reference
from parity.reference.rewrite import Rewrite


def _smooth(reference: Reference, _: Any) -> Reference:
    """A staircase becomes a slope."""
    make = reference.scheduler
    assert make is not None
    stairs: list[Any] = []

    def change(own: Rates) -> Rates:
        gamma, size = stairs[0].gamma, stairs[0].step_size
        return [[rate * gamma ** (at / size) for rate in own[0]] for at in range(len(own))]

    def scheduler(optimizer: torch.optim.Optimizer) -> Any:
        stairs.append(make(optimizer))
        return stairs[-1]

    return tabled(change)(replace(reference, scheduler=scheduler))


def _linear(own: Rates) -> Rates:
    """From the first rate to where it rises again in a straight line, instead of half a cosine."""
    least = next((at for at in range(1, len(own) - 1) if own[at + 1][0] > own[at][0]), len(own) - 1)
    return [
        [first + (last - first) * min(1.0, at / least) for first, last in zip(own[0], own[least], strict=True)]
        for at in range(len(own))
    ]


def _later_phases(reference: Reference, _: Any) -> Reference:
    """optax's one-cycle counts intervals where torch's counts steps: every phase ends one later."""
    make = reference.scheduler
    assert make is not None

    def scheduler(optimizer: torch.optim.Optimizer) -> Any:
        own = make(optimizer)
        for phase in own._schedule_phases:
            phase["end_step"] += 1
        own.total_steps += 1
        return own

    return replace(reference, scheduler=scheduler)


def _cycled(subject: Subject) -> Iterator[Try]:
    """Momentum that a schedule moves stays what it was."""
    if not is_schedule(lr_scheduler.OneCycleLR)(subject):
        return
    make = subject.reference.scheduler
    assert make is not None
    optimizer = subject.reference.optimizer(subject.module)
    name = "betas" if "betas" in optimizer.param_groups[0] else "momentum"
    before = optimizer.param_groups[0][name]
    own = before[0] if name == "betas" else before

    def rewrite(value: float) -> Rewrite:
        def still(reference: Reference) -> Reference:
            def do(stepped: Stepped) -> None:
                for group in stepped.param_groups:
                    group[name] = (value, *group[name][1:]) if name == "betas" else value
                stepped.inner.step()

            return replace(reference, optimizer=lambda module: Stepped(reference.optimizer(module), do))

        return still

    yield Try("the optimizer", rewrite, tuple(dict.fromkeys((float(own), 0.9, 0.95, 0.85))), "linear", "by step")


MISTAKES = (
    Mistake(
        "O051",
        "schedule-without-stairs",
        "the learning rate falls at every step, the reference's in stairs",
        "optax.exponential_decay is smooth unless told `staircase=True`. Both have the same values at the end of a "
        "stair.",
        (Diff("mlp", "0.8 ** (step // 2)", "0.8 ** (0.5 * step)"),),
        ("optax documentation: exponential_decay, staircase", "mlx#1623"),
        program(_smooth, place="the schedule", when=is_schedule(lr_scheduler.StepLR)),
    ),
    Mistake(
        "O052",
        "schedule-linear",
        "the learning rate falls in a straight line, the reference's by half a cosine",
        "Both begin and end at the same rates and cross in the middle.",
        (
            Diff(
                "unet",
                "0.002 + 0.009 * (1 + jnp.cos(step * (jnp.pi / 12)))",
                "0.002 + 0.018 * (1 - step * (1 / 12))",
            ),
        ),
        ("optax documentation: linear_schedule",),
        program(
            lambda reference, _: tabled(_linear)(reference),
            place="the schedule",
            when=is_schedule(lr_scheduler.CosineAnnealingLR),
        ),
    ),
    Mistake(
        "O053",
        "one-cycle-ends-later",
        "each phase of the cycle ends one step later than the reference's",
        "torch's OneCycleLR reaches its peak at pct_start · steps - 1 and its end at steps - 1; optax's "
        "cosine_onecycle_schedule counts intervals, without the - 1.",
        (Diff("decoder", "peak_step: int = 9, last_step: int = 99", "peak_step: int = 10, last_step: int = 100"),),
        ("torch documentation: OneCycleLR", "optax documentation: cosine_onecycle_schedule"),
        program(_later_phases, place="the schedule", when=is_schedule(lr_scheduler.OneCycleLR)),
    ),
    Mistake(
        "O054",
        "momentum-not-cycled",
        "the momentum (or beta1) of {place} stays {value}, the reference's moves against the learning rate",
        "torch's OneCycleLR moves momentum, or Adam's beta1, between 0.95 and 0.85 unless told not to, which nobody "
        "knows who has not read its documentation to the end; a schedule of optax moves the learning rate alone.",
        (
            Diff("decoder", "        b1=one_cycle(0.95, 0.85, 0.95),\n", ""),
            Diff("decoder", "b1=one_cycle(0.95, 0.85, 0.95)", "b1=0.95"),
        ),
        ("torch documentation: OneCycleLR, cycle_momentum",),
        _cycled,
    ),
)
