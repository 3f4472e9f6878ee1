"""The picture of all figures."""

import io
import math
from collections.abc import Sequence
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FixedLocator, NullLocator

from benchmarks import machine
from benchmarks.figures import midpoints, spread
from benchmarks.measure import Point
from benchmarks.report import SIZE_NAMES, Results, counted, overhead_ends, plain
from benchmarks.sides import BASE, SIDES, Side

RING: dict[str, Any] = {"markersize": 11, "markerfacecolor": "none", "markeredgewidth": 1.6}
STYLES = {side.name: side for side in SIDES}


def draw(results: Results) -> bytes:
    """A PNG: a model's seconds in whole processes and in steady state above, growth below."""
    figure = Figure(figsize=(12, 8), dpi=110, layout="constrained")
    figure.suptitle(machine.sentence(results.machine), fontsize=10, color="#444444")
    above, below = figure.subfigures(2, 1, squeeze=False, height_ratios=(1, 1.35))[:, 0]
    whole, steady = above.subplots(1, 2)
    _bars(whole, results, "whole_processes", 1, "s", f"Whole process, {counted(results.epochs, 'epoch')}")
    _bars(steady, results, "steady_state", 1e3, "ms", f"Steady state, {counted(results.steady_steps, 'training step')}")
    panels = below.subplots(1, len(results.growth), squeeze=False)[0]
    for axes, (axis, sides) in zip(panels, results.growth.items(), strict=True):
        _grow(axes, axis, sides)
        if axis == "members":
            _compare(axes, results, sides)
    panels[0].set_ylabel("µs a step")
    panels[0].plot([], [], "o", color="black", label="overhead ends", **RING)
    handles = {handle.get_label(): handle for axes in panels for handle in axes.get_legend_handles_labels()[0]}
    handles["overhead ends"] = handles.pop("overhead ends")
    below.legend(handles=list(handles.values()), loc="outside lower center", ncols=len(handles), frameon=False)
    picture = io.BytesIO()
    figure.savefig(picture, format="png")
    return picture.getvalue()


def _bars(axes: Axes, results: Results, part: str, factor: float, unit: str, title: str) -> None:
    """A bar for each side: the median of a model's time, its spread, and how many times the base's it is."""
    spreads = [spread([factor * each for each in results.per_model(part)[side.name]]) for side in SIDES]
    medians = [each.median for each in spreads]
    errors = [[each.median - each.low for each in spreads], [each.high - each.median for each in spreads]]
    axes.barh(range(len(SIDES)), medians, color=[side.color for side in SIDES], height=0.62)
    axes.errorbar(medians, range(len(SIDES)), xerr=errors, fmt="none", ecolor="black", elinewidth=1, capsize=2)
    for position, (side, each) in enumerate(zip(SIDES, spreads, strict=True)):
        ratio = "" if side.name == BASE else f"   {plain(results.ratio(part, side.name).median)}×"
        axes.annotate(
            f"{plain(each.median)} {unit}{ratio}",
            (each.high, position),
            xytext=(6, 0),
            textcoords="offset points",
            va="center",
            fontsize=9,
        )
    axes.set_yticks(range(len(SIDES)), [_described(side) for side in SIDES])
    axes.tick_params(axis="y", length=0)
    axes.invert_yaxis()
    axes.set_xlim(0, 1.4 * max(each.high for each in spreads))
    axes.set(xlabel=f"{unit} a model (×: how many times {BASE}'s)", title=title)
    axes.spines[["top", "right"]].set_visible(False)
    axes.grid(axis="x", alpha=0.3)
    axes.set_axisbelow(True)


def _grow(axes: Axes, axis: str, sides: dict[str, list[Point]]) -> None:
    """Microseconds of a step over a setting; a ring where overhead ends."""
    for name, points in sides.items():
        side = STYLES[name]
        sizes = [point.size for point in points]
        spreads = [spread([1e6 * each for each in point.seconds_per_step]) for point in points]
        medians = [each.median for each in spreads]
        axes.fill_between(
            sizes, [each.low for each in spreads], [each.high for each in spreads], color=side.color, alpha=0.2, lw=0
        )
        axes.plot(sizes, medians, color=side.color, marker=side.marker, markersize=4, linewidth=1.4, label=name)
        end = overhead_ends(points)
        if midpoints(sizes)[0] < end < math.inf:
            axes.plot(end, _between(end, sizes, medians), "o", color=side.color, **RING)
    axes.set(xscale="log", yscale="log", xlabel=SIZE_NAMES[axis], title=f"Growth with {SIZE_NAMES[axis]}")
    # The last size may stand too near to the one before it for two labels.
    axes.xaxis.set_major_locator(FixedLocator([size for size in sizes if size == sizes[-1] or sizes[-1] >= 4 * size]))
    axes.xaxis.set_minor_locator(NullLocator())
    axes.xaxis.set_major_formatter("{x:,.0f}")
    axes.grid(alpha=0.3)
    axes.spines[["top", "right"]].set_visible(False)


def _compare(axes: Axes, results: Results, sides: dict[str, list[Point]]) -> None:
    """What as many models cost one after another, computed from the base's steady state."""
    sizes = np.array([point.size for point in next(iter(sides.values()))])
    one = 1e6 * spread(results.steady_state[BASE].seconds).median / results.steady_steps
    label = f"{BASE}, one after another"
    axes.plot(sizes, one * sizes, "--", color=STYLES[BASE].color, linewidth=1.2, label=label)


def _between(size: float, sizes: Sequence[int], values: Sequence[float]) -> float:
    """The curve's height at a size, on the straight line that log axes show."""
    return float(np.exp(np.interp(np.log(size), np.log(sizes), np.log(values))))


def _described(side: Side) -> str:
    return side.name if side.members == 1 else f"{side.name}\nof {side.members}, each"
