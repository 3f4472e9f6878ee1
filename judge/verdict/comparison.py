"""A port's answers beside what is expected, within what rounding allows. NumPy only."""

from dataclasses import dataclass, field
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


@dataclass(frozen=True)
class Explanation:
    """A mistake under which all that is compared at the failing stage agrees up to rounding."""

    code: str
    """`F012`, or "" for a general experiment that is in no catalogue."""
    name: str
    """`layer-norm-epsilon`."""
    place: str
    """Where in the reference: `encoder.layers.1.norm1 (model.py:31)`."""
    message: str
    """What the port does and what the reference does, with their values, in a sentence."""
    wrong: str = ""
    right: str = ""
    """The two lines of JAX."""
    ratio: float = 0.0
    """The largest ratio that is left at that stage."""


@dataclass(frozen=True)
class Verdict:
    """All that an exam found out; `verdict.report` says it in words."""

    reference: str
    port: str
    comparisons: tuple[Comparison, ...]
    explanations: tuple[tuple[Explanation, ...], ...] = ()
    """One entry a mistake; equally good explanations of one mistake stand together in it."""
    not_judged: tuple[str, ...] = ()
    """What was not asked or could not be, and why: "init: the port offers none"."""
    notes: tuple[str, ...] = ()
    """"dropout is off on both sides", "64 noise runs where 8 said too far"."""
    places: dict[str, str] = field(default_factory=dict)
    """Tensor or output name → the module of the reference and where it is written: `norm1: LayerNorm (model.py:31)`."""

    @property
    def agrees(self) -> bool:
        return bool(self.comparisons) and all(comparison.passes for comparison in self.comparisons)
