"""What is to be explained of a port, and whether a rewritten reference explains it."""

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Any

import numpy as np

from parity.cases import Array
from parity.mistakes.mistake import Mistake, Try
from parity.reference.asked import RUNS, Question, Sitting
from parity.reference.noise import Rounding
from parity.reference.rewrite import Rewrite
from parity.verdict.comparison import STAGES, Measured, compare, ratios, stage_of

SECONDS, LEAST_SECONDS = 60.0, 20.0
"""After which the searches of an exam stop, and say what they did not try; a later one has the least at any rate."""
ALONG = 0.1
"""The cosine below which an experiment leads nowhere near what is seen."""
LOOSE, NEAR = 4.0, 1e-2
"""What is worth being looked at with the rewritten reference's own rounding: a ratio, or a share of what was seen."""
LITTLE = 0.5
"""The share that a mistake may leave for another one to be looked for on top of it."""
FAR, CLOSE = 64.0, 1.25
"""Ratios beside the rewritten reference that more runs do not bring down: after the first ones, and after more."""


@dataclass(frozen=True)
class Candidate:
    """A mistake with its value and place, and what it leaves of the difference in one case."""

    mistake: Mistake
    attempt: Try
    value: Any
    left: Array
    """(actual - expected with the mistake) / tolerance."""

    @property
    def rewrite(self) -> Rewrite:
        return self.attempt.rewrite(self.value)

    @property
    def ratio(self) -> float:
        return float(np.abs(self.left).max(initial=0))


@dataclass
class Search:
    """What is to be explained."""

    sitting: Sitting
    stage: str
    answered: Sequence[tuple[Question, Measured]]
    """Cases of the stage, the failing ones first, small ones before large ones."""
    progress: Callable[[str], None]
    deadline: float
    settled: Sequence[tuple[Question, Measured]] = ()
    """Some cases of earlier calls, which agree."""
    untried: int = 0
    seen: dict[int, float] = field(default_factory=dict)
    """The largest ratio of a case as it was answered."""
    deferred: list[tuple[Mistake, Try]] = field(default_factory=list)
    """Places where a mistake is not expected, since everywhere at once it leads elsewhere."""
    tried: list[Candidate] = field(default_factory=list)
    missed: float = np.inf
    """The ratio by which the last one that did not agree was missed, where rounding was tried."""

    @property
    def is_over(self) -> bool:
        """Whether there is no time left to look closer at what was found before the deadline."""
        return time.monotonic() > self.deadline + SECONDS / 2

    @cached_property
    def start(self) -> Array | None:
        """The difference in the first case, before anything is tried."""
        return self.left(lambda reference: reference)

    def left(self, rewrite: Rewrite, at: int = 0) -> Array | None:
        """What a rewritten reference leaves of the difference in a case; None where it cannot answer."""
        question, actual = self.answered[at]
        # In the program's own float32, which errs by less than is allowed, an experiment costs a fifth.
        rounding = None if question.own is not None else Rounding(narrow=False)
        try:
            said = self.sitting.rewritten(rewrite).answer(question.case, rounding)
        except Exception:  # a hypothesis that cannot be carried out is none
            return None
        return self.weighed(question, said, actual)

    def weighed(self, question: Question, said: Measured, actual: Measured) -> Array | None:
        """Differences in tolerances, of all that is compared up to the stage."""
        allowed, parts = question.tolerances(), []
        for quantity, values in said.items():
            if not self.counts(stage_of(question.case.call, quantity)):
                continue
            other = actual.get(quantity)
            if other is None or other.shape != values.shape:
                return None
            if np.isnan(values).all() and not np.isnan(question.expected[quantity]).all():
                return None  # that NaN is equal to the port's NaN says nothing
            difference = np.subtract(other, values, dtype=np.float64)
            # A hypothesis that yields no numbers is infinitely far, not near.
            signs = np.where(np.isnan(difference), 1.0, np.sign(difference))
            moved = np.abs(np.subtract(values, question.expected[quantity], dtype=np.float64))
            # What is larger with a mistake in it, a sum in place of a mean, errs by more.
            larger = max(1.0, _size(values) / (_size(question.expected[quantity]) or 1.0))
            parts.append((ratios(values, _at_least(allowed[quantity] * larger, moved), other) * signs).ravel())
        vector = np.concatenate(parts) if parts else np.zeros(0)
        # Where equality is asked for, a miss is infinitely far; it has to stay a number to be fitted.
        return np.asarray(np.nan_to_num(np.clip(vector, -1e12, 1e12)))

    def may_agree(self, left: Array | None, at: int = 0, rounds: bool = False) -> bool:
        """Whether what is left of a difference is so little that it may be rounding, which a mistake makes larger: much
        larger where that is all that it does."""
        if left is None or rounds:
            return left is not None
        if at not in self.seen:
            start = self.left(lambda reference: reference, at)
            self.seen[at] = 0.0 if start is None else float(np.abs(start).max(initial=0))
        return float(np.abs(left).max(initial=0)) <= max(LOOSE, NEAR * self.seen[at])

    def agrees(self, rewrite: Rewrite, rounds: bool = False) -> float | None:
        """The largest ratio beside a rewritten reference over all cases; None where one of them fails."""
        sitting, worst, self.missed = self.sitting.rewritten(rewrite), 0.0, np.inf
        for at, (question, actual) in enumerate(self.answered):
            left = self.left(rewrite, at)
            ratio = np.inf if left is None else float(np.abs(left).max(initial=0))
            if ratio > 1 and (not self.may_agree(left, at, rounds) or self.is_over):
                return None
            # Rounding may be larger in the rewritten reference than it is in the right one.
            again = sitting.ask(question.case) if ratio > 1 else None
            while again is not None and ratio > 1:
                ratio = max((one.ratio for one in compare(again, actual) if self.counts(one.stage)), default=0.0)
                enough = ratio > (FAR if len(again.runs) <= RUNS else CLOSE)
                if ratio > 1 and (enough or self.is_over or not again.more()):
                    self.missed = ratio
                    return None
            if ratio > 1:
                return None
            worst = max(worst, ratio)
        return worst

    def keeps(self, rewrite: Rewrite, rounds: bool = False) -> bool:
        """Whether what agreed before still does: a mistake that would have shown earlier is none."""
        before = replace(self, stage=STAGES[-1], answered=self.settled, seen={}, settled=())
        return before.agrees(rewrite, rounds) is not None

    def counts(self, stage: str) -> bool:
        """Whether a stage has to agree for an explanation of this one."""
        return STAGES.index(stage) <= STAGES.index(self.stage)


def _size(values: Array) -> float:
    finite = np.asarray(values, np.float64)[np.isfinite(values)]
    return float(np.sqrt(np.mean(np.square(finite)))) if finite.size else 0.0


def _at_least(allowed: Array, moved: Array) -> Array:
    """Tolerances; where nothing rounded, a thousandth of what a mistake moves, for that is computed, and rounds."""
    return np.where(allowed == 0, np.nan_to_num(moved) * 1e-3, allowed)
