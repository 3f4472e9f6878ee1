"""Diagnosis: the mistake that makes the difference between a port and the oracle vanish, if one of those known does.

A mistake is named only if under it every value of the failing stage, those that passed too, agrees up to rounding: a
wrong explanation is worse than none.
"""

import functools
from collections.abc import Callable, Iterator, Sequence

import numpy as np

from parity.comparison import MEMORY, Comparison
from parity.formulas import Array
from parity.mistakes import Explanation, explanations, lower


def explain(stage: Sequence[Sequence[Comparison]]) -> str | None:
    """What explains a stage, check by check, of which one fails at least; None if nothing does.

    A mistake in the formulas has to explain all that is compared in the stage; a relation of values, all that fails.
    """
    everything = [comparison for check in stage for comparison in check]
    first = next(check for check in stage if any(not comparison.passed for comparison in check))
    failing = [comparison for comparison in first if not comparison.passed]
    misbehaviour = next((comparison.case for comparison in failing if comparison.tensor == MEMORY), None)
    if misbehaviour is not None:
        return misbehaviour
    names = sorted({one.tensor for one in failing if "." in one.tensor})
    if any(comparison.recompute is not None for comparison in failing):
        # Those that fail first: most explanations fall there, before long computations.
        to_explain = [one for one in failing if one.recompute is not None]
        to_explain += [
            one for one in everything if one.recompute is not None and not any(one is other for other in failing)
        ]
        for explanation in explanations(names, failing[0].stage):
            if all(_agrees(comparison, explanation) for comparison in to_explain):
                return explanation.text
    return _by_values([comparison for comparison in everything if not comparison.passed], failing)


def _agrees(comparison: Comparison, explanation: Explanation) -> bool:
    assert comparison.recompute is not None
    with np.errstate(all="ignore"):
        try:
            values = comparison.recompute(explanation.formulas)
        except (ArithmeticError, IndexError, ValueError):
            return False  # a mistake that cannot even be made here
        agrees = comparison.mostly_explained_by if explanation.is_of_precision else comparison.explained_by
        return comparison.explained_by(values) or agrees(values)


def _by_values(failing: Sequence[Comparison], first: Sequence[Comparison]) -> str | None:
    """What relates all values that fail to those expected, whatever computed them; told of those that do so first."""
    if all(comparison.is_as_far_as_float32 for comparison in failing):
        return f"{_listed(first)} is off by no more than float32 rounds: is float32 where float64 was asked for?"
    if any(comparison.explained_by(comparison.expected) for comparison in failing):
        return None  # so near to right that other explanations would fit by chance
    where = _listed(first)
    for text, change in _changes():
        if all(comparison.explained_by(change(comparison.expected)) for comparison in failing):
            return f"{text.format(where)}"
    factor = _common_factor(failing)
    if factor is not None:
        return f"{where} is {_fraction(factor)} times what it should be"
    if all(_permutes_rows(comparison) for comparison in failing):
        return f"the rows of {where} are permuted"
    return None


def _listed(failing: Sequence[Comparison]) -> str:
    names = list(dict.fromkeys(f"`{comparison.tensor}`" for comparison in failing))
    return names[0] if len(names) == 1 else "each of " + ", ".join(names)


def _changes() -> Iterator[tuple[str, Callable[[Array], Array]]]:
    yield "{} does not change or is zero", np.zeros_like
    yield "{} has the wrong sign", np.negative
    yield "{} is transposed", lambda values: values.T if values.ndim == 2 else values
    yield "{} is reshaped where it has to be transposed", _reshaped
    yield "{} is filled column by column", lambda values: np.reshape(values, values.shape[::-1]).T
    yield "{} runs through its rows backwards", lambda values: values[::-1] if values.ndim else values
    yield "{} runs through its columns backwards", lambda values: values[..., ::-1] if values.ndim else values
    for kind in ("bfloat16", "float16", "TF32"):
        yield f"{{}} passed through {kind}", functools.partial(lower, kind=kind)
    yield "{} passed through float32", lambda values: values.astype(np.float32).astype(values.dtype)


def _reshaped(values: Array) -> Array:
    return np.reshape(values.T, values.shape) if values.ndim == 2 else values


def _common_factor(failing: Sequence[Comparison]) -> float | None:
    factors = []
    for comparison in failing:
        expected = comparison.expected.astype(np.float64)
        if not np.any(expected) or not np.all(np.isfinite(comparison.found)):
            return None
        factors.append(float(np.sum(expected * comparison.found) / np.sum(expected * expected)))
    factor = _nice(factors[0])
    if factor is not None and all(one.explained_by(factor * one.expected) for one in failing):
        return factor
    return None


def _nice(factor: float) -> float | None:
    """The fraction that the factor is within 1e-4: n, 1/n, or one of small numbers; others explain nothing."""
    if not np.isfinite(factor):
        return None
    for denominator in (*range(1, 17), 32, 64, 100, 128, 255, 784, 1000):
        numerator = round(factor * denominator)
        is_simple = abs(numerator) <= (10_000 if denominator == 1 else 16 if denominator <= 16 else 1)
        if numerator and is_simple and abs(factor * denominator / numerator - 1) < 1e-4:
            return float(numerator / denominator)
    return None


def _fraction(factor: float) -> str:
    return f"{factor:g}" if abs(factor) >= 1 else f"1/{1 / factor:g}"


def _permutes_rows(comparison: Comparison) -> bool:
    found, expected = comparison.found, comparison.expected
    if found.ndim == 0 or len(found) < 2:
        return False
    rows_found, rows_expected = found.reshape(len(found), -1), expected.reshape(len(expected), -1)
    distances = np.abs(rows_found[:, None, :] - rows_expected[None, :, :]).max(axis=2)
    order = distances.argmin(axis=1)
    return sorted(order) == list(range(len(order))) and comparison.explained_by(expected[order])
