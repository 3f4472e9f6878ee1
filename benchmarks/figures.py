"""What is made of raw figures: spreads, ratios, and where overhead ends."""

import itertools
import math
from collections.abc import Sequence
from statistics import median
from typing import NamedTuple


class Spread(NamedTuple):
    """Figures of several rounds."""

    median: float
    low: float
    high: float


def spread(values: Sequence[float]) -> Spread:
    """The median of the values, and the smallest and largest."""
    return Spread(median(values), min(values), max(values))


def ratios(values: Sequence[float], base: Sequence[float]) -> list[float]:
    """How many times the base's figure each value is, round by round, for the rounds that both have."""
    return [value / other for value, other in zip(values, base, strict=False)]


def midpoints(grid: Sequence[int]) -> list[float]:
    """The geometric means of neighbours."""
    return [math.sqrt(low * high) for low, high in itertools.pairwise(grid)]


def overhead_end(grid: Sequence[int], seconds: Sequence[float]) -> float:
    """Where a step stops being bound by overhead: the size at which half of its time grows with the size.

    With `overhead + size · work` for a step that is `overhead / work`, where the curve's slope on log axes is 1/2. The
    slope is taken between neighbours of the grid, which places it at their midpoint, and interpolated between those.

    Returns:
        The size; the first midpoint if the slope is 1/2 there already, `inf` if it is less up to the last one.
    """
    slopes = [
        math.log(after / before) / math.log(high / low)
        for (before, after), (low, high) in zip(itertools.pairwise(seconds), itertools.pairwise(grid), strict=True)
    ]
    places = midpoints(grid)
    first = next((index for index, slope in enumerate(slopes) if slope >= 0.5), None)
    if first is None:
        return math.inf
    if first == 0:
        return places[0]
    share = (0.5 - slopes[first - 1]) / (slopes[first] - slopes[first - 1])
    return float(places[first - 1] * (places[first] / places[first - 1]) ** share)
