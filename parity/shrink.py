"""The smallest case that still fails, for a file that somebody can look into."""

from collections.abc import Callable, Iterator
from dataclasses import replace

from parity.cases import Batch, Case

ATTEMPTS = 12
"""A port may compile anew for each shape."""


def shrunk(case: Case, fails: Callable[[Case], bool]) -> Case:
    """A case with fewer steps and examples that fails as the given one does.

    Args:
        fails: whether a case still does.
    """
    left = ATTEMPTS
    while left:
        for smaller in _smaller(case):
            left -= 1
            if fails(smaller):
                case = smaller
                break
            if not left:
                break
        else:
            return case
    return case


def _smaller(case: Case) -> Iterator[Case]:
    """Cases with half of the steps, or half of the examples: the first ones, then the others."""
    if case.call in ("train_steps", "train_epoch", "evaluate") and len(case.batches) > 1:
        half = (len(case.batches) + 1) // 2
        yield replace(case, batches=case.batches[:half])
    length = max((len(array) for batch in case.batches for array in batch.values() if array.ndim), default=0)
    if length > 1:
        half = (length + 1) // 2
        yield _cut(case, slice(0, half))
        yield _cut(case, slice(length - half, length))


def _cut(case: Case, examples: slice) -> Case:
    def cut(batch: Batch) -> Batch:
        length = max(len(array) for array in batch.values() if array.ndim)
        whole = {name: array.ndim > 0 and len(array) == length for name, array in batch.items()}
        kept = examples if examples.stop <= length else slice(0, length)
        return {name: array[kept] if whole[name] else array for name, array in batch.items()}

    return replace(case, batches=tuple(cut(batch) for batch in case.batches))
