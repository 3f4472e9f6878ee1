"""Mistakes planted in the programs of tests/pairs, and what the judge says: `python -m tests.tools.mistakes planted`.

    planted [CODE|LETTER|HOST ...]   every mistake of the catalogue, in every program that can have it
    pairs [COUNT]                    two of them at once, drawn at random
    right [EXAMINATIONS] [HOST ...]  right ports by several authors
    slight [HOST ...]                one tensor's update off by 1 %, by 1e-8 in float64; one gradient by 0.01 %
    blind ARCHIVE                    wrong ports by an author who saw neither the catalogue nor the judge

With `--quick`, the stages at which a mistake of its letter may show are judged on few cases, and all of it where that
agrees; `--sample` plants each mistake in one program, drawn at random. What is expected of a case is worked out once
for all ports of a program, and ports run without jit: most of their operations are then compiled once for all of them.
"""

import argparse
import json
import random
import sys
import tarfile
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path
from typing import Any

import jax
import numpy as np

from parity.exam import examine
from parity.mistakes import CATALOGUE
from parity.mistakes.mistake import Diff, Mistake
from parity.port.held import Held
from parity.reference.asked import Sitting
from parity.verdict.comparison import STAGES, Verdict
from parity.verdict.explanation import LETTERS
from tests.tools.hosts import HOSTS, PAIRS, HostPort, mirror, module, planted, reference
from tests.tools.remembering import Remembering


@cache
def prepared(host: str, dropout: str) -> Remembering:
    offers = Held(HostPort(mirror(host), host)).describe() | {"dropout": dropout}
    sitting = Sitting.of(reference(host), offers, "float32")
    return Remembering.beside(sitting)


def judged(host: str, port: Any, **how: Any) -> Verdict:
    """The verdict on a module like a program's mirror."""
    held = HostPort(port, host)
    sitting = replace(prepared(host, held.DROPOUT), dropped=[], remarks=[])
    with jax.disable_jit():
        return examine(sitting, Held(held), **how)


@dataclass(frozen=True)
class Trial:
    """A wrong port, the mistakes that are in it, and what was said."""

    host: str
    codes: tuple[str, ...]
    verdict: Verdict
    seconds: float

    @property
    def stage(self) -> str:
        return next((one.stage for one in self.verdict.comparisons if not one.passes), "")

    @property
    def named(self) -> list[set[str]]:
        """Equally good explanations, mistake by mistake."""
        return [{one.code for one in group} for group in self.verdict.explanations]

    @property
    def missed(self) -> set[str]:
        return set(self.codes) - set().union(*self.named)

    @property
    def wrongly(self) -> list[set[str]]:
        """What was said and is in no way in it; a general experiment names no mistake."""
        return [group for group in self.named if not group & set(self.codes) and "" not in group]

    def line(self) -> str:
        said = "; ".join(
            " or ".join(f"{one.code or 'experiment'} at {one.place}, left {one.ratio:.2g}" for one in group)
            for group in self.verdict.explanations
        )
        notes = "; ".join(note for note in self.verdict.notes if "known" in note or "untried" in note)
        result = "not caught" if not self.stage else "wrong" if self.wrongly else "unnamed" if self.missed else "named"
        return (
            f"{result:<10} {'+'.join(self.codes):<10} {self.host:<12} {self.stage:<10} {self.seconds:4.0f} s  "
            f"{said or notes or next((one.wrong or '' for one in self.verdict.comparisons if not one.passes), '')}"
        )


def tried(host: str, codes: Sequence[str], port: Any, quick: bool = False) -> Trial:
    began = time.monotonic()
    letters = {code[0] for code in codes}
    stages = [stage for stage in STAGES if stage == "load" or letters & set(LETTERS.get(stage, ""))]
    verdict = judged(host, port, quick=True, stages=stages) if quick else judged(host, port)
    if quick and verdict.agrees:
        verdict = judged(host, port)
    return Trial(host, tuple(codes), verdict, time.monotonic() - began)


