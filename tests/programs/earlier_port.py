# ruff: noqa
# mypy: ignore-errors
"""The post's network in plain JAX, as a port that can be judged."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np

FLOAT64 = False  # judged in float32 only


def decode(images):
    return (images.astype(np.float32) / np.float32(255)).reshape(len(images), 784)


def start(tensors, experiment):
    return {name: jnp.array(tensor) for name, tensor in tensors.items()}, experiment


def tensors(state):
    return {name: np.array(value) for name, value in state[0].items()}


@partial(jax.jit, static_argnums=2)
def network(params, values, experiment):
    for layer in range(1, len(experiment.widths)):
        if layer > 1:
            values = jax.nn.relu(values)
        kernel = params[f"fc{layer}.weight"].T
        values = jnp.dot(values, kernel, precision="highest") + params[f"fc{layer}.bias"]
    return jax.nn.softmax(values) if experiment.softmax_output else values


@partial(jax.jit, static_argnums=3)
def mean_loss(params, pixels, labels, experiment):
    log_probabilities = jax.nn.log_softmax(network(params, pixels, experiment))
    return -log_probabilities[jnp.arange(len(labels)), labels].mean()


@partial(jax.jit, static_argnums=3)
def step(params, pixels, labels, experiment):
    loss, grads = jax.value_and_grad(mean_loss)(params, pixels, labels, experiment)
    return jax.tree.map(lambda param, grad: param - experiment.lr * grad, params, grads), loss


def batches(images, labels, experiment):
    for first in range(0, len(labels), experiment.batch_size):
        batch = slice(first, first + experiment.batch_size)
        yield decode(images[batch]), labels[batch]


def logits(state, images):
    return np.array(network(state[0], decode(images), state[1]))


def loss(state, images, labels):
    return float(mean_loss(state[0], decode(images), labels, state[1]))


def gradients(state, images, labels):
    grads = jax.grad(mean_loss)(state[0], decode(images), labels, state[1])
    return {name: np.array(grad) for name, grad in grads.items()}


def train_step(state, images, labels):
    params, loss = step(state[0], decode(images), labels, state[1])
    return (params, state[1]), float(loss)


def train_epoch(state, images, labels):
    params, losses = state[0], []
    for batch in batches(images, labels, state[1]):
        params, loss = step(params, *batch, state[1])
        losses.append(loss)
    return (params, state[1]), np.array(losses)


def evaluate(state, images, labels):
    correct = (logits(state, images).argmax(axis=1) == labels).mean()
    losses = [float(mean_loss(state[0], *batch, state[1])) for batch in batches(images, labels, state[1])]
    return float(correct), float(np.mean(losses))
