"""How a verdict is told: lines for a terminal, JSON for machines, Markdown for a page."""

import json
import math
from typing import Any

from parity.verdict import Outcome, Verdict

HEADER = ("stage", "check", "values", "worst error", "reference's", "")
WIDTHS = (10, 16, 11, 13, 13, 4)


def line(*cells: str) -> str:
    """A row of the table: fixed columns, so that it can be searched and cut."""
    texts = [
        cell.ljust(width) if index in (0, 1, 5) else cell.rjust(width)
        for index, (cell, width) in enumerate(zip(cells, WIDTHS, strict=True))
    ]
    return "  ".join(texts).rstrip()


def row(outcome: Outcome) -> tuple[str, ...]:
    """An outcome's cells: errors as shares of what is allowed."""
    return (
        outcome.check.stage,
        outcome.check.name,
        f"{outcome.compared:,}",
        _told(outcome, outcome.share),
        "" if outcome.reference_share is None else _told(outcome, outcome.reference_share),
        "pass" if outcome.passed else "FAIL",
    )


def _told(outcome: Outcome, share: float) -> str:
    if outcome.is_exact:
        return "differs" if share else "equal"
    if math.isfinite(share):
        return f"{100 * share:.1f} %" if share < 100 else "> 100 times"
    return "differs" if all(math.isfinite(one.worst) for one in outcome.comparisons) else "not finite"


def as_json(verdict: Verdict, config: dict[str, Any]) -> str:
    """The whole verdict. A `worst` that is not finite is null."""
    checks = []
    for outcome in verdict.outcomes:
        for tensor in dict.fromkeys(comparison.tensor for comparison in outcome.comparisons):
            mine = [comparison for comparison in outcome.comparisons if comparison.tensor == tensor]
            # Of comparisons with different allowances, the one that uses most of its own, or fails.
            worst = max(mine, key=lambda one: (not one.passed, one.worst / one.allowed if one.allowed else one.worst))
            checks.append(
                {
                    "stage": outcome.check.stage,
                    "check": outcome.check.name,
                    "tensor": tensor,
                    "compared": sum(comparison.found.size for comparison in mine),
                    "worst": worst.worst if math.isfinite(worst.worst) else None,
                    "allowed": worst.allowed,
                    "case": worst.case,
                    "passed": all(comparison.passed for comparison in mine),
                }
            )
    divergence = verdict.divergence
    first = divergence and {
        "stage": divergence.comparison.stage,
        "tensor": divergence.comparison.tensor,
        "explanation": divergence.explanation,
        "check": divergence.comparison.check,
        "case": divergence.comparison.case,
    }
    report = {
        "agree": verdict.agrees,
        "checks": checks,
        "first_divergence": first,
        "verdict": verdict.sentence(),
        "notes": verdict.notes,
        **config,
    }
    return json.dumps(report, indent=2, allow_nan=False) + "\n"


def as_markdown(verdict: Verdict, config: dict[str, Any], pictures: list[str]) -> str:
    """The verdict as a page."""
    settings = ", ".join(f"{name} {value}" for name, value in config.items() if not isinstance(value, dict))
    rows = ["| " + " | ".join(row(outcome)) + " |" for outcome in verdict.outcomes]
    return "\n".join(
        [
            "# Parity report",
            "",
            f"**{verdict.sentence()}**",
            "",
            f"{settings}.",
            "",
            *(f"- {note}" for note in verdict.notes),
            *([""] if verdict.notes else []),
            "Errors are shares of what is allowed: rounding units for single steps, the drift of runs that start one",
            "ulp away for whole epochs, the margin for trends; where equality is demanded, nothing is allowed.",
            "",
            "| " + " | ".join((*HEADER[:5], "verdict")) + " |",
            "|---|---|---:|---:|---:|---|",
            *rows,
            "",
            *(f"![{picture.removesuffix('.png')}]({picture})\n" for picture in pictures),
        ]
    )
