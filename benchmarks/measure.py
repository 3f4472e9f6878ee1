"""The measurements: whole processes, epochs in steady state, and growth. Sides alternate within every round."""

import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from pathlib import Path

from benchmarks.sides import SIDES, Environment, Setting, Side
from benchmarks.worker import Worker
from fmnist.command import Failure, UnavailableError
from fmnist.experiment import TRAINING_IMAGES

BEGINNING = time.perf_counter()

# A turn of the growth is as many steps as take about so long.
TURN_SECONDS = 0.3


@dataclass(frozen=True)
class Usage:
    """What a whole process cost, those that it started included."""

    seconds: float
    cpu_seconds: float
    peak_bytes: int


@dataclass(frozen=True)
class Epochs:
    """Training epochs of a side in steady state."""

    seconds: list[float]
    compile_seconds: float | None
    environment: Environment


@dataclass(frozen=True)
class Point:
    """A side's steps at one size."""

    size: int
    steps: int
    seconds_per_step: list[float]


Workers = dict[Side, Worker]

Growth = dict[str, dict[str, list[Point]]]
"""By setting and side, a point for each size."""


def run(command: list[str]) -> Usage:
    """Run a command to its end.

    Raises:
        Failure: it failed; its last line on standard error is told. An UnavailableError where its exit code says so.
    """
    with tempfile.TemporaryFile() as said:
        start = time.perf_counter()
        process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=said)
        try:
            _, status, usage = os.wait4(process.pid, 0)
        except BaseException:
            process.kill()
            process.wait()
            raise
        seconds = time.perf_counter() - start
        process.returncode = os.waitstatus_to_exitcode(status)
        if process.returncode:
            said.seek(0)
            last = (said.read().decode(errors="replace").splitlines() or ["nothing"])[-1]
            failure = UnavailableError if process.returncode == UnavailableError.exit_code else Failure
            raise failure(f"{' '.join(command[1:])}: exit code {process.returncode}, and it said: {last}")
    # Linux counts KiB, macOS bytes.
    return Usage(seconds, usage.ru_utime + usage.ru_stime, usage.ru_maxrss * (1 if sys.platform == "darwin" else 1024))


def whole_processes(rounds: int, epochs: int, data: str | None, folder: Path, fill: bool) -> dict[str, list[Usage]]:
    """Each side's runs of the default experiment, a side that takes minutes in the first rounds only.

    Args:
        folder: torchvision's folder with the data, for the side that reads it.
        fill: let an uncounted run of an epoch fill the caches of each side first.
    """
    if fill:
        for side in SIDES:
            _say(f"whole process, caches: {side.name}")
            run(side.command(1, data, folder))
    runs: dict[str, list[Usage]] = {side.name: [] for side in SIDES}
    for turn in range(rounds):
        for side in SIDES:
            if side.most_rounds is None or turn < side.most_rounds:
                _say(f"whole process, round {turn + 1} of {rounds}: {side.name}")
                runs[side.name].append(run(side.command(epochs, data, folder)))
    return runs


@contextmanager
def workers(folder: Path, cold: bool) -> Iterator[Workers]:
    """A worker for each side; with `cold`, what they compile is in no cache yet."""
    with ExitStack() as stack:
        started = {side: stack.enter_context(Worker(side, folder, cold)) for side in SIDES}
        for worker in started.values():
            worker.wait()
        yield started


def steady_state(workers: Workers, rounds: int, steps: int | None) -> dict[str, Epochs]:
    """Each side's training epochs, or so many full batches of one."""
    settings = {side: Setting(side.network, members=side.members, steps=steps) for side in SIDES}
    compiling: dict[str, float | None] = {}
    for side, worker in workers.items():
        _say(f"steady state, compiling: {side.name}")
        compiling[side.name] = worker.prepare(settings[side])
    seconds: dict[str, list[float]] = {side.name: [] for side in SIDES}
    for turn in range(rounds):
        _say(f"steady state, round {turn + 1} of {rounds}")
        for side, worker in workers.items():
            seconds[side.name].append(worker.turn(settings[side]))
    return {
        side.name: Epochs(seconds[side.name], compiling[side.name], worker.environment())
        for side, worker in workers.items()
    }


def growth(workers: Workers, rounds: int, grids: dict[str, Sequence[int]], steps: int | None) -> Growth:
    """Seconds of a step over each setting's sizes, everything else as in the default experiment.

    Args:
        steps: full batches of a turn; None for as many as make it long enough to be timed.
    """
    results: Growth = {axis: {side.name: [] for side in SIDES if axis in side.axes} for axis in grids}
    for axis, grid in grids.items():
        taking_part = {side: worker for side, worker in workers.items() if axis in side.axes}
        for size in grid:
            _say(f"growth: {axis} {size}")
            settings = {}
            for side, worker in taking_part.items():
                setting = replace(Setting(steps=steps), **{axis: size})  # type: ignore[arg-type]
                settings[side] = _sized(worker, setting) if steps is None else setting
                worker.prepare(settings[side])
            seconds: dict[str, list[float]] = {side.name: [] for side in taking_part}
            for _ in range(rounds):
                for side, worker in taking_part.items():
                    seconds[side.name].append(worker.turn(settings[side]))
            for side, setting in settings.items():
                assert setting.steps is not None
                per_step = [each / setting.steps for each in seconds[side.name]]
                results[axis][side.name].append(Point(size, setting.steps, per_step))
    return results


def _sized(worker: Worker, setting: Setting) -> Setting:
    """The setting with as many steps as make a turn long enough to be timed, up to an epoch."""
    trial = replace(setting, steps=2)
    worker.prepare(trial)
    fitting = round(TURN_SECONDS * 2 / worker.turn(trial))
    return replace(setting, steps=max(1, min(fitting, TRAINING_IMAGES // setting.batch_size)))


def _say(what: str) -> None:
    """What is measured now, after the seconds so far."""
    print(f"{time.perf_counter() - BEGINNING:5.0f} s  {what}", file=sys.stderr, flush=True)
