"""The last two stages, which take whole runs: `trajectory` and `trends`."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from parity.cases import Answer
from parity.errors import PortError
from parity.reference.asked import Sitting
from parity.reference.whole_runs import Source, Start, WholeRuns
from parity.verdict.comparison import Comparison, Curves, Measured, broken, compare_patiently, measured
from parity.verdict.trends import (
    LAST,
    MOST_MOVED,
    MOVED,
    SEEDS,
    Drift,
    Metrics,
    distances,
    equivalence,
    forced,
    metrics,
)


def last_stages(
    sitting: Sitting,
    port: Any,
    stages: Sequence[str] | None,
    quick: bool,
    seeds: int = SEEDS,
    progress: Callable[[str], None] = lambda line: None,
    source: Source | None = None,
) -> "LastStages | None":
    """What of the last stages is asked for and offered."""
    wanted = [stage for stage in LAST if (stages is None or stage in stages) and not (quick and stage == "trends")]
    if not wanted or not sitting.runs_whole:
        return None
    epochs, workers, moved = (2, 1, 2) if quick else (None, None, MOVED)  # few runs are not worth a second process
    return LastStages(WholeRuns(sitting, epochs, source, workers), port, wanted, seeds, moved, progress)


@dataclass
class LastStages:
    """A port beside whole runs of the reference."""

    runs: WholeRuns
    port: Any
    stages: Sequence[str]
    """Those that are wanted."""
    seeds: int = SEEDS
    moved: int = MOVED
    """How many runs of the reference start one ulp away."""
    progress: Callable[[str], None] = lambda line: None
    _port_runs: dict[Start, Answer] = field(default_factory=dict)

    def prepare(self) -> None:
        """Begin in the background what will be asked for."""
        for start in (*self._moved(), *self._seeds()):
            self.runs.prepare(start)

    def compared(self) -> Iterator[Comparison]:
        """All comparisons; what the port does instead of running is one that fails."""
        if "trajectory" in self.stages:
            yield from self._forced()
        for stage, run in (("trajectory", self._free_running), ("trends", self._trends)):
            if stage not in self.stages:
                continue
            try:
                yield from run()
            except PortError as error:
                yield broken(self.runs.case(Start(0)), stage, error)

    def curves(self) -> Curves:
        """What the pictures show of what was run."""
        drift = {}
        if self._moved() and Start(0) in self._port_runs:
            others = {f"reference, moved {start.moved}": self.runs.answer(start) for start in self._moved()[1:]}
            runs = {"reference": self.runs.answer(Start(0)), "port": self._port_run(Start(0)), **others}
            drift = {name: curve.tolist() for name, curve in distances(self.runs.case(Start(0)), runs).items()}
        trends = {}
        if self._seeds() and all(start in self._port_runs for start in self._seeds()):
            for side, said in zip(("reference", "port"), self._metrics(), strict=True):
                trends[side] = {name: curves.tolist() for name, curves in said.items()}
        return Curves(drift, trends)

    def _forced(self) -> Iterator[Comparison]:
        self.progress("trajectory: from the reference's own states")
        sitting = self.runs.sitting
        for case in forced(self.runs.case(Start(0)), self.runs.answer(Start(0))):
            if (question := sitting.ask(case)) is None:
                continue
            try:
                actual = measured(case, self.port.answer(case), sitting.program.parameters)
            except PortError as error:
                yield broken(case, "trajectory", error)
                return
            yield from (replace(one, stage="trajectory") for one in compare_patiently(question, actual))

    def _free_running(self) -> Iterator[Comparison]:
        self.progress(f"trajectory: {self.runs.epochs} epochs")
        case, parameters = self.runs.case(Start(0)), self.runs.sitting.program.parameters
        actual = measured(case, self._port_run(Start(0)), parameters)

        def run(starts: Sequence[Start]) -> list[Measured]:
            for start in starts:
                self.runs.prepare(start)
            return [measured(case, self.runs.answer(start), parameters) for start in starts]

        def further() -> list[Measured]:
            known, self.moved = self.moved, MOST_MOVED
            if known < MOST_MOVED:
                self.progress("trajectory: more runs from one ulp away")
            return run(self._moved()[known + 1 :])

        expected, *moved = run(self._moved())
        yield from compare_patiently(Drift(case, expected, moved[0], moved, further), actual)

    def _trends(self) -> Iterator[Comparison]:
        run = self.runs.sitting.reference.whole_run
        assert run is not None
        yield from equivalence(*self._metrics(), run.margins)

    def _metrics(self) -> tuple[Metrics, Metrics]:
        port = [self._port_run(start) for start in self._seeds()]
        reference = [self.runs.answer(start) for start in self._seeds()]
        return metrics(reference, self.runs.epochs), metrics(port, self.runs.epochs)

    def _port_run(self, start: Start) -> Answer:
        if start not in self._port_runs:
            self.progress(f"{self.stages[-1]}: seed {start.seed}")
            self._port_runs[start] = self.port.answer(self.runs.case(start))
        return self._port_runs[start]

    def _moved(self) -> list[Start]:
        return [Start(0, moved) for moved in range(self.moved + 1)] if "trajectory" in self.stages else []

    def _seeds(self) -> list[Start]:
        return [Start(seed) for seed in range(self.seeds)] if "trends" in self.stages else []
