"""The one page: ask everybody the same cases, compare, explain."""

from collections.abc import Callable, Sequence
from typing import Any

from .cases import Case
from .errors import PortError
from .reference.asked import Asked, Sitting
from .reference.program import Reference
from .variations import cases
from .verdict.comparison import STAGES, Comparison, Verdict, compare, measured

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
    progress: Progress | None = None,
) -> Verdict:
    """Whether a port does what the reference does, up to rounding; if not, where it first does not, and why.

    Args:
        port: whatever offers `describe()` and `answer(case)`: a process, an object, a file of answers.
        stages: those of `STAGES` that are judged; all by default.
        keep_going: judge later stages, too, where one has failed.
        quick: fewer cases.
        precision: float32, or what the reference and the port compute in on purpose: bfloat16, float16, tf32.
        seed: of the states that cases start from.
        progress: told what is being asked.
    """
    offers = port.describe()
    sitting = Sitting.of(reference, offers, precision)
    wanted = set(stages or STAGES)
    compared: list[Comparison] = []
    for case in cases(sitting.program, seed, quick, sitting.float64):
        if not wanted & set(STAGES_OF[case.call]) or (not keep_going and _failed_before(case, compared)):
            continue
        if progress is not None:
            progress(f"{case.call}: {case.name}")
        asked = sitting.ask(case)
        if asked is not None:
            compared += [one for one in _compared(asked, port, sitting) if one.stage in wanted]
    compared.sort(key=lambda one: STAGES.index(one.stage))
    first = next((one.stage for one in compared if not one.passes), None)
    if first is not None and not keep_going:
        compared = [one for one in compared if STAGES.index(one.stage) <= STAGES.index(first)]
    return Verdict(
        reference.name,
        offers.get("port", "the port"),
        tuple(compared),
        (),
        sitting.not_judged(wanted, first),
        sitting.notes(),
        sitting.places(compared),
    )


STAGES_OF = {
    "load": ("load",),
    "init": ("init",),
    "outputs": ("outputs",),
    "value_and_grad": ("loss", "gradients"),
    "train_steps": ("step", "steps", "state"),
    "train_epoch": ("epoch",),
    "evaluate": ("evaluate",),
}


def _failed_before(case: Case, compared: list[Comparison]) -> bool:
    """Whether something failed at a stage that comes before all of the case's."""
    order = [STAGES.index(one.stage) for one in compared if not one.passes]
    return bool(order) and min(order) < STAGES.index(STAGES_OF[case.call][0])


def _compared(asked: Asked, port: Any, sitting: Sitting) -> list[Comparison]:
    """A case's comparisons; where they say "too far", rounding is tried more often before it is called so."""
    case = asked.case
    try:
        actual = measured(case, port.answer(case), sitting.program.parameters)
    except PortError as error:
        stage = STAGES_OF[case.call][0]
        return [Comparison(stage, case.name, case.call, 0, float("inf"), None, wrong=str(error))]
    compared = compare(case, asked.expected, asked.tolerances(), asked.own, actual)
    while any(one.wrong is None and not one.passes for one in compared) and asked.more():
        compared = compare(case, asked.expected, asked.tolerances(), asked.own, actual)
    return compared
