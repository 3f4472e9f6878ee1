"""Train the same network in the ways that people would pick, in turns: `python -m benchmarks.peers`."""

import importlib
import itertools
import json
import os
import re
import subprocess
import sys
import tempfile
import time
from concurrent.futures import ProcessPoolExecutor
from dataclasses import asdict, dataclass
from importlib.util import find_spec
from multiprocessing import get_context
from pathlib import Path
from statistics import median

from benchmarks import machine, raw
from benchmarks.figures import ratios, spread
from benchmarks.report import plain
from benchmarks.sides import BASE, SIDES
from fmnist import command
from fmnist.command import Failure, complaint, like, option, parse, say
from fmnist.files import write_atomically
from fmnist.runs.folders import prepare_folder
from fmnist.runs.options import TrainOptions

NAME = "benchmarks.peers"
ACCURACY = re.compile(r"Accuracy: ([\d.]+)%")
REFERENCE = "post"
FEWEST = 2
"""Epochs, for one of them is timed from the end of the one before."""

PEERS = {
    "PyTorch, preloaded tensors": "torch_loop",
    "torch.compile, reduce-overhead": "torch_compiled",
    "PyTorch Lightning": "lightning_fit",
    "Keras on JAX": "keras_fit",
    "Flax, a step a batch": "flax_loop",
    "Flax NNX": "nnx_loop",
    "Equinox": "equinox_loop",
}
"""By what they are called, the modules of `ways`."""
NEEDED = {"lightning_fit": "lightning", "keras_fit": "keras", "equinox_loop": "equinox"}
"""What comes with the extra `bench` only."""
BUILT_ON = {"torch_compiled": "torch_loop"}
"""Whose lines a user writes, too."""


@dataclass(frozen=True)
class PeersOptions:
    """How thoroughly is measured, and where the results go."""

    rounds: int = option(3, "Rounds in which everybody takes a turn.", expected="a whole number of at least 1")
    epochs: int = option(20, "Epochs of a run.", expected="a whole number of at least 2, e.g. --epochs 20")
    data: str | None = like(TrainOptions, "data")
    output: Path = option(Path("benchmarks", "results"), "Folder for the machine's peers page.", metavar="DIR")
    peer: str = option("", "Train as one of them and do nothing else: the module's name.", metavar="NAME")

    def __post_init__(self) -> None:
        for name, least in (("rounds", 1), ("epochs", FEWEST)):
            if getattr(self, name) < least:
                raise complaint(self, name, str(getattr(self, name)))


@dataclass(frozen=True)
class Run:
    """A whole process."""

    seconds: float
    epoch_seconds: float
    """The median from one epoch's test pass to the next one's, of a run that goes on."""
    peak_bytes: int
    accuracy: float
    """After the last epoch, in percent."""


def train(options: PeersOptions) -> None:
    """Be one of them."""
    from benchmarks.peers.data import load

    module = importlib.import_module(f"benchmarks.peers.ways.{options.peer}")
    module.fit(load(options.data), options.epochs, lambda accuracy: say(f"Accuracy: {100 * accuracy:.2f}%"))


def run(arguments: list[str]) -> Run:
    """Run a command and watch its accuracies come.

    Raises:
        Failure: it failed; its last line on standard error is told.
    """
    started, ends, accuracy = time.perf_counter(), list[float](), 0.0
    with tempfile.TemporaryFile() as said:
        unbuffered = {**os.environ, "PYTHONUNBUFFERED": "1"}  # for all lines are to be seen as they come
        process = subprocess.Popen(arguments, stdout=subprocess.PIPE, stderr=said, text=True, env=unbuffered)
        assert process.stdout is not None
        for line in process.stdout:
            if found := ACCURACY.search(line):
                ends.append(time.perf_counter())
                accuracy = float(found[1])
        _, status, usage = os.wait4(process.pid, 0)
        seconds = time.perf_counter() - started
        process.returncode = os.waitstatus_to_exitcode(status)
        if process.returncode or len(ends) < 2:
            said.seek(0)
            last = (said.read().decode(errors="replace").splitlines() or ["nothing"])[-1]
            raise Failure(f"{' '.join(arguments[1:])}: exit code {process.returncode}, and it said: {last}")
    apart = median(after - before for before, after in itertools.pairwise(ends))
    return Run(seconds, apart, usage.ru_maxrss * (1 if sys.platform == "darwin" else 1024), accuracy)


