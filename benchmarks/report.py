"""How the figures are told: tables for a terminal, JSON for machines, Markdown for a page."""

import json
import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any, NamedTuple

from benchmarks import machine
from benchmarks.figures import Spread, midpoints, overhead_end, ratios, spread
from benchmarks.measure import Epochs, Growth, Point, Usage
from benchmarks.sides import BASE, SIDES, Setting

SIZE_NAMES = {"width": "width", "batch_size": "batch size", "members": "members"}


@dataclass(frozen=True)
class Results:
    """Everything that was measured, and on what."""

    machine: dict[str, Any]

    load: float
    """The system's load average at the start: how many cores others kept busy."""

    data: str
    quick: bool
    rounds: int
    epochs: int
    """Epochs of a whole run."""

    steady_steps: int
    """Steps of a turn in steady state: an epoch's, unless quick."""

    whole_processes: dict[str, list[Usage]]
    steady_state: dict[str, Epochs]
    growth: Growth

    def seconds(self, part: str) -> dict[str, list[float]]:
        """Seconds of every round by side, for `whole_processes` or `steady_state`."""
        if part == "whole_processes":
            return {side: [run.seconds for run in runs] for side, runs in self.whole_processes.items()}
        return {side: epochs.seconds for side, epochs in self.steady_state.items()}

    def per_model(self, part: str) -> dict[str, list[float]]:
        """The same, for each model that a side trains in that time."""
        return {side.name: [each / side.members for each in self.seconds(part)[side.name]] for side in SIDES}

    def ratio(self, part: str, side: str) -> Spread:
        """How many times as long as its base a side takes for a model, over the rounds that both have."""
        figures = self.per_model(part)
        base = next(each.base for each in SIDES if each.name == side)
        return spread(ratios(figures[side], figures[base]))


class Table(NamedTuple):
    """A table, with what has to be known to read it."""

    name: str
    title: str
    note: str
    header: tuple[str, ...]
    rows: Sequence[tuple[str, ...]]


def tables(results: Results) -> list[Table]:
    """All that a reader is told."""
    return [_whole(results), _steady(results), *(_growth(axis, sides) for axis, sides in results.growth.items())]


def overhead_ends(points: list[Point]) -> float:
    """The size at which a side's median step stops being bound by overhead, as `figures.overhead_end` has it."""
    return overhead_end([point.size for point in points], [spread(point.seconds_per_step).median for point in points])


def as_text(results: Results) -> str:
    """The tables with fixed columns, every row with its table's name in front."""
    lines = [machine.sentence(results.machine), _what(results)]
    for table in tables(results):
        rows = [(table.name, *row) for row in (table.header, *table.rows)]
        widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
        lines += ["", f"{table.title}. {table.note}"]
        for row in rows:
            cells = zip(row, widths, strict=True)
            texts = [cell.rjust(width) if at > 1 else cell.ljust(width) for at, (cell, width) in enumerate(cells)]
            lines.append("  ".join(texts).rstrip())
    return "\n".join(lines)


def as_markdown(results: Results, picture: str) -> str:
    """The tables as a page, with the picture."""
    lines = [
        "# Benchmarks",
        "",
        machine.sentence(results.machine) + ".",
        "",
        _what(results),
        "",
        f"![All of it]({picture})",
    ]
    for table in tables(results):
        lines += ["", f"## {table.title}", "", table.note, "", "| " + " | ".join(table.header) + " |"]
        lines.append("|---|" + "---:|" * (len(table.header) - 1))
        lines += ["| " + " | ".join(row) + " |" for row in table.rows]
    return "\n".join(lines) + "\n"


def as_json(results: Results) -> str:
    """The raw figures of every round, and what the tables make of them. Where overhead ends is null if beyond."""
    parts: dict[str, Any] = {
        part: {
            side.name: {
                "models": side.members,
                "seconds": spread(results.seconds(part)[side.name])._asdict(),
                f"times_{BASE}_per_model": results.ratio(part, side.name)._asdict(),
            }
            for side in SIDES
        }
        for part in ("whole_processes", "steady_state")
    }
    for side, runs in results.whole_processes.items():
        parts["whole_processes"][side]["rounds"] = [asdict(run) for run in runs]
    for side, epochs in results.steady_state.items():
        parts["steady_state"][side] |= {
            "rounds": epochs.seconds,
            "compile_seconds": epochs.compile_seconds,
            **epochs.environment._asdict(),
        }
    growth = {
        axis: {
            side: {
                "overhead_ends_at": end if math.isfinite(end := overhead_ends(points)) else None,
                "points": [asdict(point) for point in points],
            }
            for side, points in sides.items()
        }
        for axis, sides in results.growth.items()
    }
    report = {
        "machine": results.machine,
        "load_average_at_start": results.load,
        "data": results.data,
        "quick": results.quick,
        "rounds": results.rounds,
        "epochs": results.epochs,
        "steady_steps": results.steady_steps,
        **parts,
        "growth": growth,
    }
    return json.dumps(report, indent=2, allow_nan=False) + "\n"


