"""The pictures of a verdict: how whole runs drift, and how seeds compare."""

import io
from collections.abc import Mapping

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from parity.cases import Array
from parity.verdict.comparison import Curves
from parity.verdict.trends import SLACK, interval

BLUE, ORANGE, GREY = "#0072B2", "#D55E00", "#666666"
SHADE = {"color": GREY, "alpha": 0.15, "linewidth": 0}


def pictures(curves: Curves, margins: Mapping[str, float], port: str) -> dict[str, bytes]:
    """`trajectory.png` and `trends.png`, where they have something to show."""
    drawn = {}
    if curves.drift:
        drawn["trajectory.png"] = trajectory({name: np.array(curve) for name, curve in curves.drift.items()}, port)
    if curves.trends:
        sides = [{name: np.array(values) for name, values in side.items()} for side in curves.trends.values()]
        drawn["trends.png"] = trends(sides[0], sides[1], margins, port)
    return drawn


def trajectory(drift: Mapping[str, Array], port: str) -> bytes:
    """The distance of every run from the reference's over epochs, relative to what training changed by then.

    Args:
        drift: `port`, and those of the reference that start one ulp away, `(epochs,)` each.
    """
    figure = Figure(figsize=(8.5, 4.8), dpi=110, layout="constrained")
    axes = figure.subplots()
    epochs = np.arange(1, len(drift["port"]) + 1)
    others = [curve for name, curve in drift.items() if name != "port"]
    envelope = np.maximum.accumulate(np.max(others, axis=0))
    allowed = f"allowed: {SLACK:g} times the largest drift of a moved run"
    axes.fill_between(epochs, envelope * 1e-12, SLACK * envelope, label=allowed, **SHADE)  # type: ignore[arg-type]
    lines = axes.plot(epochs, np.transpose(others), color=BLUE, linestyle="--", linewidth=1.2)
    lines[0].set_label(f"the reference, started one ulp away ({len(others)} runs)")
    axes.plot(epochs, drift["port"], "s-", color=ORANGE, markersize=4, label=port)
    smallest = min((float(curve[curve > 0].min()) for curve in drift.values() if (curve > 0).any()), default=1e-9)
    axes.set(
        xlabel="epoch",
        ylabel="distance from the reference's run\n(relative to the change since the start)",
        yscale="log",
        ylim=(smallest / 3, SLACK * max(float(envelope.max()), smallest) * 40),
        title="Free-running drift: is the port as near as rounding lets it be?",
    )
    axes.legend(frameon=False, fontsize=8, loc="upper left")
    return _finished(figure, [axes])


def trends(
    reference: Mapping[str, Array], port_side: Mapping[str, Array], margins: Mapping[str, float], port: str
) -> bytes:
    """Every seed on both sides, and the paired differences with their interval and margin; a column for each metric.

    Args:
        reference, port_side: what was reported, `(seeds, epochs)`, by name.
    """
    figure = Figure(figsize=(4.2 * len(margins), 6.4), dpi=110, layout="constrained")
    grid = figure.subplots(2, len(margins), squeeze=False)
    for (curves, differences), (name, margin) in zip(grid.T, margins.items(), strict=True):
        words = name.replace("_", " ")
        seeds, count = reference[name].shape
        epochs = np.arange(1, count + 1)
        lines = curves.plot(epochs, reference[name].T, color=BLUE, linewidth=2.6, alpha=0.35)
        lines[0].set_label("the reference")
        lines = curves.plot(epochs, port_side[name].T, color=ORANGE, linewidth=0.9, linestyle="--")
        lines[0].set_label(port)
        curves.set(xlabel="epoch", ylabel=words, title=f"{words}, {seeds} seeds")
        curves.legend(frameon=False, fontsize=8)
        apart = port_side[name] - reference[name]
        low, high = interval(apart)
        bar = {"fmt": "none", "ecolor": "black", "elinewidth": 1.2, "capsize": 2}
        differences.axhspan(-margin, margin, label=f"margin ±{margin:g}", **SHADE)
        differences.plot(np.repeat(epochs, seeds), apart.T.ravel(), ".", color=ORANGE, markersize=4, label="each seed")
        differences.errorbar(epochs, (low + high) / 2, (high - low) / 2, label="interval of the mean", **bar)
        differences.set(xlabel="epoch", ylabel="port − reference", title=f"difference in {words}")
        differences.set_ylim(-1.9 * margin, 1.9 * margin)
        differences.ticklabel_format(axis="y", style="plain")
        differences.legend(frameon=False, fontsize=8, loc="upper left")
    return _finished(figure, list(grid.ravel()))


def _finished(figure: Figure, axes: list[Axes]) -> bytes:
    """The figure as PNG, the same bytes for the same curves."""
    for one in axes:
        legend = one.get_legend()
        for text in (one.title, one.xaxis.label, one.yaxis.label, *(legend.get_texts() if legend else ())):
            text.set_parse_math(False)  # a name may hold a $
        one.spines[["top", "right"]].set_visible(False)
        one.xaxis.set_major_locator(MaxNLocator(integer=True))
        one.grid(alpha=0.3)
    content = io.BytesIO()
    figure.savefig(content, format="png", metadata={"Software": None})
    return content.getvalue()
