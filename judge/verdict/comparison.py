"""A port's answers beside what is expected, within what rounding allows. NumPy only."""

from dataclasses import dataclass, field

import numpy as np

from ..cases import Answer, Array, Case, Tensors


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


FACTOR = 16.0
"""A right port may differ by so many times what float32 does to the reference; chosen on models by other hands."""
SHARE = 0.3
"""Of a tensor's mean error, granted to each of its values: K runs leave some of them untouched by chance."""

Measured = dict[str, tuple[str, Array]]
"""Quantity → the stage it belongs to, and its values."""

STAGES = ("load", "init", "outputs", "loss", "gradients", "step", "steps", "state", "epoch", "evaluate")


def measured(case: Case, answer: Answer, parameters: frozenset[str]) -> Measured:
    """What is compared of an answer: changes of parameters in place of parameters, each quantity at its stage."""
    found: Measured = {}
    before = case.state
    for key, value in answer.items():
        kind, _, name = key.partition("/")
        if case.call == "train_steps" and kind == "state":
            step, _, name = name.partition("/")
            if name in parameters:
                change = np.asarray(value, np.float64) - before[name]
                found[f"update/{step}/{name}"] = ("step" if step == "1" else "steps", change)
            else:
                found[f"buffer/{step}/{name}"] = ("state", value)
            before = {**before, name: value}
        elif case.call == "train_steps":
            stage = "state" if kind == "outputs" else "step" if key == "loss/1" else "steps"
            found[key if kind == "loss" else f"after/{name}"] = (stage, value)
        elif case.call == "train_epoch" and kind == "state":
            change = value if name not in parameters else np.asarray(value, np.float64) - before[name]
            found[f"{'update' if name in parameters else 'buffer'}/{name}"] = ("epoch", change)
        else:
            stages = {"value_and_grad": kind, "train_epoch": "epoch"}
            found[key] = (stages.get(case.call, case.call), value)
    return found


def tolerances(expected: Measured, runs: list[Measured], own: Measured | None, factor: float = FACTOR) -> Tensors:
    """How far each value may be from what is expected; 0 where nothing rounds, and for whole numbers.

    Args:
        runs: the reference with errors of rounding put in.
        own: the reference as it computes in its own precision: what it errs by is granted to others.
    """
    allowed: Tensors = {}
    for quantity, (_, values) in expected.items():
        if values.dtype.kind != "f" or not runs:
            allowed[quantity] = np.zeros(values.shape)
            continue
        squares = sum(_square(run[quantity][1] - values) for run in runs)
        spread = np.sqrt(squares / len(runs))
        mean = float(np.sqrt(np.mean(np.square(spread)))) if spread.size else 0.0
        if own is not None and own[quantity][1].shape == values.shape and mean:
            mean = max(mean, float(np.sqrt(np.mean(_square(own[quantity][1] - values)))))
        allowed[quantity] = factor * (spread + SHARE * mean)
    return allowed


def _square(difference: Array) -> Array:
    with np.errstate(invalid="ignore", over="ignore"):
        return np.square(np.nan_to_num(difference, posinf=0, neginf=0))


def compare(
    case: Case, expected: Measured, allowed: Tensors, own: Measured | None, actual: Measured
) -> list[Comparison]:
    """Every quantity that is expected, beside the port's."""
    compared = []
    for quantity, (stage, values) in expected.items():
        if quantity not in actual:
            compared.append(missing(case, stage, quantity, values, actual))
            continue
        value = actual[quantity][1]
        if value.shape != values.shape:
            wrong = f"has shape {value.shape}, expected {values.shape}"
            compared.append(Comparison(stage, case.name, quantity, values.size, np.inf, None, wrong=wrong))
            continue
        ratios = _ratios(values, allowed[quantity], value)
        index = np.unravel_index(int(np.argmax(ratios)), ratios.shape) if ratios.size else ()
        theirs = None if own is None else float(_ratios(values, allowed[quantity], own[quantity][1]).max(initial=0))
        compared.append(
            Comparison(
                stage,
                case.name,
                quantity,
                values.size,
                float(ratios.max(initial=0)),
                theirs,
                tuple(int(i) for i in index),
                *(float(array[index]) if ratios.size else 0.0 for array in (values, value, allowed[quantity])),
                failing=int((ratios > 1).sum()),
            )
        )
    return compared


def missing(case: Case, stage: str, quantity: str, values: Array, actual: Measured) -> Comparison:
    """A quantity that the port does not give, and what it gives in its place."""
    kind = quantity.partition("/")[0]
    others = [name for name in actual if name.partition("/")[0] == kind] or list(actual)
    wrong = f"is missing; the port gives {', '.join(others[:6])}{', …' if len(others) > 6 else ''}"
    return Comparison(stage, case.name, quantity, values.size, np.inf, None, wrong=wrong)


def _ratios(expected: Array, allowed: Array, actual: Array) -> Array:
    """|actual - expected| / tolerance, of each value; 0 where equal, infinity where equality is missed."""
    with np.errstate(invalid="ignore", over="ignore", divide="ignore"):
        same = (actual == expected) | (np.isnan(actual.astype(np.float64)) & np.isnan(expected.astype(np.float64)))
        ratios = np.abs(actual.astype(np.float64) - expected) / allowed
    return np.asarray(np.where(same, 0.0, np.where(np.isnan(ratios), np.inf, ratios)))
