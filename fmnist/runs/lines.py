"""What a run prints: the post's lines, its own header, and a progress bar."""

import platform
import sys
from collections.abc import Iterator, Sequence
from importlib.metadata import version
from typing import TypeVar

from fmnist.data import Dataset
from fmnist.experiment import Experiment
from fmnist.runs.environment import Environment, installed

LOG_EVERY = 100
Item = TypeVar("Item")


def loss_line(loss: float, step: int, batch_size: int, total: int) -> str:
    """The line that the post prints for a training loss at a batch counted from 0.

    The images seen are `(batch + 1) * len(X)`, of this batch's own length: on a short last batch the post counts too
    few, and so does this.
    """
    images = min(batch_size, total - step * batch_size)
    return f"loss: {loss:>7f}  [{(step + 1) * images:>5d}/{total:>5d}]"


def evaluation_lines(accuracy: float, average_loss: float) -> str:
    """The lines that the post prints for a test pass, with their trailing blanks."""
    return f"Test Error: \n Accuracy: {100 * accuracy:>0.1f}%, Avg loss: {average_loss:>8f} \n"


def progress(items: Sequence[Item], what: str) -> Iterator[Item]:
    """The items, with a bar on standard error where that is a terminal."""
    if not sys.stderr.isatty():
        yield from items
        return
    from rich.console import Console
    from rich.progress import Progress

    # Lines for a terminal go above the bar; those for a file or a pipe must not pass through rich.
    with Progress(console=Console(stderr=True), transient=True, redirect_stdout=sys.stdout.isatty()) as bar:
        yield from bar.track(items, description=what)


def header(experiment: Experiment, environment: Environment, dataset: Dataset, done: int | None) -> list[str]:
    """What a run says of itself before it starts, or is resumed after `done` epochs."""
    packages = ", ".join(f"{name} {its}" for name, its in installed().items() if name.startswith(environment.framework))
    threads = f"{environment.threads} thread{'s' * (environment.threads > 1)}"
    return [
        f"{packages}, numpy {version('numpy')}, Python {platform.python_version()}",
        f"device: {environment.device}, {environment.precision} precision, {threads}",
        f"data: {dataset.name} ({dataset.source}), SHA-256 {dataset.sha256[:16]}…",
        f"network: {describe(experiment)}, {experiment.parameters:,} parameters",
        *_progress_so_far(done, experiment.epochs),
    ]


def _progress_so_far(done: int | None, epochs: int) -> list[str]:
    if done is None:
        return []
    return [f"resumed after epoch {done} of {epochs}" if done < epochs else f"finished: all {epochs} epochs are done"]


def describe(experiment: Experiment) -> str:
    """An experiment in a line, e.g. `784-16-10, batch 64, lr 0.001, seed 0`."""
    output = " with a softmax at its end" if experiment.softmax_output else ""
    return (
        f"{experiment.structure}{output}, batch {experiment.batch_size}, lr {experiment.lr:g}, seed {experiment.seed}"
    )
