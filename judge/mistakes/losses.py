"""Losses: what is summed, over what, with which weights; and what the gradient goes through."""

import math
from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

from ..reference.program import Reference, TorchBatch
from ..reference.rewrite import Call, Edit, edited, places
from .mistake import Diff, Mistake, Subject, Tries, Try, argument, calls, program, several

MEANS = "cross_entropy nll_loss binary_cross_entropy_with_logits mse_loss l1_loss smooth_l1_loss huber_loss kl_div"
ERRORS = "mse_loss l1_loss smooth_l1_loss huber_loss"
MODULES = "embedding linear"


def _is_mean(call: Call) -> bool:
    return call["reduction"] in (None, "mean", "batchmean") and call["size_average"] is None


def _has_indices(call: Call) -> bool:
    """Whether a cross-entropy's targets are classes, not their probabilities."""
    return not call["target"].is_floating_point()


def _ignored(call: Call) -> Tensor:
    index = -100 if call["ignore_index"] is None else call["ignore_index"]
    ignored: Tensor = call["target"] == index
    return ignored


def _classes(call: Call) -> int:
    return int(call["input"].shape[1 if call["input"].ndim > 1 else 0])


def _axis(call: Call) -> int:
    return 1 if call["input"].ndim > 1 else 0


def batched(functions: str, change: Callable[[Call, int], Any], when: Callable[[Call], bool] = _is_mean) -> Tries:
    """Calls of a loss do something else that depends on how many examples the batch has."""
    names = frozenset(functions.split())

    def tries(subject: Subject) -> Iterator[Try]:
        found = [site for site, call in subject.calls.items() if site.function in names and when(call)]
        for name, group in places(found):

            def rewrite(reference: Reference, group: Any = group) -> Reference:
                def loss(module: Any, batch: TorchBatch) -> Tensor:
                    size = next(len(tensor) for tensor in batch.values() if tensor.ndim)
                    changed = edited(Edit(group, lambda call: change(call, size)))(reference)
                    return changed.loss(module, batch)

                return replace(reference, loss=loss)

            yield Try(subject.where(group, name), lambda value, rewrite=rewrite: rewrite, size=len(group))  # type: ignore[misc]

    return tries


def _per_sequence(call: Call, size: int) -> Tensor:
    losses = call.run(reduction="none").reshape(size, -1)
    counted = (~_ignored(call)).reshape(size, -1).to(losses.dtype)
    mean: Tensor = (losses.sum(1) / counted.sum(1)).mean()
    return mean


def _fixed_size(subject: Subject) -> Iterator[Try]:
    """The mean over a constant number of examples: that of a full batch."""
    own = {site: call["target"].shape[0] for site, call in subject.calls.items() if "target" in call.arguments}

    def change(call: Call, value: Any) -> Any:
        full = next((count for site, count in own.items() if site == call.site), None)
        assert full is not None
        return call.run() * call["target"].shape[0] / full

    full = next(len(array) for array in subject.reference.batches[0].values() if array.ndim)
    yield from calls(MEANS, change, (full,), when=_is_mean)(subject)


def _smoothed(call: Call, value: str) -> Tensor:
    """Smoothing whose constant is taken off, as flax's language models do."""
    share, classes = call["label_smoothing"], _classes(call)
    low = share / (classes - 1) if value == "K - 1" else share / classes
    high = 1 - share if value == "K - 1" else 1 - share + low
    constant = -(high * math.log(high) + (classes - 1) * low * math.log(low))
    loss: Tensor = call.run(label_smoothing=low * classes) - constant
    return loss


def _smoothing_counts_ignored(call: Call, value: str) -> Tensor:
    ignored, share = _ignored(call), call["label_smoothing"]
    counted = (~ignored).sum()
    exact = call.run(label_smoothing=0.0)
    uniform = -functional.log_softmax(call["input"], _axis(call)).mean(_axis(call)).sum()
    loss: Tensor = (1 - share) * exact + share * uniform / (ignored.numel() if value == "all" else counted)
    return loss


