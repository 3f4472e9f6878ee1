"""Pages of pictures: of a model on the test set, and of images beside what a model takes them for."""

import io
import math
import textwrap
import warnings
from collections.abc import Sequence
from typing import Any

import numpy as np
from matplotlib.figure import Figure
from numpy.typing import NDArray

from fmnist.predictions.report import LIKELIEST, likeliest
from fmnist.runs.curves import BLUE, GREY, ORANGE

MISTAKES = 20
MOST_IMAGES = 60
MOST_UNITS = 64
WIDTH = 13.0  # inches


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
        weights: the first layer's, `(units, 784)` or `(channels, 1, 3, 3)`.
    """
    rows, columns = _grid(len(weights))
    # As high as its rows of squares are: constrained layout would spread lower ones over the page, with gaps.
    upper_height, lower_height = 6.4, 0.5 + rows * (WIDTH / columns + 0.15)
    figure = Figure(figsize=(WIDTH, upper_height + lower_height), dpi=110, layout="constrained")
    figure.suptitle(_drawable(title), fontsize=12, parse_math=False)
    halves: Any = figure.subfigures(2, 1, height_ratios=(upper_height, lower_height))
    upper, lower = halves
    left, right = upper.subfigures(1, 2, width_ratios=(1, 1.15))
    _confusions(left, names, counts)
    _mistakes(right, names, images, labels, probabilities)
    _units(lower, weights)
    return _png(figure)


def draw_images(
    title: str,
    caution: str,
    files: Sequence[str],
    images: NDArray[np.uint8],
    unlike: Sequence[str | None],
    names: Sequence[str],
    probabilities: NDArray[np.float32],
) -> bytes:
    """A PNG of each image as the network gets it, `uint8 (n, 28, 28)`, beside its three likeliest classes.

    Args:
        unlike: how each differs from all of training, in words, or None.
    """
    shown = min(len(images), MOST_IMAGES)
    columns = min(shown, 3)
    rows = math.ceil(shown / columns)
    figure = Figure(figsize=(max(6.0, 4.3 * columns), 1.9 * rows + 1.1), dpi=110, layout="constrained")
    more = f" (the first {shown} of {len(images)})" if shown < len(images) else ""
    wrapped = textwrap.fill(f"{caution[0].upper()}{caution[1:]}.", 22 + 40 * columns)
    figure.suptitle(f"{_drawable(title)}{more}.\n{wrapped}", fontsize=10, parse_math=False)
    cells = np.ravel(figure.subfigures(rows, columns, squeeze=False))
    for cell, file, image, words, its in zip(cells, files, images, unlike, probabilities, strict=False):
        name = _drawable(file)
        cell.suptitle(name if len(name) <= 40 else f"{name[:39]}…", fontsize=9, parse_math=False)
        picture, bars = cell.subplots(1, 2, width_ratios=(1, 1.6))
        picture.imshow(image, cmap="gray", vmin=0, vmax=255)
        picture.axis("off")
        best = likeliest(its)
        bars.barh(range(LIKELIEST), its[best], height=0.3, color=BLUE if words is None else GREY)
        bars.set(xlim=(0, 1), ylim=(LIKELIEST - 0.5, -0.8))
        bars.axis("off")
        for place, label in enumerate(best):
            bars.text(0, place - 0.2, f"{names[label]} {its[label]:.1%}", fontsize=8, va="bottom")
        if words is not None:
            bars.text(0, LIKELIEST - 0.6, textwrap.fill(words, 34), fontsize=7, va="top", color=ORANGE)
    return _png(figure)


def _png(figure: Figure) -> bytes:
    picture = io.BytesIO()
    # A box in the place of a letter that the font lacks is enough.
    with warnings.catch_warnings(action="ignore"):
        figure.savefig(picture, format="png")
    return picture.getvalue()


def _drawable(text: str) -> str:
    """A file's name may hold bytes that are no characters, for which no font has a shape."""
    return text.encode(errors="backslashreplace").decode()


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


def _grid(units: int) -> tuple[int, int]:
    """Rows and columns that hold so many units, or as many as are shown: few a row where they are many."""
    shown = min(units, MOST_UNITS)
    columns = max(8, math.ceil(math.sqrt(2.4 * shown)))
    return math.ceil(shown / columns), columns


def _units(figure: Any, weights: NDArray[np.float32]) -> None:
    shown = weights[:MOST_UNITS]
    more = f", the first {len(shown)} of {len(weights)}" if len(weights) > len(shown) else ""
    what = "hidden units" if weights.ndim == 2 else "first channels"
    figure.suptitle(f"What the {what} look at{more}: orange excites, violet inhibits", fontsize=11)
    side = math.isqrt(weights[0].size)
    grid = figure.subplots(*_grid(len(weights)), squeeze=False)
    for number, axes in enumerate(grid.flat):
        axes.axis("off")
        if number < len(shown):
            strongest = abs(shown[number]).max() or 1.0
            axes.imshow(shown[number].reshape(side, side), cmap="PuOr_r", vmin=-strongest, vmax=strongest)
            axes.set_title(str(number + 1), fontsize=8)
