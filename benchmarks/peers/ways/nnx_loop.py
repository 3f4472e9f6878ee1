"""Flax NNX: a jitted step on a module and an optimizer that hold their own state."""

import jax
import jax.numpy as jnp
import optax
from flax import nnx

from benchmarks.peers.data import BATCH_SIZE, LR, Data, Done


class Network(nnx.Module):
    def __init__(self, rngs: nnx.Rngs) -> None:
        self.fc1 = nnx.Linear(784, 16, rngs=rngs)
        self.fc2 = nnx.Linear(16, 10, rngs=rngs)

    def __call__(self, x: jax.Array) -> jax.Array:
        return self.fc2(nnx.relu(self.fc1(x)))


@nnx.jit
def train_step(model: Network, optimizer: nnx.Optimizer, images: jax.Array, labels: jax.Array) -> jax.Array:
    def loss_fn(model):
        return optax.softmax_cross_entropy_with_integer_labels(model(images), labels).mean()

    loss, grads = nnx.value_and_grad(loss_fn)(model)
    optimizer.update(model, grads)
    return loss


@nnx.jit
def correct(model: Network, images: jax.Array, labels: jax.Array) -> jax.Array:
    return (model(images).argmax(1) == labels).sum()


def fit(data: Data, epochs: int, done: Done) -> None:
    model = Network(nnx.Rngs(0))
    for name, layer in (("fc1", model.fc1), ("fc2", model.fc2)):
        layer.kernel[...] = jnp.array(data.start[f"{name}.weight"].T)
        layer.bias[...] = jnp.array(data.start[f"{name}.bias"])
    optimizer = nnx.Optimizer(model, optax.sgd(LR), wrt=nnx.Param)
    for _ in range(epochs):
        for first in range(0, len(data.labels), BATCH_SIZE):
            batch = slice(first, first + BATCH_SIZE)
            train_step(model, optimizer, data.images[batch], data.labels[batch])
        done(float(correct(model, data.test_images, data.test_labels)) / len(data.test_labels))