def counted(count: int, what: str) -> str:
    """E.g. `1 round`, `5 rounds`."""
    return f"{count} {what}{'' if count == 1 else 's'}"


def plain(value: float) -> str:
    """Three digits, or all before the point if those are more."""
    return f"{value:,.0f}" if value >= 100 else f"{value:.3g}"


def _what(results: Results) -> str:
    quick = " Quick, to see that it works: few steps, compiled from caches, not to be quoted." if results.quick else ""
    return (
        f"{results.data}; {counted(results.rounds, 'round')} in which the sides take turns; medians with the smallest "
        f"and largest. Ratios are taken round by round, for each model that is trained. Load average at the start: "
        f"{results.load:.2f}.{quick}"
    )


def _whole(results: Results) -> Table:
    rows = []
    for side in SIDES:
        runs = results.whole_processes[side.name]
        seconds = spread([run.seconds for run in runs])
        rows.append(
            (
                side.name,
                str(len(runs)),
                str(side.members),
                f"{seconds.median:.2f}",
                f"{seconds.low:.2f}–{seconds.high:.2f}",
                f"{spread([run.cpu_seconds for run in runs]).median:.1f}",
                f"{max(run.peak_bytes for run in runs) / 2**20:,.0f}",
                *_ratio(results.ratio("whole_processes", side.name)),
            )
        )
    return Table(
        "whole",
        f"Whole processes, {counted(results.epochs, 'epoch')} and as many test passes",
        "From the command to its end, with the data and the compiled programs in their caches; CNNs are trained for "
        "five epochs at most, and held against each other.",
        ("side", "runs", "models", "s", "min–max", "CPU s", "peak MiB", f"÷ {BASE}", "min–max"),
        rows,
    )


def _steady(results: Results) -> Table:
    has_accelerator = bool(results.machine["accelerators"])
    rows = []
    for side in SIDES:
        epochs = results.steady_state[side.name]
        milliseconds = spread([1e3 * each for each in epochs.seconds])
        peak = epochs.environment.peak_device_bytes
        rows.append(
            (
                side.name,
                str(side.members),
                f"{milliseconds.median:,.1f}",
                f"{milliseconds.low:,.1f}–{milliseconds.high:,.1f}",
                "–" if epochs.compile_seconds is None else f"{epochs.compile_seconds:.2f}",
                *(["–" if peak is None else f"{peak / 2**20:,.0f}"] if has_accelerator else []),
                *_ratio(results.ratio("steady_state", side.name)),
            )
        )
    device = ("device peak MiB",) if has_accelerator else ()
    return Table(
        "steady",
        f"Steady state, {counted(results.steady_steps, 'training step')}",
        "Compiled and warm, in a process that stays; what compiling takes with empty caches is told apart.",
        ("side", "models", "ms", "min–max", "compile s", *device, f"÷ {BASE}", "min–max"),
        rows,
    )


def _growth(axis: str, sides: dict[str, list[Point]]) -> Table:
    grid = [point.size for point in next(iter(sides.values()))]
    rows = []
    for side, points in sides.items():
        medians = [1e6 * spread(point.seconds_per_step).median for point in points]
        rows.append((side, *(f"{each:,.0f}" for each in medians), _place(overhead_ends(points), grid)))
    others = ", ".join(
        f"{SIZE_NAMES[other]} {getattr(Setting(), other)}"
        for other in SIZE_NAMES
        if other != axis and (axis == "members" or other != "members")
    )
    return Table(
        axis.replace("_", "-"),
        f"Growth with {SIZE_NAMES[axis]}: µs a step",
        f"At {others}. Overhead ends where half of a step's time grows with the {SIZE_NAMES[axis]}: where the slope "
        "on log axes passes 1/2.",
        ("side", *(f"{size:,}" for size in grid), "overhead ends at"),
        rows,
    )


def _place(end: float, grid: list[int]) -> str:
    """Where overhead ends, as far as the grid can tell."""
    places = midpoints(grid)
    if end <= places[0]:
        return f"< {places[0]:,.0f}"
    return f"{end:,.0f}" if math.isfinite(end) else f"> {places[-1]:,.0f}"


def _ratio(ratio: Spread) -> tuple[str, str]:
    return plain(ratio.median), f"{plain(ratio.low)}–{plain(ratio.high)}"
