"""All that this repository claims, or wants to know, of an accelerator: `python -m benchmarks.accelerator`."""

import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from benchmarks import machine
from fmnist import command
from fmnist.command import like, option, parse, say
from fmnist.files import write_atomically
from fmnist.runs.folders import prepare_folder
from fmnist.runs.options import TrainOptions

NAME = "benchmarks.accelerator"
MEMBERS, QUICK_MEMBERS = (1, 64, 1024, 4096), (1, 4)
DEVICE, TIMINGS = "device", "timings"

PARITY = {
    "parity, MLP": ("-m", "parity", "--quick", "--only", "load", "outputs", "loss", "gradients", "step", "epoch"),
    "parity, CNN": (
        *("-m", "parity", "fmnist_torch/reference.py:cnn", "fmnist_jax/port.py:cnn"),
        *("--quick", "--only", "outputs", "gradients", "step"),
    ),
}


@dataclass(frozen=True)
class AcceleratorOptions:
    """Where it runs, and how much of it."""

    rehearsal: bool = option(False, "All of it on whatever is here, in small sizes: to see that it works.")
    data: str | None = like(TrainOptions, "data")
    output: Path = option(Path("benchmarks", "results"), "Folder for the device's page.", metavar="DIR")
    limit: int = option(420, "Seconds after which the step that is then running is the last.", metavar="SECONDS")


@dataclass(frozen=True)
class Step:
    """What one command said."""

    what: str
    seconds: float
    ends: str
    """`passes`, or what it ended with."""
    last: str
    """Its last line."""


def commands(options: AcceleratorOptions, folder: Path) -> Iterator[tuple[str, tuple[str, ...]]]:
    """What is run, in the order of what would be missed most."""
    data = () if options.data is None else ("--data", options.data)
    epochs = ("--epochs", "1" if options.rehearsal else "5")
    yield DEVICE, ("-c", "import jax; [one, *_] = jax.devices(); print(one.platform, one.device_kind)")
    yield "tests marked accelerator", ("-m", "pytest", "-q", "-m", "accelerator", "tests/programs/test_accelerator.py")
    for what, arguments in PARITY.items():
        yield what, (*arguments, *data)
    for network in ("mlp", "cnn"):
        small = ("--channels", "2") if options.rehearsal and network == "cnn" else ()
        for side in ("fmnist_jax", "fmnist_torch"):
            run = ("-m", f"{side}.train", "--network", network, *small, *epochs, *data)
            yield f"whole process, {side} {network}", (*run, "--output", str(folder / f"{side}-{network}"))
    yield TIMINGS, ("-m", NAME.replace("accelerator", "device"), *(("--quick",) if options.rehearsal else ()))
    for count in QUICK_MEMBERS if options.rehearsal else MEMBERS:
        seeds = ("--seeds", f"0-{count - 1}", "--epochs", "1")
        yield f"whole process, population of {count}, an epoch", ("-m", "fmnist_jax.sweep", *seeds, *data)


def carried_out(what: str, arguments: tuple[str, ...], deadline: float, rehearsal: bool) -> Step:
    """A command's end, within what time is left."""
    began = time.monotonic()
    # Plugins of other packages may want what is not here.
    environment = {**os.environ, "PYTEST_DISABLE_PLUGIN_AUTOLOAD": "1"}
    if "pytest" in arguments:  # where torch wants some of the memory, too
        environment.setdefault("XLA_PYTHON_CLIENT_PREALLOCATE", "false")
    if rehearsal:
        environment["ACCELERATOR_REHEARSAL"] = "1"
    try:
        done = subprocess.run(
            [sys.executable, *arguments],
            capture_output=True,
            text=True,
            timeout=max(deadline - began, 1),
            env=environment,
            check=False,
        )
    except subprocess.TimeoutExpired:
        return Step(what, time.monotonic() - began, "not done: no time is left", "")
    said = [line for line in (done.stdout if done.returncode == 0 else done.stdout + done.stderr).splitlines() if line]
    ends = "passes" if done.returncode == 0 else f"exit code {done.returncode}"
    return Step(what, time.monotonic() - began, ends, said[-1] if said else "")


def page(device: str, steps: list[Step], timings: dict[str, Any]) -> str:
    """All of it, to be read."""
    lines = [f"# {device}", "", "| what | s | ends | last line |", "|---|---:|---|---|"]
    lines += [f"| {one.what} | {one.seconds:.0f} | {one.ends} | {one.last[:120].replace('|', '/')} |" for one in steps]
    for title, rows in timings.items():
        if isinstance(rows, list):
            lines += ["", f"## {title}", "", "| " + " | ".join(rows[0]) + " |", "|---|" + "---:|" * (len(rows[0]) - 1)]
            lines += ["| " + " | ".join(map(str, row.values())) + " |" for row in rows]
    return "\n".join(lines) + "\n"


def main() -> None:
    options = parse(AcceleratorOptions, sys.argv[1:], NAME, "All there is to know of an accelerator, in one go.")
    prepare_folder(options.output, (), overwrite=False)
    deadline = time.monotonic() + options.limit
    steps: list[Step] = []
    with tempfile.TemporaryDirectory(prefix="fmnist-") as temporary:
        for what, arguments in commands(options, Path(temporary)):
            print(f"{NAME}: {what}", file=sys.stderr, flush=True)
            steps.append(carried_out(what, arguments, deadline, options.rehearsal))
    said = {one.what: one.last for one in steps if one.ends == "passes"}
    timings, device = json.loads(said.get(TIMINGS, "{}")), said.get(DEVICE, "an unknown device")
    steps = [one for one in steps if one.what != TIMINGS or one.ends != "passes"]
    name = "rehearsal" if options.rehearsal else machine.file_name({"accelerators": [device]})
    stem = options.output / f"accelerator-{name}"
    told = [vars(one) for one in steps]
    write_atomically(stem.with_suffix(".json"), (json.dumps({"steps": told, **timings}, indent=2) + "\n").encode())
    write_atomically(stem.with_suffix(".md"), page(device, steps, timings).encode())
    say(page(device, steps, timings))
    failed = [one.what for one in steps if one.ends != "passes"]
    if failed:
        raise command.Failure(f"did not pass: {', '.join(failed)}")


if __name__ == "__main__":
    sys.exit(command.run(main, NAME))
