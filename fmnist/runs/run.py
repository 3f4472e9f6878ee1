"""What a run says and leaves behind: log lines, metrics, files. The same on both sides."""

import contextlib
import hashlib
import json
import shlex
import sys
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import ArrayLike

from fmnist import metrics
from fmnist.command import Failure, Interrupted, interpreter, say
from fmnist.data import Dataset
from fmnist.experiment import StateDict
from fmnist.files import append, clear_temporaries, cut, flush, write_atomically
from fmnist.runs import boards, checkpoints, folders, interruption, resuming
from fmnist.runs.checkpoints import Checkpoint
from fmnist.runs.environment import Environment, describe_environment, differences
from fmnist.runs.folders import CHECKPOINT, CONFIG, CURVES, ENVIRONMENT, FILES, METRICS, MODEL, check_folder
from fmnist.runs.lines import LOG_EVERY, describe, evaluation_lines, header, loss_line, progress
from fmnist.runs.options import TrainOptions
from fmnist.signatures import save_signed


@dataclass
class Run:
    """A run under way: prints its lines and keeps its files as it goes."""

    options: TrainOptions
    environment: Environment
    dataset: Dataset
    resumed: Checkpoint | None = None
    """The checkpoint that the run was resumed from; None for a new run."""
    safe_point: Callable[[], None] = lambda: None
    """Called where the run can end, in case a signal asked for it."""
    environments: list[dict[str, Any]] = field(default_factory=list)
    """Where the run took place, and from which epoch on."""
    entries: list[dict[str, Any]] = field(default_factory=list)
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

    def begin(self, init: Callable[[], StateDict]) -> StateDict:
        """The parameters that training starts from: the checkpoint's, or those that `init` draws for a new run."""
        if self.resumed is not None:
            return self.resumed.state_dict
        state_dict = init()
        self._checkpoint(0, lambda: state_dict)
        # Before the first line of metrics: metrics without any checkpoint could not be resumed.
        self._wait()
        return state_dict

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
        self._record(entries)
        say(*lines)
        if steps < len(losses):
            raise self._not_finite(f"training loss of epoch {epoch}, step {steps + 1} of {len(losses)},")

    def report_test(self, epoch: int, correct: ArrayLike, losses: ArrayLike) -> None:
        """Print and record a test pass: how many images were correctly classified, and every batch's mean loss.

        Raises:
            Failure: a loss is not finite.
        """
        losses = np.asarray(losses)
        finite = np.isfinite(losses)
        if not finite.all():
            step = f"batch {int(finite.argmin()) + 1} of {len(losses)}"
            raise self._not_finite(f"test loss after epoch {epoch}, step {self.steps}, in {step},")
        accuracy = float(metrics.accuracy(correct, len(self.dataset.test.labels)))
        average_loss = float(metrics.average_loss(losses))
        self._record([{"epoch": epoch, "accuracy": accuracy, "average_loss": average_loss}])
        say(evaluation_lines(accuracy, average_loss))

    def keep(self, epoch: int, state_dict: Callable[[], StateDict]) -> None:
        """Keep the state after an epoch where it is time to, and end here if a signal asked for it.

        Args:
            state_dict: makes the parameters by torch's names, where they are needed.

        Raises:
            Interrupted: a signal asked for it; the state is kept.
        """
        try:
            self.safe_point()
        except Interrupted:
            self._checkpoint(epoch, state_dict)
            self._wait()
            raise
        if epoch % self.options.checkpoint_every == 0 or epoch == self.options.experiment.epochs:
            self._checkpoint(epoch, state_dict)

    def finish(self, state_dict: StateDict) -> None:
        """Leave the run's parameters and its curves; say that it is done."""
        self._wait()
        if self.options.output is not None:
            from fmnist.runs.curves import draw

            self._write(MODEL, save_signed(state_dict, "model 1"))
            experiment = self.options.experiment
            title = f"{self.environment.framework} on {self.dataset.name}: {describe(experiment)}"
            self._write(CURVES, draw(title, self.entries, self.steps))
        say("Done!")

    def epochs(self) -> Iterator[int]:
        """The run's epochs still to come, counted from 1, behind a progress bar where standard error is a terminal."""
        done = self.resumed.epoch if self.resumed else 0
        return progress(range(done + 1, self.options.experiment.epochs + 1), "epochs")

    def _record(self, entries: list[dict[str, Any]]) -> None:
        lines = "".join(json.dumps(entry) + "\n" for entry in entries).encode()
        if self.options.output is not None:
            append(self.options.output / METRICS, lines)
        if self.board is not None:
            boards.record(self.board, entries, self.steps)
        self.entries += entries
        self.size += len(lines)
        self.digest.update(lines)

    def _checkpoint(self, epoch: int, state_dict: Callable[[], StateDict]) -> None:
        if self.options.output is None:
            return
        checkpoint = Checkpoint(
            experiment=self.options.experiment,
            epoch=epoch,
            step=epoch * self.steps,
            state_dict={name: tensor.copy() for name, tensor in state_dict().items()},
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
def start(options: TrainOptions, environment: Environment, dataset: Dataset, name: str) -> Iterator[Run]:
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
            stack.enter_context(folders.hold(folder))
            stack.callback(run.writer.shutdown)
            run.resumed = resuming.restore(folder, options, dataset) if options.resume else None
            if options.resume and run.resumed is None:
                print(f"--resume: {folder} holds no run yet: starting one", file=sys.stderr)
            _settle(run, folder)
            advice += f"; resume by: {interpreter()} -m {name} --output {shlex.quote(str(folder))} --resume"
            if options.tensorboard:
                run.board = boards.start(folder, environment.framework, run.resumed.step if run.resumed else 0)
                stack.callback(run.board.close)
        done = run.resumed.epoch if run.resumed else None
        print("\n".join(header(options.experiment, environment, dataset, done)), file=sys.stderr)
        if folder is not None and options.tensorboard:
            print(f"TensorBoard: {boards.command(folder)}", file=sys.stderr)
        run.safe_point = stack.enter_context(interruption.graceful(advice))
        yield run


def _write_checkpoint(folder: Path, checkpoint: Checkpoint) -> None:
    flush(folder / METRICS)
    checkpoints.write(folder / CHECKPOINT, checkpoint)


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
        # What came after the checkpoint is trained, and reported, once more.
        cut(folder / METRICS, len(lines))
        run.digest.update(lines)
        run.size = len(lines)
        run.entries = [json.loads(line) for line in lines.splitlines()]
        run.environments = run.resumed.environments
        for difference in differences(run.environments[-1], described):
            print(f"resumed in another environment, which may change the bits: {difference}", file=sys.stderr)
    if not run.environments or differences(run.environments[-1], described):
        first = run.resumed.epoch + 1 if run.resumed else 1
        run.environments = [*run.environments, {"from_epoch": first, **described}]
    write_atomically(folder / CONFIG, _json({**asdict(run.options.experiment), "data": run.dataset.name}))
    write_atomically(folder / ENVIRONMENT, _json({**described, "earlier": run.environments[:-1]}))
    append(folder / METRICS, b"")


def _json(values: dict[str, Any]) -> bytes:
    return (json.dumps(values, indent=2) + "\n").encode()
