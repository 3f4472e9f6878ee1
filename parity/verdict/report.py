"""A verdict in words: rows that can be searched, then what is wrong, where, the numbers, and what to do."""

import itertools
import json
import math
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import asdict
from typing import Any

from parity.cases import CALLS
from parity.errors import one_line, printable
from parity.verdict.comparison import Comparison, Explanation, Verdict

HEADER = ("stage", "case", "compared", "values", "largest ratio", "reference's", "")
_LEFT = (0, 1, 2, 6)
_MOST = 6
_WHAT = {
    "load": "the state does not come back as it was loaded",
    "init": "fresh parameters differ",
    "outputs": "outputs differ",
    "loss": "the loss differs",
    "gradients": "gradients differ",
    "step": "the first update differs",
    "steps": "updates after the first differ",
    "state": "what training leaves in buffers, or an evaluation after it, differs",
    "epoch": "a whole epoch differs",
    "evaluate": "what is reported of all batches differs",
    "trajectory": "a whole run drifts away",
    "trends": "what whole runs report is not the same on average",
}
_HELP = {
    "load": "compare load_state_dict and state_dict: each tensor by its name, transposed on the way in and out",
    "init": "compare distributions, bounds, and the order of drawing; or leave init out of the port",
    "outputs": "let outputs return intermediate values by the reference's names: the first that differs has the cause",
    "loss": "compare the reduction, weights, ignored labels, smoothing, and what is added to the loss",
    "gradients": "compare what is detached, masked or stopped on the way back, and ties of ReLU, max and clip",
    "step": "compare rate, betas, epsilon, decay and who decays, and the order of clipping and decay",
    "steps": "compare momentum, bias correction, when the schedule steps, and what the optimizer's state starts from",
    "state": "compare the momentum, the bias of the variance, and what is updated in training mode only",
    "epoch": "compare the order of batches, the short last one, and when the schedule steps",
    "evaluate": "compare the mean over batches of unequal size, the short last one, and evaluation mode",
    "trajectory": "compare what depends on how long it has trained, or on small losses: schedules, counters, stopping",
    "trends": "compare what outlives a run: global counters, caches, generators; or ask for more --seeds",
}


def report(verdict: Verdict, command: str = "") -> str:
    """The whole of it for a terminal; the last line is the verdict.

    Args:
        command: what the user ran, `python -m parity reference.py port.py`; shown with what to run next.
    """
    blocks = ["\n".join(table(verdict)), *errors(verdict, command)]
    remarks = [f"not judged: {line}" for line in verdict.not_judged] + [f"note: {line}" for line in verdict.notes]
    return "\n\n".join([*filter(None, blocks), "\n".join([*map(one_line, remarks), sentence(verdict)])])


def sentence(verdict: Verdict) -> str:
    """The verdict in one line."""
    compared = verdict.comparisons
    failing = _failing(compared)
    if failing:
        worst = _shown([one for one in failing if one.stage == failing[0].stage])
        ratio = "cannot be compared" if worst.wrong is not None else f"ratio {_ratio(worst.ratio)}"
        return f"differs at {worst.stage}: {one_line(worst.quantity)} in {one_line(worst.case)!r}, {ratio}"
    if not compared:
        return "nothing was compared"
    counts = {
        "comparison": len(compared),
        "stage": len({one.stage for one in compared}),
        "value": sum(one.values for one in compared),
    }
    told = [f"{number:,} {noun}{'' if number == 1 else 's'}" for noun, number in counts.items()]
    return "agrees: {} in {}, {}".format(*told)


def rows(verdict: Verdict) -> list[tuple[str, ...]]:
    """A row for each case of each stage, in the columns of `HEADER`."""
    groups: dict[tuple[str, str], list[Comparison]] = {}
    for one in verdict.comparisons:
        groups.setdefault((one.stage, one.case), []).append(one)
    return [(stage, one_line(case), *_cells(group)) for (stage, case), group in groups.items()]