def _log_of_probability(call: Call, value: float) -> Tensor:
    logs = torch.log(functional.softmax(call["input"], _axis(call)) + value)
    share, ignored = call["label_smoothing"] or 0.0, _ignored(call)
    exact = functional.nll_loss(
        logs,
        call["target"],
        call["weight"],
        ignore_index=-100 if call["ignore_index"] is None else call["ignore_index"],
    )
    if not share:
        return exact
    uniform = -(logs.mean(_axis(call)) * (~ignored)).sum() / (~ignored).sum()
    return (1 - share) * exact + share * uniform


def _with_z_loss(call: Call, value: float) -> Any:
    ignored = _ignored(call)
    squared = torch.logsumexp(call["input"], _axis(call)) ** 2
    return call.run() + value * (squared * (~ignored)).sum() / (~ignored).sum()


def _kl_swapped(call: Call, _: Any) -> Any:
    target = call["target"] if call["log_target"] else call["target"].log()
    return call.run(input=target, target=call["input"].exp(), log_target=False)


def _broadcast(call: Call, _: Any) -> Any:
    size = len(call["input"])
    return call.run(
        input=call["input"].unsqueeze(-1).expand(size, size), target=call["target"].unsqueeze(0).expand(size, size)
    )


def _other_loss(call: Call, value: str) -> Any:
    loss = getattr(functional, {"squared": "mse_loss", "absolute": "l1_loss"}.get(value, "huber_loss"))
    return loss(call["input"], call["target"], reduction=call["reduction"] or "mean")


def _loss_kind(call: Call) -> str:
    return {"mse_loss": "squared", "l1_loss": "absolute"}.get(call.site.function, "Huber's")


def _huber_swapped(call: Call, _: Any) -> Any:
    how, both = call["reduction"] or "mean", (call["input"], call["target"])
    if call.site.function == "huber_loss":
        return functional.smooth_l1_loss(*both, beta=_turn(call, "delta"), reduction=how)
    return functional.huber_loss(*both, delta=_turn(call, "beta"), reduction=how)


def _turn(call: Call, name: str) -> float:
    return 1.0 if call[name] is None else float(call[name])


def _slices(call: Call) -> tuple[Any, ...]:
    index = call["1"]
    return index if isinstance(index, tuple) else (index,)


def _is_shift(call: Call) -> bool:
    """`[:, :-1]` or `[:, 1:]`, outside of every module."""
    return call.site.module == "loss" and any(
        isinstance(one, slice) and (one.start, one.stop) in ((None, -1), (1, None)) for one in _slices(call)
    )


def _shifted(call: Call, value: str) -> Any:
    other = {
        "not": {(None, -1): slice(None), (1, None): slice(None)},
        "twice": {(None, -1): slice(None, -2), (1, None): slice(2, None)},
        "backwards": {(None, -1): slice(1, None), (1, None): slice(None, -1)},
    }[value]
    index = tuple(other.get((one.start, one.stop), one) if isinstance(one, slice) else one for one in _slices(call))
    return call.function(call["0"], index)


def _half_at_zero(call: Call, _: Any) -> Tensor:
    return torch.maximum(call["input"] if "input" in call.arguments else call["0"], torch.zeros(()))


def _tied(subject: Subject) -> Iterator[Try]:
    """One of the uses of a parameter that has several names is kept from the gradient."""
    named = list(subject.module.named_parameters(remove_duplicate=False))
    tied = {id(one) for name, one in named if any(one is other and name != also for also, other in named)}
    for function in MODULES.split():
        yield from calls(
            function,
            lambda call, _: call.run(weight=call["weight"].detach()),
            when=lambda call: id(call["weight"]) in tied,
        )(subject)


