"""The judge on trial: `python -m tests.tools.faults` plants faults, `--right` counts false alarms of right ports.

Each fault has to be found at its own stage; a right port has to agree in every examination, of which each has other
seeds and other images.
"""

import os

os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")

import argparse
import sys
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path

from fmnist.files import write_atomically
from fmnist.runs.lines import progress
from parity.verdict.comparison import Comparison
from tests.tools.faults.planted import faults
from tests.tools.faults.practice import PRACTICE
from tests.tools.faults.trial import RIGHT, practise, try_fault, try_right


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("words", nargs="*", help="faults whose names hold one of these; all by default")
    parser.add_argument("--document", type=Path, metavar="FILE.md", help="where it is written, with common practice")
    parser.add_argument("--right", action="store_true", help="examine right ports instead")
    parser.add_argument("--seeds", type=int, default=30, help="examinations of each right port")
    parser.add_argument("--first", type=int, default=0)
    parser.add_argument("--workers", type=int, default=os.cpu_count())
    options = parser.parse_args()
    with ProcessPoolExecutor(options.workers, get_context("spawn")) as pool:
        return _right(pool, options) if options.right else _faults(pool, options)


def _faults(pool: ProcessPoolExecutor, options: argparse.Namespace) -> int:
    chosen = [one for one in faults() if not options.words or any(word in one.name for word in options.words)]
    running = {fault.name: pool.submit(try_fault, fault.name) for fault in chosen}
    practised = {fault.name: pool.submit(practise, fault.name) for fault in chosen if options.document}
    wrong, found = 0, {}
    for fault in progress(chosen, "faults"):
        stage, what, case = found[fault.name] = running[fault.name].result()
        what = what.partition("\n")[0]
        verdict = "caught" if stage == fault.stage else f"NOT AT {fault.stage}"
        wrong += stage != fault.stage
        print(f"{fault.name:34}  {stage or 'nowhere':10}  {verdict:10}  {what} in {case!r}", flush=True)
    print(f"{len(chosen) - wrong} of {len(chosen)} caught at their own stage")
    if options.document:
        noticed = {name: future.result() for name, future in practised.items()}
        write_atomically(options.document, document(found, noticed, len(chosen) - wrong).encode())
    return 1 if wrong or not chosen else 0


def document(found: dict[str, tuple[str, str, str]], noticed: dict[str, dict[str, bool]], caught: int) -> str:
    """The campaign as Markdown."""
    rows = [
        f"| {name} | {stage or '—'} | {what.partition(chr(10))[0]} | {case} |"
        for name, (stage, what, case) in found.items()
    ]
    practices = [
        f"| {practice} | {sum(seen[practice] for seen in noticed.values())} of {len(found)} |" for practice in PRACTICE
    ]
    seen = sum(bool(stage) for stage, _, _ in found.values())
    lines = [
        "# Planted faults",
        "",
        "Written by `make faults`: `python -m tests.tools.faults`.",
        "",
        f"{len(found)} right ports with one mistake each; {caught} are caught at their own stage.",
        "",
        "| check | faults noticed |",
        "|---|---:|",
        *practices,
        f"| parity | {seen} of {len(found)} |",
        "",
        "| fault | found at | of | in the case |",
        "|---|---|---|---|",
        *rows,
        "",
    ]
    return "\n".join(lines)


def _right(pool: ProcessPoolExecutor, options: argparse.Namespace) -> int:
    seeds = range(options.first, options.first + options.seeds)
    running = [pool.submit(try_right, seed) for seed in seeds]
    largest: dict[tuple[str, str], Comparison] = {}
    alarms = 0
    for seed in progress(seeds, "examinations"):
        for name, compared in running[seed - options.first].result().items():
            for one in compared:
                if not one.passes:
                    alarms += 1
                    print(f"ALARM {name}, seed {seed}: {one.stage}, {one.case}: {one.quantity}, {one.ratio:.3g}")
                if one.ratio >= largest.get((name, one.stage), one).ratio:
                    largest[name, one.stage] = one
        print(f"examination {seed}: {alarms} alarms", file=sys.stderr, flush=True)
    for (name, stage), one in largest.items():
        print(f"{name:10}  {stage:10}  {one.ratio:5.2f}  {one.quantity} in {one.case!r}")
    print(f"{alarms} alarms in {len(seeds)} examinations of {len(RIGHT)} ports")
    return 1 if alarms else 0


if __name__ == "__main__":
    sys.exit(main())
