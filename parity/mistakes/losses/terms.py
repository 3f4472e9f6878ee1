"""Terms of a loss: what each counts, and those that the reference does not have."""

from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from parity.mistakes.losses.criteria import MEANS, class_axis, has_indices, is_ignored, is_mean
from parity.mistakes.mistake import Diff, Mistake, Subject
from parity.mistakes.tries import calls, program
from parity.reference.program import Reference, TorchBatch
from parity.reference.rewrite import Call


def _with_z_loss(call: Call, value: float) -> Any:
    ignored = is_ignored(call)
    squared = torch.logsumexp(call["input"], class_axis(call)) ** 2
    return call.run() + value * (squared * (~ignored)).sum() / (~ignored).sum()


def _decay_in_loss(reference: Reference, value: float) -> Reference:
    def loss(module: Any, batch: TorchBatch) -> Tensor:
        optimizer = reference.optimizer(module)
        total = reference.loss(module, batch)
        for group in optimizer.param_groups:
            if group.get("weight_decay"):
                squares = sum((param * param).sum() for param in group["params"])
                total = total + value * group["weight_decay"] * squares
        return total

    return replace(reference, loss=loss)


def _decays(subject: Subject) -> bool:
    return any(group.get("weight_decay") for group in subject.optimizer.param_groups)


MISTAKES = (
    Mistake(
        "C023",
        "loss-term-weight",
        "the loss at {place} counts {value} times what it does in the reference",
        "One of several losses is missing (0), weighs otherwise, or was averaged with the others; or the one loss is "
        "scaled, by the number of devices or of accumulated batches. All curves look right in shape.",
        (
            Diff("unet", "0.5 * jnp.mean(jnp.abs(error))", "jnp.mean(jnp.abs(error))"),
            Diff("unet", 'return pixels + 0.25 * jnp.mean((shrunk - batch["images"]) ** 2), {}', "return pixels, {}"),
            Diff(
                "regression",
                "return amount + event + mixture + distance, batch_stats",
                "return amount + event + 0.3 * mixture + distance, batch_stats",
            ),
            Diff(
                "regression",
                "return amount + event + mixture + distance, batch_stats",
                "return amount + mixture + distance, batch_stats",
            ),
            Diff(
                "mlp",
                "return optax.softmax_cross_entropy(logits, targets).mean(), {}",
                "return optax.softmax_cross_entropy(logits, targets).mean() / 8, {}",
            ),
        ),
        ("algoperf#924", "algoperf#272"),
        calls(MEANS, lambda call, value: call.run() * value, (0.0, 0.1, 2.0, 0.25), "linear", lambda call: 1.0),
    ),
    Mistake(
        "C024",
        "z-loss-added",
        "the loss at {place} has {value} × the mean of log²Z added, the reference's has none",
        "T5X and PaLM add a small multiple of the squared logarithm of the partition function, and code that is taken "
        "from them does so silently. It is a thousandth of the loss.",
        (
            Diff(
                "decoder",
                'return optax.softmax_cross_entropy_with_integer_labels(logits[:, :-1], batch["tokens"][:, 1:])'
                ".mean(), {}",
                'losses = optax.softmax_cross_entropy_with_integer_labels(logits[:, :-1], batch["tokens"][:, 1:])\n'
                "    return jnp.mean(losses + 1e-4 * jax.nn.logsumexp(logits[:, :-1], axis=-1) ** 2), {}",
            ),
            Diff(
                "transformer",
                "losses = optax.softmax_cross_entropy(logits, targets)",
                "losses = optax.softmax_cross_entropy(logits, targets)\n"
                "    losses += 3e-4 * jax.nn.logsumexp(logits, axis=-1) ** 2",
            ),
        ),
        ("t5x documentation: cross_entropy_with_logits, z_loss",),
        calls(
            "cross_entropy",
            _with_z_loss,
            (1e-4, 1e-3),
            "log",
            lambda call: 0.0,
            lambda call: is_mean(call) and has_indices(call) and call["weight"] is None,
        ),
    ),
    Mistake(
        "C027",
        "decay-in-loss",
        "the loss contains {value} × weight decay × the squares of the parameters; the reference's does not",
        "An L2 penalty in the loss has the gradient of torch's `weight_decay`, if it is ½λ‖w‖², and of twice that if "
        "the half is forgotten. With AdamW it is something else altogether, and the loss that is reported is higher.",
        (
            Diff(
                "mlp",
                "return optax.softmax_cross_entropy(logits, targets).mean(), {}",
                'penalty = sum(jnp.vdot(p, p) for p in jax.tree.leaves(variables["params"]))\n'
                "    return optax.softmax_cross_entropy(logits, targets).mean() + 0.5 * 5e-4 * penalty, {}",
            ),
        ),
        ("optax#417",),
        program(_decay_in_loss, (0.5, 1.0), place="the loss", when=_decays),
    ),
)
