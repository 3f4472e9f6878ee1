"""Epochs and evaluation: which batches, in which order, and what is made of their numbers."""

from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn

from parity.mistakes.mistake import Diff, Mistake, Subject, Tries, program
from parity.mistakes.rules import Stepped
from parity.reference.program import Reference, TorchBatch

Batches = list[TorchBatch]


def _size(batch: TorchBatch) -> int:
    return next(len(tensor) for tensor in batch.values() if tensor.ndim)


def _is_short(subject: Subject) -> bool:
    sizes = [next(len(array) for array in batch.values() if array.ndim) for batch in subject.reference.batches]
    return sizes[-1] < sizes[0]


def _trained(
    change: Callable[[Any, Any, Batches, Any, Callable[..., Tensor]], Tensor],
    values: tuple[Any, ...] = (None,),
    when: Callable[[Subject], bool] = lambda subject: True,
) -> Tries:
    """An epoch that does something else: `change(module, optimizer, batches, value, train_epoch)`."""

    def rewrite(reference: Reference, value: Any) -> Reference:
        own = reference.train_epoch
        assert own is not None
        return replace(
            reference, train_epoch=lambda module, optimizer, given: change(module, optimizer, given, value, own)
        )

    return program(
        rewrite,
        values,
        place="the epoch",
        when=lambda subject: subject.reference.train_epoch is not None and when(subject),
    )


def _evaluated(
    change: Callable[[Any, Batches, Any, Callable[..., Mapping[str, Any]]], Mapping[str, Any]],
    values: tuple[Any, ...] = (None,),
    when: Callable[[Subject], bool] = lambda subject: True,
) -> Tries:
    """An evaluation that does something else: `change(module, batches, value, evaluate)`."""

    def rewrite(reference: Reference, value: Any) -> Reference:
        own = reference.evaluate
        assert own is not None
        return replace(reference, evaluate=lambda module, given: change(module, given, value, own))

    return program(
        rewrite,
        values,
        place="the evaluation",
        when=lambda subject: subject.reference.evaluate is not None and when(subject),
    )


def _full(given: Batches) -> Batches:
    return [batch for batch in given if _size(batch) == _size(given[0])]


