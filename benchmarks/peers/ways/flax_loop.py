"""A Flax loop as in Flax's own examples: one jitted step a batch, data from the host."""

import jax
import jax.numpy as jnp
import optax
from flax import linen as nn
from flax.training.train_state import TrainState

from benchmarks.peers.data import BATCH_SIZE, LR, Data, Done


class Network(nn.Module):
    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        x = nn.relu(nn.Dense(16, name="fc1")(x))
        return nn.Dense(10, name="fc2")(x)


@jax.jit
def train_step(state: TrainState, images: jax.Array, labels: jax.Array) -> tuple[TrainState, jax.Array]:
    def loss_fn(params):
        logits = state.apply_fn({"params": params}, images)
        return optax.softmax_cross_entropy_with_integer_labels(logits, labels).mean()

    loss, grads = jax.value_and_grad(loss_fn)(state.params)
    return state.apply_gradients(grads=grads), loss


@jax.jit
def correct(state: TrainState, images: jax.Array, labels: jax.Array) -> jax.Array:
    return (state.apply_fn({"params": state.params}, images).argmax(1) == labels).sum()


def fit(data: Data, epochs: int, done: Done) -> None:
    params = {
        layer: {"kernel": jnp.array(data.start[f"{layer}.weight"].T), "bias": jnp.array(data.start[f"{layer}.bias"])}
        for layer in ("fc1", "fc2")
    }
    state = TrainState.create(apply_fn=Network().apply, params=params, tx=optax.sgd(LR))
    for _ in range(epochs):
        for first in range(0, len(data.labels), BATCH_SIZE):
            batch = slice(first, first + BATCH_SIZE)
            state, _ = train_step(state, data.images[batch], data.labels[batch])
        done(float(correct(state, data.test_images, data.test_labels)) / len(data.test_labels))
