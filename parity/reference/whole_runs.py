"""Whole runs of the reference as it is, each done once, in processes of their own where its name is known."""

import contextlib
import multiprocessing
import os
import signal
from collections.abc import Callable, Mapping
from concurrent.futures import Future, ProcessPoolExecutor
from dataclasses import dataclass, replace
from functools import cache
from typing import Any, NamedTuple

import numpy as np
import torch

from parity.cases import Answer, Case, Tensors
from parity.reference.asked import Sitting
from parity.reference.program import Reference, fresh


class Source(NamedTuple):
    """How a process of its own comes by a reference: `load(*arguments)[program]`."""

    load: Callable[..., Mapping[str, Reference]]
    arguments: tuple[Any, ...]
    program: str


@dataclass(frozen=True)
class Start:
    """What tells one run from another: a seed, and which way every parameter is moved by one ulp; 0 is not at all."""

    seed: int
    moved: int = 0


class WholeRuns:
    """The runs of one sitting. Those that are asked for ahead are worked on in the background, if there is a source."""

    def __init__(
        self, sitting: Sitting, epochs: int | None = None, source: Source | None = None, workers: int | None = None
    ) -> None:
        self.sitting, self.source, self.workers = sitting, source, workers or os.cpu_count()
        assert sitting.reference.whole_run is not None
        self.epochs = epochs or sitting.reference.whole_run.epochs
        self._pool: ProcessPoolExecutor | None = None
        self._runs: dict[Start, Future[Answer]] = {}

    def prepare(self, start: Start) -> Future[Answer]:
        """Begin a run, or find the one that was begun."""
        if start not in self._runs:
            self._runs[start] = self._submit(start)
        return self._runs[start]

    def answer(self, start: Start) -> Answer:
        """What the reference says to `case(start)`."""
        return self.prepare(start).result()

    def case(self, start: Start) -> Case:
        """The run as a question."""
        return case(self.sitting, start, self.epochs)

    def _submit(self, start: Start) -> Future[Answer]:
        if self.source is None:
            done: Future[Answer] = Future()
            done.set_result(_answer(self.sitting, start, self.epochs))
            return done
        if self._pool is None:
            self._pool = ProcessPoolExecutor(self.workers, multiprocessing.get_context("spawn"), _begin)
        about = dict(self.sitting.offers), self.sitting.precision
        return self._pool.submit(_work, self.source, *about, start, self.epochs)

    def __enter__(self) -> "WholeRuns":
        return self

    def __exit__(self, *_: object) -> None:
        if self._pool is not None:
            workers = list(self._pool._processes.values())
            self._pool.shutdown(wait=False, cancel_futures=True)
            for worker in workers:  # what they are at is of no use any more
                worker.kill()


def case(sitting: Sitting, start: Start, epochs: int) -> Case:
    """A whole run from what the program draws."""
    reference = sitting.reference
    run = reference.whole_run
    assert run is not None
    module = fresh(reference, start.seed) if reference.init is None else reference.init(start.seed)
    state = {name: tensor.detach().cpu().numpy().copy() for name, tensor in module.state_dict().items()}
    if start.moved:
        state = one_ulp_away(state, start.moved)
    return Case(
        f"seed {start.seed}",
        "whole_run",
        state,
        tuple(run.batches),
        seed=start.seed,
        test_batches=tuple(run.test_batches),
        epochs=epochs,
    )


def one_ulp_away(state: Tensors, seed: int) -> Tensors:
    """The state with every real number moved by one ulp, up or down at random."""
    random = np.random.default_rng(seed)
    moved = {}
    for name, tensor in state.items():
        if tensor.dtype.kind != "f":
            moved[name] = tensor
            continue
        # In the tensor's own dtype: a float64 infinity would make the step one of float64, lost in the cast.
        up = np.where(random.integers(0, 2, tensor.shape) == 1, np.inf, -np.inf).astype(tensor.dtype)
        moved[name] = np.nextafter(tensor, up)
    return moved


def _answer(sitting: Sitting, start: Start, epochs: int) -> Answer:
    return sitting.say(case(sitting, start, epochs), None)


def _begin() -> None:
    """In a worker: Ctrl-C is for the judge, who ends it; and there are as many workers as cores."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    torch.set_num_threads(1)
    os.nice(5)  # what is judged meanwhile comes first


def _work(source: Source, offers: Mapping[str, Any], precision: str, start: Start, epochs: int) -> Answer:
    with contextlib.redirect_stdout(None):
        return _answer(
            _sitting(source, tuple(sorted(offers.get("offers", ()))), offers.get("dropout", "off"), precision),
            start,
            epochs,
        )


@cache
def _sitting(source: Source, offers: tuple[str, ...], dropout: str, precision: str) -> Sitting:
    reference = source.load(*source.arguments)[source.program]
    return Sitting.of(replace(reference, cases=None), {"offers": offers, "dropout": dropout}, precision)
