"""The batches of an epoch: short ones, full ones, and what a short one is filled with."""

import torch
from torch import Tensor

from parity.mistakes.mistake import Subject
from parity.reference.program import TorchBatch

Batches = list[TorchBatch]


def size_of(batch: TorchBatch) -> int:
    """How many examples it has."""
    return next(len(tensor) for tensor in batch.values() if tensor.ndim)


def has_short(subject: Subject) -> bool:
    sizes = [next(len(array) for array in batch.values() if array.ndim) for batch in subject.reference.batches]
    return sizes[-1] < sizes[0]


def full_batches(given: Batches) -> Batches:
    return [batch for batch in given if size_of(batch) == size_of(given[0])]


def padded(given: Batches, value: str) -> Batches:
    """The last batch with examples added: zeros, its own again, or those of the first."""
    size, short = size_of(given[0]), size_of(given[-1])

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
