"""The picture of a run: loss and accuracy per epoch."""

import io
from typing import Any

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator, PercentFormatter

# Okabe and Ito's palette: told apart by colour-blind readers.
BLUE, ORANGE, GREEN, GREY = "#0072B2", "#D55E00", "#009E73", "#777777"
SKY = "#56B4E9"
PALETTE = (BLUE, ORANGE, GREEN, "#CC79A7", "#E69F00", SKY, "#000000")


def draw(title: str, metrics: list[dict[str, Any]], steps_per_epoch: int) -> bytes:
    """A PNG of the logged training losses, the test loss and the test accuracy of every epoch."""
    steps = [entry for entry in metrics if "step" in entry]
    tests = [entry for entry in metrics if "accuracy" in entry]
    epochs = [entry["epoch"] for entry in tests]

    figure = Figure(figsize=(10, 4.2), dpi=110, layout="constrained")
    loss, accuracy = figure.subplots(1, 2)
    figure.suptitle(title, fontsize=11)
    loss.plot(
        [entry["epoch"] - 1 + (entry["step"] - 1) / steps_per_epoch for entry in steps],
        [entry["loss"] for entry in steps],
        color=GREY,
        linewidth=0.8,
        label="training batches, every 100th",
    )
    loss.plot(epochs, [entry["average_loss"] for entry in tests], "o-", color=BLUE, markersize=4, label="test")
    loss.set(xlabel="epochs", ylabel="cross-entropy (nats)", title="Loss")
    loss.legend(frameon=False)
    accuracy.plot(epochs, [entry["accuracy"] for entry in tests], "o-", color=ORANGE, markersize=4)
    accuracy.annotate(
        f"{tests[-1]['accuracy']:.2%}",
        (epochs[-1], tests[-1]["accuracy"]),
        xytext=(0, 8),
        textcoords="offset points",
        ha="center",
    )
    accuracy.margins(y=0.12)
    accuracy.set(xlabel="epochs", ylabel="correctly classified test images", title="Accuracy")
    accuracy.yaxis.set_major_formatter(PercentFormatter(1))
    return finished(figure, [loss, accuracy])


def finished(figure: Figure, all_axes: list[Axes]) -> bytes:
    """The figure as a PNG, its axes over epochs in the house's style."""
    for axes in all_axes:
        axes.xaxis.set_major_locator(MaxNLocator(integer=True))
        axes.grid(alpha=0.3)
        axes.spines[["top", "right"]].set_visible(False)
    picture = io.BytesIO()
    figure.savefig(picture, format="png")
    return picture.getvalue()
