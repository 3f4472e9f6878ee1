"""The one page: ask everybody the same cases, compare, explain."""

import itertools
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from parity.cases import Case
from parity.cases_file import Recording
from parity.errors import PortError
from parity.port.process import examinee
from parity.shrink import shrunk
from parity.verdict.comparison import (
    STAGES,
    STAGES_OF,
    Comparison,
    Curves,
    Explanation,
    Measured,
    Verdict,
    broken,
    compare,
    compare_patiently,
    measured,
)
from parity.verdict.trends import LAST, SEEDS

if TYPE_CHECKING:  # an exam that is on paper is judged where there is no torch, too
    from parity.last_stages import LastStages
    from parity.reference.program import Reference
    from parity.verdict.explanation import Explained

Progress = Callable[[str], None]

SETTLED = ("shaken", "shaken, evaluation mode", "shaken, training mode")
"""Cases that an explanation of something later must not spoil."""


def judge(
    reference: "Reference",
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
    from parity.last_stages import last_stages
    from parity.reference.asked import Sitting

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
    sitting: Any,
    port: Any,
    last: "LastStages | None" = None,
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
        sitting: a `Sitting`, or a `Recorded` one.
        port: what offers `answer(case)`.
        last: whole runs, which may have been begun in the background.
        explains: look for what explains a difference.
    """
    if explains:
        from parity.verdict.explanation import explain
        from parity.verdict.search import LEAST_SECONDS, SECONDS
    first, wanted = sitting, [stage for stage in STAGES if stages is None or stage in stages]
    asked = [case for case in sitting.cases(seed, quick) if not set(STAGES_OF[case.call]).isdisjoint(wanted)]
    compared: list[Comparison] = []
    causes: list[tuple[Explanation, ...]] = []
    last_cause: tuple[Explained, Any] | None = None
    settled: list[tuple[Any, Measured | PortError]] = []
    spent = 0.0
    for _, group in itertools.groupby(asked, key=lambda case: case.call):
        answered = []
        for case in group:
            progress(f"{case.call}: {case.name}")
            if (question := sitting.ask(case)) is not None:
                answered.append((question, _answer(port, case, sitting.parameters)))
        if not answered and causes:
            continue  # a mistake of the port's leaves no number
        if not answered:
            sitting.refuse(case.call)
        found = _compared(answered, wanted)
        seen = {(one.case, one.quantity): one for one in found}
        while explains and not _agree(found):
            if last_cause is not None and (other := _told_apart(*last_cause, answered, wanted)) is not None:
                (cause, before), last_cause = (other, last_cause[1]), None
                del causes[-1]
                seen.clear()  # it was beside a mistake that is none
            else:
                began = time.monotonic()
                seconds = max(SECONDS - spent, LEAST_SECONDS)
                new = explain(sitting, answered, found, settled, progress, seconds)
                spent += time.monotonic() - began
                if new is None:
                    break
                cause, before, last_cause = new, sitting, (new, sitting)
            rewritten = replace(before.rewritten(cause.rewrite), dropped=sitting.dropped)
            told = len(sitting.dropped)
            again = [(rewritten.ask(question.case), given) for question, given in answered]
            asked_again = [one for one in again if one[0] is not None]  # a mistake may leave no number in a case
            del sitting.dropped[told:]
            then = _compared(asked_again, wanted)
            if _first(then) <= _first(found):
                break  # it does not hold beside the rewritten reference's own tolerance
            causes += cause.said
            sitting, answered, found = rewritten, asked_again, then
            # A difference is told as it was first seen; what agrees may have needed the mistake.
            kept = {key for key, one in seen.items() if not one.passes}
            seen |= {key: one for one in found if (key := (one.case, one.quantity)) not in kept}
        if _agree(found):
            settled += (one for one in answered if one[0].case.name in SETTLED)
        if _agree(found) or keep_going:
            agree = {(one.case, one.quantity) for one in found if one.passes}
            compared += (replace(one, explained=not one.passes and key in agree) for key, one in seen.items())
            continue
        # Something stays unexplained: told is what comes up to the stage where it first shows.
        last_shown = min(STAGES.index(one.stage) for one in found if not one.passes)
        compared += [one for one in seen.values() if STAGES.index(one.stage) <= last_shown]
        break
    else:
        if last is not None and (keep_going or not causes):
            compared += last.compared()
    compared.sort(key=lambda one: STAGES.index(one.stage))
    verdict = Verdict(
        sitting.name,
        str(sitting.offers.get("port", "the port")),
        tuple(compared),
        tuple(causes),
        sitting.not_judged(wanted),
        sitting.notes(),
        sitting.places(compared),
        Curves() if last is None else last.curves(),
    )
    # Last, for what its smaller cases cannot be asked is no matter of the exam.
    if on_failure is not None and not _agree(one for one in compared if one.stage not in LAST):
        on_failure(_smallest_failure(first, port, asked, compared))
    return verdict


def _told_apart(
    cause: "Explained", sitting: Any, answered: Sequence[tuple[Any, Measured | PortError]], wanted: Sequence[str]
) -> "Explained | None":
    """Of equally good explanations, another one than was taken, if it explains these cases as well."""
    for other in cause.others:
        rewritten = sitting.rewritten(other.rewrite)
        if _agree(_compared([(rewritten.ask(asked.case) or asked, given) for asked, given in answered], wanted)):
            return other
    return None


def _answer(port: Any, case: Case, parameters: frozenset[str]) -> Measured | PortError:
    try:
        return measured(case, port.answer(case), parameters)
    except PortError as error:
        return error


def _compared(answered: Sequence[tuple[Any, Measured | PortError]], wanted: Sequence[str]) -> list[Comparison]:
    """Everything compared; where the first failure says "too far", rounding is tried more often before it is said."""
    compared: list[Comparison] = []
    for asked, actual in answered:
        if isinstance(actual, PortError):
            stage = next(stage for stage in STAGES_OF[asked.case.call] if stage in wanted)
            compared.append(broken(asked.case, stage, actual))
        else:
            already = any(one.too_far for one in compared)
            compared += (compare if already else compare_patiently)(asked, actual, wanted)
    return compared


def _smallest_failure(sitting: Any, port: Any, asked: Sequence[Case], compared: Sequence[Comparison]) -> Recording:
    """The first case that fails, cut down as long as it fails at that stage."""
    worst = next(one for one in compared if not one.passes)

    def fails(case: Case) -> bool:
        question = sitting.ask(case)
        return question is not None and any(
            not one.passes and one.too_far == worst.too_far
            for one in _compared([(question, _answer(port, case, sitting.parameters))], [worst.stage])
        )

    case = next(case for case in asked if case.name == worst.case and worst.stage in STAGES_OF[case.call])
    case = shrunk(case, fails)
    said, actual = sitting.ask(case), _answer(port, case, sitting.parameters)
    answers = {} if said is None else said.as_answers()
    if not isinstance(actual, PortError):
        answers["actual"] = actual
    return Recording(sitting.about() | {"stage": worst.stage, "quantity": worst.quantity}, ((case, answers),))


def _first(compared: Iterable[Comparison]) -> int:
    """Where the first stage that fails comes; after all of them where none does."""
    return min((STAGES.index(one.stage) for one in compared if not one.passes), default=len(STAGES))


def _agree(compared: Iterable[Comparison]) -> bool:
    return all(one.passes for one in compared)
