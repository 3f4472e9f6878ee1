"""What a run says and leaves behind: log lines, metrics, files. The same on both sides."""

import json
import os
import platform
import sys
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, field
from importlib.metadata import version
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
from numpy.typing import ArrayLike, NDArray
from safetensors.numpy import save

from fmnist_torch.data import Dataset
from fmnist_torch.errors import Failure, UsageError
from fmnist_torch.experiment import Experiment, Options
from fmnist_torch.files import write_atomically

Tensors = dict[str, NDArray[Any]]
"""Parameters by torch's `state_dict` names and layouts: `fc1.weight (16, 784)`, `fc1.bias (16,)`, …"""

LOG_EVERY = 100
Item = TypeVar("Item")
FILES = ("config.json", "environment.json", "metrics.jsonl", "model.safetensors", "curves.png")
PACKAGES = ("numpy", "jax", "jaxlib", "flax", "optax", "torch", "torchvision", "safetensors")


@dataclass(frozen=True)
class Environment:
    """Where a run takes place, in its framework's words."""

    framework: str
    device: str
    precision: str
    threads: int


@dataclass
class Run:
    """A run under way: prints its lines and keeps its files as it goes."""

    options: Options
    environment: Environment
    dataset: Dataset
    metrics: list[dict[str, Any]] = field(default_factory=list)

    @property
    def steps(self) -> int:
        """Steps of an epoch."""
        return self.options.experiment.batches(len(self.dataset.train.labels))

    def report_training(self, epoch: int, losses: ArrayLike) -> None:
        """Print and record an epoch's training losses, `(steps,) float32`, each from before its update.

        Raises:
            Failure: a loss is not finite; what came before it is printed and recorded.
        """
        losses = np.asarray(losses)
        total = len(self.dataset.train.labels)
        finite = np.isfinite(losses)
        steps = len(losses) if finite.all() else int(finite.argmin())
        lines = [f"Epoch {epoch}", "-" * 31]
        for step in range(0, steps, LOG_EVERY):
            lines.append(loss_line(losses[step], step, self.options.experiment.batch_size, total))
            self.metrics.append({"epoch": epoch, "step": step + 1, "loss": float(losses[step])})
        print("\n".join(lines), flush=True)
        self._write_metrics()
        if steps < len(losses):
            raise self._not_finite(f"training loss of epoch {epoch}, step {steps + 1} of {len(losses)},")

    def report_test(self, epoch: int, correct: ArrayLike, losses: ArrayLike) -> None:
        """Print and record a test pass: how many images were right, and every batch's mean loss.

        Raises:
            Failure: a loss is not finite.
        """
        losses = np.asarray(losses, np.float64)
        finite = np.isfinite(losses)
        if not finite.all():
            step = f"batch {int(finite.argmin()) + 1} of {len(losses)}"
            raise self._not_finite(f"test loss after epoch {epoch}, step {self.steps}, in {step},")
        accuracy = int(np.asarray(correct)) / len(self.dataset.test.labels)
        average = float(losses.mean())
        self.metrics.append({"epoch": epoch, "accuracy": accuracy, "average_loss": average})
        print(test_lines(accuracy, average), flush=True)
        self._write_metrics()

    def finish(self, tensors: Tensors) -> None:
        """Leave the run's parameters and its curves; say that it is done."""
        if self.options.output is not None:
            from fmnist_torch.curves import draw

            self._write("model.safetensors", save({name: np.ascontiguousarray(tensors[name]) for name in tensors}))
            experiment = self.options.experiment
            title = f"{self.environment.framework} on {self.dataset.name}: {describe(experiment)}"
            self._write("curves.png", draw(title, self.metrics, self.steps))
        print("Done!", flush=True)

    def epochs(self) -> Iterator[int]:
        """The run's epochs from 1 on, behind a progress bar where standard error is a terminal."""
        return progress(range(1, self.options.experiment.epochs + 1), "epochs")

    def _write_metrics(self) -> None:
        self._write("metrics.jsonl", "".join(json.dumps(entry) + "\n" for entry in self.metrics).encode())

    def _not_finite(self, what: str) -> Failure:
        return Failure(f"the {what} is no longer finite; try a smaller --lr than {self.options.experiment.lr:g}")

    def _write(self, name: str, content: bytes) -> None:
        if self.options.output is None:
            return
        try:
            write_atomically(self.options.output / name, content)
        except OSError as error:
            raise Failure(f"{self.options.output / name}: cannot be written: {error.strerror}") from None


