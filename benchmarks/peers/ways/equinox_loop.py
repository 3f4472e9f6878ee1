"""Equinox: a filtered, jitted step on a module that is a pytree."""

import equinox as eqx
import jax
import jax.numpy as jnp
import optax

from benchmarks.peers.data import BATCH_SIZE, LR, Data, Done

optimizer = optax.sgd(LR)


class Network(eqx.Module):
    fc1: eqx.nn.Linear
    fc2: eqx.nn.Linear

    def __call__(self, x: jax.Array) -> jax.Array:
        return self.fc2(jax.nn.relu(self.fc1(x)))


@eqx.filter_value_and_grad
def loss_fn(model: Network, images: jax.Array, labels: jax.Array) -> jax.Array:
    return optax.softmax_cross_entropy_with_integer_labels(jax.vmap(model)(images), labels).mean()


@eqx.filter_jit
def train_step(model, opt_state, images, labels):
    loss, grads = loss_fn(model, images, labels)
    updates, opt_state = optimizer.update(grads, opt_state)
    return eqx.apply_updates(model, updates), opt_state, loss


@eqx.filter_jit
def correct(model: Network, images: jax.Array, labels: jax.Array) -> jax.Array:
    return (jax.vmap(model)(images).argmax(1) == labels).sum()


def fit(data: Data, epochs: int, done: Done) -> None:
    keys = jax.random.split(jax.random.key(0))
    model = Network(eqx.nn.Linear(784, 16, key=keys[0]), eqx.nn.Linear(16, 10, key=keys[1]))
    start = [jnp.array(data.start[name]) for name in ("fc1.weight", "fc1.bias", "fc2.weight", "fc2.bias")]
    model = eqx.tree_at(lambda net: [net.fc1.weight, net.fc1.bias, net.fc2.weight, net.fc2.bias], model, start)
    opt_state = optimizer.init(eqx.filter(model, eqx.is_array))
    for _ in range(epochs):
        for first in range(0, len(data.labels), BATCH_SIZE):
            batch = slice(first, first + BATCH_SIZE)
            model, opt_state, _ = train_step(model, opt_state, data.images[batch], data.labels[batch])
        done(float(correct(model, data.test_images, data.test_labels)) / len(data.test_labels))
