"""Comparison: a port's values beside the oracle's, with what rounding allows between them."""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike

from parity.formulas import Array, Formulas
from parity.tolerance import SLACK

# The tensor's name where a port did something to memory that is not its own; the case says what.
MEMORY = "memory"

EPS = float(np.finfo(np.float32).eps)


@dataclass(frozen=True)
class Comparison:
    """One quantity of one case of a check.

    `unit` is one unit of rounding error, of the values' shape or a scalar; 0 demands equality. `slack` is how many
    units are allowed, `eps` the precision that was computed in. `recompute` gives the oracle's values under other
    formulas, for the diagnosis.
    """

    stage: str
    check: str
    case: str
    tensor: str
    found: Array
    expected: Array
    unit: Array
    slack: float = SLACK
    eps: float = EPS
    reference: Array | None = None
    recompute: Callable[[Formulas], Array] | None = None

    @property
    def allowed(self) -> float:
        """The largest `worst` that passes: 0 where equality is demanded."""
        return self.slack if np.any(self.unit) else 0.0

    @property
    def worst(self) -> float:
        """The largest error in units; or how many values differ, where equality is demanded."""
        return self.distance(self.found)

    @property
    def passed(self) -> bool:
        return self.worst <= self.allowed

    def distance(self, values: Array) -> float:
        """How far some values are from the expected ones, in the terms of `worst`; infinite where they are not
        finite."""
        return float(np.max(self._errors(values, self.expected)) if np.any(self.unit) else self._different(values))

    def differing(self) -> Array:
        """Which of the values err by more than is allowed."""
        if np.any(self.unit):
            return np.atleast_1d(self._errors(self.found, self.expected) > self.allowed)
        return np.atleast_1d(~(self.found == self.expected))

    def explained_by(self, values: Array) -> bool:
        """Whether the port's values are these, up to rounding.

        By this comparison's own units; or, since under a mistake values can be of another size, by eps times the
        largest value and the largest unit, where that tells the port's values from the right ones.
        """
        if values.shape != self.found.shape:
            return False
        finite = np.isfinite(values)
        if not np.all(finite):  # a mistake that overflows explains what is not finite where it does, and only there
            apart = np.abs(self.found - values)[finite]
            same = np.array_equal(finite, np.isfinite(self.found))
            return same and bool(np.all(apart <= self._nearness(values[finite]))) if finite.any() else same
        if self.distance_from(values) <= self.allowed:
            return True
        return self._near(values) and (self.passed or not self._near(self.expected))

    @property
    def is_as_far_as_float32(self) -> bool:
        """Whether values that should be of float64 err by more than that, and by no more than float32 allows."""
        growth = EPS / self.eps
        return bool(growth > 1 and self.allowed > 0 and 1e3 < self.worst / self.allowed <= growth)

    def mostly_explained_by(self, values: Array) -> bool:
        """The same for values that passed through a format of few bits, where rounding tips some over.

        Nine of ten are as good as equal, and all together are ten times nearer than the right ones.
        """
        if values.shape != self.found.shape or not np.all(np.isfinite(values)):
            return False
        close = np.abs(self.found - values) <= self._nearness(values)
        apart, before = (float(np.linalg.norm(self.found - other)) for other in (values, self.expected))
        return self.passed or (float(np.mean(close)) >= 0.9 and apart <= 0.1 * before)

    def distance_from(self, values: Array) -> float:
        """How far the port's values are from some others, in the terms of `worst`."""
        if np.any(self.unit):
            return float(np.max(self._errors(self.found, values)))
        return float(np.sum(~(self.found == values)))

    def _near(self, values: Array) -> bool:
        return bool(np.all(np.abs(self.found - values) <= self._nearness(values)))

    def _nearness(self, values: Array) -> float:
        return 16 * self.eps * float(np.max(np.abs(values))) + self.allowed * float(np.max(self.unit))

    def _errors(self, values: Array, expected: Array) -> Array:
        with np.errstate(all="ignore"):
            errors = np.abs(values.astype(np.float64) - expected) / self.unit
        return np.where(np.isfinite(errors), errors, np.inf)

    def _different(self, values: Array) -> int:
        return int(np.sum(~(values == self.expected)))


def compare(
    place: tuple[str, str, str],
    tensor: str,
    found: ArrayLike,
    expected: ArrayLike,
    unit: ArrayLike = 0.0,
    *,
    slack: float = SLACK,
    eps: float = EPS,
    reference: ArrayLike | None = None,
    recompute: Callable[[Formulas], ArrayLike] | None = None,
) -> Comparison:
    """A comparison at (stage, check, case), held to be one: of at least one value, and with finite ones.

    Where a port gives too few values or too many, their number is what is compared.

    Raises:
        ValueError: the check itself is at fault.
    """
    found, expected, unit = np.asarray(found), np.asarray(expected), np.asarray(unit, np.float64)
    if found.size != expected.size:
        return compare(place, f"number of {tensor}", float(found.size), float(expected.size))
    if expected.size == 0 or found.shape != expected.shape:
        raise ValueError(f"{place}: {tensor} compares {found.shape} with {expected.shape}")
    if not np.all(np.isfinite(expected)) or not np.all(np.isfinite(unit)):
        raise ValueError(f"{place}: what {tensor} is compared with is not finite")
    return Comparison(
        *place,
        tensor,
        found,
        expected,
        unit,
        slack,
        eps,
        None if reference is None else np.asarray(reference),
        None if recompute is None else lambda formulas: np.asarray(recompute(formulas)),
    )