def table(verdict: Verdict) -> list[str]:
    """The rows in columns, below their names."""
    cells = [HEADER, *rows(verdict)]
    if len(cells) == 1:
        return []
    widths = [max(len(row[column]) for row in cells) for column in range(len(HEADER))]
    return [
        "  ".join(
            text.ljust(width) if column in _LEFT else text.rjust(width)
            for column, (text, width) in enumerate(zip(row, widths, strict=True))
        ).rstrip()
        for row in cells
    ]


def errors(verdict: Verdict, command: str = "") -> list[str]:
    """What is wrong, a block for each stage that failed, with what explains it; the first also tells of stages that
    are not shown."""
    failing = _failing(verdict.comparisons)
    stages = list(dict.fromkeys(one.stage for one in failing))
    found: dict[str, list[tuple[Explanation, ...]]] = {stage: [] for stage in stages}
    for group in verdict.explanations if stages else ():
        found[group[0].stage if group[0].stage in stages else stages[0]].append(group)
    mine = {stage: [one for one in failing if one.stage == stage] for stage in stages}
    with_them = [stage for stage in stages if not found[stage] and all(one.explained for one in mine[stage])]
    blocks = [
        _error(verdict, mine[stage], causes, command) for stage, causes in found.items() if stage not in with_them
    ]
    if blocks and with_them:
        blocks[-1].append(f"   = {_listed(with_them)}: what differs there comes of what was named")
    return ["\n".join(block) for block in blocks]


def as_json(verdict: Verdict) -> str:
    """All of the verdict. Numbers that are not finite are the strings "inf", "-inf" and "nan"."""
    tree = {"agrees": verdict.agrees, "verdict": sentence(verdict), **asdict(verdict)}
    return json.dumps(_finite(tree), indent=2, allow_nan=False) + "\n"


def as_markdown(verdict: Verdict, command: str = "") -> str:
    """The verdict as a page."""
    head = [f"# {verdict.port} beside {verdict.reference}", "", f"**{sentence(verdict)}**", ""]
    blocks = itertools.chain.from_iterable(("```text", block, "```", "") for block in errors(verdict, command))
    cells = ["| " + " | ".join(cell.replace("|", "\\|") for cell in row) + " |" for row in rows(verdict)]
    columns = ["| " + " | ".join(HEADER[:-1]) + " | verdict |", "|---|---|---|---:|---:|---:|---|"]
    remarks = [f"- not judged: {line}" for line in verdict.not_judged] + [f"- {line}" for line in verdict.notes]
    about = "A ratio is |actual − expected| / tolerance; 1 passes. The reference's is that of its own float32 run."
    return "\n".join([*head, *blocks, *columns, *cells, "", about, "", *map(one_line, remarks)]).rstrip() + "\n"


def _error(
    verdict: Verdict, failing: Sequence[Comparison], explanations: Sequence[Sequence[Explanation]], command: str
) -> list[str]:
    worst = _shown(failing)
    stage = worst.stage
    here = [one for one in verdict.comparisons if one.stage == stage]
    codes = [one.code for group in explanations for one in group if one.code]
    lines = [f"error{f'[{codes[0]}]' if codes else ''}: {_headline(worst)}", f"  --> {_where(worst, verdict.places)}"]
    more = (worst.wrong or "").split("\n")[1:]
    lines += [f"   | {printable(line)}" for line in more] if worst.wrong is not None else _numbers(worst)
    lines.append("   |")
    lines += [f"   = {printable(line)}" for line in _circumstances(verdict, worst, here, failing)]
    for at, group in enumerate(explanations, 1):
        title = "cause" if len(explanations) == 1 else f"cause {at} of {len(explanations)} that act together"
        title += f", of {group[0].stage}" if group[0].stage not in ("", stage) else ""
        for which, one in enumerate(group):
            lines += _explained(title if which == 0 else "or, equally good", one)
    if not explanations and worst.wrong is None:
        lines.append(f"   = help: {_HELP.get(stage, 'compare what the two programs do here')}")
    if command:
        interpreter = command.partition(" -m ")[0]
        lines.append(f"   = next: {command} --only {stage}")
        lines += [f"   = next: {interpreter} -m parity explain {code}" for code in codes]
    return lines


