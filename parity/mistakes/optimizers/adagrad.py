"""Adagrad: its epsilon, its start, and how its rate decays."""

from parity.mistakes.mistake import Diff, Mistake
from parity.mistakes.optimizers import rules
from parity.mistakes.optimizers.kinds import ADAGRAD, IN_ROOT, by_rule, is_kind
from parity.mistakes.optimizers.rules import ruled
from parity.mistakes.tries import program, setting

MISTAKES = (
    Mistake(
        "O029",
        "adagrad-start",
        "Adagrad's sum of squares starts from {value}, the reference's from {was}",
        "optax.adagrad starts from 0.1, as TensorFlow does, torch's from 0: the first steps are shorter.",
        (
            Diff(
                "unet", "jax.tree.map(jnp.zeros_like, params)", "jax.tree.map(lambda p: jnp.full_like(p, 0.1), params)"
            ),
            Diff(
                "unet", "jax.tree.map(jnp.zeros_like, params)", "jax.tree.map(lambda p: jnp.full_like(p, 0.02), params)"
            ),
        ),
        ("optax documentation: adagrad, initial_accumulator_value",),
        program(
            lambda reference, value: ruled(rules.adagrad, initial_accumulator_value=value)(reference),
            (0.1, 1.0, 0.01),
            "linear",
            "the optimizer",
            0.0,
            is_kind(ADAGRAD),
        ),
    ),
    Mistake(
        "O030",
        "adagrad-epsilon-within-root",
        "Adagrad's epsilon is within the root, the reference's is added after it",
        "optax adds it within the root, torch after it.",
        (Diff("unet", "(jnp.sqrt(total) + epsilon)", "jnp.sqrt(total + epsilon)"),),
        ("optax documentation: scale_by_rss",),
        by_rule(rules.adagrad, ADAGRAD, **IN_ROOT),
    ),
    Mistake(
        "O031",
        "adagrad-rate-decay",
        "the decay of {place}'s rate with time is {value}, the reference's is {was}",
        "torch's Adagrad divides the rate by 1 + t · lr_decay, beside any schedule; optax's does not.",
        (
            Diff("unet", "rate = 1 / (1 + state.step * rate_decay)", "rate = 1"),
            Diff("unet", "scale_by_adagrad(rate_decay=0.05)", "scale_by_adagrad(rate_decay=0.07)"),
        ),
        ("torch documentation: Adagrad, lr_decay",),
        setting("lr_decay", (0.0, 0.01, 0.1), "linear"),
    ),
)