def commands(epochs: int, given: str | None, folder: Path) -> dict[str, tuple[list[str], list[Path]]]:
    """Everybody's command line, and the files whose lines are the user's."""
    here, sides = Path(__file__).parent, {side.name: side for side in SIDES}
    found: dict[str, tuple[list[str], list[Path]]] = {
        name: (sides[name].command(epochs, given, folder), [])
        for name in (REFERENCE, "fmnist_torch", "torch.compile", BASE)
    }
    found[REFERENCE][1].append(here.parent / "post.py")
    data = [] if given is None else ["--data", given]
    for name, module in PEERS.items():
        if module in NEEDED and find_spec(NEEDED[module]) is None:
            command.say_once(f"{NAME}: {name} is left out: no {NEEDED[module]} here; pip install -e '.[bench]'")
            continue
        asked = ["--peer", module, "--epochs", str(epochs), *data]
        written = [here / "ways" / f"{one}.py" for one in (module, BUILT_ON.get(module)) if one]
        found[name] = [sys.executable, "-m", NAME, *asked], written
    return found


def lines_of(paths: list[Path]) -> str:
    """Lines of code that a user writes: no blank ones, no docstring."""
    code = "".join(re.sub(r'^""".*?"""\n', "", path.read_text(), flags=re.DOTALL) for path in paths)
    return str(sum(bool(line.strip()) for line in code.splitlines()) or "–")


def better(results: dict[str, list[Run]]) -> str:
    """Who is ahead of ours in anything, in a sentence."""
    base, found = results[BASE], []
    for what, of, fold in (
        ("the whole process", lambda one: one.seconds, median),
        ("an epoch", lambda one: one.epoch_seconds, median),
        ("memory", lambda one: one.peak_bytes, max),
    ):
        found += [f"{name} in {what}" for name, runs in results.items() if fold(map(of, runs)) < fold(map(of, base))]
    return f"Ahead of {BASE}: {'; '.join(found)}." if found else f"Nobody is ahead of {BASE} in time or memory."


def page(results: dict[str, list[Run]], files: dict[str, list[Path]], options: PeersOptions, where: str) -> str:
    """A table, a line a way to train."""
    reference = median(one.accuracy for one in results[REFERENCE])
    lines = [
        "# The same network, trained in other ways",
        "",
        f"{where}.",
        "",
        f"{options.epochs} epochs with as many test passes, all from torch's parameters of seed 0, unshuffled; medians "
        f"of {options.rounds} rounds in which everybody takes a turn, ratios round by round with their range. An epoch "
        "is timed from one test pass to the next in a run that goes on, compilation left out. "
        f"{better(results)}",
        "",
        f"| way | s | ÷ {BASE} | range | ms an epoch | ÷ {BASE} | peak MiB | lines | accuracy % |",
        "|---|---:|---:|---:|---:|---:|---:|---:|---:|",
    ]
    base = results[BASE]
    for name, runs in results.items():
        whole = spread(ratios([one.seconds for one in runs], [one.seconds for one in base]))
        epoch = spread(ratios([one.epoch_seconds for one in runs], [one.epoch_seconds for one in base]))
        accuracy = median(one.accuracy for one in runs)
        mark = "" if abs(accuracy - reference) <= 0.3 else " (!)"
        lines.append(
            f"| {name} | {median(one.seconds for one in runs):.2f} | {plain(whole.median)} | {plain(whole.low)}–"
            f"{plain(whole.high)} | {1e3 * median(one.epoch_seconds for one in runs):,.0f} | {plain(epoch.median)} | "
            f"{max(one.peak_bytes for one in runs) / 2**20:,.0f} | {lines_of(files[name])} | {accuracy:.1f}{mark} |"
        )
    return "\n".join(lines) + "\n"


def main() -> None:
    options = parse(PeersOptions, sys.argv[1:], NAME, "Train the same network in the ways that people would pick.")
    if options.peer:
        train(options)
        return
    prepare_folder(options.output, (), overwrite=False)
    with tempfile.TemporaryDirectory(prefix="fmnist-") as temporary:
        # In a process of its own: Linux counts what this one has used as the peak of those that it starts.
        with ProcessPoolExecutor(1, get_context("spawn")) as pool:
            pool.submit(raw.write, options.data, Path(temporary)).result()
        asked = commands(options.epochs, options.data, Path(temporary))
        results: dict[str, list[Run]] = {name: [] for name in asked}
        for turn in range(-1, options.rounds):  # the first one fills caches, and does not count
            turns = asked if turn >= 0 else commands(FEWEST, options.data, Path(temporary))
            for name, (arguments, _) in turns.items():
                print(f"{NAME}: round {turn + 1} of {options.rounds}: {name}", file=sys.stderr, flush=True)
                found = run(arguments)
                if turn >= 0:
                    results[name].append(found)
    described = machine.describe({})
    text = page(results, {name: paths for name, (_, paths) in asked.items()}, options, machine.sentence(described))
    stem = options.output / f"{machine.file_name(described)}-peers"
    content = {
        "machine": described,
        "epochs": options.epochs,
        "runs": {n: [asdict(r) for r in rs] for n, rs in results.items()},
    }
    write_atomically(stem.with_suffix(".json"), (json.dumps(content, indent=2) + "\n").encode())
    write_atomically(stem.with_suffix(".md"), text.encode())
    say(text)


if __name__ == "__main__":
    sys.exit(command.run(main, NAME))