def _headline(worst: Comparison) -> str:
    if worst.wrong is not None:
        what = one_line(worst.wrong.split("\n")[0])
        return what if worst.quantity in CALLS else f"{_name(worst.quantity)} {what}"
    count = f", in {worst.failing:,} of {worst.values:,} values" if worst.values > 1 else ""
    name = _name(worst.quantity)
    return f"{_WHAT.get(worst.stage, f'{worst.stage} differs')}{'' if worst.stage == 'loss' else f': {name}'}{count}"


def _where(worst: Comparison, places: dict[str, str]) -> str:
    name = _name(worst.quantity)
    index = f"[{', '.join(map(str, worst.index))}]" if worst.index else ""
    parts = name.split(".")
    owners = [".".join(parts[:length]) for length in range(len(parts), 0, -1)]
    place = next((places[key] for key in (worst.quantity, *owners) if key in places), "")
    told = f"{one_line(worst.quantity)}{index}, case {one_line(worst.case)!r}"
    return f"{told}, {one_line(place)}" if place else told


def _numbers(worst: Comparison) -> list[str]:
    difference = abs(worst.actual - worst.expected)
    digits = 17
    if math.isfinite(difference) and difference and worst.expected:
        digits = min(max(math.ceil(math.log10(abs(worst.expected) / difference)) + 3, 4), 17)
    own = "" if worst.reference_ratio is None else f", the reference's own {_ratio(worst.reference_ratio)}"
    allowed = f"± {worst.tolerance:.2g}" if worst.tolerance else "exactly: nothing rounds here"
    return [
        "   |",
        f"   | expected  {worst.expected:.{digits}g} {allowed}",
        f"   | actual    {worst.actual:.{digits}g}" + ("" if math.isfinite(worst.actual) else ", which is not finite"),
        f"   | ratio     {_ratio(worst.ratio)}{own}",
    ]


def _circumstances(
    verdict: Verdict, worst: Comparison, here: Sequence[Comparison], failing: Sequence[Comparison]
) -> Iterator[str]:
    if worst.wrong is None:
        mine = _name(worst.quantity)
        others = {name: one for one in failing if (name := _name(one.quantity)) != mine}
        equal = dict.fromkeys(name for one in here if (name := _name(one.quantity)) != mine)
        if others:
            yield f"differs too: {_listed(f'{name} ({_ratio(one.ratio)})' for name, one in others.items())}"
        elif equal:
            yield f"within tolerance at this stage: {_listed(equal)}"
        for one in {one.case: one for one in failing if one.wrong is not None}.values():
            yield f"cannot be compared in case {one.case!r}: {_headline(one)}"
    yield _cases(dict.fromkeys(one.case for one in failing), dict.fromkeys(one.case for one in here))
    in_float64 = [one for one in here if one.case.startswith("float64")]
    if in_float64 and not any(one in failing for one in in_float64):
        yield 'float64 agrees: products in TF32 or bfloat16 (precision="highest"), or a formula that loses digits'
    if failing and all(one in in_float64 for one in failing) and len(in_float64) < len(here):
        yield (
            "float32 agrees: what differs is less than its rounding, or something is float32 in the port; if that is "
            "meant, float64=False or FLOAT64 = False"
        )
    before = itertools.takewhile(lambda one: one.stage != worst.stage, verdict.comparisons)
    if good := [one for one in before if one.passes]:
        largest, own = max(one.ratio for one in good), _own(good)
        theirs = "" if own is None else f", the reference's own {_ratio(own)}"
        ratios = f"largest ratio {_ratio(largest)}{theirs}" if largest else "equal in every bit"
        yield f"agrees up to there: {_listed(dict.fromkeys(one.stage for one in good))}; {ratios}"


