"""The kill matrix: every planted fault against every check; `python -m parity faults`."""

import functools
import os
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from multiprocessing import get_context
from pathlib import Path

import numpy as np

from fmnist.command import Failure, like, option, parse
from fmnist.data import Dataset, load_dataset
from fmnist.files import write_atomically
from fmnist.runs.lines import progress
from fmnist.runs.options import TrainOptions
from parity.checks import CHECKS
from parity.faults import Fault, faults
from parity.judge import Check, Judge, run_check
from parity.port import Held, PortError
from parity.ports import torch_port
from parity.practice import PRACTICE
from parity.reruns import Reruns
from parity.verdict import LADDER, Outcome, first_divergence
from parity.whole_runs import WHOLE_RUNS


@dataclass(frozen=True)
class FaultsOptions:
    """Which faults are planted."""

    only: tuple[str, ...] = option((), "Faults whose names hold one of these words; all by default.", metavar="WORD")
    document: Path | None = option(None, "File that the matrix is written to, as Markdown.", metavar="FILE.md")
    data: str | None = like(TrainOptions, "data")


@dataclass(frozen=True)
class Trial:
    """What came of one fault: which checks caught it, what it was taken for, and what common practice saw.

    `caught` holds a check's name with its stage; `run` those that were run at all.
    """

    fault: str
    stage: str
    words: str | None
    run: list[str]
    caught: list[str]
    found_at: str | None
    explanation: str | None
    practice: dict[str, bool]

    @property
    def is_named_rightly(self) -> bool:
        return self.explanation is not None and self.words is not None and self.words in self.explanation

    @property
    def is_named_wrongly(self) -> bool:
        return self.explanation is not None and not self.is_named_rightly


def label(check: Check) -> str:
    return f"{check.stage}: {check.name}"


def plant(arguments: list[str]) -> None:
    """The command: try the faults, print the matrix, and fail where the suite falls short.

    Raises:
        Failure: a fault survives, is found at the wrong stage or explained wrongly, or a check is idle.
    """
    options = parse(FaultsOptions, arguments, "parity faults", "Plant faults, and see which check finds each.")
    chosen = [fault.name for fault in faults() if not options.only or any(word in fault.name for word in options.only)]
    if not chosen:
        raise Failure(f"no fault's name holds any of {', '.join(options.only)}")
    trials = try_all(chosen, options.data)
    print("\n".join(document(trials)), flush=True)
    if options.document is not None:
        write_atomically(options.document, ("\n".join(document(trials)) + "\n").encode())
    wrong = complaints(trials, whole=not options.only)
    if wrong:
        raise Failure("; ".join(wrong))


def try_all(names: Sequence[str], place: str | None) -> list[Trial]:
    """Each fault's trial, in as many processes as there are cores."""
    workers = max(1, min(os.cpu_count() or 1, len(names)))
    with ProcessPoolExecutor(workers, get_context("spawn")) as pool:
        # The last stages take longest: begin with them, so that no process waits for another in the end.
        running = [pool.submit(try_fault, name, place) for name in reversed(names)]
        return [running[-1 - index].result() for index in progress(range(len(names)), "faults")]


@functools.cache
def _bench(place: str | None) -> tuple[Dataset, Reruns]:
    """What a process needs for all of its trials: data, and runs that are done once."""
    return load_dataset(place), Reruns(place, "cpu", workers=0)


def try_fault(name: str, place: str | None) -> Trial:
    """Run the checks on a fault: all of those before whole runs; whole runs only where those find nothing."""
    import torch

    torch.set_num_threads(1)
    fault = next(fault for fault in faults() if fault.name == name)
    dataset, reruns = _bench(place)
    judge = Judge(Held(fault.make(), name), Held(torch_port, "the reference"), dataset, reruns)
    outcomes: list[Outcome] = []
    caught: list[str] = []
    run: list[str] = []
    for check in (*CHECKS, *WHOLE_RUNS):
        if check in WHOLE_RUNS and caught:
            break
        if check.stage == "init" and not judge.port.has_init:
            continue
        run.append(label(check))
        try:
            with np.errstate(all="ignore"):  # some faults overflow, as planted
                outcomes.append(Outcome(check, run_check(judge, check)))
            if not outcomes[-1].passed:
                caught.append(label(check))
        except PortError:
            caught.append(label(check))
    divergence = first_divergence(outcomes)
    return Trial(
        name,
        fault.stage,
        fault.words,
        run,
        caught,
        caught[0].partition(":")[0] if caught else None,
        divergence.explanation if divergence else None,
        _practised(fault, dataset, reruns),
    )


