"""A port's answers beside what is expected, within what rounding allows. NumPy only."""

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

Array = NDArray[Any]


@dataclass(frozen=True)
class Comparison:
    """One quantity of one case: data first; the report makes words of it."""

    stage: str
    case: str
    quantity: str
    """`outputs/logits`, `loss`, `gradients/fc1.weight`, `update/2/fc1.weight`, …"""
    values: int
    """How many numbers were compared."""
    ratio: float
    """Largest |actual - expected| / tolerance; 1 passes, inf where equality is asked for and missed."""
    reference_ratio: float | None
    """The same of the reference's own float32 run."""
    index: tuple[int, ...] = ()
    """Where the largest ratio is."""
    expected: float = 0.0
    actual: float = 0.0
    tolerance: float = 0.0
    failing: int = 0
    """How many values are out of tolerance."""
    wrong: str | None = None
    """What keeps it from being compared, in words: a missing name, another shape or dtype, an exception, a NaN."""

    @property
    def passes(self) -> bool:
        return self.wrong is None and self.ratio <= 1
