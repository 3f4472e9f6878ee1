"""Kinds of optimizers: which one a program has, and another in its place."""

from collections.abc import Callable, Iterator
from typing import Any

import torch

from parity.mistakes.mistake import Diff, Mistake, Subject, Tries, Try
from parity.mistakes.optimizers import rules
from parity.mistakes.optimizers.groups import decay_of
from parity.mistakes.optimizers.mirrors import REGRESSION_RATE, TRANSFORMER
from parity.mistakes.optimizers.rules import Rule, ruled
from parity.mistakes.optimizers.stepped import innermost
from parity.mistakes.tries import program

ADAM, SGD, RMSPROP, ADAGRAD, ADAMAX = (
    *(torch.optim.Adam, torch.optim.SGD),
    *(torch.optim.RMSprop, torch.optim.Adagrad, torch.optim.Adamax),
)


def is_kind(*kinds: type) -> Callable[[Subject], bool]:
    return lambda subject: isinstance(innermost(subject.optimizer), kinds)


def by_rule(rule: Rule, *kinds: type, **settings: Any) -> Tries:
    """Optimizers of some kinds follow another rule."""
    return program(lambda reference, _: ruled(rule, **settings)(reference), place="the optimizer", when=is_kind(*kinds))


IN_ROOT = {"epsilon": "within the root"}
OPTAX_ADAGRAD = IN_ROOT | {"eps": 1e-7, "initial_accumulator_value": 0.1, "lr_decay": 0}

FAMILIES: dict[str, tuple[tuple[type, ...], Rule, dict[str, Any]]] = {
    "SGD": ((SGD,), lambda grad, state, group: grad, {}),
    "SGD with momentum 0.9": ((SGD,), rules.velocity, {"momentum": 0.9, "nesterov": False}),
    "Adam": ((ADAM,), rules.adam, {"betas": (0.9, 0.999), "eps": 1e-8}),
    "NAdam": ((torch.optim.NAdam,), rules.nadam, {"betas": (0.9, 0.999), "eps": 1e-8}),
    "Adamax": ((ADAMAX,), rules.adamax, {"betas": (0.9, 0.999), "eps": 1e-8}),
    "RMSprop": ((RMSPROP,), rules.rmsprop, IN_ROOT | {"alpha": 0.9, "eps": 1e-8, "momentum": 0}),
    "Adagrad": ((ADAGRAD,), rules.adagrad, OPTAX_ADAGRAD),
    "Lion": ((), rules.lion, {"betas": (0.9, 0.99), "decoupled_weight_decay": True}),
}


def _swapped(subject: Subject) -> Iterator[Try]:
    """Another optimizer, with optax's defaults; the decay is kept, apart from the gradient or in it, or dropped."""
    own = innermost(subject.optimizer)
    decays: dict[str, dict[str, Any]] = {"": {}}
    if decay_of(subject):
        decays = {
            "": {"decoupled_weight_decay": False},
            ", decay apart from the gradient": {"decoupled_weight_decay": True},
            " without decay": {"weight_decay": 0.0},
        }
    rewrites = {
        name + words: ruled(rule, **settings | decay)
        for name, (kinds, rule, settings) in FAMILIES.items()
        if not isinstance(own, kinds)
        for words, decay in decays.items()
    }
    yield Try("the optimizer", lambda value: rewrites[value], tuple(rewrites), was=type(own).__name__)


MISTAKES = (
    Mistake(
        "O013",
        "other-optimizer",
        "the optimizer is {value}, the reference's {was}",
        "Adam is what one types without thinking. Both train; curves differ, and are blamed on seeds.",
        (
            Diff(
                "mlp",
                "optax.sgd(lambda step: 0.1 * 0.8 ** (step // 2), momentum=0.9, nesterov=True)",
                "optax.adam(lambda step: 0.1 * 0.8 ** (step // 2))",
            ),
            Diff("convnet", "optax.adam(learning_rate)", "optax.sgd(learning_rate)"),
            Diff("transformer", TRANSFORMER, "    optax.lion(learning_rate, weight_decay=0.05, mask=decays),"),
            Diff(
                "rnn",
                "    optax.scale_by_rms(decay=0.9, eps=1e-6, eps_in_sqrt=False),\n    optax.trace(decay=0.8),",
                "    optax.scale_by_adam(),",
            ),
            Diff("unet", "    scale_by_adagrad(rate_decay=0.05),", "    optax.scale_by_rms(),"),
            Diff("regression", f"optax.adamax({REGRESSION_RATE})", f"optax.adam({REGRESSION_RATE})"),
            Diff("convnet", "optax.adam(learning_rate)", "optax.nadam(learning_rate)"),
        ),
        ("mlx#1542", "algoperf#925"),
        _swapped,
    ),
)
