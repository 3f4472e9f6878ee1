"""The one page: ask everybody the same cases, compare, explain."""

import itertools
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

from parity.cases import Case
from parity.cases_file import Answers, Recording
from parity.errors import PortError
from parity.last_stages import LAST, LastStages, last_stages
from parity.port.process import examinee
from parity.reference.asked import Sitting
from parity.reference.program import Reference
from parity.shrink import shrunk
from parity.variations import cases
from parity.verdict.comparison import (
    STAGES,
    STAGES_OF,
    Comparison,
    Curves,
    Explanation,
    Measured,
    Paper,
    Verdict,
    broken,
    compare,
    measured,
)
from parity.verdict.explanation import Explained, explain
from parity.verdict.trends import SEEDS

Progress = Callable[[str], None]


def judge(
    reference: Reference,
    port: Any,
    *,
    stages: Sequence[str] | None = None,
    keep_going: bool = False,
    quick: bool = False,
    precision: str = "float32",
    seed: int = 0,
    seeds: int = SEEDS,
    progress: Progress = lambda line: None,
    on_failure: Callable[[Recording], None] | None = None,
) -> Verdict:
    """Whether a port does what the reference does, up to rounding; if not, where it first does not, and why.

    A mistake that explains all of a stage's difference is taken into the reference, and the rest is judged again.

    Args:
        port: `file.py:name` or `module:name`, in a process of its own; an object of the functions of `Port`; or
            whatever offers `describe()` and `answer(case)`: a file of answers.
        stages: those of `STAGES` that are judged; all by default.
        keep_going: judge later stages, too, where one has failed and nothing explains it.
        quick: fewer cases, no trends, and whole runs of two epochs.
        precision: float32, or what the reference and the port compute in on purpose: bfloat16, float16, tf32.
        seed: of the states that cases start from.
        seeds: how many whole runs `trends` compares.
        progress: told what is being asked.
        on_failure: given the smallest case that still fails, with everybody's answers.
    """
    with examinee(port) as sat:
        sitting = Sitting.of(reference, sat.describe(), precision)
        return examine(
            sitting,
            sat,
            last_stages(sitting, sat, stages, quick, seeds, progress),
            stages=stages,
            keep_going=keep_going,
            quick=quick,
            seed=seed,
            progress=progress,
            on_failure=on_failure,
        )


def examine(
    sitting: Sitting,
    port: Any,
    last: LastStages | None = None,
    *,
    stages: Sequence[str] | None = None,
    keep_going: bool = False,
    quick: bool = False,
    seed: int = 0,
    explains: bool = True,
    progress: Progress = lambda line: None,
    on_failure: Callable[[Recording], None] | None = None,
) -> Verdict:
    """`judge` in a sitting that is prepared.

    Args:
        port: what offers `describe()` and `answer(case)`.
        last: whole runs, which may have been begun in the background.
        explains: look for what explains a difference.
    """
    first, wanted = sitting, [stage for stage in STAGES if stages is None or stage in stages]
    asked = [case for case in cases(sitting.program, seed, quick, sitting.float64) if _is_wanted(case, wanted)]
    compared: list[Comparison] = []
    causes: list[tuple[Explanation, ...]] = []
    last_cause: tuple[Explained, Sitting] | None = None
    for _, group in itertools.groupby(asked, key=lambda case: case.call):
        answered = []
        for case in group:
            progress(f"{case.call}: {case.name}")
            if (question := sitting.ask(case)) is not None:
                answered.append((question, _answer(port, case, sitting.program.parameters)))
        found = _compared(answered, wanted)
        seen = {(one.case, one.quantity): one for one in found}
        while explains and not _agree(found):
            if last_cause is not None and (other := _told_apart(*last_cause, answered, wanted)) is not None:
                (cause, before), last_cause = (other, last_cause[1]), None
                del causes[-1]
            elif (new := explain(sitting, answered, found, progress)) is not None:
                cause, before, last_cause = new, sitting, (new, sitting)
            else:
                break
            causes += cause.said
            sitting = before.rewritten(cause.rewrite)
            answered = [(sitting.ask(question.case) or question, given) for question, given in answered]
            found = _compared(answered, wanted)
            # A difference is told as it was first seen; what agrees may have needed the mistake.
            seen |= {(one.case, one.quantity): one for one in found if seen[one.case, one.quantity].passes}
        compared += seen.values() if keep_going or _agree(found) else _up_to_failure(seen.values(), found)
        if not _agree(found) and not keep_going:
            break
    else:
        if last is not None and (keep_going or not causes):
            compared += last.compared()
    compared.sort(key=lambda one: STAGES.index(one.stage))
    if on_failure is not None and not _agree(one for one in compared if one.stage not in LAST):
        on_failure(_smallest_failure(first, port, asked, compared))
    return Verdict(
        sitting.reference.name,
        str(sitting.offers.get("port", "the port")),
        tuple(compared),
        tuple(causes),
        sitting.not_judged(wanted),
        sitting.notes(),
        sitting.places(compared),
        Curves() if last is None else last.curves(),
    )


