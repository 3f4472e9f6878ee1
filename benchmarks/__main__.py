"""Measure what every way to train costs on this machine: `python -m benchmarks`."""

import os
import sys
import tempfile
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from multiprocessing import get_context
from pathlib import Path

from benchmarks import machine, measure, raw, report
from fmnist import command
from fmnist.command import UsageError, complaint, like, option, parse, say
from fmnist.experiment import TRAINING_IMAGES, Experiment
from fmnist.files import write_atomically
from fmnist.runs.folders import prepare_folder
from fmnist.runs.options import TrainOptions

NAME = "benchmarks"

GRIDS: dict[str, Sequence[int]] = {
    "width": (16, 64, 256, 1024, 4096),
    "batch_size": (16, 64, 256, 1024, 4096, 8192),
    "members": (1, 4, 16, 64, 256),
}
QUICK_GRIDS: dict[str, Sequence[int]] = {"width": (16, 64), "batch_size": (64, 256), "members": (1, 4)}
QUICK_STEPS = 20


@dataclass(frozen=True)
class BenchmarkOptions:
    """How thoroughly is measured, and where the results go."""

    rounds: int = option(
        5,
        "Rounds in which every side takes its turn; the post's whole run takes part in 3 at most.",
        expected="a whole number of at least 1, e.g. --rounds 5",
    )
    quick: bool = option(False, "One round of one epoch and small grids, to see that it works.")
    data: str | None = like(TrainOptions, "data")
    output: Path = option(Path("benchmarks", "results"), "Folder for the machine's .json, .md and .png.", metavar="DIR")

    def __post_init__(self) -> None:
        if self.rounds < 1:
            raise complaint(self, "rounds", str(self.rounds))


def main() -> None:
    options = parse(BenchmarkOptions, sys.argv[1:], NAME, "Measure every way to train on this machine.")
    if os.environ.get("JAX_DISABLE_JIT", "0").lower() not in ("0", "false", ""):
        raise UsageError("JAX_DISABLE_JIT: compiled programs are what is measured; unset it")
    prepare_folder(options.output, (), overwrite=False)
    load = os.getloadavg()[0]
    rounds, epochs, grids, steps = (
        (1, 1, QUICK_GRIDS, QUICK_STEPS) if options.quick else (options.rounds, 20, GRIDS, None)
    )
    with tempfile.TemporaryDirectory(prefix="fmnist-") as temporary:
        folder = Path(temporary)
        # In a process of its own: Linux counts what this one has used as the peak of those that it starts.
        with ProcessPoolExecutor(1, get_context("spawn")) as pool:
            data = pool.submit(raw.write, options.data, folder).result()
        if load > 0.5:
            print(f"{NAME}: others keep {load:.1f} cores busy; torch's figures suffer most from that", file=sys.stderr)
        whole = measure.whole_processes(rounds, epochs, options.data, folder, fill=not options.quick)
        with measure.workers(folder, cold=not options.quick) as workers:
            steady = measure.steady_state(workers, rounds, steps)
            growth = measure.growth(workers, rounds, grids, steps)
    described = machine.describe({side: epochs.environment for side, epochs in steady.items()})
    results = report.Results(
        described,
        load,
        data,
        options.quick,
        rounds,
        epochs,
        steps or Experiment().batches(TRAINING_IMAGES),
        whole,
        steady,
        growth,
    )
    _write(results, options.output / machine.file_name(described))
    say(report.as_text(results))


def _write(results: report.Results, stem: Path) -> None:
    from benchmarks.picture import draw

    write_atomically(stem.with_suffix(".json"), report.as_json(results).encode())
    write_atomically(stem.with_suffix(".png"), draw(results))
    write_atomically(stem.with_suffix(".md"), report.as_markdown(results, f"{stem.name}.png").encode())


if __name__ == "__main__":
    sys.exit(command.run(main, NAME))
