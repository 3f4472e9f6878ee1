"""Why a port differs: experiments on the reference, until one agrees with the port in all that a stage compares."""

import itertools
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch

from parity.cases import Array
from parity.mistakes import CATALOGUE
from parity.mistakes.general import GENERAL
from parity.mistakes.mistake import Mistake, Subject, Try
from parity.reference.asked import Question, Sitting
from parity.reference.program import fresh
from parity.reference.rewrite import Rewrite, chained, sites
from parity.verdict.comparison import STAGES, Comparison, Explanation, Measured
from parity.verdict.fitting import plain, shown, solve
from parity.verdict.search import ALONG, LITTLE, LOOSE, SECONDS, Candidate, Search

LETTERS = {
    "load": "L",
    "init": "D",
    "outputs": "LDFT",
    "loss": "CFTLD",
    "gradients": "CFTL",
    "step": "OCT",
    "steps": "OCT",
    "state": "TO",
    "epoch": "EO",
    "evaluate": "EC",
}
"""Which mistakes first show at which stage."""


@dataclass(frozen=True)
class Explained:
    """What was found, and the reference with it in."""

    said: tuple[tuple[Explanation, ...], ...]
    """One entry a mistake: equally good explanations of it, of which the first is in."""
    rewrite: Rewrite
    others: tuple["Explained", ...] = ()
    """The same with another of the equally good explanations in: later cases may tell them apart."""


def explain(
    sitting: Sitting,
    answered: Sequence[tuple[Question, Any]],
    compared: Sequence[Comparison],
    settled: Sequence[tuple[Question, Any]],
    progress: Callable[[str], None],
    seconds: float = SECONDS,
) -> Explained | None:
    """The mistakes under which all agrees that is compared up to the first failing stage; None where there is none.

    Args:
        settled: cases of earlier calls, which agree beside the sitting's reference and have to beside a rewritten one.
        seconds: after which the search stops.
    """
    failing = [one for one in compared if not one.passes]
    if any(one.wrong is not None for one in failing):
        return None
    stage = min((one.stage for one in failing), key=STAGES.index)
    failed = {one.case for one in failing if one.stage == stage}

    def order(one: tuple[Question, Measured]) -> tuple[bool, int, int]:
        case = one[0].case
        return (
            case.name not in failed,
            case.dtype.itemsize,
            sum(array.size for batch in case.batches for array in batch.values()),
        )

    deadline = time.monotonic() + seconds
    search = Search(sitting, stage, sorted(answered, key=order), progress, deadline, settled)
    subject = _subject(sitting)
    letters = LETTERS[stage]
    catalogue = sorted(
        (
            one
            for one in CATALOGUE
            if one.tries and (one.code[0] in letters or (one.rounds and STAGES.index(stage) > STAGES.index("init")))
        ),
        key=lambda one: letters.find(one.code[0]),
    )
    progress(f"explaining: {stage}")
    ways: tuple[Callable[[], Explained | None], ...] = (
        lambda: _best(search, list(_candidates(search, subject, catalogue))),
        lambda: _best(search, list(_fitted(search))),
        lambda: _best(search, list(_deferred(search))),
        lambda: _pair(search),
        lambda: _best(search, list(_candidates(search, subject, GENERAL))),
        lambda: _best(search, list(_fitted(search))),
        lambda: _on_top(search, catalogue),
    )
    whole, first = replace(search, stage=STAGES[-1], seen={}), None
    for way in ways:
        found = way()
        # What explains later stages of the same cases as well is the better explanation.
        for one in () if found is None else (found, *found.others):
            if stage == _last_stage(compared) or whole.agrees(one.rewrite) is not None:
                return one
        first = first or found
    if first is None:
        sitting.remarks.extend(_what_is_known(search))
    return first


def _last_stage(compared: Sequence[Comparison]) -> str:
    """The last stage that fails."""
    return max((one.stage for one in compared if not one.passes), key=STAGES.index)


def _what_is_known(search: Search) -> Iterator[str]:
    """Of a difference that nothing explains: the experiment that leaves least of it, and what was not tried."""
    start = search.start
    if start is not None and search.tried:
        size = float(np.linalg.norm(start)) or 1.0
        nearest = min(search.tried, key=lambda one: float(np.linalg.norm(one.left)))
        left = float(np.linalg.norm(nearest.left)) / size
        if left < 0.9:
            told = said(nearest, search.stage, nearest.ratio)
            yield f"nothing known explains {search.stage}; the nearest leaves {left:.0%} of it: {told.message}"
        else:
            yield f"nothing known explains {search.stage}, nor comes near it: {len(search.tried)} experiments were made"
    if search.untried:
        yield f"the search stopped at its time limit with {search.untried} experiments untried"


def _subject(sitting: Sitting) -> Subject:
    reference, module = sitting.reference, fresh(sitting.reference)
    batch = {name: torch.from_numpy(np.array(array)) for name, array in reference.batches[0].items()}
    return Subject(reference, module, sites(reference, module, batch), sitting.program.state)


