"""Entries of a batch: which they are, and others in their place."""

from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn

from parity.mistakes.mistake import Subject, Tries, Try
from parity.mistakes.tries import changed
from parity.reference.program import Reference
from parity.reference.rewrite import Rewrite

Change = Callable[[Tensor, Any], Tensor]


def entry_as(change: Change, when: Callable[[Tensor], bool], values: tuple[Any, ...] = (None,), **fit: Any) -> Tries:
    """An entry of the batch is another one: for the whole program, or for the network alone."""

    def tries(subject: Subject) -> Iterator[Try]:
        def into_network(value: Any) -> Rewrite:
            def given(module: nn.Module, arguments: Any, named: Any) -> Any:
                def other(entry: Any) -> Any:
                    return change(entry, value) if isinstance(entry, Tensor) and when(entry) else entry

                return tuple(map(other, arguments)), {name: other(entry) for name, entry in named.items()}

            return changed([""], lambda module: module.register_forward_pre_hook(given, with_kwargs=True))

        if any(when(torch.from_numpy(array)) for array in subject.reference.batches[0].values()):
            yield Try("what the network is given", into_network, values, **fit)
        for name, array in subject.reference.batches[0].items():
            if when(torch.from_numpy(array)):
                yield Try(
                    f"the batch's {name}",
                    lambda value, name=name: _batch_changed(name, lambda entry: change(entry, value)),  # type: ignore[misc]
                    values,
                    **fit,
                )

    return tries


def _batch_changed(name: str, change: Callable[[Tensor], Tensor]) -> Rewrite:
    def changed_in(batch: Mapping[str, Tensor]) -> dict[str, Tensor]:
        return {key: change(entry) if key == name else entry for key, entry in batch.items()}

    def rewrite(reference: Reference) -> Reference:
        outputs = reference.outputs or (lambda module, batch: module(next(iter(batch.values()))))
        train_epoch, evaluate = reference.train_epoch, reference.evaluate
        return replace(
            reference,
            loss=lambda module, batch: reference.loss(module, changed_in(batch)),
            outputs=lambda module, batch: outputs(module, changed_in(batch)),
            train_epoch=train_epoch
            and (
                lambda module, optimizer, batches: train_epoch(module, optimizer, [changed_in(one) for one in batches])
            ),
            evaluate=evaluate and (lambda module, batches: evaluate(module, [changed_in(one) for one in batches])),
        )

    return rewrite


def is_images(entry: Tensor) -> bool:
    return entry.dtype.is_floating_point and entry.dim() == 4


def is_ids(entry: Tensor) -> bool:
    return not entry.dtype.is_floating_point and entry.dtype != torch.bool and entry.dim() == 2
