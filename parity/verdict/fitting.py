"""The value that explains what is seen best, and the plain number that is meant by it."""

import math
from collections.abc import Callable, Iterator

import numpy as np

from parity.cases import Array
from parity.mistakes.mistake import Scale

STEPS = 8


def solve(residual: Callable[[float], Array], start: float, other: float, scale: Scale) -> float | None:
    """The value at which the residual is least, by Gauss and Newton's steps from two values; None if there is none.

    Args:
        residual: what is left at a value, a vector.
        start: a value to go on from; `other`: another one, for a first slope.
        scale: whether steps are taken in the value, or in its logarithm.
    """
    forth, back = (math.log, math.exp) if scale == "log" else (float, float)
    x0, x1 = forth(other), forth(start)
    r0, r1 = residual(back(x0)), residual(back(x1))
    best, least = x1, float(r1 @ r1)
    for _ in range(STEPS):
        slope = (r1 - r0) / ((x1 - x0) or 1e-12)
        steep = float(slope @ slope)
        if not steep > 0 or not math.isfinite(steep):
            break  # float32 says the same of both values
        step = -float(slope @ r1) / steep
        step = max(-3.0, min(3.0, step)) if scale == "log" else step
        x0, r0 = x1, r1
        x1 += step
        if not math.isfinite(x1) or (scale == "log" and abs(x1) > 60):
            break
        try:
            r1 = residual(back(x1))
        except (RuntimeError, ValueError, ZeroDivisionError, OverflowError):
            break
        if not np.isfinite(r1).all():
            break
        if float(r1 @ r1) < least:
            best, least = x1, float(r1 @ r1)
        if abs(step) < 1e-9 * max(1.0, abs(x1)):
            break
    return back(best) if math.isfinite(least) else None


def plain(value: float) -> Iterator[float]:
    """Plain numbers near a value, the plainest first: 1e-06, 0.9, 1/√8."""
    if value == 0 or not math.isfinite(value):
        yield value
        return
    near: list[float] = [float(round(value))] if abs(value) < 1e6 else []
    near += [float(f"{value:.{digits}e}") for digits in range(3)]
    if abs(value) <= 1:
        near += [math.copysign(1 / whole, value) for whole in (round(1 / abs(value)),) if whole]
    whole = round(1 / value**2) if abs(value) > 1e-6 else 0
    if whole:
        near.append(math.copysign(1 / math.sqrt(whole), value))
    if round(value**2):
        near.append(math.copysign(math.sqrt(round(value**2)), value))
    near += [float(f"{value:.{digits}e}") for digits in range(3, 6)]
    told = set()
    for number in near:
        if number not in told and abs(number - value) <= 0.02 * abs(value):
            told.add(number)
            yield number


def shown(value: object) -> str:
    """A value as people write it: `1e-06`, `1/√8`."""
    if not isinstance(value, float) or value == 0 or not math.isfinite(value):
        return str(value)
    if float(f"{value:.3g}") != value and abs(value) > 1e-6:
        whole = round(1 / value**2)
        if whole > 1 and math.isclose(abs(value), 1 / math.sqrt(whole), rel_tol=1e-12):
            return f"{'-' if value < 0 else ''}1/√{whole}"
        whole = round(1 / abs(value))
        if whole > 1 and math.isclose(abs(value), 1 / whole, rel_tol=1e-12):
            return f"{'-' if value < 0 else ''}1/{whole}"
    return (
        f"{value:.6g}" if value == 1 or abs(value - 1) > 1e-5 else f"1 {'+' if value > 1 else '-'} {abs(value - 1):.2g}"
    )
