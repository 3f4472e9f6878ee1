"""The catalogue in words: a list, a page for one mistake, and all of them as a document."""

import textwrap
from collections.abc import Sequence

from parity.mistakes.mistake import Mistake

STAGES = {
    "L": "Layout of weights",
    "D": "Data, and fresh parameters",
    "F": "Forward",
    "T": "Training mode and running statistics",
    "C": "Criterion and its gradient",
    "O": "Optimizer and schedule",
    "E": "Epoch and evaluation",
}
"""A code's letter → where the mistake first shows."""


def listing(mistakes: Sequence[Mistake]) -> str:
    """A line a mistake: code, name, whether it can be named."""
    width = max((len(one.name) for one in mistakes), default=0)
    return "\n".join(
        f"{one.code}  {one.name.ljust(width)}  {'named' if one.tries else 'caught'}" for one in by_code(mistakes)
    )


def by_code(mistakes: Sequence[Mistake]) -> list[Mistake]:
    """In the order of `STAGES`, then of their numbers."""
    return sorted(mistakes, key=lambda one: (list(STAGES).index(one.code[0]), one.code))


def page(mistake: Mistake) -> str:
    """All that is known of one, for a terminal."""
    lines = [f"error[{mistake.code}]: {mistake.name}", "", told(mistake), "", *textwrap.wrap(mistake.why, 100)]
    for diff in mistake.diffs[:1]:
        lines += ["", "For example, - the port's lines, + the right ones:"]
        lines += ["", *(f"  - {line}" for line in diff.wrong.splitlines())]
        lines += [f"  + {line}" for line in diff.right.splitlines()]
    if mistake.sources:
        lines += ["", f"seen in: {', '.join(mistake.sources)}"]
    if mistake.tries is None:
        lines += ["", "It is caught, but not yet named."]
    return "\n".join(lines)


def told(mistake: Mistake) -> str:
    """Its message with blanks for what an exam fills in."""
    return mistake.message.format(place="PLACE", value="VALUE", was="VALUE")


def document(mistakes: Sequence[Mistake]) -> str:
    """`docs/mistakes.md`: a table of contents by stage, then each mistake with its two lines and its sources."""
    named = sum(one.tries is not None for one in mistakes)
    lines = [
        "# Mistakes",
        "",
        f"{len(mistakes)} mistakes that people make when they port a PyTorch program to JAX, by where they first show.",
        f"`python -m parity` looks for {named} of them by experiments on the reference; the others are not yet named.",
        "`python -m parity explain CODE` prints one. This page is written by `make docs` from the catalogue. In the",
        "examples `-` is a port's line and `+` the right one; PLACE and VALUE are what an exam fills in.",
        "",
    ]
    ordered = by_code(mistakes)
    for letter, title in STAGES.items():
        group = [one for one in ordered if one.code[0] == letter]
        if group:
            lines += [f"- **{title}:** " + ", ".join(f"[{one.code}](#{_anchor(one)}) {one.name}" for one in group)]
    for letter, title in STAGES.items():
        group = [one for one in ordered if one.code[0] == letter]
        lines += ["", f"## {title}"] if group else []
        for one in group:
            lines += ["", f"### {one.code} {one.name}", "", f"*{told(one)}*", "", *textwrap.wrap(one.why, 116)]
            for diff in one.diffs[:1]:
                lines += ["", "```diff", *(f"- {line}" for line in diff.wrong.splitlines())]
                lines += [*(f"+ {line}" for line in diff.right.splitlines()), "```"]
            lines += ["", f"Seen in: {', '.join(one.sources)}."] if one.sources else []
            lines += ["", "Caught, but not yet named."] if one.tries is None else []
    return "\n".join(lines) + "\n"


def _anchor(mistake: Mistake) -> str:
    return f"{mistake.code} {mistake.name}".lower().replace(" ", "-")