def _candidates(search: Search, subject: Subject, mistakes: Sequence[Mistake]) -> Iterator[Candidate]:
    """Every mistake at every place with every usual value, on the first failing case.

    A mistake comes everywhere first, then at some places: where it leads nowhere near what is seen everywhere, its
    places are put off.
    """
    start = search.start
    if start is None:
        return
    for mistake in mistakes:
        expected, largest = True, 0
        for attempt in _attempts(mistake, subject):
            if attempt.size >= largest:
                expected, largest = True, attempt.size
            if not expected:
                search.deferred.append((mistake, attempt))
                continue
            near = False
            for candidate in _values(search, start, mistake, attempt):
                near = near or _is_near(candidate, start)
                yield candidate
            if attempt.size == largest and largest > 1:
                expected = near


def _deferred(search: Search) -> Iterator[Candidate]:
    """What was put off: one place may be small beside all the others."""
    if search.start is not None:
        for mistake, attempt in search.deferred:
            yield from _values(search, search.start, mistake, attempt)
    search.deferred.clear()


def _values(search: Search, start: Array, mistake: Mistake, attempt: Try) -> Iterator[Candidate]:
    """One place with every usual value; of a family, two that lead elsewhere are enough: it is solved for."""
    aside = 0
    for value in attempt.values:
        if time.monotonic() > search.deadline:
            search.untried += 1
            continue
        left = search.left(attempt.rewrite(value))
        if left is None or left.shape != start.shape:
            continue
        candidate = Candidate(mistake, attempt, value, left)
        search.tried.append(candidate)
        yield candidate
        aside = aside + 1 if not _is_near(candidate, start) else 0
        if attempt.fit is not None and aside > 1:
            break


def _is_near(candidate: Candidate, start: Array) -> bool:
    return candidate.ratio <= LOOSE or abs(_cosine(start - candidate.left, start)) >= ALONG


def _attempts(mistake: Mistake, subject: Subject) -> Iterator[Try]:
    """A mistake's tries; those that cannot be made of this reference are none."""
    assert mistake.tries is not None
    attempts = iter(mistake.tries(subject))
    while True:
        try:
            yield next(attempts)
        except StopIteration:
            return
        except Exception:  # a mistake that is not thought of for this program must not end its exam
            return


def _cosine(one: Array, other: Array) -> float:
    length = float(np.linalg.norm(one) * np.linalg.norm(other))
    return float(one @ other) / length if length else 0.0


def _fitted(search: Search) -> Iterator[Candidate]:
    """Values solved for, for families in whose direction the difference lies."""
    start = search.start
    if start is None:
        return
    widths = [question.case.dtype.itemsize for question, _ in search.answered]
    finest = widths.index(max(widths))
    families: dict[tuple[str, str], list[Candidate]] = {}
    for candidate in search.tried:
        if candidate.attempt.fit is not None:
            families.setdefault((candidate.mistake.code, candidate.attempt.place), []).append(candidate)
    for family in families.values():
        nearest = min(family, key=lambda one: float(np.abs(one.left).sum()))
        if abs(_cosine(start - nearest.left, start)) < 0.5 or time.monotonic() > search.deadline:
            continue
        attempt = nearest.attempt
        was = attempt.was if isinstance(attempt.was, float | int) else 1.0

        def residual(value: float, attempt: Try = attempt) -> Array:
            left = search.left(attempt.rewrite(value))
            return np.full_like(start, np.nan) if left is None else left

        if attempt.fit == "log" and not (was > 0 and nearest.value > 0):
            was = nearest.value * 2
        value = solve(residual, nearest.value, was, attempt.fit or "linear")
        if value is None or not search.may_agree(residual(value)):
            continue
        near = [
            Candidate(nearest.mistake, attempt, number, left)
            for number in dict.fromkeys((*plain(value), value))
            if (left := search.left(attempt.rewrite(number))) is not None and search.may_agree(left)
        ]
        # In float32 0.333 is as good as a third.
        exact = (one for one in near if search.may_agree(search.left(one.rewrite, finest), finest))
        yield from itertools.islice(itertools.chain(exact, near), 1)


def _best(search: Search, candidates: Sequence[Candidate]) -> Explained | None:
    """Those that agree in all cases, the simplest first; one place for each mistake."""
    agreeing: list[tuple[Candidate, float]] = []
    nearly: Explained | None = None
    possible = [one for one in candidates if search.may_agree(one.left, rounds=one.mistake.rounds)]
    # So little as is near rounding anyway is most likely lost digits, and hardly tells other mistakes apart.
    little = search.start is not None and float(np.abs(search.start).max(initial=0)) <= LOOSE
    for candidate in sorted(
        possible, key=lambda one: (not (little and one.mistake.rounds), one.attempt.size, one.ratio)
    ):
        if little and agreeing and agreeing[0][0].mistake.rounds:
            break
        if any(one.mistake is candidate.mistake for one, _ in agreeing):
            continue
        if search.is_over:
            break
        worst = search.agrees(candidate.rewrite, candidate.mistake.rounds)
        if worst is None and search.missed <= LOOSE:
            nearly = nearly or _with_lost_digits(search, candidate)
        if worst is not None and search.keeps(candidate.rewrite, candidate.mistake.rounds):
            agreeing.append((candidate, worst))
    if not agreeing:
        return nearly
    # What leaves several times as much as another that agrees is not as good.
    enough = max(0.5, 3 * min(worst for _, worst in agreeing))
    agreeing = [(one, worst) for one, worst in agreeing if worst <= enough]
    ways = [(said(one, search.stage, worst), one.rewrite) for one, worst in agreeing]
    first, *others = [
        Explained(((way, *(other for other, _ in ways if other is not way)),), rewrite) for way, rewrite in ways
    ]
    return replace(first, others=tuple(others))


