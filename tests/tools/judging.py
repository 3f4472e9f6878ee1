"""What an exam costs, and what of it goes where: `python -m tests.tools.judging`."""

import json
import subprocess
import sys
import time
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from statistics import median
from typing import Any
from unittest.mock import patch

from benchmarks import machine
from fmnist import command
from fmnist.command import Failure, UsageError, complaint, option, parse, say
from fmnist.files import write_atomically
from fmnist.runs.folders import prepare_folder

NAME = "tests.tools.judging"

WRONG = ("F001", "L005", "C002", "O003")
"""Mistakes planted in the transformer, each of another kind: what finding a reason costs."""

EXAMS: Mapping[str, tuple[str, ...]] = {
    "the mirror": ("-m", "parity"),
    "the mirror, --quick": ("-m", "parity", "--quick"),
    "transformer": (),
    "transformer, --quick": (),
    **{f"transformer with {code}, --quick": () for code in WRONG},
}
"""By what they are called, the command of those that have one."""

PHASES = ("expected", "rounding", "whole runs", "compiling", "port", "search")


@dataclass(frozen=True)
class JudgingOptions:
    """How thoroughly is measured, and where the results go."""

    rounds: int = option(3, "Times that every exam is sat.", expected="a whole number of at least 1")
    output: Path = option(Path("benchmarks", "results"), "Folder for the machine's judging page.", metavar="DIR")
    exam: str = option("", "Sit this one and do nothing else.", metavar="NAME")

    def __post_init__(self) -> None:
        if self.rounds < 1:
            raise complaint(self, "rounds", str(self.rounds))
        if self.exam and self.exam not in EXAMS:
            raise UsageError(f"--exam {self.exam}: there is none; expected one of {', '.join(EXAMS)}")


@dataclass
class Clock:
    """Seconds by phase; of phases within each other the outer one counts."""

    spent: dict[str, float] = field(default_factory=lambda: defaultdict(float))
    compiled: list[tuple[float, float]] = field(default_factory=list)
    """When JAX traced, lowered or compiled, from and to."""
    _phase: str = ""

    def timed(self, phase: Callable[..., str], function: Callable[..., Any]) -> Callable[..., Any]:
        """The function, its time credited to the phase of its arguments."""

        def timed(*args: Any, **kwargs: Any) -> Any:
            if self._phase:
                return function(*args, **kwargs)
            self._phase, began = phase(*args, **kwargs), time.perf_counter()
            try:
                return function(*args, **kwargs)
            finally:
                self.spent[self._phase] += time.perf_counter() - began
                self._phase = ""

        return timed

    def compiling(self) -> float:
        """Seconds in which anything was compiled: what is traced within something else counts once."""
        total, until = 0.0, 0.0
        for start, end in sorted(self.compiled):
            total += max(0.0, end - max(start, until))
            until = max(until, end)
        return total

    @contextmanager
    def watching(self) -> Iterator[None]:
        """Watch an exam in this process."""
        import jax.monitoring

        from parity.port.held import Held
        from parity.reference.asked import Sitting
        from parity.reference.whole_runs import WholeRuns
        from parity.verdict import explanation

        def listener(event: str, duration_secs: float, **_: str | int) -> None:
            if self._phase == "port" and event.startswith("/jax/core/compile/"):
                now = time.perf_counter()
                self.compiled.append((now - duration_secs, now))

        def rounds(_: Any, __: Any, rounding: Any = None) -> str:
            return "rounding" if rounding is not None and rounding.run else "expected"

        jax.monitoring.register_event_duration_secs_listener(listener)
        watched = (
            (Sitting, "say", rounds),
            (Held, "answer", lambda *_: "port"),
            (WholeRuns, "prepare", lambda *_: "whole runs"),
            (explanation, "explain", lambda *_: "search"),
        )
        with ExitStack() as stack:
            for owner, name, phase in watched:
                stack.enter_context(patch.object(owner, name, self.timed(phase, getattr(owner, name))))
            yield


