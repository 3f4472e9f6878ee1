"""The lessons as a table, as JSON, and as a figure with a panel each."""

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fmnist.experiment import Experiment
from fmnist_jax.lessons.claims import CONVERGED, Claim, Lesson, Setting, setting
from fmnist_jax.lessons.latency import Timing
from fmnist_jax.sweep.report import to_json

Percents = NDArray[np.float64]
Accuracy = dict[Setting, Percents]


def table(lessons: list[Lesson]) -> list[str]:
    """A line for each of the post's numbers, then one for each verdict."""
    header = ("lesson", "claim", "post %", "ours %", "range", "reach it", "spanned after")
    lines = ["{:<6}  {:<33} {:>6}  {:>13}  {:>12}  {:>8}  {:>13}".format(*header)]
    for lesson in lessons:
        for claim in lesson.claims:
            ours = f"{claim.ours.mean():.2f} ± {claim.ours.std(ddof=1):5.2f}"
            extent = f"{claim.ours.min():.2f}–{claim.ours.max():.2f}"
            reached = f"{claim.reached}/{len(claim.ours)}"
            lines.append(
                f"{lesson.number:<6}  {claim.what:<33} {claim.post:>6.1f}  {ours:>13}  {extent:>12}  {reached:>8}  "
                f"{_extent(claim.epochs):>13}"
            )
    for lesson in lessons:
        lines.append(f'lesson {lesson.number}: "{lesson.words}" {lesson.verdict} ({lesson.reasons})')
    return lines


def _extent(epochs: Sequence[int]) -> str:
    return f"{epochs[0]}–{epochs[-1]} epochs" if epochs else "-"


def as_json(lessons: list[Lesson], timings: list[Timing], environment: dict[str, Any]) -> bytes:
    """Every lesson with its claims' figures and its verdict, and every timing."""
    return to_json(
        {
            "environment": environment,
            "lessons": [
                {
                    "lesson": lesson.number,
                    "words": lesson.words,
                    "claims": [_described(claim) for claim in lesson.claims],
                    "verdict": lesson.verdict,
                    "reasons": lesson.reasons,
                }
                for lesson in lessons
            ],
            "timings": [timing._asdict() for timing in timings],
        }
    )


def _described(claim: Claim) -> dict[str, Any]:
    return {
        "claim": claim.what,
        "post": claim.post,
        "mean": claim.ours.mean(),
        "standard_deviation": claim.ours.std(ddof=1),
        "minimum": claim.ours.min(),
        "maximum": claim.ours.max(),
        "reached": claim.reached,
        "seeds": len(claim.ours),
        "place": claim.place,
        "spanned_after_epochs": claim.epochs,
        "ours": claim.ours,
    }


