"""Cross-entropy: its label smoothing, and probabilities in place of logits."""

import math
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

from parity.mistakes.losses.criteria import class_axis, has_indices, is_ignored, is_mean
from parity.mistakes.mistake import Diff, Mistake
from parity.mistakes.tries import calls, several
from parity.reference.rewrite import Call


def _classes(call: Call) -> int:
    return int(call["input"].shape[1 if call["input"].ndim > 1 else 0])


def _smoothed(call: Call, value: str) -> Tensor:
    """Smoothing whose constant is taken off, as flax's language models do."""
    share, classes = call["label_smoothing"], _classes(call)
    low = share / (classes - 1) if value == "K - 1" else share / classes
    high = 1 - share if value == "K - 1" else 1 - share + low
    constant = -(high * math.log(high) + (classes - 1) * low * math.log(low))
    loss: Tensor = call.run(label_smoothing=low * classes) - constant
    return loss


def _smoothing_counts_ignored(call: Call, value: str) -> Tensor:
    ignored, share = is_ignored(call), call["label_smoothing"]
    counted = (~ignored).sum()
    exact = call.run(label_smoothing=0.0)
    uniform = -functional.log_softmax(call["input"], class_axis(call)).mean(class_axis(call)).sum()
    loss: Tensor = (1 - share) * exact + share * uniform / (ignored.numel() if value == "all" else counted)
    return loss


def _log_of_probability(call: Call, value: float) -> Tensor:
    logs = torch.log(functional.softmax(call["input"], class_axis(call)) + value)
    share, ignored = call["label_smoothing"] or 0.0, is_ignored(call)
    exact = functional.nll_loss(
        logs,
        call["target"],
        call["weight"],
        ignore_index=-100 if call["ignore_index"] is None else call["ignore_index"],
    )
    if not share:
        return exact
    uniform = -(logs.mean(class_axis(call)) * (~ignored)).sum() / (~ignored).sum()
    return (1 - share) * exact + share * uniform


def _of_probabilities(call: Call) -> Any:
    values, told = call["input"], {} if call["reduction"] is None else {"reduction": call["reduction"]}
    if call.site.function == "cross_entropy":
        logs = (values / values.sum(class_axis(call), keepdim=True)).clamp(1e-7, 1 - 1e-7).log()
        if call["target"].is_floating_point():
            return -(call["target"] * logs).sum(class_axis(call)).mean()
        return functional.nll_loss(logs, call["target"], weight=call["weight"], **told)
    return functional.binary_cross_entropy(values.clamp(1e-7, 1 - 1e-7), call["target"], weight=call["weight"], **told)


