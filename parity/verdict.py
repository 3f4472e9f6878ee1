"""The verdict: climbs the ladder with a port and says whether it agrees, or where and why it first does not."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from parity.checks import CHECKS
from parity.comparison import MEMORY, Comparison
from parity.diagnosis import explain
from parity.judge import STAGES, Check, Judge, run_check
from parity.port import PortError
from parity.whole_runs import WHOLE_RUNS

LADDER = (*CHECKS, *WHOLE_RUNS)


@dataclass(frozen=True)
class Outcome:
    """A check and what it compared."""

    check: Check
    comparisons: list[Comparison]

    @property
    def passed(self) -> bool:
        return all(comparison.passed for comparison in self.comparisons)

    @property
    def compared(self) -> int:
        return sum(comparison.found.size for comparison in self.comparisons)

    @property
    def share(self) -> float:
        """The largest error as a share of what is allowed; where equality is demanded, infinite if there is any."""
        return max(_share(comparison, comparison.worst) for comparison in self.comparisons)

    @property
    def reference_share(self) -> float | None:
        """The reference's own largest error, likewise; None where it is what is compared with."""
        shares = [
            _share(comparison, comparison.distance(comparison.reference))
            for comparison in self.comparisons
            if comparison.reference is not None
        ]
        return max(shares, default=None)

    @property
    def is_exact(self) -> bool:
        """Whether equality is demanded throughout."""
        return all(comparison.allowed == 0 for comparison in self.comparisons)


def _share(comparison: Comparison, worst: float) -> float:
    if comparison.allowed:
        return worst / comparison.allowed
    return float("inf") if worst else 0.0


@dataclass(frozen=True)
class Divergence:
    """Where a port first goes wrong, and what explains it."""

    comparison: Comparison
    explanation: str | None

    def sentence(self) -> str:
        one = self.comparison
        if one.tensor == MEMORY:
            return f"the first divergence is in `{one.stage}` ({one.check}): {one.case}"
        differing = one.differing()
        unbounded = int(np.sum(~np.isfinite(one.found)))
        if unbounded and not self.explanation:
            return (
                f"the first divergence is `{one.stage}` of `{one.tensor}` ({one.check}: {one.case}): "
                f"{unbounded} of its {one.found.size} values are not finite"
            )
        amount = "" if differing.size == 1 else f", {_percent(float(differing.mean()))} of its values"
        reason = self.explanation or "none of the mistakes known here explains it"
        return f"the first divergence is `{one.stage}` of `{one.tensor}` ({one.check}: {one.case}){amount}: {reason}"


def _percent(share: float) -> str:
    return f"{100 * share:.2g} %" if share < 0.1 else f"{100 * share:.0f} %"


@dataclass(frozen=True)
class Verdict:
    """All outcomes, what was left out and why, and the first divergence if there is one."""

    outcomes: list[Outcome]
    notes: list[str]
    divergence: Divergence | None

    @property
    def agrees(self) -> bool:
        return self.divergence is None

    def sentence(self) -> str:
        if self.divergence is not None:
            return self.divergence.sentence()
        values = sum(outcome.compared for outcome in self.outcomes)
        stages = len({outcome.check.stage for outcome in self.outcomes})
        return f"agrees: {len(self.outcomes)} checks in {stages} stages, {values:,} values compared"


def climb(judge: Judge, stages: Sequence[str], report: Callable[[Outcome], None] = lambda outcome: None) -> Verdict:
    """Run all checks of the stages in order; each outcome is reported as soon as it is known.

    Where a port cannot be judged any further, the verdict is on what was seen until then.

    Raises:
        PortError: the port cannot be judged, and did nothing wrong before.
    """
    notes: list[str] = []
    outcomes: list[Outcome] = []
    if not judge.port.has_init and "init" in stages:
        notes.append("init: not judged; the port has no `init`, and starts from the reference's draw")
    if not judge.port.float64:
        notes.append("float64: not judged; the port says that it cannot compute in it (FLOAT64 = False)")
    for check in LADDER:
        if check.stage not in stages or (check.stage == "init" and not judge.port.has_init):
            continue
        if check.needs_float64 and not judge.port.float64:
            continue
        seen: list[Comparison] = []
        try:
            run_check(judge, check, seen)
        except PortError as error:
            if all(outcome.passed for outcome in [*outcomes, Outcome(check, seen)]):
                raise
            notes.append(f"stopped in {check.stage}: {check.name}: {error}")
            if seen:
                outcomes.append(Outcome(check, seen))
                report(outcomes[-1])
            break
        outcomes.append(Outcome(check, seen))
        report(outcomes[-1])
    return Verdict(outcomes, notes, first_divergence(outcomes))


def first_divergence(outcomes: Sequence[Outcome]) -> Divergence | None:
    """The first comparison that fails, explained by all of its stage."""
    for stage in STAGES:
        of_stage = [outcome.comparisons for outcome in outcomes if outcome.check.stage == stage]
        failing = [comparison for comparisons in of_stage for comparison in comparisons if not comparison.passed]
        if failing:
            with np.errstate(all="ignore"):
                return Divergence(failing[0], explain(of_stage))
    return None
