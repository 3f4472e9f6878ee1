"""A port's answers beside what is expected, within what rounding allows. NumPy only."""

from collections.abc import Container, Mapping
from dataclasses import dataclass, field
from typing import Any, Protocol

import numpy as np

from parity.cases import Answer, Array, Call, Case, Tensors


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
    explained: bool = False
    """Whether it agrees with a reference that makes the mistakes which were found."""

    @property
    def passes(self) -> bool:
        return self.wrong is None and self.ratio <= 1

    @property
    def too_far(self) -> bool:
        """Whether it may be a question of rounding; what cannot be compared at all is none."""
        return self.wrong is None and self.ratio > 1


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
    stage: str = ""
    """The stage that it explains; "" is the first that failed."""


@dataclass(frozen=True)
class Curves:
    """Whole runs, for pictures and for whoever wants to look closer."""

    drift: dict[str, list[float]] = field(default_factory=dict)
    """Distance from the reference's run after each epoch, relative to what training changed, by run."""
    trends: dict[str, dict[str, list[list[float]]]] = field(default_factory=dict)
    """What was reported, of each seed and epoch: side → name → `(seeds, epochs)`."""


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

    curves: Curves = field(default_factory=Curves)

    @property
    def agrees(self) -> bool:
        return bool(self.comparisons) and all(comparison.passes for comparison in self.comparisons)


FACTOR = 16.0
"""A right port may differ by so many times what float32 does to the reference; chosen on models by other hands."""
SHARE = 0.3
"""Of a tensor's mean error, granted to each of its values: K runs leave some of them untouched by chance."""

Measured = dict[str, Array]
"""Quantity → its values."""

STAGES = (
    *("load", "init", "outputs", "loss", "gradients", "step", "steps", "state"),
    *("epoch", "evaluate", "trajectory", "trends"),
)

STAGES_OF: dict[Call, tuple[str, ...]] = {
    "load": ("load",),
    "init": ("init",),
    "outputs": ("outputs",),
    "value_and_grad": ("loss", "gradients"),
    "train_steps": ("step", "steps", "state"),
    "train_epoch": ("epoch",),
    "evaluate": ("evaluate",),
    "whole_run": ("trajectory",),
}


def measured(case: Case, answer: Answer, parameters: frozenset[str]) -> Measured:
    """What is compared of an answer: changes of parameters in place of parameters."""
    found: Measured = {}
    before = case.state
    for key, value in answer.items():
        kind, _, name = key.partition("/")
        if kind == "state" and case.call in ("train_steps", "train_epoch", "whole_run"):
            step, _, name = ("all", "/", name) if case.call == "train_epoch" else name.partition("/")
            if name in parameters:
                found[f"update/{step}/{name}"] = np.asarray(value, np.float64) - before[name]
            else:
                found[f"buffer/{step}/{name}"] = value
            if case.call == "train_steps":
                before = {**before, name: value}
        elif kind != "evaluate" or case.call != "whole_run":  # what whole runs report is for `trends`
            found[f"after/{name}" if case.call == "train_steps" and kind == "outputs" else key] = value
    return found


def stage_of(call: Call, quantity: str) -> str:
    """Where a quantity is judged."""
    kind, _, name = quantity.partition("/")
    if call == "value_and_grad":
        return kind
    if call == "train_steps":
        return "state" if kind in ("buffer", "after") else "step" if name.partition("/")[0] == "1" else "steps"
    return STAGES_OF[call][0]


class Asked(Protocol):
    """A case, and what everybody but the port says to it."""

    case: Case
    expected: Measured
    own: Measured | None
    """The reference in its own precision; None for cases in float64."""

    def tolerances(self) -> Tensors:
        """How far each value may be from what is expected, by quantity."""

    def more(self) -> bool:
        """Try rounding more often; whether that was still possible."""


@dataclass(frozen=True)
class Paper:
    """A case as it was recorded."""

    case: Case
    expected: Measured
    own: Measured | None
    tolerance: Tensors

    @staticmethod
    def of(case: Case, said: Mapping[str, Answer]) -> "Paper":
        return Paper(case, said["expected"], said.get("reference"), said["tolerance"])

    def tolerances(self) -> Tensors:
        return self.tolerance

    def more(self) -> bool:
        return False


