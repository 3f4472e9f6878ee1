"""A reference that sits the exam: what is expected of each case, and what rounding allows."""

import inspect
from collections.abc import Callable, Iterable, Mapping
from contextlib import nullcontext
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import Any, NoReturn

import numpy as np
import torch
from torch import nn

from parity.cases import OPTIONAL, Answer, Case, Tensors
from parity.errors import UsageError, line_of, told
from parity.reference.dropout import WITHOUT_CHANCE, Off, without_chance
from parity.reference.noise import EXACTLY, Rounding
from parity.reference.program import Reference, answer, arrays, fresh, torch_batch
from parity.variations import Program, cases
from parity.verdict.comparison import FACTOR, Comparison, Measured, measured, tolerances

RUNS, MOST_RUNS = 6, 64
CHANCE = {
    "off": "dropout is off on both sides",
    "kept": "dropout keeps everything and scales it on both sides",
    "median": "every random number is drawn as its median on both sides: dropout keeps everything and scales it",
}


@dataclass
class Question:
    """A case that the reference has answered."""

    case: Case
    expected: Measured
    own: Measured | None
    """In the reference's own precision; None for cases in float64."""
    sitting: "Sitting"
    runs: list[Measured] = field(default_factory=list)
    _allowed: tuple[int, Tensors] | None = None

    def tolerances(self) -> Tensors:
        """By quantity."""
        if not self.runs:
            self._run(RUNS)
        if self._allowed is None or self._allowed[0] != len(self.runs):
            factor = FACTOR if self.case.dtype == np.float32 else 1.0
            allowed = tolerances(self.expected, self.runs, self.own, factor)
            self._allowed = len(self.runs), self.sitting.anything_where_nothing_counts(self.case, allowed)
        return self._allowed[1]

    def more(self) -> bool:
        """Try rounding more often; whether it was not tried often enough already."""
        if len(self.runs) >= MOST_RUNS:
            return False
        self._run(MOST_RUNS if len(self.runs) > RUNS else 3 * RUNS)
        return True

    def as_answers(self) -> dict[str, Answer]:
        """All of it as it can be recorded: what `Paper.of` takes."""
        own = {} if self.own is None else {"reference": self.own}
        return {"expected": self.expected, "tolerance": self.tolerances(), **own}

    def _run(self, count: int) -> None:
        for run in range(len(self.runs) + 1, count + 1):
            rounding = Rounding(run, self.case.dtype == np.float32, self.sitting.precision)
            self.runs.append(self.sitting.answer(self.case, rounding))


