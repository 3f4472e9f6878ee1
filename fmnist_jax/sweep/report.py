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
    return experiment.structure, experiment.softmax_output, experiment.lr


def _mean_and_deviation(values: Any) -> tuple[Array, Array]:
    """Of the unmasked values over the first axis; of a single one the deviation is 0."""
    deviation = values.std(axis=0, ddof=1) if len(values) > 1 else np.zeros(values.shape[1:])
    return np.ma.filled(values.mean(axis=0), math.nan), np.ma.filled(deviation, 0.0)


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
                f"{setting.structure:<16} {setting.lr:>8g} {switch:>7} {epoch + 1:>5} {finite:>9} "
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
    sizes = {"channels": experiment.channels} if experiment.network == "cnn" else {"hidden": experiment.hidden}
    return {
        "network": experiment.network,
        **sizes,
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
    """A PNG of test accuracy and loss over epochs: every setting's mean, in a band of one standard deviation.

    A column of panels for each network, a colour for each learning rate; a softmax output is dashed.
    """
    from matplotlib import colormaps
    from matplotlib.figure import Figure
    from matplotlib.ticker import PercentFormatter

    from fmnist.runs.curves import PALETTE, finished

    networks = list(dict.fromkeys(summary.setting.structure for summary in summaries))
    rates = sorted({summary.setting.lr for summary in summaries})
    colours = PALETTE if len(rates) <= len(PALETTE) else colormaps["viridis"](np.linspace(0, 0.95, len(rates)))
    colour_of = dict(zip(rates, colours, strict=False))
    # One network's panels stand side by side; those of several below each other, at most four to a row.
    columns = min(len(networks), 4)
    rows = 2 * math.ceil(len(networks) / columns)
    single = len(networks) == 1
    size = (11.5, 4.6) if single else (max(8.0, 3.6 * columns), 2.9 * rows + 0.9)
    figure = Figure(figsize=size, dpi=110, layout="constrained")
    grid = figure.subplots(1, 2) if single else figure.subplots(rows, columns, squeeze=False)
    panels = {
        network: (grid[0], grid[1])
        if single
        else tuple(grid[2 * (at // columns) : 2 * (at // columns) + 2, at % columns])
        for at, network in enumerate(networks)
    }
    for network, (accuracy_axes, loss_axes) in panels.items():
        accuracy_axes.sharey(panels[networks[0]][0])
        loss_axes.sharey(panels[networks[0]][1])
        accuracy_axes.set_title(f"{network}: accuracy")
        loss_axes.set_title(f"{network}: test loss")
        accuracy_axes.yaxis.set_major_formatter(PercentFormatter(1, decimals=0))
    for axes in (each[0] for at, each in enumerate(panels.values()) if at % columns == 0):
        axes.set_ylabel("correctly classified test images")
    for axes in (each[1] for at, each in enumerate(panels.values()) if at % columns == 0):
        axes.set_ylabel("cross-entropy (nats)")
    lines = {}
    for summary in summaries:
        setting = summary.setting
        epochs = np.arange(1, len(summary.accuracy) + 1)
        label = f"lr {setting.lr:g}{', softmax output' if setting.softmax_output else ''}"
        for axes, mean, deviation in zip(
            panels[setting.structure],
            (summary.accuracy, summary.average_loss),
            (summary.accuracy_deviation, summary.average_loss_deviation),
            strict=True,
        ):
            colour, style = colour_of[setting.lr], "--" if setting.softmax_output else "-"
            (lines[label],) = axes.plot(epochs, mean, style, marker="o", color=colour, markersize=3)
            axes.fill_between(epochs, mean - deviation, mean + deviation, color=colour, alpha=0.15, linewidth=0)
    used = [axes for pair in panels.values() for axes in pair]
    for axes in np.ravel(grid):
        if axes not in used:
            axes.remove()
        else:
            axes.set_xlabel("epochs")
    figure.legend(lines.values(), lines.keys(), loc="outside lower center", ncols=4, frameon=False, fontsize=9)
    seeds = summaries[0].seeds
    figure.suptitle(f"{data}: mean ± standard deviation over {seeds} seed{'s' if seeds > 1 else ''}", fontsize=11)
    return finished(figure, used)