def catalogue(wanted: Sequence[str]) -> Iterator[tuple[Mistake, Diff]]:
    """Mistakes and the programs that they can be planted in: of these codes, letters and programs."""
    hosts = {one for one in wanted if one in HOSTS} or set(HOSTS)
    codes = {one for one in wanted if one not in HOSTS}
    for host in HOSTS:
        for mistake in CATALOGUE:
            for diff in mistake.diffs:
                if diff.host == host and host in hosts and (not codes or {mistake.code, mistake.code[0]} & codes):
                    yield mistake, diff


def planted_mistakes(wanted: Sequence[str], quick: bool, sample: bool) -> Iterator[Trial]:
    draw = random.Random(1)
    chosen = {one.code: draw.choice(hosts) for one in CATALOGUE if (hosts := [d.host for d in one.diffs if d.host])}
    for mistake, diff in catalogue(wanted):
        if sample and diff.host != chosen[mistake.code]:
            continue
        try:
            port = planted(diff)
        except ValueError as error:
            print(f"not planted {mistake.code} {error}", flush=True)
            continue
        yield tried(diff.host, [mistake.code], port, quick)


def pairs(count: int, quick: bool) -> Iterator[Trial]:
    """Two mistakes that can be told at once: the lines of neither hold those of the other."""
    draw = random.Random(0)
    everywhere = [(mistake, diff) for mistake, diff in catalogue(()) if mistake.tries is not None]
    drawn = 0
    chosen = []
    while drawn < count:
        (one, first), (other, second) = draw.sample(everywhere, 2)
        path = PAIRS / first.host / "mirror.py"
        if first.host != second.host or one is other:
            continue
        both = path.read_text().replace(first.right, first.wrong)
        if both.count(second.right) != 1 or second.wrong in first.wrong:
            continue
        chosen.append((first.host, (one.code, other.code), both.replace(second.right, second.wrong)))
        drawn += 1
    for host, codes, source in sorted(chosen, key=lambda each: HOSTS.index(each[0])):
        yield tried(host, codes, module(source, PAIRS / host / "mirror.py"), quick)


def right(examinations: int, hosts: Sequence[str]) -> int:
    """Examinations of right ports; the number of alarms."""
    alarms = 0
    for host in hosts or HOSTS:
        names = ["mirror", *(f"right_{number}" for number in range(1, 6))]
        ports = {name: HostPort(mirror(host, name), host) for name in names}
        largest = dict.fromkeys(names, 0.0)
        for seed in range(examinations):
            for dropout in ("kept", "off"):
                sitting = replace(prepared(host, dropout), dropped=[], remarks=[], known={})
                for name, port in ports.items():
                    if dropout == port.DROPOUT:
                        with jax.disable_jit():
                            verdict = examine(sitting, Held(port), seed=seed, explains=False)
                        largest[name] = max(largest[name], *(one.ratio for one in verdict.comparisons))
                        alarms += not verdict.agrees
                        for one in verdict.comparisons:
                            if not one.passes:
                                told = f"{one.stage}, {one.case}, {one.quantity}: {one.wrong or one.ratio}"
                                print(f"ALARM {host}/{name}, seed {seed}: {told}", flush=True)
        ratios = ", ".join(f"{name} {ratio:.2f}" for name, ratio in largest.items())
        print(f"{host:<12} {examinations} examinations of each, largest ratios: {ratios}", flush=True)
    print(f"{alarms} alarms")
    return alarms


class Slightly(HostPort):
    """A right port but for one tensor, whose gradient, or update, is multiplied by a number that is nearly 1."""

    def __init__(self, host: str, tensor: str, gradient: float = 1.0, update: float = 1.0) -> None:
        super().__init__(mirror(host), host)
        self.tensor, self.gradient, self.update = tensor, gradient, update

    def value_and_grad(self, state: Any, batch: Any) -> tuple[Any, dict[str, Any]]:
        loss, grads = super().value_and_grad(state, batch)
        return loss, {**grads, self.tensor: grads[self.tensor] * grads[self.tensor].dtype.type(self.gradient)}

    def train_step(self, state: Any, batch: Any) -> tuple[Any, Any]:
        (variables, opt_state), loss = super().train_step(state, batch)
        before, after = (self.mirror.to_torch(each)[self.tensor] for each in (state[0], variables))
        off = {**self.mirror.to_torch(variables), self.tensor: before + (after - before) * self.update}
        return (self.mirror.from_torch({name: np.asarray(off[name]) for name in off}), opt_state), loss


