"""Whole runs of the reference and the oracle, in processes of their own, each done once."""

import functools
from collections.abc import Callable
from concurrent.futures import Future, ProcessPoolExecutor
from dataclasses import dataclass
from multiprocessing import get_context
from typing import Any

import numpy as np

from fmnist import metrics
from fmnist.data import Dataset, load_dataset
from fmnist.experiment import Experiment, StateDict
from parity.formulas import Array
from parity.tolerance import perturb


@dataclass(frozen=True)
class WholeRun:
    """A run as it went: parameters after each epoch (the starting ones first), every step's loss, every test pass."""

    tensors: list[StateDict]
    losses: list[Array]
    accuracy: list[float]
    average_loss: list[float]


def run(port: Any, tensors: StateDict, experiment: Experiment, dataset: Dataset) -> WholeRun:
    """Train and test a port for `experiment.epochs` epochs."""
    state = port.start(tensors, experiment)
    result = WholeRun([port.tensors(state)], [], [], [])
    for _ in range(experiment.epochs):
        state, losses = port.train_epoch(state, *dataset.train)
        accuracy, average_loss = port.evaluate(state, *dataset.test)
        result.tensors.append(port.tensors(state))
        result.losses.append(np.asarray(losses))
        result.accuracy.append(accuracy)
        result.average_loss.append(average_loss)
    return result


class Reruns:
    """The reference's and the oracle's runs from torch's draw, moved by one ulp where `perturbation` is not 0.

    What is asked for ahead by `prepare` is worked on in the background; without workers, in this process.
    """

    def __init__(self, place: str | None, device: str, workers: int = 1) -> None:
        self._place, self._device, self._workers = place, device, workers
        self._pool: ProcessPoolExecutor | None = None
        self._futures: dict[tuple[Any, ...], Future[WholeRun]] = {}

    def prepare(self, side: str, experiment: Experiment, perturbation: int = 0) -> Future[WholeRun]:
        key = (side, experiment, perturbation)
        if key not in self._futures:
            self._futures[key] = self._submit(_work, self._place, self._device, *key)
        return self._futures[key]

    def _submit(self, function: Callable[..., WholeRun], *arguments: Any) -> Future[WholeRun]:
        if not self._workers:
            done: Future[WholeRun] = Future()
            done.set_result(function(*arguments))
            return done
        if self._pool is None:
            self._pool = ProcessPoolExecutor(self._workers, get_context("spawn"))
        return self._pool.submit(function, *arguments)

    def get(self, side: str, experiment: Experiment, perturbation: int = 0) -> WholeRun:
        return self.prepare(side, experiment, perturbation).result()

    def __enter__(self) -> "Reruns":
        return self

    def __exit__(self, *exception: object) -> None:
        if self._pool is not None:
            self._pool.shutdown(wait=False, cancel_futures=True)


_dataset: Callable[[str | None], Dataset] = functools.cache(load_dataset)


def _work(place: str | None, device: str, side: str, experiment: Experiment, perturbation: int) -> WholeRun:
    from parity.ports import oracle_port, torch_port

    torch_port.use_device(device)
    tensors = torch_port.init(experiment)
    if perturbation:
        tensors = perturb(tensors, perturbation)
    if side == "oracle":
        return run(oracle_port, tensors, experiment, _dataset(place))
    return _reference_run(tensors, experiment, _dataset(place))


def _reference_run(tensors: StateDict, experiment: Experiment, dataset: Dataset) -> WholeRun:
    """`run` of the reference as its own command does it: by the same functions, with pixels decoded once."""
    import torch

    from fmnist_torch import train
    from parity.ports import torch_port

    state, device = torch_port.start(tensors, experiment), torch.get_default_device()
    splits = [(train.decode(part.images, device), torch.tensor(part.labels)) for part in (dataset.train, dataset.test)]
    result = WholeRun([torch_port.tensors(state)], [], [], [])
    for _ in range(experiment.epochs):
        losses = train.train_epoch(state.network, state.optimizer, *splits[0], experiment.batch_size)
        correct, test_losses = train.evaluate(state.network, *splits[1], experiment.batch_size)
        result.tensors.append(torch_port.tensors(state))
        result.losses.append(losses.numpy(force=True))
        result.accuracy.append(float(metrics.accuracy(correct.cpu(), len(dataset.test.labels))))
        result.average_loss.append(float(metrics.average_loss(test_losses.cpu())))
    return result
