"""What other libraries' optimizers of the same name do unless they are told otherwise."""

from typing import Any

import torch

from parity.mistakes.mistake import Diff, Mistake
from parity.mistakes.optimizers import rules
from parity.mistakes.optimizers.kinds import ADAM, by_rule, is_kind
from parity.mistakes.optimizers.rules import ruled
from parity.mistakes.tries import program, setting

AMSGRAD: dict[str, dict[str, Any]] = {
    "no largest mean of squares": {"amsgrad": False},
    "the largest mean of squares": {"amsgrad": True, "amsgrad_of_corrected": False},
    "the largest corrected mean of squares": {"amsgrad": True, "amsgrad_of_corrected": True},
}

MISTAKES = (
    Mistake(
        "O057",
        "amsgrad",
        "{place} keeps {value}",
        "torch's AMSGrad keeps the largest mean of squares and corrects it for the start from zero, optax.amsgrad "
        "keeps the largest of the corrected ones, mostly that of the first steps, and optax.adam keeps none.",
        (Diff("convnet", "optax.adam(learning_rate)", "optax.amsgrad(learning_rate)"),),
        ("torch documentation: Adam, amsgrad", "optax documentation: scale_by_amsgrad"),
        program(
            lambda reference, value: ruled(rules.adam, **AMSGRAD[value])(reference),
            tuple(AMSGRAD),
            place="the optimizer",
            when=is_kind(ADAM),
        ),
    ),
    Mistake(
        "O058",
        "dampening",
        "the dampening of {place} is {value}, the reference's is {was}",
        "torch's SGD can take 1 - dampening of each gradient into its velocity, and takes the first one whole; optax "
        "has no such argument.",
        (
            Diff(
                "",
                "optax.scale_by_schedule(lambda step: jnp.where(step == 0, 1.0, 0.9)), optax.trace(decay=0.9)",
                "optax.trace(decay=0.9)",
            ),
        ),
        ("torch documentation: SGD, dampening",),
        setting("dampening", (0.0, 0.9, 0.1, 0.5), "linear"),
    ),
    Mistake(
        "O059",
        "nadam-momentum-constant",
        "{place} looks ahead by a constant beta1, the reference by one that grows with the steps",
        "torch's NAdam raises its momentum over the steps (`momentum_decay`), as its paper does; optax.nadam is "
        "Adam with Nesterov's look ahead.",
        (Diff("", "beta = b1 * (1 - 0.5 * 0.96 ** (step * 0.004))", "beta = b1"),),
        ("torch documentation: NAdam, momentum_decay", "optax documentation: nadam"),
        by_rule(rules.nadam, torch.optim.NAdam),
    ),
)
