"""Shows the mirror to parity: `port` and `cnn` have one for each experiment that is judged."""

import contextlib
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import jax
import numpy as np
from flax.training.train_state import TrainState

from fmnist import metrics
from fmnist.data import Split
from fmnist.experiment import Experiment, StateDict
from fmnist.judged import CONVOLUTIONAL, JUDGED, Batch, Once, joined
from fmnist_jax import programs, torch_rng, train
from fmnist_jax.model import from_torch, to_torch

programs.keep()


class Mirror:
    """The mirror under one experiment, as a port; what its functions return is said in parity.port.Port."""

    def __init__(self, experiment: Experiment) -> None:
        self.experiment = experiment
        # One for all states, since jit compiles anew for another optimizer.
        self.blank = train.init(experiment, {})
        self.trained_on, self.tested_on = Once(_placed), Once(_placed)

    def load_state_dict(self, tensors: StateDict) -> TrainState:
        with _precision(next(iter(tensors.values())).dtype):
            # Copies: device_put may go on using the memory of what it is given.
            copies = {name: tensor.copy() for name, tensor in tensors.items()}
            state: TrainState = jax.device_put(self.blank.replace(params=from_torch(copies)))
            return state

    def state_dict(self, state: TrainState) -> StateDict:
        return to_torch(dict(state.params))

    def init(self, seed: int) -> TrainState:
        return self.load_state_dict(torch_rng.init(replace(self.experiment, seed=seed)))

    def outputs(self, state: TrainState, batch: Batch, train: bool) -> dict[str, jax.Array]:
        with _precision_of(state):
            pixels, _ = _decoded(state, batch)
            return {"pixels": pixels, "logits": _logits(state, pixels)}

    def value_and_grad(self, state: TrainState, batch: Batch) -> tuple[jax.Array, StateDict]:
        with _precision_of(state):
            loss, grads = _value_and_grad(state.params, state, *_decoded(state, batch))
            return loss, to_torch(grads)

    def train_step(self, state: TrainState, batch: Batch) -> tuple[TrainState, jax.Array]:
        with _precision_of(state):
            after, loss = train.train_step(state, *_decoded(state, batch))
            return after, loss

    def train_epoch(self, state: TrainState, batches: tuple[Batch, ...]) -> tuple[TrainState, jax.Array]:
        with _precision_of(state):
            after, losses = train.train_epoch(state, *self.trained_on(batches), self.experiment.batch_size)
            return after, losses

    def evaluate(self, state: TrainState, batches: tuple[Batch, ...]) -> dict[str, float]:
        with _precision_of(state):
            images, labels = self.tested_on(batches)
            correct, losses = train.evaluate(state, images, labels, self.experiment.batch_size)
        return {
            "accuracy": float(metrics.accuracy(correct, len(labels))),
            "average_loss": float(metrics.average_loss(losses)),
        }


_decode = jax.jit(train.decode)  # compiled, as in an epoch: there XLA may do other things to it


@jax.jit
def _logits(state: TrainState, pixels: jax.Array) -> jax.Array:
    outputs: jax.Array = state.apply_fn({"params": state.params}, pixels)
    return outputs


@jax.jit
@jax.value_and_grad
def _value_and_grad(params: Any, state: TrainState, pixels: jax.Array, labels: jax.Array) -> jax.Array:
    return train.cross_entropy(state.apply_fn({"params": params}, pixels), labels).mean()


def _placed(split: Split) -> tuple[jax.Array, jax.Array]:
    """Images and labels on JAX's default device."""
    return train.place(split, jax.numpy.zeros(()).device)


def _decoded(state: TrainState, batch: Batch) -> tuple[jax.Array, jax.Array]:
    """Pixels in the dtype of the state's parameters, and labels."""
    images, labels = _placed(joined([batch]))
    return _decode(images).astype(_dtype(state)), labels


def _dtype(state: TrainState) -> Any:
    return jax.tree.leaves(state.params)[0].dtype


def _precision_of(state: TrainState) -> contextlib.AbstractContextManager[None]:
    return _precision(_dtype(state))


@contextlib.contextmanager
def _precision(dtype: Any) -> Iterator[None]:
    """float64 exists in JAX only where it is switched on."""
    with jax.enable_x64(dtype == np.float64):
        yield


port = {name: Mirror(experiment) for name, experiment in JUDGED.items()}
cnn = {name: Mirror(experiment) for name, experiment in CONVOLUTIONAL.items()}
