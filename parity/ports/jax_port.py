"""The mirror, `fmnist_jax`, as a port."""

import contextlib
import functools
from collections.abc import Iterator
from dataclasses import replace
from typing import NamedTuple

import jax
import numpy as np
from flax.training.train_state import TrainState

from fmnist import metrics
from fmnist.experiment import Experiment, StateDict
from fmnist_jax import torch_rng, train
from fmnist_jax.model import from_torch, to_torch
from parity.port import Array

# What the machine lacks is no fault of the port's: it is said before the port is tried.
train.local_devices()


class State(NamedTuple):
    state: TrainState
    experiment: Experiment


def use_device(name: str) -> None:
    jax.config.update("jax_default_device", train.find_device(name))


def init(experiment: Experiment) -> StateDict:
    return torch_rng.init(experiment)


def decode(images: Array) -> Array:
    return np.array(train.decode(images, _device()))


def start(tensors: StateDict, experiment: Experiment) -> State:
    dtype = next(iter(tensors.values())).dtype
    with _precision(dtype):
        blank = _blank(replace(experiment, seed=0, epochs=1))
        params = jax.device_put({layer: dict(values) for layer, values in from_torch(_copies(tensors)).items()})
        return State(jax.device_put(blank.replace(params=params), _device()), experiment)


def tensors(state: State) -> StateDict:
    return to_torch(dict(state.state.params))


def logits(state: State, images: Array) -> Array:
    with _precision(_dtype(state)):
        return np.array(_logits(state.state, _pixels(state, images)))


def loss(state: State, images: Array, labels: Array) -> float:
    with _precision(_dtype(state)):
        return float(_loss(state.state.params, state.state, _pixels(state, images), _labels(labels)))


def gradients(state: State, images: Array, labels: Array) -> StateDict:
    with _precision(_dtype(state)):
        return to_torch(_gradients(state.state.params, state.state, _pixels(state, images), _labels(labels)))


def train_step(state: State, images: Array, labels: Array) -> tuple[State, float]:
    with _precision(_dtype(state)):
        after, loss = train.train_step(state.state, _pixels(state, images), _labels(labels))
        return State(after, state.experiment), float(loss)


def train_epoch(state: State, images: Array, labels: Array) -> tuple[State, Array]:
    with _precision(_dtype(state)):
        batch = _pixels(state, images), _labels(labels)
        after, losses = train.train_epoch(state.state, *batch, state.experiment.batch_size)
        return State(after, state.experiment), np.array(losses)


def evaluate(state: State, images: Array, labels: Array) -> tuple[float, float]:
    with _precision(_dtype(state)):
        batch = _pixels(state, images), _labels(labels)
        correct, losses = train.evaluate(state.state, *batch, state.experiment.batch_size)
        return float(metrics.accuracy(correct, len(labels))), float(metrics.average_loss(losses))


@functools.cache
def _blank(experiment: Experiment) -> TrainState:
    """A state without parameters, the same one for all that trains alike: jit compiles anew for another optimizer."""
    return train.init(experiment, {})


@jax.jit
def _logits(state: TrainState, images: jax.Array) -> jax.Array:
    outputs: jax.Array = state.apply_fn({"params": state.params}, images)
    return outputs


@jax.jit
def _loss(params: object, state: TrainState, images: jax.Array, labels: jax.Array) -> jax.Array:
    return train.cross_entropy(state.apply_fn({"params": params}, images), labels).mean()


_gradients = jax.jit(jax.grad(_loss))


def _device() -> jax.Device:
    device: jax.Device = jax.numpy.zeros(()).device
    return device


def _dtype(state: State) -> np.dtype:
    dtype: np.dtype = jax.tree.leaves(state.state.params)[0].dtype
    return dtype


@contextlib.contextmanager
def _precision(dtype: np.dtype) -> Iterator[None]:
    """float64 exists in JAX only where it is switched on."""
    with jax.enable_x64(dtype == np.float64):
        yield


def _pixels(state: State, images: Array) -> jax.Array:
    return train.decode(images, _device()).astype(_dtype(state))


def _labels(labels: Array) -> jax.Array:
    placed: jax.Array = jax.device_put(labels.astype(np.int32), _device())
    return placed


def _copies(tensors: StateDict) -> StateDict:
    """device_put may go on using the memory of what it is given."""
    return {name: tensor.copy() for name, tensor in tensors.items()}
