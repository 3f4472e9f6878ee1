"""Comparison: a port's values beside the oracle's, with what rounding allows between them."""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike

from parity.formulas import Array, Formulas
from parity.tolerance import SLACK


@dataclass(frozen=True)
class Comparison:
    """One quantity of one case of a check.

    `unit` is one unit of rounding error, of the values' shape or a scalar; 0 demands equality. `slack` is how many
    units are allowed. `recompute` gives the oracle's values under other formulas, for the diagnosis.
    """

    stage: str
    check: str
    case: str
    tensor: str
    found: Array
    expected: Array
    unit: Array
    slack: float = SLACK
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
        """Whether the port's values are these, up to rounding: that of the larger of the two magnitudes."""
        if values.shape != self.found.shape or not np.all(np.isfinite(values)):
            return False
        if not np.any(self.unit):
            return bool(np.allclose(self.found, values, rtol=8 * float(np.finfo(self.found.dtype).eps), atol=0))
        growth = max(1.0, float(np.max(np.abs(values)) / max(np.max(np.abs(self.expected)), 1e-300)))
        return bool(np.max(self._errors(self.found, values)) <= self.allowed * growth)

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
    reference: ArrayLike | None = None,
    recompute: Callable[[Formulas], ArrayLike] | None = None,
) -> Comparison:
    """A comparison at (stage, check, case), held to be one: of equal shapes, of at least one value, and finite.

    Raises:
        ValueError: the check itself is at fault.
    """
    found, expected, unit = np.asarray(found), np.asarray(expected), np.asarray(unit, np.float64)
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
        None if reference is None else np.asarray(reference),
        None if recompute is None else lambda formulas: np.asarray(recompute(formulas)),
    )