def _practised(fault: Fault, dataset: Dataset, reruns: Reruns) -> dict[str, bool]:
    """Which of the common practices notice a fault. Each starts with a port of its own."""
    noticed = {}
    for name, passes in PRACTICE.items():
        judge = Judge(Held(fault.make(), fault.name), Held(torch_port, "the reference"), dataset, reruns)
        try:
            with np.errstate(all="ignore"):
                noticed[name] = not passes(judge)
        except Exception:  # whatever a broken port raises, it is noticed
            noticed[name] = True
    return noticed


def complaints(trials: Sequence[Trial], whole: bool) -> list[str]:
    """What is wrong with the suite, going by these trials."""
    result = [f"`{trial.fault}` survives" for trial in trials if trial.found_at is None]
    result += [
        f"`{trial.fault}` is found at {trial.found_at} instead of {trial.stage}"
        for trial in trials
        if trial.found_at not in (None, trial.stage)
    ]
    result += [
        f"`{trial.fault}` is explained wrongly: {trial.explanation}" for trial in trials if trial.is_named_wrongly
    ]
    if whole:
        firsts = {trial.caught[0] for trial in trials if trial.caught}
        idle = [label(check) for check in LADDER if label(check) not in firsts]
        result += [f"`{check}` catches nothing that no earlier check does" for check in idle]
    return result


def document(trials: Sequence[Trial]) -> list[str]:
    """The matrix as Markdown, a line an entry."""
    checks = [label(check) for check in LADDER]
    explained = [trial for trial in trials if trial.is_named_rightly]
    wrong = [trial for trial in trials if trial.is_named_wrongly]
    noticed = {name: [trial for trial in trials if trial.practice[name]] for name in PRACTICE}
    caught = [trial for trial in trials if trial.found_at == trial.stage]
    lines = [
        "# Planted faults",
        "",
        "Written by `python -m parity faults --document parity/FAULTS.md` (`make faults`).",
        "",
        f"{len(trials)} right ports with one mistake each. {len(caught)} are caught at their own stage; "
        f"{len(explained)} are explained rightly ({100 * len(explained) / len(trials):.0f} %), {len(wrong)} wrongly.",
        "",
        "## Beside common practice",
        "",
        "| check | faults noticed |",
        "|---|---:|",
        *(f"| {name} | {len(those)} of {len(trials)} |" for name, those in noticed.items()),
        f"| this suite | {sum(bool(trial.caught) for trial in trials)} of {len(trials)} |",
        "",
        "## Where each fault is found, and what it is taken for",
        "",
        "| fault | first found by | explanation |",
        "|---|---|---|",
        *(
            f"| {trial.fault} | {trial.caught[0] if trial.caught else '—'} | {trial.explanation or '—'} |"
            for trial in trials
        ),
        "",
        "## What each check finds",
        "",
        "A fault is found *first* by a check that no earlier one finds it before, and *alone* if no other check that",
        "was run finds it. Whole runs are tried on faults that nothing before them finds.",
        "",
        "| | check | finds | first | alone |",
        "|---:|---|---:|---|---|",
    ]
    for number, check in enumerate(checks, 1):
        finds = [trial for trial in trials if check in trial.caught]
        first = ", ".join(trial.fault for trial in finds if trial.caught[0] == check)
        alone = ", ".join(trial.fault for trial in finds if trial.caught == [check])
        lines.append(f"| {number} | {check} | {len(finds)} | {first or '—'} | {alone or '—'} |")
    lines += [
        "",
        "## The matrix",
        "",
        "Columns are the checks by number; `●` finds the fault, `·` does not, blank was not run.",
        "",
        "```",
        " " * 34 + "".join(str(number // 10 or " ") for number in range(1, len(checks) + 1)),
        " " * 34 + "".join(str(number % 10) for number in range(1, len(checks) + 1)),
        *(
            f"{trial.fault:<34}"
            + "".join("●" if check in trial.caught else "·" if check in trial.run else " " for check in checks).rstrip()
            for trial in trials
        ),
        "```",
    ]
    return lines
