"""The smallest case that still fails, for a file that somebody can look into."""

import time
from collections.abc import Callable, Iterator
from dataclasses import replace

from parity.cases import Case
from parity.variations import examples, size

ATTEMPTS, SECONDS = 12, 60.0
"""A port may compile anew for each shape, or hang until its time is up."""


def shrunk(case: Case, fails: Callable[[Case], bool]) -> Case:
    """A case with fewer steps and examples that fails as the given one does.

    Args:
        fails: whether a case still does.
    """
    candidates, left, end = _smaller(case), ATTEMPTS, time.monotonic() + SECONDS
    while left and time.monotonic() < end and (smaller := next(candidates, None)) is not None:
        left -= 1
        if fails(smaller):
            case, candidates = smaller, _smaller(smaller)
    return case


def _smaller(case: Case) -> Iterator[Case]:
    """Cases with half of the steps, or half of the examples: the first ones, then the others."""
    if case.call in ("train_steps", "train_epoch", "evaluate") and len(case.batches) > 1:
        yield replace(case, batches=case.batches[: (len(case.batches) + 1) // 2])
    length = max(map(size, case.batches), default=0)
    half = (length + 1) // 2
    for chosen in (slice(0, half), slice(length - half, length)) if length > 1 else ():
        yield replace(case, batches=tuple(examples(batch, chosen) for batch in case.batches))
