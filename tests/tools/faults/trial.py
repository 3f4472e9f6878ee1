"""A port on the bench: every case is answered once by the reference, and kept for all ports."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from functools import cache
from typing import Any

import numpy as np

from fmnist_jax import port as mirror
from fmnist_jax.earlier import adapted
from fmnist_torch.reference import reference
from parity.exam import examine
from parity.last_stages import LastStages, last_stages
from parity.port.held import Held
from parity.reference.asked import Sitting
from parity.verdict.comparison import STAGES, Comparison
from tests.tools.faults import plain_port, torch_port
from tests.tools.faults.numpy_port import numpy_port
from tests.tools.faults.planted import faults
from tests.tools.faults.practice import noticed
from tests.tools.remembering import Remembering

OFFERS = {"offers": ["init", "train_epoch", "evaluate"], "float64": True, "dropout": "off"}
WHOLE = ("trajectory", "trends")
BEFORE = tuple(stage for stage in STAGES if stage not in WHOLE)


@dataclass
class Bench:
    """What a process needs for all of its trials."""

    sittings: dict[str, Remembering]
    seed: int
    last: dict[str, LastStages] = field(default_factory=dict)

    @staticmethod
    def of(seed: int) -> "Bench":
        sittings = {}
        for name, one in reference(first=100 * seed).items():
            sittings[name] = Remembering.beside(Sitting.of(one, OFFERS, "float32"))
        return Bench(sittings, seed)

    def trial(self, make: Callable[[], Any], *, whole: bool, quick: bool = False) -> Iterator[Comparison]:
        """All comparisons up to the first program that differs; whole runs only where nothing did."""
        ports = make()
        for name, sitting in self.sittings.items():
            found = examine(sitting, Held(ports[name]), stages=BEFORE, seed=self.seed, quick=quick, explains=False)
            yield from found.comparisons
            if not found.agrees:
                return
        for name, sitting in self.sittings.items():
            if whole and sitting.runs_whole:
                yield from self._whole(name, Held(ports[name]))

    def _whole(self, name: str, port: Held) -> Iterator[Comparison]:
        known = self.last.setdefault(name, last_stages(self.sittings[name], port, WHOLE, False))  # type: ignore[arg-type]
        for stage in WHOLE:
            last = LastStages(known.runs, port, (stage,), known.seeds)
            found = list(last.compared())
            yield from found
            if not all(one.passes for one in found):
                return


@cache
def bench(seed: int) -> Bench:
    return Bench.of(seed)


def try_fault(name: str) -> tuple[str, str, str]:
    """Where a fault is found: at which stage, of which quantity and case; "" where it is not."""
    fault = next(fault for fault in faults() if fault.name == name)
    with np.errstate(all="ignore"):  # some faults overflow, as planted
        failing = [one for one in bench(0).trial(lambda: adapted(fault.make()), whole=True) if not one.passes]
    if not failing:
        return "", "", ""
    first = min(failing, key=lambda one: STAGES.index(one.stage))
    return first.stage, first.wrong or f"{first.quantity}, ratio {first.ratio:.3g}", first.case


def practise(name: str) -> dict[str, bool]:
    """Which common practices notice a fault."""
    return noticed(next(fault for fault in faults() if fault.name == name).make)


RIGHT: dict[str, Callable[[], Any]] = {
    "mirror": lambda: mirror.port,
    "plain JAX": lambda: adapted(plain_port),
    "NumPy": lambda: adapted(numpy_port()),
    "torch": lambda: adapted(torch_port),
}


def try_right(seed: int) -> dict[str, list[Comparison]]:
    """An examination of every right port: its alarms, then its largest ratio at each stage."""
    one, found = Bench.of(seed), {}
    for name, make in RIGHT.items():
        compared = list(one.trial(make, whole=False))
        alarms = [each for each in compared if not each.passes]
        largest = [max((c for c in compared if c.stage == stage), key=lambda c: c.ratio) for stage in BEFORE]
        found[name] = [*alarms, *largest]
    return found
