"""What a run says and leaves behind: log lines, metrics, files. The same on both sides."""

import contextlib
import hashlib
import json
import os
import platform
import shlex
import sys
import tempfile
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import asdict, dataclass, field
from importlib.metadata import version
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
from numpy.typing import ArrayLike

from fmnist_torch import boards, checkpoints, interruption, locks, resuming
from fmnist_torch.checkpoints import Checkpoint, Tensors
from fmnist_torch.data import Dataset
from fmnist_torch.errors import Failure, Interrupted, UsageError
from fmnist_torch.experiment import Experiment, Options
from fmnist_torch.files import append, clear_temporaries, cut, flush, write_atomically
from fmnist_torch.signatures import save_signed

LOG_EVERY = 100
Item = TypeVar("Item")
FILES = (
    "checkpoint.safetensors",  # the first to be deleted: without it, nothing else is taken for a run to go on with
    "config.json",
    "environment.json",
    "metrics.jsonl",
    "model.safetensors",
    "curves.png",
)
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
    resumed: Checkpoint | None = None
    """What the run goes on from; None for a start."""
    safe_point: Callable[[], None] = lambda: None
    """Called where the run can end, in case a signal asked for it."""
    environments: list[dict[str, Any]] = field(default_factory=list)
    """Where the run took place, and from which epoch on."""
    metrics: list[dict[str, Any]] = field(default_factory=list)
    size: int = 0
    """Bytes of `metrics.jsonl`, and their SHA-256."""
    digest: Any = field(default_factory=hashlib.sha256)
    writer: ThreadPoolExecutor = field(default_factory=lambda: ThreadPoolExecutor(1))
    """Writes checkpoints while the next epoch is trained: 1 ms of it, or 2 % of the mirror's epochs."""
    written: Future[None] | None = None
    """The last checkpoint that was given to the writer."""
    board: Any = None
    """TensorBoard's writer, where it was asked for."""

    @property
    def steps(self) -> int:
        """Steps of an epoch."""
        return self.options.experiment.batches(len(self.dataset.train.labels))

    def begin(self, init: Callable[[], Tensors]) -> Tensors:
        """The parameters that the run starts or goes on from; `init` draws those of a start."""
        if self.resumed is not None:
            return self.resumed.tensors
        tensors = init()
        self._checkpoint(0, lambda: tensors)
        # Before the first line of metrics: metrics without any checkpoint could not be gone on with.
        self._wait()
        return tensors

    def report_training(self, epoch: int, losses: ArrayLike) -> None:
        """Print and record an epoch's training losses, `(steps,) float32`, each from before its update.

        Raises:
            Failure: a loss is not finite; what came before it is printed and recorded.
        """
        losses = np.asarray(losses)
        total = len(self.dataset.train.labels)
        finite = np.isfinite(losses)
        steps = len(losses) if finite.all() else int(finite.argmin())
        lines, entries = [f"Epoch {epoch}", "-" * 31], []
        for step in range(0, steps, LOG_EVERY):
            lines.append(loss_line(losses[step], step, self.options.experiment.batch_size, total))
            entries.append({"epoch": epoch, "step": step + 1, "loss": float(losses[step])})
        print("\n".join(lines), flush=True)
        self._record(entries)
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
        print(test_lines(accuracy, average), flush=True)
        self._record([{"epoch": epoch, "accuracy": accuracy, "average_loss": average}])

    def keep(self, epoch: int, tensors: Callable[[], Tensors]) -> None:
        """Keep the state after an epoch where it is time to, and end here if a signal asked for it.

        Args:
            tensors: makes the parameters by torch's names, where they are needed.

        Raises:
            Interrupted: a signal asked for it; the state is kept.
        """
        try:
            self.safe_point()
        except Interrupted:
            self._checkpoint(epoch, tensors)
            self._wait()
            raise
        if epoch % self.options.checkpoint_every == 0 or epoch == self.options.experiment.epochs:
            self._checkpoint(epoch, tensors)

    def finish(self, tensors: Tensors) -> None:
        """Leave the run's parameters and its curves; say that it is done."""
        self._wait()
        if self.options.output is not None:
            from fmnist_torch.curves import draw

            self._write("model.safetensors", save_signed(tensors, "model 1"))
            experiment = self.options.experiment
            title = f"{self.environment.framework} on {self.dataset.name}: {describe(experiment)}"
            self._write("curves.png", draw(title, self.metrics, self.steps))
        print("Done!", flush=True)

    def epochs(self) -> Iterator[int]:
        """The run's epochs still to come, counted from 1, behind a progress bar where standard error is a terminal."""
        done = self.resumed.epoch if self.resumed else 0
        return progress(range(done + 1, self.options.experiment.epochs + 1), "epochs")

    def _record(self, entries: list[dict[str, Any]]) -> None:
        lines = "".join(json.dumps(entry) + "\n" for entry in entries).encode()
        if self.options.output is not None:
            append(self.options.output / "metrics.jsonl", lines)
        if self.board is not None:
            boards.record(self.board, entries, self.steps)
        self.metrics += entries
        self.size += len(lines)
        self.digest.update(lines)

    def _checkpoint(self, epoch: int, tensors: Callable[[], Tensors]) -> None:
        if self.options.output is None:
            return
        checkpoint = Checkpoint(
            experiment=self.options.experiment,
            epoch=epoch,
            step=epoch * self.steps,
            tensors={name: tensor.copy() for name, tensor in tensors().items()},
            data={"name": self.dataset.name, "sha256": self.dataset.sha256},
            environments=self.environments,
            metrics_size=self.size,
            metrics_sha256=self.digest.hexdigest(),
        )
        self._wait()
        self.written = self.writer.submit(_write_checkpoint, self.options.output, checkpoint)

    def _wait(self) -> None:
        """Until the last checkpoint is safe; what kept it from that is raised here."""
        if self.written is not None:
            self.written.result()

    def _not_finite(self, what: str) -> Failure:
        return Failure(f"the {what} is no longer finite; try a smaller --lr than {self.options.experiment.lr:g}")

    def _write(self, name: str, content: bytes) -> None:
        if self.options.output is not None:
            write_atomically(self.options.output / name, content)