def draw(lessons: list[Lesson], accuracy: Accuracy, timings: list[Timing], data: str) -> bytes:
    """A PNG: what each lesson says, over what the seeds do; the post's numbers are black crosses."""
    from matplotlib.figure import Figure
    from matplotlib.ticker import PercentFormatter

    from fmnist.runs.curves import BLUE, GREEN, ORANGE, finished

    figure = Figure(figsize=(16, 8), dpi=110, layout="constrained")
    softmax, units, epochs, eighty, device, layers, convolutions, last = figure.subplots(2, 4).flat
    last.remove()
    numbers = {lesson.number: lesson.claims for lesson in lessons}

    def mlp(*hidden: int, softmax_output: bool = False) -> Setting:
        return setting(Experiment(hidden=hidden, softmax_output=softmax_output))

    cross = {"color": "black", "marker": "x", "markersize": 9, "markeredgewidth": 2, "linestyle": "none", "zorder": 5}

    def dots(axes: Any, groups: Sequence[tuple[str, Percents, float | None, str]]) -> None:
        for place, (_, values, post, colour) in enumerate(groups):
            sideways = np.linspace(-0.18, 0.18, len(values))
            axes.plot(place + sideways, values, "o", color=colour, markersize=4, alpha=0.7)
            axes.plot([place - 0.3, place + 0.3], [values.mean()] * 2, color=colour, linewidth=2)
            if post is not None:
                axes.plot(place, post, **cross)
        axes.set_xticks(range(len(groups)), [name for name, *_ in groups])
        axes.set_xlim(-0.6, len(groups) - 0.4)

    def spans(axes: Any, claim: Claim) -> None:
        """Where the post's number lies within the seeds' range."""
        for epoch in claim.epochs:
            axes.plot([epoch - 0.5, epoch + 0.5], [claim.post] * 2, color="black", linewidth=3, solid_capstyle="butt")

    def bands(axes: Any, key: Setting, length: int, colour: str, label: str, style: str = "-") -> None:
        values = accuracy[key][:, :length]
        steps = np.arange(1, length + 1)
        axes.plot(steps, values.mean(axis=0), style, color=colour, label=label)
        axes.fill_between(steps, values.min(axis=0), values.max(axis=0), color=colour, alpha=0.2, linewidth=0)

    five = {key: values[:, 4] for key, values in accuracy.items()}
    first, logits = five[mlp(4, softmax_output=True)], five[mlp(4)]
    dots(softmax, [("softmax first", first, 19, ORANGE), ("logits", logits, 39, BLUE)])
    softmax.set_title("1  4 units after 5 epochs")
    four, sixteen, more = (five[mlp(width)] for width in (4, 16, 32))
    dots(units, [("4 units", four, None, ORANGE), ("16", sixteen, 65, BLUE), ("32", more, None, GREEN)])
    units.set_title("2  units, after 5 epochs")
    bands(epochs, mlp(16), 40, BLUE, "16 units: mean and range")
    epochs.plot([10, 20], [71, 79.6], label="the post", **cross)
    for claim in numbers[3]:
        spans(epochs, claim)
    epochs.set_ylim(60, 83)
    epochs.set_title("3  10 and 20 epochs")
    epochs.legend(loc="lower right", frameon=False)
    bands(eighty, mlp(16), 40, BLUE, "16 units: mean and range")
    spans(eighty, numbers[4][0])
    eighty.axhline(80, color="black", linestyle="--", linewidth=1)
    eighty.annotate("80 %", (1, 80), xytext=(0, 4), textcoords="offset points")
    eighty.set_ylim(70, 83)
    eighty.set_title("4  80 % with 16 units")
    for name, marker in zip(dict.fromkeys(timing.device for timing in timings), "osv^", strict=False):
        mine = [timing for timing in timings if timing.device == name]
        for colour, what, points in (
            (BLUE, "batch size, 16 units", [(each.batch_size, each.seconds) for each in mine if each.width == 16]),
            (ORANGE, "width, batches of 64", [(each.width, each.seconds) for each in mine if each.batch_size == 64]),
        ):
            device.loglog(*zip(*sorted(points), strict=True), f"{marker}-", color=colour, label=f"{name}: {what}")
    device.set(xlabel="batch size or width", ylabel="seconds an epoch", title="5  latency and throughput")
    device.legend(loc="upper left", frameon=False)
    bands(layers, mlp(16), 40, BLUE, "16 units")
    bands(layers, mlp(16, 16), 40, ORANGE, "16-16 units")
    layers.plot(20, 78, label="the post, 16-16 units", **cross)
    spans(layers, numbers[6][0])
    layers.set_ylim(40, 83)
    layers.set_title("6  a second hidden layer")
    layers.legend(loc="lower right", frameon=False)
    for lr, style in ((Experiment.lr, "--"), (CONVERGED, "-")):
        for colour, name, experiment in (
            (ORANGE, "CNN", Experiment(network="cnn", lr=lr)),
            (BLUE, "16 units", Experiment(lr=lr)),
        ):
            bands(convolutions, setting(experiment), 20, colour, f"{name}, lr {lr:g}", style)
    convolutions.set_title("7  convolutions")
    convolutions.legend(loc="lower right", frameon=False)

    for axes in (softmax, units, epochs, eighty, layers, convolutions):
        axes.yaxis.set_major_formatter(PercentFormatter(decimals=0))
    for axes in (softmax, units):
        axes.grid(axis="y", alpha=0.3)
        axes.spines[["top", "right"]].set_visible(False)
    for axes in (softmax, eighty):
        axes.set_ylabel("correctly classified test images")
    for axes in (epochs, eighty, layers, convolutions):
        axes.set_xlabel("epochs")
    device.grid(alpha=0.3)
    device.spines[["top", "right"]].set_visible(False)
    seeds = len(lessons[0].claims[0].ours)
    figure.suptitle(
        f"The post's lessons on {data}, {seeds} seeds; crosses: the post's numbers; black bars: the epochs after "
        "which they lie within the seeds' range",
        fontsize=12,
    )
    return finished(figure, [epochs, eighty, layers, convolutions])
