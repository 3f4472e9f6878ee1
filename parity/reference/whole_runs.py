"""Whole runs of the reference as it is, each done once, in processes of their own where its name is known."""

import contextlib
import multiprocessing
import os
import signal
from concurrent.futures import Future, ProcessPoolExecutor
from dataclasses import dataclass, replace
from functools import cache
from typing import NamedTuple

import numpy as np
import torch

from parity.cases import Answer, Case, Tensors
from parity.reference.asked import Sitting
from parity.reference.find import find
from parity.reference.program import arrays, fresh


class Source(NamedTuple):
    """How a process of its own comes by a reference: what `find` takes, and the name of its program."""

    spec: str
    data: str | None
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
        return _case(self.sitting, start, self.epochs)

    def _submit(self, start: Start) -> Future[Answer]:
        if self.source is None:
            done: Future[Answer] = Future()
            done.set_result(self.sitting.say(self.case(start), None))
            return done
        if self._pool is None:
            self._pool = ProcessPoolExecutor(self.workers, multiprocessing.get_context("spawn"), _begin)
        return self._pool.submit(_work, self.source, self.sitting.dropout, self.sitting.precision, start, self.epochs)

    def __enter__(self) -> "WholeRuns":
        return self

    def __exit__(self, *_: object) -> None:
        if self._pool is not None:
            workers = list(self._pool._processes.values())
            self._pool.shutdown(wait=False, cancel_futures=True)
            for worker in workers:  # what they are at is of no use any more
                worker.kill()


def _case(sitting: Sitting, start: Start, epochs: int) -> Case:
    """A whole run from what the program draws."""
    reference = sitting.reference
    run = reference.whole_run
    assert run is not None
    module = fresh(reference, start.seed) if reference.init is None else reference.init(start.seed)
    state = one_ulp_away(arrays(module.state_dict()), start.moved)
    batches, test_batches = tuple(map(arrays, run.batches)), tuple(map(arrays, run.test_batches))
    return Case(f"seed {start.seed}", "whole_run", state, batches, False, start.seed, test_batches, epochs)


def one_ulp_away(state: Tensors, seed: int) -> Tensors:
    """The state with every real number moved by one ulp, up or down at random; seed 0 moves none."""
    random = np.random.default_rng(seed)
    moved = dict(state)
    for name, tensor in state.items() if seed else ():
        if tensor.dtype.kind == "f":
            # In the tensor's own dtype: a float64 infinity would make the step one of float64, lost in the cast.
            up = np.where(random.integers(0, 2, tensor.shape) == 1, np.inf, -np.inf).astype(tensor.dtype)
            moved[name] = np.nextafter(tensor, up)
    return moved


def _begin() -> None:
    """In a worker: Ctrl-C is for the judge, who ends it; and there are as many workers as cores."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    torch.set_num_threads(1)
    os.nice(5)  # what is judged meanwhile comes first


def _work(source: Source, dropout: str, precision: str, start: Start, epochs: int) -> Answer:
    with contextlib.redirect_stdout(None):
        sitting = _sitting(source, dropout, precision)
        return sitting.say(_case(sitting, start, epochs), None)


@cache
def _sitting(source: Source, dropout: str, precision: str) -> Sitting:
    reference = find(source.spec, source.data)[source.program]
    return Sitting.of(replace(reference, cases=None), {"dropout": dropout}, precision)
