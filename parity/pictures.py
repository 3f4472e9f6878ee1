"""The pictures of a verdict: how whole runs drift, and how seeds compare."""

import numpy as np
from matplotlib.figure import Figure
from matplotlib.ticker import PercentFormatter

from fmnist.runs.curves import BLUE, GREY, ORANGE, finished
from parity.formulas import Array
from parity.whole_runs import ACCURACY_MARGIN, LOSS_MARGIN, interval


def trajectory(drift: dict[str, Array], allowed_factor: float, port: str) -> bytes:
    """The distance of every run from the float64 oracle over epochs, relative to what training changed by then."""
    figure = Figure(figsize=(8.5, 4.8), dpi=110, layout="constrained")
    axes = figure.subplots()
    epochs = np.arange(1, len(drift["torch"]) + 1)
    others = [curve for name, curve in drift.items() if name != "port"]
    envelope = np.maximum.accumulate(np.max(others, axis=0))
    axes.fill_between(
        epochs,
        envelope * 1e-12,
        allowed_factor * envelope,
        color=GREY,
        alpha=0.15,
        linewidth=0,
        label=f"allowed: {allowed_factor:g} times the largest drift of a perturbed run",
    )
    styles = {"float64": ("#009E73", ":"), "torch, moved": (BLUE, "--")}
    for prefix, (color, style) in styles.items():
        curves = [curve for name, curve in drift.items() if name.startswith(prefix)]
        what = "float64 oracle" if prefix == "float64" else "torch float32"
        for index, curve in enumerate(curves):
            label = f"{what}, started one ulp away ({len(curves)} runs)" if index == 0 else None
            axes.plot(epochs, curve, color=color, linestyle=style, linewidth=1.2, label=label)
    axes.plot(epochs, drift["torch"], "o-", color=BLUE, markersize=4, label="torch float32")
    axes.plot(epochs, drift["port"], "s-", color=ORANGE, markersize=4, label=port)
    smallest = min(float(curve.min()) for curve in drift.values() if curve.min() > 0)
    axes.set_yscale("log")
    axes.set_ylim(smallest / 3, allowed_factor * float(envelope.max()) * 40)
    axes.set(
        xlabel="epoch",
        ylabel="distance from the float64 oracle\n(relative to the change since the start)",
        title="Free-running drift: is the port as near as rounding lets it be?",
    )
    axes.legend(frameon=False, fontsize=8, loc="upper left")
    return finished(figure, [axes])


def trends(reference: dict[str, Array], port_side: dict[str, Array], port: str) -> bytes:
    """Accuracy of every seed on both sides; and the paired differences with their interval and margin."""
    figure = Figure(figsize=(11, 4.2), dpi=110, layout="constrained")
    curves, accuracy, loss = figure.subplots(1, 3)
    seeds, count = reference["accuracy"].shape
    epochs = np.arange(1, count + 1)
    for seed in range(seeds):
        curves.plot(
            epochs,
            reference["accuracy"][seed],
            color=BLUE,
            linewidth=2.6,
            alpha=0.35,
            label="torch" if seed == 0 else None,
        )
        curves.plot(
            epochs,
            port_side["accuracy"][seed],
            color=ORANGE,
            linewidth=0.9,
            linestyle="--",
            label=port if seed == 0 else None,
        )
    curves.set(xlabel="epoch", ylabel="test accuracy", title=f"{seeds} seeds on both sides")
    curves.yaxis.set_major_formatter(PercentFormatter(1, decimals=0))
    curves.legend(frameon=False, fontsize=9, loc="lower right")
    for axes, name, scale, margin, unit in (
        (accuracy, "accuracy", 100, 100 * ACCURACY_MARGIN, "test accuracy (points)"),
        (loss, "average loss", 1, LOSS_MARGIN, "test loss (nats)"),
    ):
        differences = scale * (port_side[name] - reference[name])
        low, high = interval(differences)
        axes.axhspan(-margin, margin, color=GREY, alpha=0.15, linewidth=0, label=f"margin ±{margin:g}")
        axes.plot(np.repeat(epochs, seeds), differences.T.ravel(), ".", color=ORANGE, markersize=4, label="each seed")
        middle = (low + high) / 2
        axes.errorbar(
            epochs,
            middle,
            high - middle,
            fmt="none",
            ecolor="black",
            elinewidth=1.2,
            capsize=2,
            label="interval of the mean",
        )
        axes.set(xlabel="epoch", ylabel=f"difference in {unit}", title=f"Port − torch: {name}")
        axes.set_ylim(-1.9 * margin, 1.9 * margin)
        axes.ticklabel_format(axis="y", style="plain")
    accuracy.legend(frameon=False, fontsize=8, loc="upper left")
    return finished(figure, [curves, accuracy, loss])
