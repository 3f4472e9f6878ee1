"""Judge a port: `python -m parity`; judge the suite by planted faults: `python -m parity faults`."""

import os

# JAX would take most of a GPU's memory at its first use, and leave none to the reference.
os.environ.setdefault("XLA_PYTHON_CLIENT_PREALLOCATE", "false")
# Matrices as small as these gain nothing from threads, and whole runs in the background need the other cores.
os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")

import contextlib
import sys
from dataclasses import dataclass
from pathlib import Path

from fmnist import command
from fmnist.command import Failure, UsageError, complaint, like, option, parse
from fmnist.data import load_dataset
from fmnist.files import write_atomically
from fmnist.runs.folders import prepare_folder
from fmnist.runs.options import TrainOptions
from parity import report, whole_runs
from parity.judge import STAGES, Judge
from parity.port import Held, Misbehaviour, PortError, find
from parity.ports import torch_port
from parity.quantities import ENVELOPE_SLACK
from parity.reruns import Reruns
from parity.verdict import Outcome, Verdict, climb

NAME = "parity"
FILES = ("report.json", "report.md", "trajectory.png", "trends.png")


@dataclass(frozen=True)
class ParityOptions:
    """What is judged, and how thoroughly."""

    port: str = option("parity.ports.jax_port", "The port: a module, or a Python file.", metavar="MODULE|FILE.py")
    only: tuple[str, ...] = option(
        STAGES, "Stages to run.", metavar="STAGE", expected=f"one or more of {', '.join(STAGES)}"
    )
    quick: bool = option(False, "Leave out `trends`, and cut `trajectory` to 2 epochs.")
    seeds: int = option(
        13,
        "Paired seeds of `trends`: 13 hold its margin at a power of 90 % where differences deviate by 0.1 point.",
        expected="a whole number of at least 3, e.g. --seeds 13",
    )
    data: str | None = like(TrainOptions, "data")
    port_device: str | None = option(
        None, "Device of the port, by its framework's name; by default the port's own choice.", metavar="NAME"
    )
    reference_device: str = option(
        "cpu",
        "Device of the reference, by torch's name; 'auto' is the accelerator where there is one.",
        metavar="NAME",
    )
    output: Path | None = option(
        None, "Folder for report.json, report.md, trajectory.png and trends.png.", metavar="DIR"
    )
    overwrite: bool = option(False, "Replace the report that --output already holds.")

    def __post_init__(self) -> None:
        unknown = [stage for stage in self.only if stage not in STAGES]
        if unknown or not self.only:
            raise complaint(self, "only", " ".join(unknown))
        if self.seeds < 3:
            raise complaint(self, "seeds", str(self.seeds))
        if self.quick and "trends" in self.only and len(self.only) == 1:
            raise UsageError("--quick leaves out trends: nothing is left of --only trends; give one of the two")

    @property
    def stages(self) -> list[str]:
        """The stages to run, in order."""
        return [stage for stage in STAGES if stage in self.only and not (self.quick and stage == "trends")]


def main() -> None:
    if sys.argv[1:2] == ["faults"]:
        from parity.matrix import plant

        plant(sys.argv[2:])
        return
    options = parse(ParityOptions, sys.argv[1:], NAME, "Judge a port of the PyTorch reference.")
    torch_port.use_device(options.reference_device)
    port = find(options.port)
    if options.port_device is not None:
        if not callable(getattr(port, "use_device", None)):
            raise UsageError(f"--port-device {options.port_device}: {options.port} has no use_device(name) to obey it")
        port.use_device(options.port_device)
    dataset = load_dataset(options.data)
    if options.output is not None:
        prepare_folder(options.output, FILES, options.overwrite)
    with Reruns(options.data, options.reference_device) as reruns:
        judge = Judge(
            Held(port, options.port),
            Held(torch_port, "the reference"),
            dataset,
            reruns,
            epochs=2 if options.quick else 20,
            seeds=options.seeds,
        )
        if "trajectory" in options.stages:
            whole_runs.prepare_trajectory(judge)
        if "trends" in options.stages:
            whole_runs.prepare_trends(judge)
        print(f"parity of {options.port} on {dataset.name}, SHA-256 {dataset.sha256[:16]}…", file=sys.stderr)
        print(report.line(*report.HEADER))
        verdict = climb(judge, options.stages, _print)
        for note in verdict.notes:
            print(note)
        print(verdict.sentence(), flush=True)
        if options.output is not None:
            _write(options, judge, verdict)
    if not verdict.agrees:
        raise Failure(f"{options.port} disagrees with the reference")


def _print(outcome: Outcome) -> None:
    print(report.line(*report.row(outcome)), flush=True)


def _write(options: ParityOptions, judge: Judge, verdict: Verdict) -> None:
    from parity import pictures

    assert options.output is not None
    drawn = {}
    with contextlib.suppress(PortError, Misbehaviour):  # what cannot be run cannot be drawn
        if "trajectory" in options.stages:
            drawn["trajectory.png"] = pictures.trajectory(whole_runs.drift(judge), ENVELOPE_SLACK, options.port)
        if "trends" in options.stages:
            drawn["trends.png"] = pictures.trends(*whole_runs.trends_of(judge), options.port)
    config = {
        "port": options.port,
        "data": judge.dataset.name,
        "reference device": options.reference_device,
        "port device": options.port_device or "its own choice",
        "epochs": judge.epochs,
        "seeds": judge.seeds,
    }
    for name, picture in drawn.items():
        write_atomically(options.output / name, picture)
    write_atomically(options.output / "report.md", report.as_markdown(verdict, config, list(drawn)).encode())
    write_atomically(options.output / "report.json", report.as_json(verdict, config).encode())


if __name__ == "__main__":
    sys.exit(command.run(main, NAME))
