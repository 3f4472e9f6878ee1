"""Does every mistake's rewrite of the reference do what its diff does to the port? `python -m tests.tools.plants F001`.

Quick, and no proof: a few cases of the stages that the code's letter stands for. `make mistakes` judges whole.
"""

import itertools
import sys
import time
from typing import Any

import numpy as np

from parity.exam import _answer
from parity.mistakes import CATALOGUE
from parity.mistakes.mistake import Diff, Mistake
from parity.port.held import Held
from parity.reference.asked import Question, Sitting
from parity.variations import cases
from parity.verdict.comparison import STAGES, compare
from parity.verdict.explanation import LOOSE, Candidate, Search, _fitted, _subject
from tests.tools.hosts import HostPort, planted, reference

CALLS = {
    "L": ("load", "outputs", "value_and_grad"),
    "D": ("outputs", "value_and_grad"),
    "F": ("outputs", "value_and_grad"),
    "T": ("outputs", "value_and_grad", "train_steps"),
    "C": ("value_and_grad",),
    "O": ("train_steps",),
    "E": ("train_epoch", "evaluate"),
}
MOST = 4
"""Cases of each call."""


def main() -> None:
    asked = sys.argv[1:]
    for mistake in CATALOGUE:
        if not asked or mistake.code in asked or mistake.code[0] in asked:
            for diff in mistake.diffs:
                if diff.host:
                    began = time.monotonic()
                    print(
                        mistake.code,
                        mistake.name,
                        diff.host,
                        tried(mistake, diff),
                        f"{time.monotonic() - began:.0f} s",
                        flush=True,
                    )


def tried(mistake: Mistake, diff: Diff) -> str:
    """In a line: at which stage the planted mistake shows, and what its rewrite leaves of it."""
    try:
        port = Held(HostPort(planted(diff), diff.host))
    except ValueError as error:
        return f"NOT PLANTED: {error}"
    sitting = Sitting.of(reference(diff.host), port.describe(), "float32")
    all_cases = list(cases(sitting.program))
    for call in CALLS[mistake.code[0]]:
        some = list(
            itertools.islice((case for case in all_cases if case.call == call and "float64" not in case.name), MOST)
        )
        some += [case for case in all_cases if case.call == call and "float64" in case.name][-1:]
        some += [case for case in all_cases if case.call == call and case.train and case not in some][:2]
        answered = []
        for case in some:
            question = sitting.ask(case)
            actual = _answer(port, case, sitting.program.parameters)
            if isinstance(actual, Exception):
                return f"BROKEN: {actual}"
            if question is not None:
                answered.append((question, actual))
        failing = [
            (at, one.stage)
            for at, (question, actual) in enumerate(answered)
            for one in compare(question, actual)
            if not one.passes
        ]
        if not failing:
            continue
        stage = min((stage for _, stage in failing), key=STAGES.index)
        first = next(at for at, one in failing if one == stage)
        answered = [answered[first], *answered[:first], *answered[first + 1 :]]
        return f"caught at {stage}; {_named(mistake, sitting, stage, answered)}"
    return "NOT CAUGHT"


def _named(mistake: Mistake, sitting: Sitting, stage: str, answered: list[tuple[Question, dict[str, Any]]]) -> str:
    if mistake.tries is None:
        return "no rewrite"
    search = Search(sitting, stage, answered, print, float("inf"))
    subject = _subject(sitting)
    best, where, why = float("inf"), "", ""
    for attempt in mistake.tries(subject):
        for value in attempt.values:
            try:
                sitting.rewritten(attempt.rewrite(value)).answer(answered[0][0].case)
            except Exception as error:
                why = f" ({type(error).__name__}: {error})"
            left = search.left(attempt.rewrite(value))
            if left is not None:
                search.tried.append(Candidate(mistake, attempt, value, left))
    for candidate in (*search.tried, *_fitted(search)):
        if candidate.ratio < best:
            best, where = candidate.ratio, f"{candidate.attempt.place}, value {candidate.value}"
            found = candidate
    if best > LOOSE:
        return f"NOT NAMED: the nearest leaves {best:.3g} at {where or 'no place'}{why}"
    ratios = [
        np.abs(left).max(initial=0) if (left := search.left(found.rewrite, at)) is not None else np.inf
        for at in range(len(answered))
    ]
    return f"{'named' if max(ratios) <= LOOSE else 'NOT NAMED IN ALL CASES'}: {where}, leaves {max(ratios):.2g}"


if __name__ == "__main__":
    main()
