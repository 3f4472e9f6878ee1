"""Judge a port: `python -m parity`; judge the suite by planted faults: `python -m parity faults`."""

import os

# JAX would take most of a GPU's memory at its first use, and leave none to the reference.
os.environ.setdefault("XLA_PYTHON_CLIENT_PREALLOCATE", "false")
# Matrices as small as these gain nothing from threads, and whole runs in the background need the other cores.
os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")

import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import tyro

from fmnist import command
from fmnist.command import Failure, UsageError, complaint, parse
from fmnist.data import load_dataset
from fmnist.files import write_atomically
from fmnist.runs.folders import prepare_folder
from parity import report, whole_runs
from parity.judge import STAGES, Judge
from parity.port import Held, find
from parity.ports import torch_port
from parity.quantities import ENVELOPE_SLACK
from parity.reruns import Reruns
from parity.verdict import Outcome, Verdict, climb

NAME = "parity"
FILES = ("report.json", "report.md", "trajectory.png", "trends.png")
EXPECTED = {
    "only": f"one or more of {', '.join(STAGES)}",
    "seeds": "a whole number of at least 3, e.g. --seeds 13",
}


@dataclass(frozen=True)
class Options:
    """What is judged, and how thoroughly."""

    port: Annotated[str, tyro.conf.arg(metavar="MODULE|FILE.py")] = "parity.ports.jax_port"
    """The port: a module, module:attribute, or a Python file."""

    only: Annotated[tuple[str, ...], tyro.conf.arg(metavar="STAGE...")] = STAGES
    """Stages to run."""

    quick: bool = False
    """Leave out `trends`, and cut `trajectory` to 2 epochs."""

    seeds: int = 13
    """Paired seeds of `trends`: 13 hold its margin at a power of 90 % where differences deviate by 0.1 point."""

    data: Annotated[str | None, tyro.conf.arg(metavar="DIR|synthetic")] = None
    """Folder that holds FashionMNIST/raw/*.gz, or 'synthetic'; looked for and downloaded like the trainers' if not
    given."""

    port_device: Annotated[str | None, tyro.conf.arg(metavar="NAME")] = None
    """Device of the port, by its framework's name; by default the port's own choice."""

    reference_device: Annotated[str, tyro.conf.arg(metavar="NAME")] = "cpu"
    """Device of the reference, by torch's name; 'auto' is the accelerator where there is one."""

    output: Annotated[Path | None, tyro.conf.arg(metavar="DIR")] = None
    """Folder for report.json, report.md, trajectory.png and trends.png."""

    overwrite: bool = False
    """Replace the report that --output already holds."""

    def __post_init__(self) -> None:
        unknown = [stage for stage in self.only if stage not in STAGES]
        if unknown or not self.only:
            raise UsageError(complaint("only", " ".join(unknown), EXPECTED["only"]))
        if self.seeds < 3:
            raise UsageError(complaint("seeds", str(self.seeds), EXPECTED["seeds"]))
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
    options = parse(Options, sys.argv[1:], NAME, "Judge a port of the PyTorch reference.", EXPECTED)
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


def _write(options: Options, judge: Judge, verdict: Verdict) -> None:
    from parity import pictures

    assert options.output is not None
    drawn = {}
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