def slight(hosts: Sequence[str]) -> int:
    """How many were not noticed at their stage."""
    missed = 0
    for host in hosts or HOSTS:
        sitting = prepared(host, HostPort(mirror(host), host).DROPOUT)
        names = sorted(sitting.program.parameters - set(sitting.program.tied))
        for tensor in random.Random(0).sample(names, 3):
            for words, stage, dtype, port in (
                ("gradient × 1.0001", "gradients", None, Slightly(host, tensor, gradient=1.0001)),
                ("update × 1.01", "step", "float32", Slightly(host, tensor, update=1.01)),
                ("update × (1 + 1e-8)", "step", "float64", Slightly(host, tensor, update=1 + 1e-8)),
            ):
                with jax.disable_jit():
                    verdict = examine(
                        replace(sitting, dropped=[], remarks=[]), Held(port), stages=[stage], explains=False
                    )
                ratios = [
                    one.ratio
                    for one in verdict.comparisons
                    if one.quantity.endswith(tensor)
                    and dtype in (None, "float64" if "float64" in one.case else "float32")
                ]
                missed += max(ratios) <= 1
                print(f"{host:<12} {tensor:<40} {words:<20} ratio {max(ratios):.3g}", flush=True)
    print(f"{missed} not noticed")
    return missed


def blind(archive: str) -> int:
    """Judges the files of an archive; `truth.json` says in words what is wrong with each, for a person to compare."""
    with tarfile.open(archive) as opened:
        files = {Path(one.name).name: opened.extractfile(one) for one in opened if one.isfile()}
        texts = {name: file.read().decode() for name, file in files.items() if file}
    missed = 0
    for entry in json.loads(texts["truth.json"]):
        port = module(texts[Path(entry["file"]).name], PAIRS / entry["host"] / "mirror.py")
        verdict = judged(entry["host"], port)
        stage = next((one.stage for one in verdict.comparisons if not one.passes), "not caught")
        missed += stage == "not caught"
        print(f"{entry['id']} {entry['host']}: {entry['what']}\n    at {entry['stage']}; seen at {stage}")
        for group in verdict.explanations:
            print("    " + "; or ".join(f"{one.code} {one.message}" for one in group))
        for note in verdict.notes if not verdict.explanations else ():
            print(f"    {note}")
        sys.stdout.flush()
    print(f"{missed} not caught")
    return missed


def told(trials: Iterator[Trial]) -> int:
    """Prints each, and how many were what; whether all went well."""
    counts: Counter[str] = Counter()
    for trial in trials:
        print(trial.line(), flush=True)
        counts["trials"] += 1
        counts["caught"] += bool(trial.stage)
        counts["at their stage"] += bool(trial.stage) and any(code[0] in LETTERS[trial.stage] for code in trial.codes)
        counts["named"] += not trial.missed
        counts["wrongly"] += bool(trial.wrongly)
    print(", ".join(f"{count} {name}" for name, count in counts.items()))
    return int(counts["caught"] < counts["trials"] or counts["wrongly"] > 0)


def main(arguments: Sequence[str]) -> int:
    parser = argparse.ArgumentParser(
        prog="python -m tests.tools.mistakes",
        description="What the judge says of mistakes planted in the programs of tests/pairs, and of right ports.",
    )
    parser.add_argument("what", choices=["planted", "pairs", "right", "slight", "blind"])
    parser.add_argument("of", nargs="*", help="codes, letters, programs, a number, an archive")
    parser.add_argument("--quick", action="store_true", help="few cases of the stages where a mistake may show")
    parser.add_argument("--sample", action="store_true", help="each mistake in one program only")
    options = parser.parse_intermixed_args(arguments)
    number = next((int(one) for one in options.of if one.isdigit()), 0)
    rest = [one for one in options.of if not one.isdigit()]
    if options.what == "right":
        return int(right(number or 20, rest) > 0)
    if options.what == "slight":
        return int(slight(rest) > 0)
    if options.what == "blind":
        return int(blind(rest[0]) > 0)
    if options.what == "pairs":
        return told(pairs(number or 200, options.quick))
    return told(planted_mistakes(rest, options.quick, options.sample))


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