@dataclass(frozen=True)
class Sitting:
    """A reference for one exam, beside a port that offers this and that."""

    reference: Reference
    """Without chance."""
    offers: Mapping[str, Any]
    precision: str
    program: Program
    dropped: list[str] = field(default_factory=list)
    """Cases that the reference itself cannot answer."""
    remarks: list[str] = field(default_factory=list)
    """What is worth saying of the exam."""
    has_chance: bool = True
    """Whether anything has to be done about dropout, which costs a fifth of a small program's time."""

    @staticmethod
    def of(reference: Reference, offers: Mapping[str, Any], precision: str) -> "Sitting":
        """Everything about a reference that must be known before it is asked.

        Raises:
            UsageError: it cannot be asked at all.
        """
        dropout = offers.get("dropout", "off")
        reference = replace(_usable(reference), module=without_chance(reference.module, dropout))
        try:
            with Off() as off:
                program = _program(reference, offers)
        except Exception as error:
            where = line_of(error, inspect.getsourcefile(inspect.unwrap(reference.loss)))
            raise UsageError(f"{reference.name or 'the reference'}: raises {told(error)}{where}") from None
        return Sitting(reference, offers, precision, program, has_chance=off.was_used or dropout != "off")

    @property
    def dropout(self) -> str:
        """`off`; `kept`: nothing is dropped, and all of it is scaled; `median`: so are random numbers drawn."""
        return str(self.offers.get("dropout", "off"))

    @property
    def name(self) -> str:
        return self.reference.name

    @property
    def parameters(self) -> frozenset[str]:
        return self.program.parameters

    @property
    def float64(self) -> bool:
        return bool(self.offers.get("float64", True)) and self.precision == "float32"

    @property
    def runs_whole(self) -> bool:
        """Whether both sides can train and report as the program does."""
        return self.reference.whole_run is not None and self.program.has_epoch and self.program.has_evaluate

    def cases(self, seed: int, quick: bool) -> list[Case]:
        """All that is worth asking."""
        return cases(self.program, seed, quick, self.float64)

    def say(self, case: Case, rounding: Rounding | None = EXACTLY) -> Answer:
        """What the reference says to a case."""
        return answer(self.reference, case, rounding, WITHOUT_CHANCE[self.dropout] if self.has_chance else nullcontext)

    def answer(self, case: Case, rounding: Rounding | None = EXACTLY) -> Measured:
        """What is compared of what it says."""
        return measured(case, self.say(case, rounding), self.program.parameters)

    def anything_where_nothing_counts(self, case: Case, allowed: Tensors) -> Tensors:
        """Tolerances, infinite for outputs that mean nothing."""
        if self.reference.counts is None or not case.batches:
            return allowed
        counting = arrays(self.reference.counts(torch_batch(case.batches[0])))
        for quantity, tolerance in allowed.items():
            kind, _, name = quantity.partition("/")
            if kind in ("outputs", "after") and name in counting:
                mask = counting[name].reshape(counting[name].shape + (1,) * (tolerance.ndim - counting[name].ndim))
                allowed[quantity] = np.where(mask, tolerance, np.inf)
        return allowed

    def rewritten(self, rewrite: Callable[[Reference], Reference]) -> "Sitting":
        """The same exam for another reference: one with a mistake that the port was found to make."""
        return replace(self, reference=rewrite(self.reference), dropped=[*self.dropped])

    def ask(self, case: Case) -> Question | None:
        """The case with what is expected of it; None where the reference itself raises or overflows."""
        try:
            expected = self.answer(case, EXACTLY if case.dtype == np.float32 else Rounding(narrow=False))
            own = self.answer(case, None) if case.dtype == np.float32 else None
        except Exception as error:
            why = f"the reference raises {told(error)}"
        else:
            why = _unfit(expected, own)
            if not why:
                return Question(case, expected, own, self)
        self.dropped.append(f"{case.call}, {case.name}: {why}")
        return None

    def refuse(self, call: str) -> NoReturn:
        """End an exam that the reference itself cannot sit: a stage that is not judged must not seem to agree."""
        said = next(line for line in self.dropped if line.startswith(f"{call}, "))
        raise UsageError(f"{self.name or 'the reference'}: {said}; and no other case of {call} can be asked")

    def not_judged(self, wanted: Iterable[str]) -> tuple[str, ...]:
        """What was not asked, and why."""
        said = []
        for stage, name in zip(("init", "epoch", "evaluate"), OPTIONAL, strict=True):
            if stage in wanted and not getattr(self.reference, name):
                said.append(f"{stage}: the reference has no {name}")
            elif stage in wanted and name not in self.offers.get("offers", ()):
                said.append(f"{stage}: the port offers no {name}")
        for stage in ("trajectory", "trends"):
            if stage in wanted and self.reference.whole_run is None:
                said.append(f"{stage}: the reference has no whole_run")
            elif stage in wanted and not self.runs_whole:
                said.append(f"{stage}: needs train_epoch and evaluate of both")
        if not self.float64:
            said.append("float64: the port computes in float32 only")
        return (*said, *self.dropped)

    def notes(self) -> tuple[str, ...]:
        """How both sides were asked, and what else is worth saying."""
        return (CHANCE[self.dropout], *self.offers.get("remarks", ()), *self.remarks)

    def places(self, compared: Iterable[Comparison]) -> dict[str, str]:
        """Where the modules are written that failing tensors belong to."""
        module = self._module
        return {
            name: place
            for one in compared
            if not one.passes and (name := one.quantity.rpartition("/")[2]) and (place := place_of(module, name))
        }

    def about(self) -> dict[str, Any]:
        """What a recording says of its reference."""
        places = {name: place for name in self.program.state if (place := place_of(self._module, name))}
        return {
            "reference": self.reference.name,
            "dropout": self.dropout,
            "parameters": sorted(self.parameters),
            "not_judged": list(self.dropped),
            "notes": list(self.notes()),
            "places": places,
        }

    @cached_property
    def _module(self) -> nn.Module:
        return fresh(self.reference)


