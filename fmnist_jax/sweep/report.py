"""What a sweep found: a table, JSON, and a picture with bands."""

import itertools
import json
import math
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from fmnist.experiment import Experiment
from fmnist.runs.lines import LOG_EVERY

Array = NDArray[np.float64]


class Member(NamedTuple):
    """What became of a member: what its own run would report."""

    experiment: Experiment
    training_losses: NDArray[np.float32]
    """Loss of every batch before its update, `(epochs, steps)`."""
    accuracy: NDArray[np.float64]
    """Share of correctly classified test images after every epoch, `(epochs,)`, in [0, 1]."""
    average_loss: NDArray[np.float64]
    """Mean of the test batches' mean losses after every epoch, `(epochs,)`."""


class Summary(NamedTuple):
    """A setting over its seeds, after every epoch: means and standard deviations, `(epochs,)`.

    The deviation is the seeds' own, of n - 1 degrees of freedom; 0 for one seed. A loss is that of the seeds whose loss
    is finite, and NaN where there is none.
    """

    setting: Experiment
    seeds: int
    finite: NDArray[np.int64]
    """How many seeds have a finite test loss."""
    accuracy: Array
    accuracy_deviation: Array
    average_loss: Array
    average_loss_deviation: Array


def summarise(members: Sequence[Member]) -> list[Summary]:
    """One summary for each setting, in the members' order."""
    summaries = []
    for _, group in itertools.groupby(members, lambda member: _setting(member.experiment)):
        of_setting = list(group)
        accuracy = np.ma.array([member.accuracy for member in of_setting])
        loss = np.ma.masked_invalid([member.average_loss for member in of_setting])
        moments = (*_mean_and_deviation(accuracy), *_mean_and_deviation(loss))
        summaries.append(Summary(of_setting[0].experiment, len(of_setting), loss.count(axis=0), *moments))
    return summaries


def _setting(experiment: Experiment) -> tuple[Any, ...]:
    return experiment.hidden, experiment.softmax_output, experiment.lr


def _mean_and_deviation(values: Any) -> tuple[Array, Array]:
    """Of the unmasked values over the first axis; of a single one the deviation is 0."""
    return np.ma.filled(values.mean(axis=0), math.nan), np.ma.filled(values.std(axis=0, ddof=1), 0.0)


def table(summaries: Sequence[Summary]) -> list[str]:
    """A line for each setting and epoch: means ± standard deviations over the seeds."""
    header = ("network", "lr", "softmax", "epoch", "finite", "accuracy %", "test loss")
    lines = ["{:<16} {:>8} {:>7} {:>5} {:>9} {:>14} {:>19}".format(*header)]
    for summary in summaries:
        setting = summary.setting
        switch = "yes" if setting.softmax_output else "no"
        for epoch in range(len(summary.accuracy)):
            finite = f"{summary.finite[epoch]}/{summary.seeds}"
            lines.append(
                f"{'-'.join(map(str, setting.widths)):<16} {setting.lr:>8g} {switch:>7} {epoch + 1:>5} {finite:>9} "
                f"{100 * summary.accuracy[epoch]:>6.2f} ± {100 * summary.accuracy_deviation[epoch]:>5.2f} "
                f"{summary.average_loss[epoch]:>9.6f} ± {summary.average_loss_deviation[epoch]:.6f}"
            )
    return lines


def as_json(members: Sequence[Member], summaries: Sequence[Summary], environment: dict[str, Any]) -> bytes:
    """The sweep's settings with their summaries, and a row for each member with what its own run would report.

    Losses that are not finite are null.
    """
    settings = [
        {
            **_described(summary.setting),
            "seeds": summary.seeds,
            "accuracy": {"mean": summary.accuracy, "standard_deviation": summary.accuracy_deviation},
            "average_loss": {"mean": summary.average_loss, "standard_deviation": summary.average_loss_deviation},
        }
        for summary in summaries
    ]
    rows = [
        {
            **_described(member.experiment),
            "seed": member.experiment.seed,
            "losses": member.training_losses[:, ::LOG_EVERY],
            "accuracy": member.accuracy,
            "average_loss": member.average_loss,
        }
        for member in members
    ]
    return to_json({"environment": environment, "settings": settings, "rows": rows})


def _described(experiment: Experiment) -> dict[str, Any]:
    return {
        "hidden": experiment.hidden,
        "softmax_output": experiment.softmax_output,
        "batch_size": experiment.batch_size,
        "lr": experiment.lr,
        "epochs": experiment.epochs,
    }


def to_json(content: dict[str, Any]) -> bytes:
    """An object as JSON, with a line for each item of its lists; numbers that are not finite are null."""
    parts = []
    for name, value in content.items():
        if isinstance(value, list):
            said = "[\n" + ",\n".join(json.dumps(_plain(item), allow_nan=False) for item in value) + "\n]"
        else:
            said = json.dumps(_plain(value), allow_nan=False)
        parts.append(f"{json.dumps(name)}: {said}")
    return ("{" + ",\n".join(parts) + "}\n").encode()


def _plain(value: Any) -> Any:
    """The same in what JSON knows."""
    if isinstance(value, np.ndarray | np.generic):
        return _plain(value.tolist())
    if isinstance(value, dict):
        return {key: _plain(each) for key, each in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(each) for each in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def draw(summaries: Sequence[Summary], data: str) -> bytes:
    """A PNG of test accuracy and loss over epochs: every setting's mean, in a band of one standard deviation."""
    from matplotlib import colormaps
    from matplotlib.figure import Figure
    from matplotlib.ticker import PercentFormatter

    from fmnist.runs.curves import PALETTE, finished

    few = len(summaries) <= len(PALETTE)
    colours = PALETTE if few else colormaps["viridis"](np.linspace(0, 0.95, len(summaries)))
    figure = Figure(figsize=(11.5, 4.6), dpi=110, layout="constrained")
    accuracy_axes, loss_axes = figure.subplots(1, 2)
    for summary, colour in zip(summaries, colours, strict=False):
        epochs = np.arange(1, len(summary.accuracy) + 1)
        setting = summary.setting
        widths = "-".join(map(str, setting.widths))
        label = f"{widths}, lr {setting.lr:g}{', softmax output' if setting.softmax_output else ''}"
        for axes, mean, deviation in (
            (accuracy_axes, summary.accuracy, summary.accuracy_deviation),
            (loss_axes, summary.average_loss, summary.average_loss_deviation),
        ):
            axes.plot(epochs, mean, "o-", color=colour, markersize=3, label=label)
            axes.fill_between(epochs, mean - deviation, mean + deviation, color=colour, alpha=0.2, linewidth=0)
    accuracy_axes.set(xlabel="epochs", ylabel="correctly classified test images", title="Accuracy")
    accuracy_axes.yaxis.set_major_formatter(PercentFormatter(1, decimals=0))
    loss_axes.set(xlabel="epochs", ylabel="cross-entropy (nats)", title="Test loss")
    handles, labels = accuracy_axes.get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower center", ncols=3, frameon=False, fontsize=8)
    seeds = summaries[0].seeds
    figure.suptitle(f"{data}: mean ± standard deviation over {seeds} seed{'s' if seeds > 1 else ''}", fontsize=11)
    return finished(figure, [accuracy_axes, loss_axes])