def _constant_statistics(call: Call, _: Any) -> Tensor:
    values = call["input"]
    axes = [axis for axis in range(values.ndim) if axis != 1]
    shape = [-1 if axis == 1 else 1 for axis in range(values.ndim)]
    with torch.no_grad():
        call.run()
        mean, var = values.mean(axes), values.var(axes, unbiased=False)
    eps = 1e-5 if call["eps"] is None else call["eps"]
    normal: Tensor = (values - mean.reshape(shape)) * torch.rsqrt(var + eps).reshape(shape)
    if call["weight"] is not None:
        normal = normal * call["weight"].reshape(shape) + call["bias"].reshape(shape)
    return normal


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
        "C001",
        "loss-summed",
        "the loss at {place} is a sum, the reference's a mean",
        "torch's losses take the mean unless told otherwise; optax's give one loss for every example, and what is made "
        "of them is up to the port. A sum has a gradient that is as many times too large as there are examples. Adam "
        "hides it almost wholly, for it divides the factor out again; clipping and SGD do not.",
        (
            Diff(
                "mlp",
                "return optax.softmax_cross_entropy(logits, targets).mean(), {}",
                "return optax.softmax_cross_entropy(logits, targets).sum(), {}",
            ),
            Diff(
                "convnet",
                'integer_labels(logits, batch["labels"]).mean()',
                'integer_labels(logits, batch["labels"]).sum()',
            ),
            Diff("decoder", 'batch["tokens"][:, 1:]).mean(), {}', 'batch["tokens"][:, 1:]).sum(), {}'),
            Diff(
                "transformer",
                "return jnp.sum(losses * counted) / jnp.sum(counted, dtype=logits.dtype), {}",
                "return jnp.sum(losses * counted), {}",
            ),
            Diff(
                "rnn", "return jnp.sum(weights * losses) / jnp.sum(weights), {}", "return jnp.sum(weights * losses), {}"
            ),
            Diff("unet", "pixels = jnp.mean(error**2)", "pixels = jnp.sum(error**2)"),
            Diff(
                "regression",
                'event = weighted_cross_entropy(predicted["event"], batch["event"]).mean()',
                'event = weighted_cross_entropy(predicted["event"], batch["event"]).sum()',
            ),
        ),
        ("algoperf#314",),
        several(
            argument(MEANS, "reduction", "mean", ("sum",)),
            calls(
                "mean",
                lambda call, _: call["input"].sum(),
                when=lambda call: call.site.module == "loss" and len(call.arguments) == 1,
            ),
        ),
    ),
    Mistake(
        "C002",
        "loss-averaged-over-ignored",
        "the loss at {place} is divided by the number of all positions, the reference's by those that count",
        "Positions that are ignored (padding, tokens that were not masked) add nothing to the sum, but `.mean()` "
        "counts them. The loss is too small by the share of ignored positions, which changes from batch to batch. "
        "Where all sequences of a test are of one length nothing shows.",
        (
            Diff(
                "transformer",
                "return jnp.sum(losses * counted) / jnp.sum(counted, dtype=logits.dtype), {}",
                "return jnp.mean(losses * counted), {}",
            ),
        ),
        ("algoperf#314", "bert-summarizer#41"),
        calls(
            "cross_entropy nll_loss",
            lambda call, _: call.run(reduction="sum") / call["target"].numel(),
            when=lambda call: _is_mean(call) and _has_indices(call) and bool(_ignored(call).any()),
        ),
    ),
    Mistake(
        "C003",
        "ignored-labels-counted",
        "positions that the reference ignores count at {place}, with label {value}",
        "optax has no `ignore_index`: a port has to replace the labels that are ignored by some class, for -100 is "
        "none, and then to mask their losses. Where the second half is forgotten the network is trained to predict "
        "class 0 at all padding. The loss falls quickly, which looks like success.",
        (
            Diff(
                "transformer",
                "return jnp.sum(losses * counted) / jnp.sum(counted, dtype=logits.dtype), {}",
                "return jnp.mean(losses), {}",
            ),
        ),
        ("HF#5919",),
        calls(
            "cross_entropy nll_loss",
            lambda call, value: call.run(target=call["target"].masked_fill(_ignored(call), value), ignore_index=-100),
            (0,),
            when=lambda call: _has_indices(call) and bool(_ignored(call).any()),
        ),
    ),
    Mistake(
        "C004",
        "loss-summed-over-each-example",
        "the loss at {place} is summed over each example and divided by the batch's size; the reference's is the mean",
        "`.sum(axis=-1).mean()` looks like a mean. The loss is as many times too large as an example has positions, "
        "pixels or outputs, and where those are masked the factor changes with the batch.",
        (
            Diff(
                "transformer",
                "return jnp.sum(losses * counted) / jnp.sum(counted, dtype=logits.dtype), {}",
                "return jnp.sum(losses * counted, axis=-1).mean(), {}",
            ),
            Diff("decoder", 'batch["tokens"][:, 1:]).mean(), {}', 'batch["tokens"][:, 1:]).sum(axis=-1).mean(), {}'),
            Diff("unet", "pixels = jnp.mean(error**2)", "pixels = jnp.sum(error**2, axis=(1, 2, 3)).mean()"),
        ),
        ("algoperf#314", "bert-summarizer#41"),
        batched(
            MEANS,
            lambda call, size: call.run(reduction="sum") / size,
            lambda call: _is_mean(call) and call["reduction"] != "batchmean",
        ),
    ),
    Mistake(
        "C005",
        "mean-of-means",
        "the loss at {place} is the mean of each sequence's mean, the reference's the mean over all positions",
        "Where sequences have as many positions that count, both are the same, and tests mostly have such. Else short "
        "sequences weigh more than long ones. The same happens with means over devices or micro-batches of unequal "
        "size.",
        (
            Diff(
                "transformer",
                "return jnp.sum(losses * counted) / jnp.sum(counted, dtype=logits.dtype), {}",
                "return jnp.mean(jnp.sum(losses * counted, axis=-1) / jnp.sum(counted, axis=-1)), {}",
            ),
        ),
        ("algoperf#272", "algoperf#314"),
        batched(
            "cross_entropy nll_loss",
            _per_sequence,
            lambda call: _is_mean(call) and _has_indices(call) and bool(_ignored(call).any()),
        ),
    ),
    Mistake(
        "C006",
        "mean-over-a-fixed-size",
        "the loss at {place} is divided by a full batch of {value}, the reference's by the batch that it has",
        "A constant batch size, `drop_remainder` that was later taken away, or a padded last batch: the sum is divided "
        "by what a full batch has. All full batches agree; only the short last one of every epoch has too small a "
        "gradient.",
        (
            Diff(
                "mlp",
                "return optax.softmax_cross_entropy(logits, targets).mean(), {}",
                "return optax.softmax_cross_entropy(logits, targets).sum() / 16, {}",
            ),
            Diff(
                "convnet",
                'integer_labels(logits, batch["labels"]).mean()',
                'integer_labels(logits, batch["labels"]).sum() / 12',
            ),
            Diff("decoder", 'batch["tokens"][:, 1:]).mean(), {}', 'batch["tokens"][:, 1:]).sum() / (8 * 9), {}'),
        ),
        ("flax#262", "algoperf#924"),
        _fixed_size,
    ),
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
            when=lambda call: bool(call["label_smoothing"]) and _is_mean(call) and call["weight"] is None,
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
                and _is_mean(call)
                and call["weight"] is None
                and _has_indices(call)
                and bool(_ignored(call).any())
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
            calls("cross_entropy", lambda call, _: call.run(input=functional.softmax(call["input"], _axis(call)))),
            calls("binary_cross_entropy_with_logits", lambda call, _: call.run(input=torch.sigmoid(call["input"]))),
        ),
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
                _is_mean(call) and _has_indices(call) and not (call["label_smoothing"] and call["weight"] is not None)
            ),
        ),
    ),
    Mistake(
        "C013",
        "half-of-the-square",
        "the squared error at {place} is halved",
        "optax.l2_loss is ½(x-y)², torch's mse_loss is (x-y)². Alone, Adam hides the factor; beside other losses it "
        "changes their balance.",
        (
            Diff("unet", "pixels = jnp.mean(error**2)", "pixels = optax.l2_loss(error).mean()"),
            Diff("unet", 'jnp.mean((shrunk - batch["images"]) ** 2)', 'optax.l2_loss(shrunk, batch["images"]).mean()'),
        ),
        ("optax documentation: l2_loss",),
        calls("mse_loss", lambda call, _: call.run() * 0.5),
    ),
    Mistake(
        "C014",
        "other-regression-loss",
        "the error at {place} is {value}, the reference's {was}",
        "The names are close (L1, L2, smooth L1, Huber), and the curves of the losses look alike.",
        (
            Diff("unet", "pixels = jnp.mean(error**2)", "pixels = jnp.mean(jnp.abs(error))"),
            Diff("unet", "0.5 * jnp.mean(jnp.abs(error))", "0.5 * optax.huber_loss(error).mean()"),
        ),
        ("torch documentation: L1Loss, MSELoss, HuberLoss",),
        calls(ERRORS, _other_loss, ("squared", "absolute", "Huber's"), was=_loss_kind),
    ),
    Mistake(
        "C015",
        "huber-delta",
        "the turn from square to line of the loss at {place} is at {value}, the reference's at {was}",
        "optax.huber_loss turns at 1 by default, as does torch's; papers use other values. Errors below both agree.",
        (
            Diff("regression", 'batch["amount"], delta=0.5)', 'batch["amount"])'),
            Diff("regression", 'batch["amount"], delta=0.5)', 'batch["amount"], delta=0.7)'),
        ),
        ("optax documentation: huber_loss",),
        several(
            argument("huber_loss", "delta", 1.0, (1.0, 0.1, 2.0), "log"),
            argument("smooth_l1_loss", "beta", 1.0, (1.0, 0.1, 0.11, 2.0), "log"),
        ),
    ),
    Mistake(
        "C016",
        "huber-for-smooth-l1",
        "the loss at {place} is not divided by its turning point, or is where the reference's is not",
        "torch's smooth_l1_loss is its huber_loss divided by beta. They are the same at 1, which is the default.",
        (
            Diff("regression", 'batch["amount"], delta=2.0).mean() / 2.0', 'batch["amount"], delta=2.0).mean()'),
            Diff("regression", 'batch["amount"], delta=0.5).mean()', 'batch["amount"], delta=0.5).mean() / 0.5'),
        ),
        ("torch documentation: SmoothL1Loss",),
        calls(
            "smooth_l1_loss huber_loss",
            _huber_swapped,
            when=lambda call: _turn(call, "delta" if call.site.function == "huber_loss" else "beta") != 1,
        ),
    ),
    Mistake(
        "C017",
        "divergence-swapped",
        "the arguments of the divergence at {place} are swapped",
        "torch's kl_div takes the prediction's logarithm first and the target second, and computes KL(target ‖ "
        "prediction); formulas and other libraries have the other order. Both are zero at the same place, so training "
        "goes somewhere sensible.",
        (
            Diff(
                "regression",
                'optax.kl_divergence(predicted["mixture"], batch["mixture"])',
                'optax.kl_divergence(jnp.log(batch["mixture"]), jnp.exp(predicted["mixture"]))',
            ),
        ),
        ("mjmjeong/InfoNeRF#10",),
        calls("kl_div", _kl_swapped),
    ),
    Mistake(
        "C018",
        "divergence-averaged-over-elements",
        "the divergence at {place} is reduced by {value}, the reference's by {was}",
        "torch's kl_div averages over all elements unless it is told `batchmean`, with a warning that nobody reads; "
        "optax.kl_divergence sums over the last axis. The factor is the number of classes.",
        (
            Diff(
                "regression",
                'optax.kl_divergence(predicted["mixture"], batch["mixture"]).mean()',
                'jnp.mean(batch["mixture"] * (jnp.log(batch["mixture"]) - predicted["mixture"]))',
            ),
        ),
        ("torch documentation: KLDivLoss, reduction",),
        argument("kl_div", "reduction", "mean", ("mean", "batchmean")),
    ),
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
            lambda call: float(call["pos_weight"]),
            lambda call: call["pos_weight"] is not None and call["pos_weight"].numel() == 1,
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
            lambda call, _: call.run(reduction="sum") / (~_ignored(call)).sum(),
            when=lambda call: call["weight"] is not None and _is_mean(call) and _has_indices(call),
        ),
    ),
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
            lambda call: _is_mean(call) and _has_indices(call) and call["weight"] is None,
        ),
    ),
    Mistake(
        "C025",
        "labels-shifted-otherwise",
        "predictions and labels are shifted against each other {value}; the reference shifts them by one",
        "Some models shift labels within, others leave it to the caller: done by both, or by none, the network learns "
        "to predict the token after next or to copy the one it sees. A copy is learnt at once, and its loss is "
        "wonderful.",
        (
            Diff("decoder", 'logits[:, :-1], batch["tokens"][:, 1:]', 'logits, batch["tokens"]'),
            Diff("decoder", 'logits[:, :-1], batch["tokens"][:, 1:]', 'logits[:, :-2], batch["tokens"][:, 2:]'),
            Diff("decoder", 'logits[:, :-1], batch["tokens"][:, 1:]', 'logits[:, 1:], batch["tokens"][:, :-1]'),
        ),
        ("transformers documentation: labels are shifted inside the model",),
        calls("getitem", _shifted, ("not", "twice", "backwards"), when=_is_shift),
    ),
    Mistake(
        "C026",
        "prediction-broadcast",
        "predictions (n, 1) meet targets (n,) at {place}: every one is compared with all",
        "The last layer's output has an axis of length 1 that the targets lack, and both NumPy and JAX broadcast "
        "without a word; torch warns. The network learns the mean of the targets.",
        (
            Diff(
                "regression",
                'optax.huber_loss(predicted["amount"], batch["amount"], delta=0.5)',
                'optax.huber_loss(predicted["amount"][:, None], batch["amount"], delta=0.5)',
            ),
            Diff(
                "regression",
                'weighted_cross_entropy(predicted["event"], batch["event"]).mean()',
                'weighted_cross_entropy(predicted["event"][:, None], batch["event"]).mean()',
            ),
        ),
        ("torch documentation: mse_loss warns of target sizes that differ",),
        calls(f"{ERRORS} binary_cross_entropy_with_logits", _broadcast, when=lambda call: call["input"].ndim == 1),
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
    Mistake(
        "C028",
        "half-gradient-at-zero",
        "the gradient of the rectifier at {place} is ½ where its input is 0, the reference's is 0",
        "`jnp.maximum(x, 0)` shares the gradient at a tie, jax.nn.relu and torch's relu have 0 there (torch.maximum "
        "has ½, too). Inputs are exactly 0 more often than one thinks: zero padding, zero biases, pixels of a black "
        "border.",
        (Diff("mlp", 'nn.relu(dense(WIDTH, name="fc1")(x))', 'jnp.maximum(dense(WIDTH, name="fc1")(x), 0)'),),
        ("jax#37821", "jax#2342", "torch#184572"),
        calls("relu", _half_at_zero),
    ),
    Mistake(
        "C029",
        "tied-gradient-once",
        "the gradient does not pass through {place}'s use of a weight that is used twice",
        "A tied embedding is one parameter with two uses, and its gradient the sum of both. A port that copies it, or "
        "stops the gradient of one use, trains a different network that starts the same.",
        (
            Diff(
                "transformer",
                'jnp.einsum("btd,vd->btv", x, embedding,',
                'jnp.einsum("btd,vd->btv", x, jax.lax.stop_gradient(embedding),',
            ),
            Diff("transformer", "x = embedding[tokens]", "x = jax.lax.stop_gradient(embedding)[tokens]"),
        ),
        ("flax documentation: nn.Embed, attend",),
        _tied,
    ),
    Mistake(
        "C030",
        "statistics-without-gradient",
        "the gradient does not pass through the mean and variance of {place}",
        "In training, batch normalisation is differentiated through its statistics, too. A port that computes them "
        "apart, or that normalises by the running ones, loses these terms: outputs and loss agree, the gradient does "
        "not.",
        (
            Diff(
                "convnet",
                "mean, var = x.mean(axes), x.var(axes)",
                "mean, var = jax.lax.stop_gradient((x.mean(axes), x.var(axes)))",
            ),
            Diff(
                "regression",
                "mean, var = x.mean(axis=0), x.var(axis=0)",
                "mean, var = jax.lax.stop_gradient((x.mean(axis=0), x.var(axis=0)))",
            ),
        ),
        ("jax documentation: lax.stop_gradient",),
        calls("batch_norm", _constant_statistics, when=lambda call: bool(call["training"])),
    ),
    Mistake(
        "C031",
        "gradient-not-stopped",
        "the gradient passes through {place}, where the reference detaches",
        "`.detach()` and `torch.no_grad()` leave no trace in the values: targets, teachers and straight-through "
        "estimators have to be wrapped in jax.lax.stop_gradient by hand. The loss agrees, the gradient has a term too "
        "many.",
        (Diff("", "target = jax.lax.stop_gradient(teacher(x))", "target = teacher(x)"),),
        ("jax documentation: lax.stop_gradient",),
        calls("detach", lambda call, _: call["0"]),
    ),
    Mistake(
        "C032",
        "padding-row-trained",
        "the padding's row of {place} gets a gradient, the reference's does not",
        "`padding_idx` of torch's embedding keeps the gradient from one row; flax's Embed has no such argument. Where "
        "what is read at padding never reaches the loss, both agree.",
        (Diff("", "table = table.at[PAD].set(jax.lax.stop_gradient(table[PAD]))", "table = table"),),
        ("torch documentation: Embedding, padding_idx",),
        calls(
            "embedding",
            lambda call, _: call.run(padding_idx=-1),
            when=lambda call: call["padding_idx"] not in (None, -1),
        ),
    ),
    Mistake(
        "C033",
        "loss-in-bfloat16",
        "the loss at {place} is computed in bfloat16",
        "Logits that come out of a bfloat16 network go into the log-softmax as they are, where the reference casts "
        "them first. Early in training it hardly matters; when predictions become confident the gradient of the right "
        "class is 0 or a whole unit in the last place. It is caught, but not named: a rewrite in exact arithmetic "
        "cannot round as XLA does.",
        (
            Diff(
                "convnet",
                'integer_labels(logits, batch["labels"]).mean()',
                'integer_labels(logits.astype(jnp.bfloat16), batch["labels"]).mean().astype(logits.dtype)',
            ),
            Diff(
                "decoder",
                'integer_labels(logits[:, :-1], batch["tokens"][:, 1:]).mean()',
                'integer_labels(logits[:, :-1].astype(jnp.bfloat16), batch["tokens"][:, 1:]).mean()'
                ".astype(logits.dtype)",
            ),
        ),
        ("flax#677",),
    ),
    Mistake(
        "C034",
        "gradient-of-a-norm-at-zero",
        "the gradient of a norm at zero is not a number",
        "torch defines the gradient of `.norm()` at 0 as 0, jnp.linalg.norm's is NaN, and `where` does not help, for "
        "the NaN of the branch not taken comes through: the argument has to be replaced before the root. It takes a "
        "row of zeros to see it. It is caught where it occurs, and told as what it is, a NaN.",
        (Diff("", "norm = jnp.sqrt(jnp.where(square > 0, square, 1.0)) * (square > 0)", "norm = jnp.linalg.norm(x)"),),
        ("jax#3058", "jax#21723", "torch#2775"),
    ),
)
