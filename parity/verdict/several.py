"""The verdicts on several programs, told together; on a lone one, whose name is "", as it is told alone."""

import json
from collections.abc import Mapping

from parity.verdict import report
from parity.verdict.comparison import Verdict

Verdicts = Mapping[str, Verdict]


def agree(verdicts: Verdicts) -> bool:
    """Whether there are verdicts, and all of them agree."""
    return bool(verdicts) and all(verdict.agrees for verdict in verdicts.values())


def sentence(verdicts: Verdicts, programs: int) -> str:
    """All of it in a line; the first program that differs, where one does.

    Args:
        programs: how many there were to judge.
    """
    for name, verdict in verdicts.items():
        if not verdict.agrees:
            return f"{name}: {report.sentence(verdict)}" if name else report.sentence(verdict)
    compared = [one for verdict in verdicts.values() for one in verdict.comparisons]
    values, stages = sum(one.values for one in compared), len({one.stage for one in compared})
    return (
        f"agrees: {len(compared):,} comparisons in {stages} stages of {len(verdicts)} of {programs} programs, "
        f"{values:,} values"
    )


def as_json(verdicts: Verdicts, programs: int) -> str:
    """All of the verdicts, `{"agrees", "verdict", "programs": {name: …}}`."""
    if list(verdicts) == [""]:
        return report.as_json(verdicts[""])
    trees = {name: json.loads(report.as_json(verdict)) for name, verdict in verdicts.items()}
    tree = {"agrees": agree(verdicts), "verdict": sentence(verdicts, programs), "programs": trees}
    return json.dumps(tree, indent=2, allow_nan=False) + "\n"


def as_markdown(verdicts: Verdicts, programs: int, command: str = "") -> str:
    """The verdicts as a page."""
    pages = [report.as_markdown(verdict, command) for verdict in verdicts.values()]
    return "\n".join(pages if list(verdicts) == [""] else [f"**{sentence(verdicts, programs)}**\n", *pages])
