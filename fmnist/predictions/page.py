"""One page of pictures of a model: its confusions, its most confident mistakes, and what its hidden units look at."""

import io
import math
from collections.abc import Sequence
from typing import Any

import numpy as np
from matplotlib.figure import Figure
from numpy.typing import NDArray

MISTAKES = 20
MOST_UNITS = 64


def draw(
    title: str,
    names: Sequence[str],
    counts: NDArray[np.int64],
    images: NDArray[np.uint8],
    labels: NDArray[np.int64],
    probabilities: NDArray[np.float32],
    weights: NDArray[np.float32],
) -> bytes:
    """A PNG.

    Args:
        counts: the confusion matrix, `(10, 10)`, true classes by row.
        images: the test set, `uint8 (n, 28, 28)`, with its labels and the model's `probabilities (n, 10)`.
        weights: the first layer's, `(units, 784)`.
    """
    figure = Figure(figsize=(13, 12), dpi=110, layout="constrained")
    figure.suptitle(title, fontsize=12)
    halves: Any = figure.subfigures(2, 1, height_ratios=(1, 0.9))
    upper, lower = halves
    left, right = upper.subfigures(1, 2, width_ratios=(1, 1.15))
    _confusions(left, names, counts)
    _mistakes(right, names, images, labels, probabilities)
    _units(lower, weights)
    picture = io.BytesIO()
    figure.savefig(picture, format="png")
    return picture.getvalue()


def _confusions(figure: Any, names: Sequence[str], counts: NDArray[np.int64]) -> None:
    axes = figure.subplots()
    axes.imshow(counts / counts.sum(axis=1, keepdims=True), cmap="Blues", vmin=0, vmax=1)
    for (row, column), count in np.ndenumerate(counts):
        if count:
            colour = "white" if count > counts[row].sum() / 2 else "black"
            axes.text(column, row, count, ha="center", va="center", fontsize=8, color=colour)
    axes.set_xticks(range(len(names)), names, rotation=45, ha="right")
    axes.set_yticks(range(len(names)), names)
    axes.set(xlabel="taken for", ylabel="true class", title="Confusions")


def _mistakes(
    figure: Any,
    names: Sequence[str],
    images: NDArray[np.uint8],
    labels: NDArray[np.int64],
    probabilities: NDArray[np.float32],
) -> None:
    figure.suptitle("The most confident mistakes: what it is → what it was taken for", fontsize=11)
    predicted = probabilities.argmax(axis=1)
    confidence = np.where(predicted == labels, -1.0, probabilities.max(axis=1))
    worst = confidence.argsort(kind="stable")[::-1][:MISTAKES]
    for axes, index in zip(figure.subplots(4, 5).flat, worst, strict=True):
        axes.axis("off")
        if confidence[index] >= 0:
            axes.imshow(images[index], cmap="gray", vmin=0, vmax=255)
            is_, taken_for = names[labels[index]], names[predicted[index]]
            axes.set_title(f"{is_}\n→ {taken_for}\n{confidence[index]:.1%}", fontsize=8)


def _units(figure: Any, weights: NDArray[np.float32]) -> None:
    shown = weights[:MOST_UNITS]
    more = f", the first {len(shown)} of {len(weights)}" if len(weights) > len(shown) else ""
    figure.suptitle(f"What the hidden units look at{more}: orange excites, violet inhibits", fontsize=11)
    columns = min(len(shown), max(8, math.ceil(math.sqrt(2.4 * len(shown)))))
    grid = figure.subplots(math.ceil(len(shown) / columns), columns, squeeze=False)
    for number, axes in enumerate(grid.flat):
        axes.axis("off")
        if number < len(shown):
            strongest = abs(shown[number]).max() or 1.0
            axes.imshow(shown[number].reshape(28, 28), cmap="PuOr_r", vmin=-strongest, vmax=strongest)
            axes.set_title(str(number + 1), fontsize=8)