def _told_apart(
    cause: Explained, sitting: Sitting, answered: Sequence[tuple[Any, Measured | PortError]], wanted: Sequence[str]
) -> Explained | None:
    """Of equally good explanations, another one than was taken, if it explains these cases as well."""
    for other in cause.others:
        rewritten = sitting.rewritten(other.rewrite)
        if _agree(_compared([(rewritten.ask(asked.case) or asked, given) for asked, given in answered], wanted)):
            return other
    return None


def record(
    reference: Reference,
    *,
    dropout: str = "off",
    stages: Sequence[str] | None = None,
    quick: bool = False,
    precision: str = "float32",
    seed: int = 0,
    progress: Progress = lambda line: None,
) -> Recording:
    """The exam on paper: cases, what is expected, and what rounding allows, for a port that sits it elsewhere."""
    offers = {"port": "a port", "offers": ["init", "train_epoch", "evaluate"], "float64": True, "dropout": dropout}
    sitting = Sitting.of(reference, offers, precision)
    asked = []
    for case in cases(sitting.program, seed, quick, sitting.float64):
        if _is_wanted(case, stages or STAGES):
            progress(f"{case.call}: {case.name}")
            if (question := sitting.ask(case)) is not None:
                asked.append((case, question.paper().as_answers()))
    return Recording(_about(sitting) | {"quick": quick, "precision": precision, "seed": seed}, tuple(asked))


def replay(
    recording: Recording,
    answers: Answers,
    reference: Reference | None = None,
    *,
    stages: Sequence[str] | None = None,
    keep_going: bool = False,
    progress: Progress = lambda line: None,
) -> Verdict:
    """The verdict on the answers to a recorded exam.

    Args:
        reference: the one that was recorded: the verdict is then that of `judge`, to the byte. Without it, as where
            there is no torch, what rounding allows is what was recorded, and a failure is neither asked again nor
            explained.
    """
    about = recording.about
    if reference is not None:
        asked = {name: about[name] for name in ("quick", "precision", "seed")}
        return judge(reference, answers, stages=stages, keep_going=keep_going, progress=progress, **asked)
    offers = answers.describe()
    wanted = [stage for stage in STAGES if stages is None or stage in stages]
    compared: list[Comparison] = []
    for _, group in itertools.groupby(recording.asked, key=lambda one: one[0].call):
        answered = [
            (Paper.of(case, said), _answer(answers, case, frozenset(about["parameters"])))
            for case, said in group
            if _offered(case, offers) and _is_wanted(case, wanted)
        ]
        found = _compared(answered, wanted)
        compared += found if keep_going or _agree(found) else _up_to_failure(found, found)
        if not _agree(found) and not keep_going:
            break
    compared.sort(key=lambda one: STAGES.index(one.stage))
    failing = {one.quantity.rpartition("/")[2] for one in compared if not one.passes}
    return Verdict(
        about["reference"],
        str(offers.get("port", "the port")),
        tuple(compared),
        (),
        tuple(about["not_judged"]),
        (*about["notes"], "judged by what was recorded: a failure was neither asked again nor explained"),
        {name: place for name, place in about["places"].items() if name in failing},
    )