def sit(exam: str) -> dict[str, Any]:
    """An exam in this process: its seconds, those of its phases, and how many comparisons it made."""
    import parity
    from tests.tools import hosts

    quick, wrong = exam.endswith("--quick"), next((code for code in WRONG if code in exam), None)
    if exam.startswith("the mirror"):
        from fmnist_jax.port import port as ports
        from fmnist_torch.reference import reference

        pairs: list[tuple[Any, Any]] = [(one, ports[name]) for name, one in reference().items()]
    else:
        from parity.mistakes import CATALOGUE

        diffs = {one.code: diff for one in CATALOGUE for diff in one.diffs if diff.host == "transformer"}
        mirror = hosts.mirror("transformer") if wrong is None else hosts.planted(diffs[wrong])
        pairs = [(hosts.reference("transformer"), hosts.HostPort(mirror, "port"))]
    clock, comparisons, began = Clock(), 0, time.perf_counter()
    with clock.watching():
        for one, port in pairs:
            verdict = parity.judge(one, port, quick=quick)
            comparisons += len(verdict.comparisons)
            named = [group[0].code for group in verdict.explanations]
            if verdict.agrees != (wrong is None) or (wrong is not None and named[:1] != [wrong]):
                raise Failure(f"{exam}: {'agrees' if verdict.agrees else f'differs, by {named}'}, and should not")
    compiling = clock.compiling()
    spent = {**clock.spent, "compiling": compiling, "port": clock.spent["port"] - compiling}
    return {"seconds": time.perf_counter() - began, "comparisons": comparisons, **spent}


def run(*arguments: str) -> tuple[float, str]:
    """Seconds of a command, and what it said last.

    Raises:
        Failure: it failed.
    """
    began = time.perf_counter()
    done = subprocess.run([sys.executable, *arguments], capture_output=True, text=True, check=False)
    if done.returncode:
        last = (done.stderr.splitlines() or ["nothing"])[-1]
        raise Failure(f"{' '.join(arguments)}: exit code {done.returncode}, and it said: {last}")
    return time.perf_counter() - began, done.stdout.splitlines()[-1]


def page(results: Mapping[str, list[dict[str, Any]]], where: str, rounds: int) -> str:
    """A table, a line an exam."""
    lines = [
        "# What an exam costs",
        "",
        f"{where}.",
        "",
        f"Medians of {rounds} rounds; the shares are those of an exam whose port sits in the same process. *Rounding* "
        "is the reference run again with errors put in, *expected* the reference itself, *compiling* JAX's tracing and "
        "compilation, or what its cache saves of it, *port* what the port computes, *search* looking for the reason of "
        "a difference. What is left is making cases and comparing. The command has the port, and whole runs, in "
        "processes of their own.",
        "",
        f"| exam | command s | s | comparisons | {' | '.join(PHASES)} | rest |",
        "|---|---:|---:|---:|" + "---:|" * (len(PHASES) + 1),
    ]
    for name, runs in results.items():
        seconds = median(one["seconds"] for one in runs)
        parts = [median(one.get(phase, 0.0) for one in runs) for phase in PHASES]
        shares = " | ".join(f"{part / seconds:.0%}" for part in (*parts, seconds - sum(parts)))
        whole = [one["command"] for one in runs if "command" in one]
        command_seconds = f"{median(whole):.1f}" if whole else "–"
        lines.append(f"| {name} | {command_seconds} | {seconds:.1f} | {runs[0]['comparisons']:,} | {shares} |")
    return "\n".join(lines) + "\n"


def main() -> None:
    options = parse(JudgingOptions, sys.argv[1:], NAME, "Measure what an exam costs.")
    if options.exam:
        say(json.dumps(sit(options.exam)))
        return
    prepare_folder(options.output, (), overwrite=False)
    results: dict[str, list[dict[str, Any]]] = {name: [] for name in EXAMS}
    for turn in range(options.rounds):
        for name, arguments in EXAMS.items():
            print(f"{NAME}: round {turn + 1} of {options.rounds}: {name}", file=sys.stderr, flush=True)
            found = json.loads(run("-m", NAME, "--exam", name)[1])
            results[name].append(found | ({"command": run(*arguments)[0]} if arguments else {}))
    described = machine.describe({})
    stem = options.output / f"{machine.file_name(described)}-judging"
    text = page(results, machine.sentence(described), options.rounds)
    write_atomically(
        stem.with_suffix(".json"), (json.dumps({"machine": described, "runs": results}, indent=2) + "\n").encode()
    )
    write_atomically(stem.with_suffix(".md"), text.encode())
    say(text)


if __name__ == "__main__":
    sys.exit(command.run(main, NAME))
