"""An exam on paper: written where there is torch, and judged by the answers of a port that sat it elsewhere."""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from parity.cases import OPTIONAL, Case
from parity.cases_file import Answers, Recording
from parity.exam import examine, judge
from parity.port.protocol import can_answer
from parity.verdict.comparison import STAGES, STAGES_OF, Comparison, Paper, Verdict
from parity.verdict.trends import LAST

if TYPE_CHECKING:
    from parity.reference.program import Reference

NO_WHOLE_RUNS = "trajectory, trends: an exam on paper has no whole runs"


def record(
    reference: "Reference",
    *,
    dropout: str = "off",
    stages: Sequence[str] | None = None,
    quick: bool = False,
    precision: str = "float32",
    seed: int = 0,
    progress: Callable[[str], None] = lambda line: None,
) -> Recording:
    """The exam on paper: cases, what is expected, and what rounding allows, for a port that sits it elsewhere."""
    from parity.reference.asked import Sitting

    offers = {"port": "a port", "offers": list(OPTIONAL), "float64": True, "dropout": dropout}
    sitting = Sitting.of(reference, offers, precision)
    wanted = [case for case in sitting.cases(seed, quick) if not set(STAGES_OF[case.call]).isdisjoint(stages or STAGES)]
    asked = []
    for case in wanted:
        progress(f"{case.call}: {case.name}")
        if (question := sitting.ask(case)) is not None:
            asked.append((case, question.as_answers()))
    for call in {case.call for case in wanted} - {case.call for case, _ in asked}:
        sitting.refuse(call)
    about = sitting.about() | {"quick": quick, "precision": precision, "seed": seed}
    if reference.whole_run is not None:
        about["not_judged"].append(NO_WHOLE_RUNS)
    return Recording(about, tuple(asked))


def replay(
    recording: Recording,
    answers: Answers,
    reference: "Reference | None" = None,
    *,
    stages: Sequence[str] | None = None,
    keep_going: bool = False,
    progress: Callable[[str], None] = lambda line: None,
) -> Verdict:
    """The verdict on the answers to a recorded exam.

    Args:
        reference: the one that was recorded: the verdict is then that of `judge`, to the byte. Without it, as where
            there is no torch, what rounding allows is what was recorded, and a failure is neither asked again nor
            explained.
    """
    settings: dict[str, Any] = {"stages": stages, "keep_going": keep_going, "progress": progress}
    if reference is not None:
        settings |= {name: recording.about[name] for name in ("quick", "precision", "seed")}
        if reference.whole_run is None:
            return judge(reference, answers, **settings)
        settings["stages"] = [stage for stage in stages or STAGES if stage not in LAST]
        verdict = judge(reference, answers, **settings)
        return replace(verdict, not_judged=(*verdict.not_judged, NO_WHOLE_RUNS))
    return examine(Recorded(recording, answers.describe()), answers, explains=False, **settings)


@dataclass(frozen=True)
class Recorded:
    """What a recording offers of a `Sitting`."""

    recording: Recording
    offers: dict[str, Any]

    @property
    def name(self) -> str:
        return str(self.recording.about["reference"])

    @property
    def parameters(self) -> frozenset[str]:
        return frozenset(self.recording.about["parameters"])

    def cases(self, seed: int, quick: bool) -> list[Case]:
        """Those that the port can answer."""
        return [case for case, _ in self.recording.asked if can_answer(self.offers, case)]

    def ask(self, case: Case) -> Paper:
        return next(Paper.of(case, said) for one, said in self.recording.asked if one is case)

    def not_judged(self, wanted: Iterable[str]) -> tuple[str, ...]:
        return tuple(self.recording.about["not_judged"])

    def notes(self) -> tuple[str, ...]:
        told = "judged by what was recorded: a failure was neither asked again nor explained"
        return (*self.recording.about["notes"], told)

    def places(self, compared: Iterable[Comparison]) -> dict[str, str]:
        failing = {one.quantity.rpartition("/")[2] for one in compared if not one.passes}
        return {name: place for name, place in self.recording.about["places"].items() if name in failing}