@contextlib.contextmanager
def start(options: Options, environment: Environment, dataset: Dataset, name: str) -> Iterator[Run]:
    """A run from its first epoch or, with `--resume`, from its last checkpoint; prints its header to standard error.

    While it lasts, no other run can write into its folder, and signals end it only where nothing is lost.

    Raises:
        UsageError: `--output` cannot be used, or holds what cannot be resumed; nothing in it was touched.
    """
    folder = options.output
    run = Run(options, environment, dataset)
    with contextlib.ExitStack() as stack:
        advice = f"{name}: interrupted"
        if folder is not None:
            stack.enter_context(_telling_what_cannot_be_written(folder))
            check_folder(folder, FILES, overwrite=options.overwrite or options.resume)
            stack.enter_context(locks.hold(folder))
            stack.callback(run.writer.shutdown)
            run.resumed = resuming.restore(folder, options, dataset) if options.resume else None
            _settle(run, folder)
            advice += f"; go on by: python -m {name} --output {shlex.quote(str(folder))} --resume"
            if options.tensorboard:
                run.board = boards.start(folder, run.resumed.step if run.resumed else 0)
                stack.callback(run.board.close)
        print("\n".join(_header(run)), file=sys.stderr)
        run.safe_point = stack.enter_context(interruption.graceful(advice))
        yield run


def _write_checkpoint(folder: Path, checkpoint: Checkpoint) -> None:
    flush(folder / resuming.METRICS)
    checkpoints.write(folder / resuming.CHECKPOINT, checkpoint)


@contextlib.contextmanager
def _telling_what_cannot_be_written(folder: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        if error.filename is None or Path(error.filename).parent != folder:
            raise
        raise Failure(f"{error.filename}: cannot be written: {error.strerror}") from None


def _settle(run: Run, folder: Path) -> None:
    """Put down what the run starts from."""
    clear_temporaries(folder, FILES)
    described = describe_environment(run.environment, run.dataset)
    if run.resumed is None:
        for name in FILES:
            (folder / name).unlink(missing_ok=True)
    else:
        lines = resuming.read_metrics(folder, run.resumed)
        # What came after the checkpoint is trained, and told, once more.
        cut(folder / resuming.METRICS, len(lines))
        run.digest.update(lines)
        run.size = len(lines)
        run.metrics = [json.loads(line) for line in lines.splitlines()]
        run.environments = run.resumed.environments
        for difference in resuming.differences(run.environments[-1], described):
            print(f"the run goes on elsewhere, and may come to other bits: {difference}", file=sys.stderr)
    if not run.environments or resuming.differences(run.environments[-1], described):
        first = run.resumed.epoch + 1 if run.resumed else 1
        run.environments = [*run.environments, {"from_epoch": first, **described}]
    write_atomically(folder / "config.json", _json({**asdict(run.options.experiment), "data": run.dataset.name}))
    write_atomically(folder / "environment.json", _json({**described, "earlier": run.environments[:-1]}))
    append(folder / "metrics.jsonl", b"")


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
        *_progress_so_far(run),
    ]


def _progress_so_far(run: Run) -> list[str]:
    if run.resumed is None:
        return []
    done, epochs = run.resumed.epoch, run.options.experiment.epochs
    return [f"going on after epoch {done} of {epochs}" if done < epochs else f"finished: all {epochs} epochs are done"]


def describe(experiment: Experiment) -> str:
    """An experiment in a line, e.g. `784-16-10, batch 64, lr 0.001, seed 0`."""
    output = " with a softmax at its end" if experiment.softmax_output else ""
    widths = "-".join(map(str, experiment.widths))
    return f"{widths}{output}, batch {experiment.batch_size}, lr {experiment.lr:g}, seed {experiment.seed}"


def _json(values: dict[str, Any]) -> bytes:
    return (json.dumps(values, indent=2) + "\n").encode()