def _with_lost_digits(search: Search, candidate: Candidate) -> Explained | None:
    """A mistake that leaves a little more than rounding, beside one that loses digits wherever it can be."""
    widest = {
        one.mistake.code: one for one in sorted(search.tried, key=lambda one: one.attempt.size) if one.mistake.rounds
    }
    for one in widest.values():
        both = chained(candidate.rewrite, one.rewrite)
        worst = None if one.mistake is candidate.mistake else search.agrees(both, rounds=True)
        if worst is not None and search.keeps(both, rounds=True):
            return Explained(((said(candidate, search.stage, worst),), (said(one, search.stage, worst),)), both)
    return None


def _pair(search: Search) -> Explained | None:
    """Two mistakes at one stage: the differences that they make nearly add up to what is seen."""
    start = search.start
    tried = [one for one in search.tried if one.left.shape == getattr(start, "shape", None)]
    if start is None or len(tried) < 2:
        return None
    weights = 1 / (1 + np.abs(start))
    made = np.array([(start - one.left) * weights for one in tried])
    seen = start * weights
    products, along = made @ made.T, made @ seen
    lengths = np.diag(products)
    left = seen @ seen - 2 * (along[:, None] + along[None, :]) + lengths[:, None] + lengths[None, :] + 2 * products
    left[np.tril_indices(len(tried))] = np.inf
    nearest = np.argsort(left, axis=None)[:24]
    found: list[tuple[float, Candidate, Candidate, Rewrite]] = []
    for flat in nearest:
        one, other = (tried[int(at)] for at in np.unravel_index(int(flat), left.shape))
        if one.mistake is other.mistake and one.attempt.place == other.attempt.place:
            continue
        both = chained(one.rewrite, other.rewrite)
        vector = search.left(both)
        if vector is not None and search.may_agree(vector):
            found.append((float(np.abs(vector).max(initial=0)), one, other, both))
    for _, one, other, both in sorted(found, key=lambda each: each[0]):
        one, other = sorted((one, other), key=lambda each: each.mistake.rounds)  # what loses digits is told last
        worst = search.agrees(both)
        if worst is not None and search.keeps(both):
            return Explained(((said(one, search.stage, worst),), (said(other, search.stage, worst),)), both)
    return None


def _on_top(search: Search, mistakes: Sequence[Mistake]) -> Explained | None:
    """Another mistake, or two, beside one that leaves little: those that meet in one formula do not add up."""
    start = search.start
    if start is None:
        return None
    size = float(np.linalg.norm(start))
    nearest: dict[str, Candidate] = {}
    for one in sorted(search.tried, key=lambda one: float(np.linalg.norm(one.left))):
        if one.mistake.code and float(np.linalg.norm(one.left)) <= LITTLE * size:
            nearest.setdefault(one.mistake.code, one)
    for one in itertools.islice(nearest.values(), 3):
        sitting = search.sitting.rewritten(one.rewrite)
        within = replace(search, sitting=sitting, seen={}, tried=[], deferred=[], untried=0)
        ways: tuple[Callable[[], Explained | None], ...] = (
            lambda within=within, sitting=sitting: _best(  # type: ignore[misc]
                within, list(_candidates(within, _subject(sitting), mistakes))
            ),
            lambda within=within: _best(within, list(_fitted(within))),  # type: ignore[misc]
            lambda within=within: _pair(within),  # type: ignore[misc]
        )
        found = next((found for way in ways if (found := way()) is not None), None)
        if found is not None:
            ratio = max(each.ratio for ways_to_say in found.said for each in ways_to_say)
            told = ((said(one, search.stage, ratio),), *found.said)
            return Explained(told, chained(one.rewrite, found.rewrite))
    return None


def said(candidate: Candidate, stage: str, ratio: float) -> Explanation:
    """A candidate in words."""
    mistake, attempt = candidate.mistake, candidate.attempt
    words = {"place": attempt.place, "value": shown(candidate.value), "was": shown(attempt.was)}
    diff = mistake.diffs[0] if mistake.diffs else None
    return Explanation(
        mistake.code,
        mistake.name,
        attempt.place,
        mistake.message.format(**words),
        diff.wrong if diff else "",
        diff.right if diff else "",
        ratio,
        stage,
    )