def _padded(given: Batches, value: str) -> Batches:
    """The last batch with examples added: zeros, its own again, or those of the first."""
    size, short = _size(given[0]), _size(given[-1])

    def filled(name: str, tensor: Tensor) -> Tensor:
        if not tensor.ndim or len(tensor) != short or short == size:
            return tensor
        if value == "zeros":
            return torch.cat([tensor, torch.zeros_like(given[0][name])[: size - short]])
        if value == "its last example":
            return torch.cat([tensor, *[tensor[-1:]] * (size - short)])
        more = given[0][name] if value == "the first batch's examples" else torch.cat([tensor] * -(-size // short))
        return torch.cat([tensor, more[: size - short]])

    return [*given[:-1], {name: filled(name, tensor) for name, tensor in given[-1].items()}]


FILLINGS = ("zeros", "its own examples", "its last example", "the first batch's examples")
ORDERS: dict[str, Callable[[Batches], Batches]] = {
    "the other way round": lambda given: given[::-1],
    "with the last first": lambda given: [given[-1], *given[:-1]],
    "with the first last": lambda given: [*given[1:], given[0]],
}


def _last_update_lost(module: Any, optimizer: Any, given: Batches, value: Any, own: Callable[..., Tensor]) -> Tensor:
    def do(stepped: Stepped) -> None:
        if stepped.count < len(given):
            stepped.inner.step()

    return own(module, Stepped(optimizer, do), given)


def _in_order(reference: Reference, _: Any) -> Reference:
    """The losses after the updates: those of the same batches once more."""
    own = reference.train_epoch
    assert own is not None

    def train_epoch(module: Any, optimizer: torch.optim.Optimizer, given: Batches) -> Tensor:
        after: list[Tensor] = []

        def do(stepped: Stepped) -> None:
            stepped.inner.step()
            after.append(reference.loss(module, given[stepped.count - 1]))

        own(module, Stepped(optimizer, do), given)
        return torch.stack(after)

    return replace(reference, train_epoch=train_epoch)


def _reset(module: Any, optimizer: Any, given: Batches, value: Any, own: Callable[..., Tensor]) -> Tensor:
    """The optimizer begins anew with every batch."""

    def do(stepped: Stepped) -> None:
        stepped.inner.state.clear()
        stepped.inner.step()

    return own(module, Stepped(optimizer, do), given)


def _averaged(module: Any, given: Batches, value: Any, own: Callable[..., Mapping[str, Any]]) -> dict[str, Any]:
    """Every number as the mean of the batches' own, each batch alike or by its size."""
    said = [own(module, [batch]) for batch in given]
    weights = [1.0 if value == "alike" else float(_size(batch)) for batch in given]
    return {
        name: sum(weight * one[name] for weight, one in zip(weights, said, strict=True)) / sum(weights)
        for name in said[0]
    }


def _in_training_mode(module: Any, given: Batches, value: Any, own: Callable[..., Mapping[str, Any]]) -> Any:
    parts = [part for part in module.modules() if isinstance(part, nn.Module)]
    module.train()
    for part in parts:
        object.__setattr__(part, "train", lambda mode=True, part=part: part)
        object.__setattr__(part, "eval", lambda part=part: part)
    try:
        return own(module, given)
    finally:
        for part in parts:
            for name in ("train", "eval"):
                object.__delattr__(part, name)


MISTAKES = (
    Mistake(
        "E001",
        "short-batch-dropped",
        "the last batch of {place} is not trained on where it is short",
        "`drop_remainder=True`, or `len(data) // batch_size` steps, keep shapes static for jit and lose the remainder "
        "of every epoch. Data sets of round numbers have none. Where losses are compared their number differs, too.",
        (Diff("", "steps = -(-len(images) // BATCH)", "steps = len(images) // BATCH"),),
        ("flax#262", "tensorflow documentation: Dataset.batch, drop_remainder"),
        _trained(lambda module, optimizer, given, _, own: own(module, optimizer, _full(given)), when=_is_short),
    ),
    Mistake(
        "E002",
        "short-batch-padded",
        "the last batch of {place} is filled up with {value}, which count",
        "Static shapes again: a batch that is padded for jit needs a mask in its loss, or what was added is trained "
        "on.",
        (Diff("", "loss = jnp.sum(losses * mask) / jnp.sum(mask)", "loss = jnp.mean(losses)"),),
        ("flax#262", "flax documentation: full eval"),
        _trained(
            lambda module, optimizer, given, value, own: own(module, optimizer, _padded(given, value)),
            FILLINGS,
            _is_short,
        ),
    ),
    Mistake(
        "E003",
        "batches-in-another-order",
        "the batches of {place} come {value}",
        "A loader that shuffles by itself, a permutation that is drawn again, an iterator that was advanced by a peek. "
        "Orders that are drawn at random are caught, but not named.",
        (Diff("", "for batch in batches:", "for batch in rng.permutation(batches):"),),
        ("torch documentation: DataLoader, shuffle",),
        _trained(
            lambda module, optimizer, given, value, own: own(module, optimizer, ORDERS[value](given)), tuple(ORDERS)
        ),
    ),
    Mistake(
        "E004",
        "last-update-lost",
        "the update of the last batch of {place} is lost",
        "A scan that returns the carry from before its last step, a checkpoint that is taken before the update, a loop "
        "that is one short: everything but the final parameters is right.",
        (
            Diff(
                "",
                "params, losses = jax.lax.scan(step, params, batches)",
                "params, losses = jax.lax.scan(step, params, batches[:-1])",
            ),
        ),
        ("sd-jax#6", "jax documentation: lax.scan"),
        _trained(_last_update_lost),
    ),
    Mistake(
        "E005",
        "loss-after-update",
        "the losses of {place} are computed after the update, the reference's before it",
        "`value_and_grad` gives the loss from before the update, at no cost. A loss that is computed once more with "
        "the new parameters is lower, and twice as dear; training is the same.",
        (
            Diff(
                "",
                "loss, grads = jax.value_and_grad(loss_fn)(params, batch)",
                "grads = jax.grad(loss_fn)(params, batch)\n    params = update(params, grads)\n"
                "    loss = loss_fn(params, batch)",
            ),
        ),
        ("jax documentation: value_and_grad", "spd#699"),
        program(_in_order, place="the epoch", when=lambda subject: subject.reference.train_epoch is not None),
    ),
    Mistake(
        "E006",
        "running-mean-of-losses",
        "the losses of {place} are means over all steps so far",
        "Progress bars show a running mean, and it is what gets logged. Curves are smoother and late.",
        (Diff("", "losses.append(loss)", "losses.append((sum(losses_so_far) + loss) / step)"),),
        ("keras documentation: metrics are averaged over an epoch",),
        _trained(
            lambda module, optimizer, given, _, own: (
                (losses := own(module, optimizer, given)).cumsum(0)
                / torch.arange(1, len(losses) + 1, dtype=losses.dtype)
            )
        ),
    ),
    Mistake(
        "E007",
        "optimizer-state-reset",
        "the optimizer of {place} begins anew with every batch",
        "`optimizer.init(params)` within the loop: moments and momentum are those of a first step for ever.",
        (
            Diff(
                "",
                "opt_state = optimizer.init(params)\nfor batch in batches:",
                "for batch in batches:\n    opt_state = optimizer.init(params)",
            ),
        ),
        ("sd-jax#5", "optax documentation: GradientTransformation.init"),
        _trained(_reset),
    ),
    Mistake(
        "E008",
        "mean-of-batch-means",
        "the numbers of {place} are means of the batches' means, each weighing {value}; the reference's are not",
        "The mean over batches is the mean over examples only where batches are of one size. Examples of a short last "
        "batch weigh more; the error is small, constant, and looks like a slightly different model.",
        (
            Diff(
                "",
                "accuracy = sum(correct) / len(labels)",
                "accuracy = jnp.mean(jnp.array([batch_accuracy(batch) for batch in batches]))",
            ),
        ),
        ("flax#262", "flax#877", "pytorch/xla#1052"),
        _evaluated(_averaged, ("alike", "as many as its examples"), _is_short),
    ),
    Mistake(
        "E009",
        "evaluated-in-training-mode",
        "{place} is run in training mode",
        "`train=True` is the default of many flax modules, and `.eval()` has no counterpart: batch normalisation takes "
        "the statistics of the test batch, dropout goes on.",
        (
            Diff(
                "", "logits = model.apply(variables, x, train=False)", "logits = model.apply(variables, x, train=True)"
            ),
        ),
        ("flax documentation: BatchNorm, use_running_average",),
        _evaluated(_in_training_mode),
    ),
    Mistake(
        "E010",
        "evaluation-drops-short-batch",
        "{place} leaves the short last batch out",
        "The loader of training, which drops the remainder, is used for evaluation, too. With 10 000 test examples and "
        "batches of 128 it is 16 of them that are never looked at.",
        (Diff("", "batches(test, drop_remainder=False)", "batches(test, drop_remainder=True)"),),
        ("flax documentation: full eval",),
        _evaluated(lambda module, given, _, own: own(module, _full(given)), when=_is_short),
    ),
    Mistake(
        "E011",
        "evaluation-counts-padding",
        "{place} counts what the short last batch is filled up with: {value}",
        "Batches that are padded to one shape for jit need a mask in every metric.",
        (Diff("", "correct = jnp.sum((predicted == labels) & mask)", "correct = jnp.sum(predicted == labels)"),),
        ("algoperf#924", "flax documentation: full eval"),
        _evaluated(lambda module, given, value, own: own(module, _padded(given, value)), FILLINGS, _is_short),
    ),
    Mistake(
        "E012",
        "last-batch-for-all",
        "{place} reports {value} batch alone",
        "A variable of the loop survives it: what is reported is what was computed last, or first, not the sum.",
        (Diff("", "total += correct\nreport(total)", "total = correct\nreport(total)"),),
        ("algoperf#318",),
        _evaluated(
            lambda module, given, value, own: own(module, given[-1:] if value == "the last" else given[:1]),
            ("the last", "the first"),
        ),
    ),
    Mistake(
        "E013",
        "schedule-stepped-per-epoch",
        "the schedule of an epoch is stepped once, the reference's after every update",
        "A schedule in optax counts updates; a torch loop may step it by the epoch. Between two epochs one is a "
        "staircase, the other a slope. It is caught in an epoch's updates, but not named there, for an epoch's "
        "schedule is the program's own affair; where the reference has its `scheduler`, `schedule-not-followed` names "
        "it.",
        (Diff("", "optax.adam(schedule)", "optax.adam(lambda count: schedule(count // steps_per_epoch))"),),
        ("mlx#1623",),
    ),
    Mistake(
        "E014",
        "average-not-evaluated",
        "the parameters themselves are evaluated, the reference evaluates their moving average",
        "An average of parameters (EMA, SWA, schedule-free optimizers) is kept beside them and has to be passed to the "
        "evaluation. Training agrees to the last digit. It is caught in the numbers of the evaluation, but not named, "
        "for where a program keeps its average is its own affair.",
        (Diff("", "evaluate(state.ema_params, test)", "evaluate(state.params, test)"),),
        ("algoperf#809",),
    ),
    Mistake(
        "E015",
        "accuracy-at-ties",
        "equal logits are counted as another class",
        "torch.argmax and jnp.argmax both take the first of equal values, top-k and sorting do not promise to; "
        "networks in bfloat16 have ties all the time. It is caught where logits tie, but not named.",
        (Diff("", "predicted = jnp.argmax(logits, axis=-1)", "predicted = jnp.argsort(logits, axis=-1)[..., -1]"),),
        ("torch documentation: argmax",),
    ),
)