def start(options: Options, environment: Environment, dataset: Dataset) -> Run:
    """Print a run's header to standard error and put down what it starts from.

    Raises:
        UsageError: `--output` holds a run already or cannot be written; nothing in it was touched.
    """
    run = Run(options, environment, dataset)
    if options.output is not None:
        prepare_folder(options.output, FILES, options.overwrite)
        run._write("config.json", _json({**asdict(options.experiment), "data": dataset.name}))
        run._write("environment.json", _json(describe_environment(environment, dataset)))
    print("\n".join(_header(run)), file=sys.stderr)
    return run


def loss_line(loss: float, step: int, batch_size: int, total: int) -> str:
    """The line that the post prints for a training loss at a batch counted from 0.

    The images seen are `(batch + 1) * len(X)`, of this batch's own length: on a short last batch the post counts too
    few, and so does this.
    """
    images = min(batch_size, total - step * batch_size)
    return f"loss: {loss:>7f}  [{(step + 1) * images:>5d}/{total:>5d}]"


def test_lines(accuracy: float, average_loss: float) -> str:
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


def check_folder(folder: Path, files: Sequence[str], overwrite: bool) -> None:
    """Make sure of a folder that can be written and, without `overwrite`, holds none of the files.

    Raises:
        UsageError: it is no such folder; nothing in it was touched.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
        held = [name for name in files if os.path.lexists(folder / name)]
        with tempfile.TemporaryFile(dir=folder):
            pass
    except (FileExistsError, NotADirectoryError):
        raise UsageError(f"--output {folder}: not a folder; expected one for the files that are written") from None
    except OSError as error:
        raise UsageError(
            f"--output {folder}: cannot be written: {error.strerror}; choose a folder that can be"
        ) from None
    if held and not overwrite:
        raise UsageError(
            f"--output {folder}: holds results already ({held[0]}); choose another folder, or replace them by "
            "--overwrite"
        )
    folders = [name for name in held if (folder / name).is_dir()]
    if folders:
        raise UsageError(f"--output {folder}: {folders[0]} is a folder where a file will be written; move it away")


def prepare_folder(folder: Path, files: Sequence[str], overwrite: bool) -> None:
    """Make sure of a folder as `check_folder` does; with `overwrite`, delete those of the files that it holds.

    Raises:
        UsageError: it is no such folder; nothing in it was touched.
    """
    check_folder(folder, files, overwrite)
    for name in files:
        (folder / name).unlink(missing_ok=True)


def describe_environment(environment: Environment, dataset: Dataset) -> dict[str, Any]:
    """All that results may depend on besides the experiment, for `environment.json`."""
    return {
        **asdict(environment),
        "python": platform.python_version(),
        "packages": {name: version(name) for name in PACKAGES},
        "platform": platform.platform(),
        "data": {"name": dataset.name, "source": dataset.source, "sha256": dataset.sha256},
    }


def _header(run: Run) -> list[str]:
    experiment, environment, dataset = run.options.experiment, run.environment, run.dataset
    packages = ", ".join(f"{name} {version(name)}" for name in PACKAGES if name.startswith(environment.framework))
    return [
        f"{packages}, numpy {version('numpy')}, Python {platform.python_version()}",
        f"device: {environment.device}, {environment.precision} precision, {environment.threads} threads",
        f"data: {dataset.name} ({dataset.source}), SHA-256 {dataset.sha256[:16]}…",
        f"network: {describe(experiment)}, {experiment.parameters:,} parameters",
    ]


def describe(experiment: Experiment) -> str:
    """An experiment in a line, e.g. `784-16-10, batch 64, lr 0.001, seed 0`."""
    output = " with a softmax at its end" if experiment.softmax_output else ""
    widths = "-".join(map(str, experiment.widths))
    return f"{widths}{output}, batch {experiment.batch_size}, lr {experiment.lr:g}, seed {experiment.seed}"


def _json(values: dict[str, Any]) -> bytes:
    return (json.dumps(values, indent=2) + "\n").encode()