def _own(compared: Iterable[Comparison]) -> float | None:
    """The reference's own largest ratio, of what it was computed for."""
    return max((one.reference_ratio for one in compared if one.reference_ratio is not None), default=None)


def _cases(failing: Iterable[str], asked: Iterable[str]) -> str:
    """In which cases it fails; where that is most of them, in which it passes."""
    fails = [*failing]
    passes = [one for one in asked if one not in fails]
    many = f"{len(fails)} of {len(fails) + len(passes)} cases" if passes else f"all {len(fails)} cases"
    told = f"fails in {_listed(map(repr, fails)) if len(fails) <= 3 else many}"
    if passes and len(passes) <= 3:
        return f"{told}; passes in {_listed(map(repr, passes))}"
    return f"{told}; passes in {len(passes)} others" if passes and len(fails) <= 3 else told


def _explained(title: str, one: Explanation) -> list[str]:
    place = f", at {one_line(one.place)}" if one.place and one.place not in one.message else ""
    name, stage = f"{one.code} {one.name}".strip(), one.stage or "this stage"
    left = f"all of {stage} agrees, largest ratio {_ratio(one.ratio)}"
    return [
        f"   = {title}: {one_line(one.message)}{place}",
        *(f"   |   - {printable(line)}" for line in one.wrong.splitlines()),
        *(f"   |   + {printable(line)}" for line in one.right.splitlines()),
        f"   = with that mistake in the reference ({name}) {left}",
    ]


def _shown(failing: Sequence[Comparison]) -> Comparison:
    """Of a stage's failures, what the message is about: the first that differs in order of computing; the last
    parameter's, for gradients."""
    if failing[0].wrong is not None:
        return failing[0]
    mine = [one for one in failing if one.wrong is None]
    if mine[0].stage in ("step", "steps", "epoch"):
        return max(mine, key=lambda one: one.ratio)
    case = [one for one in mine if one.case == mine[0].case]
    return case[-1] if mine[0].stage == "gradients" else case[0]


def _failing(compared: Iterable[Comparison]) -> list[Comparison]:
    return [one for one in compared if not one.passes]


def _cells(group: Sequence[Comparison]) -> tuple[str, ...]:
    kinds = _listed(dict.fromkeys(one.quantity.partition("/")[0] for one in group))
    compared = f"{kinds} ({len(group)})" if len(group) > 1 else one_line(group[0].quantity)
    wrong = any(one.wrong is not None for one in group)
    own = _own(group)
    ratio = "-" if wrong else _ratio(max(one.ratio for one in group))
    verdict = "pass" if all(one.passes for one in group) else "FAIL"
    return compared, f"{sum(one.values for one in group):,}", ratio, "-" if own is None else _ratio(own), verdict


def _name(quantity: str) -> str:
    """`fc1.weight` of `update/2/fc1.weight`, and `loss/2` as it is."""
    kind, _, name = quantity.partition("/")
    step, _, rest = name.partition("/")
    if kind in ("update", "buffer") and step.isdigit() and rest:
        return one_line(rest)
    return one_line(quantity if kind == "loss" else name or kind)


def _ratio(ratio: float) -> str:
    if ratio == 0:
        return "equal"
    if not math.isfinite(ratio):
        return "differs"
    return f"{ratio:.2f}" if 0.01 <= ratio < 100 else f"{ratio:.2g}" if ratio < 1 else f"{ratio:.3g}"


def _listed(names: Iterable[str]) -> str:
    told = [one_line(name) for name in names]
    return ", ".join(told[:_MOST]) + (f" and {len(told) - _MOST} more" if len(told) > _MOST else "")


def _finite(tree: Any) -> Any:
    if isinstance(tree, dict):
        return {key: _finite(value) for key, value in tree.items()}
    if isinstance(tree, list | tuple):
        return [_finite(value) for value in tree]
    return str(tree) if isinstance(tree, float) and not math.isfinite(tree) else tree
