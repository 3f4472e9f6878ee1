"""A right port written differently: other contractions, log-sum-exp by hand, a gather, an epoch by a Python loop."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from fmnist.experiment import Experiment, StateDict
from fmnist_jax import torch_rng

Batch = Any


class State(NamedTuple):
    params: Any
    experiment: Experiment


def init(experiment: Experiment) -> StateDict:
    return torch_rng.init(experiment)


def decode(images: Batch) -> Any:
    return (images.astype(np.float32) / np.float32(255)).reshape(-1, 784)


def start(tensors: StateDict, experiment: Experiment) -> State:
    dtype = tensors["fc1.weight"].dtype
    with jax.enable_x64(dtype == np.float64):
        return State({name: jnp.array(tensor, dtype) for name, tensor in tensors.items()}, experiment)


def tensors(state: State) -> StateDict:
    return {name: np.array(value) for name, value in state.params.items()}


def _network(params: Any, images: Batch, experiment: Experiment) -> Any:
    """Images as columns, so that every product is contracted the other way round."""
    columns = jnp.asarray(decode(images)).T.astype(params["fc1.weight"].dtype)
    depth = len(experiment.hidden) + 1
    for layer in range(1, depth + 1):
        product = jnp.einsum("oi,ib->ob", params[f"fc{layer}.weight"], columns, precision="highest")
        columns = product + params[f"fc{layer}.bias"][:, None]
        if layer < depth:
            columns = jnp.where(columns > 0, columns, 0)
    if experiment.softmax_output:
        powers = jnp.exp(columns - columns.max(axis=0))
        columns = powers / powers.sum(axis=0)
    return columns.T


def _loss(params: Any, images: Batch, labels: Batch, experiment: Experiment) -> Any:
    outputs = _network(params, images, experiment)
    largest = jax.lax.stop_gradient(outputs.max(axis=1))
    log_sum = largest + jnp.log(jnp.exp(outputs - largest[:, None]).sum(axis=1))
    return (log_sum - outputs[jnp.arange(len(labels)), labels]).sum() / len(labels)


def _wide(state: State) -> Any:
    return jax.enable_x64(state.params["fc1.weight"].dtype == np.float64)


def logits(state: State, images: Batch) -> Any:
    with _wide(state):
        return np.array(_network(state.params, images, state.experiment))


def loss(state: State, images: Batch, labels: Batch) -> float:
    with _wide(state):
        return float(_loss(state.params, images, labels, state.experiment))


def gradients(state: State, images: Batch, labels: Batch) -> StateDict:
    with _wide(state):
        slopes = jax.grad(_loss)(state.params, images, labels, state.experiment)
        return {name: np.array(value) for name, value in slopes.items()}


def train_step(state: State, images: Batch, labels: Batch) -> tuple[State, float]:
    with _wide(state):
        value, slopes = jax.value_and_grad(_loss)(state.params, images, labels, state.experiment)
        lr = state.experiment.lr
        return State({n: state.params[n] + (-lr) * slopes[n] for n in slopes}, state.experiment), float(value)


def train_epoch(state: State, images: Batch, labels: Batch) -> tuple[State, Any]:
    size, losses = state.experiment.batch_size, []
    for first in range(0, len(labels), size):
        state, value = train_step(state, images[first : first + size], labels[first : first + size])
        losses.append(value)
    return state, np.array(losses, state.params["fc1.weight"].dtype)


def evaluate(state: State, images: Batch, labels: Batch) -> tuple[float, float]:
    size, right, losses = state.experiment.batch_size, 0, []
    for first in range(0, len(labels), size):
        batch = images[first : first + size], labels[first : first + size]
        right += int((logits(state, batch[0]).argmax(axis=1) == batch[1]).sum())
        losses.append(loss(state, *batch))
    return right / len(labels), sum(losses) / len(losses)
