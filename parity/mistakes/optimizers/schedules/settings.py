"""What a schedule of torch is made with: its factor, period, floor and start."""

import warnings
from collections.abc import Callable, Iterator
from typing import Any

from parity.mistakes.mistake import Diff, Mistake, Scale, Subject, Tries, Try
from parity.mistakes.optimizers.schedules.rates import arguments, rebuilt

PERIODS = ("step_size", "T_max", "total_iters", "T_0")


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


MISTAKES = (
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
)