def tolerances(expected: Measured, runs: list[Measured], own: Measured | None, factor: float = FACTOR) -> Tensors:
    """How far each value may be from what is expected; 0 where nothing rounds, and for whole numbers.

    Args:
        runs: the reference with errors of rounding put in.
        own: the reference as it computes in its own precision: what it errs by is granted to others.
    """
    allowed: Tensors = {}
    for quantity, values in expected.items():
        if values.dtype.kind != "f" or not runs:
            allowed[quantity] = np.zeros(values.shape)
            continue
        spread = np.sqrt(sum(_square(run[quantity] - values) for run in runs) / len(runs))
        mean = _rms(spread)
        if own is not None and own[quantity].shape == values.shape and mean:
            mean = max(mean, _rms(np.sqrt(_square(own[quantity] - values))))
        allowed[quantity] = factor * (spread + SHARE * mean)
        if own is not None:  # a share of images is no number of float32, however exactly they were counted
            with np.errstate(over="ignore", invalid="ignore"):
                nearest = values.astype(np.float32)
                allowed[quantity] += np.where(nearest == values, 0, np.nan_to_num(np.spacing(np.abs(nearest))))
    return allowed


def _rms(values: Array) -> float:
    return float(np.sqrt(np.mean(np.square(values)))) if values.size else 0.0


def _square(difference: Array) -> Array:
    with np.errstate(invalid="ignore", over="ignore"):
        return np.asarray(np.square(np.nan_to_num(difference, posinf=0, neginf=0)))


def compare_patiently(asked: Asked, actual: Measured, wanted: Container[str] = STAGES) -> list[Comparison]:
    """`compare`; where that says "too far", it is asked what else rounding may do before it is said."""
    found = compare(asked, actual, wanted)
    while any(one.too_far for one in found) and asked.more():
        found = compare(asked, actual, wanted)
    return found


def compare(asked: Asked, actual: Measured, wanted: Container[str] = STAGES) -> list[Comparison]:
    """Every quantity that is expected at these stages, beside the port's."""
    allowed, compared = asked.tolerances(), []
    for quantity, expected in asked.expected.items():
        stage = stage_of(asked.case.call, quantity)
        if stage in wanted:
            of = stage, asked.case.name, quantity, int(np.isfinite(allowed[quantity]).sum())
            if wrong := _wrong(quantity, expected, actual):
                compared.append(Comparison(*of, np.inf, None, wrong=wrong))
            else:
                own = None if asked.own is None else asked.own[quantity]
                compared.append(Comparison(*of, *_worst(expected, allowed[quantity], actual[quantity], own)))
    return compared


def _wrong(quantity: str, expected: Array, actual: Measured) -> str | None:
    """What keeps a quantity from being compared: a port that does not give it, or in another shape."""
    if quantity not in actual:
        kind = quantity.partition("/")[0]
        others = [name for name in actual if name.partition("/")[0] == kind] or list(actual)
        return f"is missing; the port gives {', '.join(others[:6])}{', …' if len(others) > 6 else ''}"
    shape = actual[quantity].shape
    return None if shape == expected.shape else f"has shape {shape}, expected {expected.shape}"


def _worst(expected: Array, allowed: Array, actual: Array, own: Array | None) -> tuple[Any, ...]:
    """A Comparison's fields from `ratio` on."""
    found = ratios(expected, allowed, actual)
    theirs = None if own is None else float(ratios(expected, allowed, own).max(initial=0))
    if not found.size:
        return 0.0, theirs
    index = np.unravel_index(int(np.argmax(found)), found.shape)
    values = (float(array[index]) for array in (expected, actual, allowed))
    return float(found.max()), theirs, tuple(map(int, index)), *values, int((found > 1).sum())


def broken(case: Case, stage: str, error: Exception) -> Comparison:
    """A case to which the port gave no answer."""
    wrong = f"{error}\n{getattr(error, 'hint', '')}".rstrip()
    return Comparison(stage, case.name, case.call, 0, np.inf, None, wrong=wrong)


def ratios(expected: Array, allowed: Array, actual: Array) -> Array:
    """|actual - expected| / tolerance, of each value; 0 where equal, infinity where equality is missed."""
    with np.errstate(invalid="ignore", over="ignore", divide="ignore"):
        same = (actual == expected) | (np.isnan(actual.astype(np.float64)) & np.isnan(expected.astype(np.float64)))
        ratios = np.abs(actual.astype(np.float64) - expected) / allowed
    return np.asarray(np.where(same | np.isposinf(allowed), 0.0, np.where(np.isnan(ratios), np.inf, ratios)))