MISTAKES = (
    Mistake(
        "C007",
        "label-smoothing-over-others",
        "labels at {place} are smoothed over the other classes; the reference smooths over all of them",
        "The papers' formula gives ε/(K-1) to each wrong class and 1-ε to the right one; torch and optax.smooth_labels "
        "give ε/K to all and 1-ε+ε/K to the right one. With many classes the difference is small enough to be taken "
        "for rounding.",
        (
            Diff(
                "mlp",
                'targets = optax.smooth_labels(jax.nn.one_hot(batch["labels"], CLASSES, dtype=logits.dtype), 0.1)',
                'one_hot = jax.nn.one_hot(batch["labels"], CLASSES, dtype=logits.dtype)\n'
                "    targets = one_hot * 0.9 + (1 - one_hot) * (0.1 / (CLASSES - 1))",
            ),
            Diff(
                "transformer",
                "targets = optax.smooth_labels(jax.nn.one_hot(labels, VOCABULARY, dtype=logits.dtype), 0.1)",
                "one_hot = jax.nn.one_hot(labels, VOCABULARY, dtype=logits.dtype)\n"
                "    targets = one_hot * 0.9 + (1 - one_hot) * (0.1 / (VOCABULARY - 1))",
            ),
        ),
        ("torch documentation: CrossEntropyLoss, label_smoothing",),
        calls(
            "cross_entropy",
            lambda call, _: call.run(label_smoothing=call["label_smoothing"] * _classes(call) / (_classes(call) - 1)),
            when=lambda call: bool(call["label_smoothing"]),
        ),
    ),
    Mistake(
        "C008",
        "label-smoothing",
        "the labels at {place} are smoothed by {value}, the reference's by {was}",
        "Smoothing is one argument of torch's criterion and easily overlooked: in optax labels have to be smoothed by "
        'hand before the loss. Accuracy hardly changes without it, the loss is simply "better".',
        (
            Diff(
                "mlp",
                'optax.smooth_labels(jax.nn.one_hot(batch["labels"], CLASSES, dtype=logits.dtype), 0.1)',
                'jax.nn.one_hot(batch["labels"], CLASSES, dtype=logits.dtype)',
            ),
            Diff(
                "transformer",
                "optax.smooth_labels(jax.nn.one_hot(labels, VOCABULARY, dtype=logits.dtype), 0.1)",
                "jax.nn.one_hot(labels, VOCABULARY, dtype=logits.dtype)",
            ),
            Diff("mlp", "CLASSES, dtype=logits.dtype), 0.1)", "CLASSES, dtype=logits.dtype), 0.13)"),
            Diff(
                "convnet",
                'optax.softmax_cross_entropy_with_integer_labels(logits, batch["labels"])',
                "optax.softmax_cross_entropy(logits, optax.smooth_labels("
                'jax.nn.one_hot(batch["labels"], CLASSES, dtype=logits.dtype), 0.1))',
            ),
        ),
        ("torch documentation: CrossEntropyLoss, label_smoothing",),
        calls(
            "cross_entropy",
            lambda call, value: call.run(label_smoothing=value),
            (0.0, 0.1, 0.2, 0.05),
            "linear",
            was=lambda call: call["label_smoothing"] or 0.0,
        ),
    ),
    Mistake(
        "C009",
        "smoothing-entropy-subtracted",
        "the loss at {place} is that of labels smoothed by ε/({value}) without their entropy; the reference keeps it",
        "Flax's language models subtract the entropy of the smoothed labels, so that a perfect prediction costs "
        "nothing; a loss by Kullback and Leibler's divergence does so, too. Their gradients differ from torch's by "
        "nothing (K) or little (K - 1), but the reported loss is lower by a constant.",
        (
            Diff(
                "mlp",
                "return optax.softmax_cross_entropy(logits, targets).mean(), {}",
                "return optax.kl_divergence(jax.nn.log_softmax(logits), targets).mean(), {}",
            ),
            Diff(
                "transformer",
                "losses = optax.softmax_cross_entropy(logits, targets)",
                "losses = optax.kl_divergence(jax.nn.log_softmax(logits), targets)",
            ),
        ),
        ("flax examples: lm1b, compute_weighted_cross_entropy",),
        calls(
            "cross_entropy",
            _smoothed,
            ("K", "K - 1"),
            when=lambda call: bool(call["label_smoothing"]) and is_mean(call) and call["weight"] is None,
        ),
    ),
    Mistake(
        "C010",
        "smoothing-counts-ignored",
        "the smoothed part of the loss at {place} counts ignored positions and is divided by {value} of them",
        "A loss made of two parts, (1-ε) of the right class's and ε of the mean over classes, has to mask both. "
        "Padding that is smoothed, but not scored, draws its logits to the uniform distribution. At ε = 0 and without "
        "padding both agree.",
        (
            Diff(
                "transformer",
                "return jnp.sum(losses * counted) / jnp.sum(counted, dtype=logits.dtype), {}",
                "exact = optax.softmax_cross_entropy_with_integer_labels(logits, labels)\n"
                "    uniform = -jax.nn.log_softmax(logits).mean(axis=-1)\n"
                "    return 0.9 * jnp.sum(exact * counted) / jnp.sum(counted) + 0.1 * uniform.mean(), {}",
            ),
        ),
        ("torch#73205", "HF#5919"),
        calls(
            "cross_entropy",
            _smoothing_counts_ignored,
            ("all", "those that count"),
            when=lambda call: (
                bool(call["label_smoothing"])
                and is_mean(call)
                and call["weight"] is None
                and has_indices(call)
                and bool(is_ignored(call).any())
            ),
        ),
    ),
    Mistake(
        "C011",
        "probabilities-for-logits",
        "the loss at {place} is given probabilities where it expects logits",
        "`nn.CrossEntropyLoss` contains the softmax, some frameworks' cross-entropies do not: a network that ends in a "
        "softmax (or sigmoid) is normalised twice. It still learns, slowly, and its accuracy looks plausible.",
        (
            Diff(
                "convnet",
                'integer_labels(logits, batch["labels"])',
                'integer_labels(jax.nn.softmax(logits), batch["labels"])',
            ),
            Diff(
                "mlp",
                "return optax.softmax_cross_entropy(logits, targets).mean(), {}",
                "return optax.softmax_cross_entropy(jax.nn.softmax(logits), targets).mean(), {}",
            ),
            Diff(
                "transformer",
                "losses = optax.softmax_cross_entropy(logits, targets)",
                "losses = optax.softmax_cross_entropy(jax.nn.softmax(logits), targets)",
            ),
            Diff(
                "rnn",
                'integer_labels(logits, batch["labels"])',
                'integer_labels(jax.nn.softmax(logits), batch["labels"])',
            ),
            Diff("decoder", "integer_labels(logits[:, :-1]", "integer_labels(nn.softmax(logits[:, :-1])"),
            Diff(
                "regression",
                'event = weighted_cross_entropy(predicted["event"]',
                'event = weighted_cross_entropy(nn.sigmoid(predicted["event"])',
            ),
        ),
        ("torch documentation: CrossEntropyLoss expects unnormalized logits",),
        several(
            calls("cross_entropy", lambda call, _: call.run(input=functional.softmax(call["input"], class_axis(call)))),
            calls("binary_cross_entropy_with_logits", lambda call, _: call.run(input=torch.sigmoid(call["input"]))),
        ),
    ),
    Mistake(
        "C035",
        "logits-for-probabilities",
        "the loss at {place} takes logits for probabilities: it clips them to [1e-7, 1 - 1e-7] and takes the logarithm",
        "Keras's losses expect probabilities unless told `from_logits=True`, torch's and optax's expect logits. The "
        "loss is finite, for values are clipped, and most gradients are 0.",
        (
            Diff(
                "",
                "keras.losses.BinaryCrossentropy(from_logits=True)",
                "keras.losses.BinaryCrossentropy()",
            ),
        ),
        ("keras: BinaryCrossentropy, from_logits",),
        calls("cross_entropy binary_cross_entropy_with_logits", lambda call, _: _of_probabilities(call)),
    ),
    Mistake(
        "C012",
        "log-of-softmax-plus-epsilon",
        "the loss at {place} is the logarithm of a probability + {value}, the reference's is log-softmax",
        "`jnp.log(softmax(x) + 1e-7)` avoids the logarithm of zero, and with it the gradient of what is most wrong: a "
        "right class of probability below the epsilon is hardly corrected. On logits near zero it agrees to seven "
        "digits.",
        (
            Diff(
                "convnet",
                'optax.softmax_cross_entropy_with_integer_labels(logits, batch["labels"]).mean()',
                'jnp.mean(-jnp.log(jax.nn.softmax(logits)[jnp.arange(len(logits)), batch["labels"]] + 1e-7))',
            ),
            Diff(
                "mlp",
                "return optax.softmax_cross_entropy(logits, targets).mean(), {}",
                "return -jnp.sum(targets * jnp.log(jax.nn.softmax(logits) + 1e-8), axis=-1).mean(), {}",
            ),
            Diff(
                "rnn",
                'losses = optax.softmax_cross_entropy_with_integer_labels(logits, batch["labels"])',
                'losses = -jnp.log(jax.nn.softmax(logits)[jnp.arange(len(logits)), batch["labels"]] + 1e-6)',
            ),
            Diff(
                "transformer",
                "losses = optax.softmax_cross_entropy(logits, targets)",
                "losses = -jnp.sum(targets * jnp.log(jax.nn.softmax(logits) + 1e-5), axis=-1)",
            ),
        ),
        ("Keras documentation: backend.epsilon() is 1e-7",),
        calls(
            "cross_entropy",
            _log_of_probability,
            (1e-7, 1e-8, 1e-6, 1e-5, 1e-10, 1e-12),
            "log",
            when=lambda call: (
                is_mean(call) and has_indices(call) and not (call["label_smoothing"] and call["weight"] is not None)
            ),
        ),
    ),
)
