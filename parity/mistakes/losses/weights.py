"""Weights of examples and classes: missing, on the others, not normalised."""

import torch

from parity.mistakes.losses.criteria import has_indices, is_ignored, is_mean
from parity.mistakes.mistake import Diff, Mistake
from parity.mistakes.tries import calls

MISTAKES = (
    Mistake(
        "C019",
        "positive-weight",
        "positive examples weigh {value} at {place}, in the reference {was}",
        "optax.sigmoid_binary_cross_entropy has no `pos_weight`; it has to be written by hand.",
        (
            Diff("regression", "-(POSITIVE_WEIGHT * targets *", "-(targets *"),
            Diff("regression", "-(POSITIVE_WEIGHT * targets *", "-(2.5 * targets *"),
        ),
        ("torch documentation: BCEWithLogitsLoss, pos_weight",),
        calls(
            "binary_cross_entropy_with_logits",
            lambda call, value: call.run(pos_weight=torch.full_like(call["pos_weight"], value)),
            (1.0, 2.0, 5.0),
            "linear",
            lambda call: float(call["pos_weight"]) if call["pos_weight"].numel() == 1 else "one for each class",
            lambda call: call["pos_weight"] is not None,
        ),
    ),
    Mistake(
        "C020",
        "positive-weight-on-negatives",
        "the weight of positive examples at {place} is given to the negative ones",
        "Written by hand, the two halves of the binary cross-entropy are easily confused.",
        (
            Diff(
                "regression",
                "(POSITIVE_WEIGHT * targets * nn.log_sigmoid(logits) + (1 - targets) * nn.log_sigmoid(-logits))",
                "(targets * nn.log_sigmoid(logits) + POSITIVE_WEIGHT * (1 - targets) * nn.log_sigmoid(-logits))",
            ),
        ),
        ("torch documentation: BCEWithLogitsLoss, pos_weight",),
        calls(
            "binary_cross_entropy_with_logits",
            lambda call, _: call.run(input=-call["input"], target=1 - call["target"]),
            when=lambda call: call["pos_weight"] is not None,
        ),
    ),
    Mistake(
        "C021",
        "class-weights-missing",
        "the loss at {place} does not weigh the classes, the reference's does",
        "`weight=` of torch's criterion has no counterpart in optax's losses. Accuracy hardly tells; rare classes do.",
        (Diff("rnn", "return jnp.sum(weights * losses) / jnp.sum(weights), {}", "return jnp.mean(losses), {}"),),
        ("torch documentation: CrossEntropyLoss, weight",),
        calls(
            "cross_entropy nll_loss",
            lambda call, _: call.run(weight=None),
            when=lambda call: call["weight"] is not None,
        ),
    ),
    Mistake(
        "C022",
        "class-weights-not-normalised",
        "the weighted loss at {place} is divided by the number of examples, the reference's by the sum of their "
        "weights",
        "torch's mean of a weighted cross-entropy divides by the weights of the batch's labels, which differ from "
        "batch to batch. `jnp.mean(weights * losses)` is the natural thing to write. Where weights average 1 it nearly "
        "agrees.",
        (
            Diff(
                "rnn",
                "return jnp.sum(weights * losses) / jnp.sum(weights), {}",
                "return jnp.mean(weights * losses), {}",
            ),
        ),
        ("torch documentation: CrossEntropyLoss, reduction='mean'",),
        calls(
            "cross_entropy nll_loss",
            lambda call, _: call.run(reduction="sum") / (~is_ignored(call)).sum(),
            when=lambda call: call["weight"] is not None and is_mean(call) and has_indices(call),
        ),
    ),
)
