"""What a loss is summed over, and what the sum is divided by."""

from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import Any

from torch import Tensor

from parity.mistakes.losses.criteria import MEANS, has_indices, is_ignored, is_mean
from parity.mistakes.mistake import Diff, Mistake, Subject, Tries, Try
from parity.mistakes.tries import argument, calls, several
from parity.reference.program import Reference, TorchBatch
from parity.reference.rewrite import Call, Edit, edited, places


def batched(functions: str, change: Callable[[Call, int], Any], when: Callable[[Call], bool] = is_mean) -> Tries:
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
    counted = (~is_ignored(call)).reshape(size, -1).to(losses.dtype)
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
    yield from calls(MEANS, change, (full,), when=is_mean)(subject)


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
            when=lambda call: is_mean(call) and has_indices(call) and bool(is_ignored(call).any()),
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
            lambda call, value: call.run(target=call["target"].masked_fill(is_ignored(call), value), ignore_index=-100),
            (0,),
            when=lambda call: has_indices(call) and bool(is_ignored(call).any()),
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
            lambda call: is_mean(call) and call["reduction"] != "batchmean" and call["target"].ndim > 1,
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
            lambda call: is_mean(call) and has_indices(call) and bool(is_ignored(call).any()),
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
)
