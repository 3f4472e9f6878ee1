"""Targets: classes shifted, labels not shifted, truth inverted."""

from typing import Any

import torch
from torch import Tensor

from parity.mistakes.inputs.entries import entry_as, is_ids
from parity.mistakes.mistake import Diff, Mistake
from parity.mistakes.tries import calls
from parity.reference.rewrite import Call


def _is_binary(entry: Tensor) -> bool:
    return entry.dtype.is_floating_point and bool(((entry == 0) | (entry == 1)).all()) and bool((entry == 1).any())


def _shifted_labels(call: Call, value: str) -> Any:
    """`one_hot` of what is no class is a row of zeros; a class that is looked up counts from the end."""
    logits, labels = call["input"], call["target"]
    count = logits.shape[1]
    shifted = labels + int(value[:2])
    if len(value) == 2:
        return call.run(target=shifted % count)
    targets = torch.nn.functional.one_hot(shifted.clamp(0, count - 1), count).to(logits.dtype)
    known = ((shifted >= 0) & (shifted < count)).to(logits.dtype)
    return call.run(target=targets * known[:, None])


def _has_classes(call: Call) -> bool:
    target = call["target"]
    return not target.dtype.is_floating_point and bool((target >= 0).all()) and call["input"].dim() == 2


def _part_of(call: Call, index: int) -> Any:
    given = list(call.arguments.values())[1]
    return given[index] if isinstance(given, tuple) and len(given) > index else None


def _is_next_token(call: Call) -> bool:
    values, part = next(iter(call.arguments.values())), _part_of(call, 1)
    return is_ids(values) and isinstance(part, slice) and (part.start, part.stop) == (1, None)


def _own_token(call: Call) -> Any:
    return next(iter(call.arguments.values()))[:, :-1]


MISTAKES = (
    Mistake(
        "D008",
        "classes-shifted",
        "the classes that {place} is given are shifted by {value} in the port",
        "Files count classes from 1, some have a background as class 0. `one_hot` of what is no class is a row of "
        "zeros, and the loss of such an example nothing, or what smoothing leaves.",
        (
            Diff(
                "convnet",
                'integer_labels(logits, batch["labels"])',
                'integer_labels(logits, batch["labels"] - 1)',
            ),
            Diff("mlp", 'jax.nn.one_hot(batch["labels"], CLASSES', 'jax.nn.one_hot(batch["labels"] - 1, CLASSES'),
        ),
        ("jax: nn.one_hot",),
        calls(
            "cross_entropy",
            _shifted_labels,
            ("-1", "+1", "-1 (those outside have none)", "+1 (those outside have none)"),
            when=_has_classes,
        ),
    ),
    Mistake(
        "D009",
        "labels-not-shifted",
        "{place} has the token itself to predict in the port, in the reference the next one",
        "A language model's labels are its inputs one step later. Some libraries shift inside of the loss and some "
        "want it done before. A model that is to predict what it sees gets a loss near zero in no time.",
        (Diff("decoder", 'batch["tokens"][:, 1:]', 'batch["tokens"][:, :-1]'),),
        ("transformers: labels are shifted inside the model",),
        calls("getitem", lambda call, _: _own_token(call), when=_is_next_token),
    ),
    Mistake(
        "D010",
        "targets-inverted",
        "{place} has 0 and 1 exchanged in the port",
        "Which of two classes is the positive one is a convention of the data; inverted masks are the same mistake.",
        (
            Diff(
                "regression",
                'weighted_cross_entropy(predicted["event"], batch["event"])',
                'weighted_cross_entropy(predicted["event"], 1 - batch["event"])',
            ),
        ),
        ("torch: binary_cross_entropy_with_logits",),
        entry_as(lambda entry, _: 1 - entry, _is_binary),
    ),
)
