"""Schedules: the learning rate of every step."""

import warnings
from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import Any

import torch
from torch.optim import lr_scheduler

from ..reference.program import Reference
from ..reference.rewrite import Rewrite
from .mistake import Diff, Mistake, Scale, Subject, Tries, Try, program, several
from .rules import Rates, Stepped, arguments, rates_of, rebuilt, tabled

PERIODS = ("step_size", "T_max", "total_iters", "T_0")


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


def _argument(names: tuple[str, ...], values: Callable[[Any], tuple[Any, ...]], fit: Scale | None) -> Tries:
    """An argument of one of torch's schedules has another value."""

    def tries(subject: Subject) -> Iterator[Try]:
        make = subject.reference.scheduler
        if make is None:
            return
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                scheduler = make(subject.reference.optimizer(subject.module))
            own = arguments(scheduler)
        except Exception:  # a schedule of the user's own
            return
        for name in names:
            if name in own:
                was = own[name]
                others = tuple(value for value in values(was) if value != was)
                yield Try(
                    f"{type(scheduler).__name__}'s {name}",
                    lambda value, name=name: rebuilt(**{name: value}),  # type: ignore[misc]
                    others,
                    fit,
                    was,
                )

    return tries


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


def _is(kind: type) -> Callable[[Subject], bool]:
    def when(subject: Subject) -> bool:
        make = subject.reference.scheduler
        return make is not None and isinstance(make(subject.reference.optimizer(subject.module)), kind)

    return when


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
    if not _is(lr_scheduler.OneCycleLR)(subject):
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
            program(_ahead, (1, 2), place="the schedule", when=_is(lr_scheduler.OneCycleLR)),
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
    Mistake(
        "O047",
        "schedule-factor",
        "{place} is {value}, the reference's is {was}",
        "By what the learning rate is multiplied, at every step or now and then.",
        (
            Diff("mlp", "0.1 * 0.8 ** (step // 2)", "0.1 * 0.5 ** (step // 2)"),
            Diff("convnet", "return 3e-3 * 0.3 **", "return 3e-3 * 0.1 **"),
            Diff("rnn", "2e-3 * 0.9**step", "2e-3 * 0.97**step"),
        ),
        ("torch documentation: StepLR, gamma",),
        _argument(("gamma", "factor"), lambda was: (0.1, 0.5, 0.9, 0.95, 0.99), "log"),
    ),
    Mistake(
        "O048",
        "schedule-period",
        "{place} is {value}, the reference's is {was}",
        "Epochs for steps, steps - 1 for steps, half a period for a whole one. A cosine over count/steps reaches its "
        "floor one update later than one over count/(steps - 1).",
        (
            Diff("unet", "jnp.cos(step * (jnp.pi / 12))", "jnp.cos(step * (jnp.pi / 11))"),
            Diff("mlp", "0.8 ** (step // 2)", "0.8**step"),
            Diff("regression", "jnp.minimum(step / 3.0, 1.0)", "jnp.minimum(step / 2.0, 1.0)"),
            Diff("unet", "jnp.cos(step * (jnp.pi / 12))", "jnp.cos(step * (jnp.pi / 6))"),
        ),
        ("spd#642", "spd#644", "optax documentation: cosine_decay_schedule"),
        _argument(
            PERIODS,
            lambda was: (was - 1, was + 1, 2 * was, max(1, was // 2)) if was > 1 else (was + 1, 2 * was),
            None,
        ),
    ),
    Mistake(
        "O049",
        "schedule-floor",
        "{place} is {value}, the reference's is {was}",
        "optax gives the floor of a cosine as a share of the rate (`alpha`), torch as a rate (`eta_min`); by default "
        "both are 0. It shows at the end of a training.",
        (
            Diff("unet", "0.002 + 0.009 *", "0.01 *"),
            Diff("unet", "0.002 + 0.009 *", "0.004 + 0.008 *"),
        ),
        ("optax documentation: cosine_decay_schedule, alpha",),
        _argument(("eta_min", "end_factor"), lambda was: (0.0, 1e-5, 1e-4), "linear"),
    ),
    Mistake(
        "O050",
        "warm-up-start",
        "{place} is {value}, the reference's is {was}",
        "torch's LinearLR starts from a third of the rate unless told otherwise.",
        (
            Diff("regression", "0.25 + 0.75 * jnp", "1 / 3 + 2 / 3 * jnp"),
            Diff("regression", "0.25 + 0.75 * jnp", "0.1 + 0.9 * jnp"),
        ),
        ("torch documentation: LinearLR, start_factor",),
        _argument(("start_factor",), lambda was: (1 / 3, 0.1, 0.01, 0.5), "linear"),
    ),
    Mistake(
        "O051",
        "schedule-without-stairs",
        "the learning rate falls at every step, the reference's in stairs",
        "optax.exponential_decay is smooth unless told `staircase=True`. Both have the same values at the end of a "
        "stair.",
        (Diff("mlp", "0.8 ** (step // 2)", "0.8 ** (step / 2)"),),
        ("optax documentation: exponential_decay, staircase", "mlx#1623"),
        program(_smooth, place="the schedule", when=_is(lr_scheduler.StepLR)),
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
            when=_is(lr_scheduler.CosineAnnealingLR),
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
        program(_later_phases, place="the schedule", when=_is(lr_scheduler.OneCycleLR)),
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
