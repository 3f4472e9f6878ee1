"""Evaluation: in which mode, of what, and what is made of the batches' numbers."""

from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any

from torch import nn

from parity.mistakes.epochs.batches import FILLINGS, Batches, full_batches, has_short, padded, size_of
from parity.mistakes.mistake import Diff, Mistake, Subject, Tries
from parity.mistakes.tries import program
from parity.reference.program import Reference


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


def _averaged(module: Any, given: Batches, value: Any, own: Callable[..., Mapping[str, Any]]) -> dict[str, Any]:
    """Every number as the mean of the batches' own, each batch alike or by its size."""
    said = [own(module, [batch]) for batch in given]
    weights = [1.0 if value == "alike" else float(size_of(batch)) for batch in given]
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
        _evaluated(_averaged, ("alike", "as many as its examples"), has_short),
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
        _evaluated(lambda module, given, _, own: own(module, full_batches(given)), when=has_short),
    ),
    Mistake(
        "E011",
        "evaluation-counts-padding",
        "{place} counts what the short last batch is filled up with: {value}",
        "Batches that are padded to one shape for jit need a mask in every metric.",
        (Diff("", "correct = jnp.sum((predicted == labels) & mask)", "correct = jnp.sum(predicted == labels)"),),
        ("algoperf#924", "flax documentation: full eval"),
        _evaluated(lambda module, given, value, own: own(module, padded(given, value)), FILLINGS, has_short),
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