def _unfit(expected: Measured, own: Measured | None) -> str:
    """Why nothing can be expected of a port: what overflows in the reference, or is no number at all; else ""."""
    finite = {name: np.isfinite(values) for name, values in expected.items() if values.dtype.kind == "f"}
    if finite and not any(each.any() for each in finite.values()):
        return "nothing that the reference says is finite"
    for name, each in finite.items():
        if own is not None and not (np.isfinite(own[name]) == each).all():
            return f"{name} overflows in the reference"
    return ""


def place_of(module: nn.Module, name: str) -> str:
    """`features.1: Linear (program.py:31)` for `features.1.weight`; "" for what is no tensor of the module."""
    path, _, _ = name.rpartition(".")
    owner, inner, written = module, "", type(module)
    for part in filter(None, path.split(".")):
        child = getattr(owner, part, None)
        if not isinstance(child, nn.Module):
            return ""
        if not type(owner).__module__.startswith("torch.nn"):
            written, inner = type(owner), part
        owner = child
    return f"{path}: {type(owner).__name__}{_line(written, inner)}" if path else ""


def _line(written: type, attribute: str) -> str:
    """` (program.py:31)`, where a class makes one of its parts."""
    try:
        lines, first = inspect.getsourcelines(written)
        file = Path(inspect.getsourcefile(written) or "").name
    except (OSError, TypeError):
        return ""
    at = next((index for index, line in enumerate(lines) if f"self.{attribute} " in line), 0)
    return f" ({file}:{first + at})"


def _usable(reference: Reference) -> Reference:
    """With arrays in its batches."""
    if isinstance(reference.module, nn.Module):
        kind = type(reference.module).__name__
        raise UsageError(f"the reference's module is a {kind}, expected a function that makes one: lambda: {kind}(...)")
    batches = list(reference.batches)
    if not batches or not all(isinstance(batch, Mapping) for batch in batches):
        what = "batches that are no dicts" if batches else "no batches"
        raise UsageError(f"the reference has {what}; expected a list of dicts of arrays, at least one")
    return replace(reference, batches=[arrays(batch) for batch in batches])


def _program(reference: Reference, offers: Mapping[str, Any]) -> Program:
    module = fresh(reference)
    state = arrays(module.state_dict())
    trained = dict(module.named_parameters(remove_duplicate=False))
    first = {id(parameter): name for name, parameter in module.named_parameters()}
    tied = {name: first[id(parameter)] for name, parameter in trained.items() if first[id(parameter)] != name}
    module.train()
    with torch.random.fork_rng(devices=[]), torch.no_grad():
        reference.loss(module, torch_batch(reference.batches[0]))
    after = arrays(module.state_dict())
    buffers = [name for name in state if name not in trained]
    running = {name for name in buffers if not np.array_equal(after[name], state[name], equal_nan=True)}
    offered = [bool(getattr(reference, name)) and name in offers.get("offers", ()) for name in OPTIONAL]
    frozen = frozenset(name for name, parameter in trained.items() if not parameter.requires_grad)
    batches = tuple(reference.batches)
    clips = reference.clip is not None
    program = Program(state, frozenset(trained), frozenset(running), tied, batches, (), frozen, clips, *offered)
    return replace(program, further=tuple(reference.cases(program))) if reference.cases else program
