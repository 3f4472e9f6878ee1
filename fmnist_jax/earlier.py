"""Ports that were written for parity's earlier interface, as ports of the one that it has today.

A module of that interface offers `decode, start, tensors, logits, loss, gradients, train_step, train_epoch, evaluate`
and, if it draws, `init`; `start` and `init` take the Experiment. Images are `uint8 (n, 28, 28)`, labels `int64 (n,)`.
"""

from dataclasses import replace
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from fmnist.experiment import Experiment, StateDict
from fmnist.judged import JUDGED, Batch, joined

Array = NDArray[Any]

FUNCTIONS = (
    *("decode", "start", "tensors", "logits", "loss", "gradients"),
    *("train_step", "train_epoch", "evaluate"),
)


class State(NamedTuple):
    """A port's own state, and what it was started from."""

    state: Any
    given: StateDict

    @property
    def dtype(self) -> Any:
        """That of all that is computed."""
        return next(iter(self.given.values())).dtype


class Earlier:
    """A module of the earlier interface under one experiment; what its functions return is said in parity.port.Port."""

    def __init__(self, module: Any, experiment: Experiment) -> None:
        self.module, self.experiment = module, experiment
        self.FLOAT64 = bool(getattr(module, "FLOAT64", True))
        self.FILE = getattr(module, "__file__", None)
        if callable(getattr(module, "init", None)):
            self.init = self._init

    def load_state_dict(self, tensors: StateDict) -> State:
        return State(self.module.start(tensors, self.experiment), tensors)

    def state_dict(self, state: State) -> StateDict:
        tensors: StateDict = self.module.tensors(state.state)
        for name, tensor in tensors.items():
            if any(np.shares_memory(tensor, given) for given in state.given.values()):
                raise ValueError(f"tensors returned memory that start was given for {name}, and no copy")
        return tensors

    def outputs(self, state: State, batch: Batch, train: bool) -> dict[str, Array]:
        images = batch["images"]
        return {
            "pixels": self.module.decode(images).astype(state.dtype),
            "logits": self.module.logits(state.state, images),
        }

    def value_and_grad(self, state: State, batch: Batch) -> tuple[float, StateDict]:
        images, labels = batch["images"], batch["labels"]
        loss = self.module.loss(state.state, images, labels)
        self.module.gradients(state.state, images, labels)  # of which nothing may be left in the next ones
        return loss, self.module.gradients(state.state, images, labels)

    def train_step(self, state: State, batch: Batch) -> tuple[State, float]:
        after, loss = self.module.train_step(state.state, batch["images"], batch["labels"])
        return State(after, state.given), loss

    def train_epoch(self, state: State, batches: tuple[Batch, ...]) -> tuple[State, Array]:
        after, losses = self.module.train_epoch(state.state, *joined(batches))
        return State(after, state.given), losses

    def evaluate(self, state: State, batches: tuple[Batch, ...]) -> dict[str, float]:
        accuracy, average_loss = self.module.evaluate(state.state, *joined(batches))
        return {"accuracy": accuracy, "average_loss": average_loss}

    def _init(self, seed: int) -> State:
        return self.load_state_dict(self.module.init(replace(self.experiment, seed=seed)))


def adapted(module: Any) -> dict[str, Earlier]:
    """A port for every experiment that is judged.

    Raises:
        TypeError: the module offers neither interface's functions.
    """
    missing = [name for name in FUNCTIONS if not callable(getattr(module, name, None))]
    if missing:
        raise TypeError(f"lacks load_state_dict, and of the earlier interface {', '.join(missing)}")
    return {name: Earlier(module, experiment) for name, experiment in JUDGED.items()}