def _is_wanted(case: Case, stages: Sequence[str]) -> bool:
    return not set(STAGES_OF[case.call]).isdisjoint(stages)


def _about(sitting: Sitting) -> dict[str, Any]:
    """What a recording says of its reference."""
    return {
        "reference": sitting.reference.name,
        "dropout": str(sitting.offers.get("dropout", "off")),
        "parameters": sorted(sitting.program.parameters),
        "not_judged": list(sitting.dropped),
        "notes": list(sitting.notes()),
        "places": sitting.all_places(),
    }


def _answer(port: Any, case: Case, parameters: frozenset[str]) -> Measured | PortError:
    try:
        return measured(case, port.answer(case), parameters)
    except PortError as error:
        return error


def _offered(case: Case, offers: Mapping[str, Any]) -> bool:
    optional = case.call not in ("init", "train_epoch", "evaluate") or case.call in offers.get("offers", ())
    return optional and (case.dtype.itemsize == 4 or bool(offers.get("float64", True)))


def _compared(answered: Sequence[tuple[Any, Measured | PortError]], wanted: Sequence[str]) -> list[Comparison]:
    """Everything compared; where the first failure says "too far", rounding is tried more often before it is said."""
    compared: list[Comparison] = []
    for asked, actual in answered:
        if isinstance(actual, PortError):
            stage = next(stage for stage in STAGES_OF[asked.case.call] if stage in wanted)
            compared.append(broken(asked.case, stage, actual))
            continue
        found = compare(asked, actual)
        while _failing(found, wanted) and not _failing(compared, wanted) and asked.more():
            found = compare(asked, actual)
        compared += [one for one in found if one.stage in wanted]
    return compared


def _failing(compared: Iterable[Comparison], wanted: Sequence[str]) -> list[Comparison]:
    """Values that are too far; what cannot be compared at all is no question of rounding."""
    return [one for one in compared if one.stage in wanted and one.wrong is None and not one.passes]


def _smallest_failure(sitting: Sitting, port: Any, asked: Sequence[Case], compared: Sequence[Comparison]) -> Recording:
    """The first case that fails, cut down as long as it fails at that stage."""
    worst = next(one for one in compared if not one.passes)
    parameters = sitting.program.parameters

    def fails(case: Case) -> bool:
        question = sitting.ask(case)
        return question is not None and any(
            one.stage == worst.stage and not one.passes and (one.wrong is None) == (worst.wrong is None)
            for one in _compared([(question, _answer(port, case, parameters))], [worst.stage])
        )

    case = next(case for case in asked if case.name == worst.case and worst.stage in STAGES_OF[case.call])
    case = shrunk(case, fails)
    said = sitting.ask(case)
    actual = _answer(port, case, parameters)
    answers = {} if said is None else said.paper().as_answers()
    about = _about(sitting) | {"stage": worst.stage, "quantity": worst.quantity}
    return Recording(about, ((case, answers | ({} if isinstance(actual, PortError) else {"actual": actual})),))


def _agree(compared: Iterable[Comparison]) -> bool:
    return all(one.passes for one in compared)


def _up_to_failure(told: Iterable[Comparison], found: Iterable[Comparison]) -> list[Comparison]:
    """What is told where something stays unexplained: up to the stage where it first shows."""
    last = min(STAGES.index(one.stage) for one in found if not one.passes)
    return [one for one in told if STAGES.index(one.stage) <= last]
