"""The classifier in plain JAX, on a flat dict of parameters that keeps torch's names and layouts."""

from collections.abc import Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

Params = dict[str, jax.Array]
Batch = Mapping[str, jax.Array]


def linear(params: Params, name: str, x: jax.Array) -> jax.Array:
    """`x @ weight.T + bias`, as `nn.Linear`."""
    contracted = (((1,), (1,)), ((), ()))
    product = jax.lax.dot_general(x, params[f"{name}.weight"].astype(x.dtype), contracted, precision="highest")
    return product + params[f"{name}.bias"]


def dropout(rng: jax.Array | None, x: jax.Array, rate: float) -> jax.Array:
    """Zeroes a share of the elements and scales the others up; nothing happens without an `rng`."""
    if rng is None:
        return x
    return jnp.where(jax.random.bernoulli(rng, 1 - rate, x.shape), x / (1 - rate), 0)


def model(params: Params, images: jax.Array, rng: jax.Array | None = None, rate: float = 0.1) -> jax.Array:
    """Maps images `(batch, 1, 8, 8)` to logits `(batch, 10)`."""
    first, second = (None, None) if rng is None else jax.random.split(rng)
    x = images.reshape(len(images), -1).astype(params["head.weight"].dtype)
    x = dropout(first, jax.nn.relu(linear(params, "features.1", x)), rate)
    x = dropout(second, jax.nn.gelu(linear(params, "features.4", x), approximate=False), rate)
    x = linear(params, "features.7", x)
    x = jnp.where(x >= 0, x, 0.1 * x)
    return linear(params, "head", x)


class NesterovState(NamedTuple):
    """The number of steps taken, and the momentum of every parameter."""

    step: jax.Array
    momentum: optax.Updates


def nesterov(weight_decay: float = 5e-4, momentum: float = 0.9) -> optax.GradientTransformation:
    """torch's SGD with Nesterov's momentum, an L2 penalty and a step-wise learning rate."""

    def init(params: optax.Params) -> NesterovState:
        return NesterovState(jnp.zeros((), jnp.int32), optax.tree.zeros_like(params))

    def update(
        updates: optax.Updates, state: NesterovState, params: optax.Params | None = None
    ) -> tuple[optax.Updates, NesterovState]:
        grads = jax.tree.map(lambda g, p: g + weight_decay * p, updates, params)
        buffers = jax.tree.map(lambda b, g: momentum * b + g, state.momentum, grads)
        learning_rate = 0.1 * 0.8 ** (state.step // 2)
        steps = jax.tree.map(lambda g, b: -learning_rate * (g + momentum * b), grads, buffers)
        return steps, NesterovState(state.step + 1, buffers)

    return optax.GradientTransformation(init, update)


optimizer = nesterov()


def from_torch(state_dict: Mapping[str, np.ndarray]) -> dict[str, Any]:
    """The variables: torch's state dict, as it is."""
    return {"params": {name: jnp.asarray(tensor) for name, tensor in state_dict.items()}, "batch_stats": {}}


def to_torch(variables: Mapping[str, Any]) -> dict[str, np.ndarray]:
    """torch's state dict."""
    return {name: np.asarray(leaf) for name, leaf in variables["params"].items()}


def outputs(
    variables: Mapping[str, Any], batch: Batch, train: bool, rng: jax.Array | None = None
) -> dict[str, jax.Array]:
    """The logits of a batch."""
    return {"logits": model(variables["params"], batch["images"], rng if train else None)}


def loss(
    variables: Mapping[str, Any], batch: Batch, train: bool, rng: jax.Array | None = None
) -> tuple[jax.Array, dict[str, Any]]:
    """The mean cross-entropy, labels smoothed by 0.1, and no statistics."""
    logits = outputs(variables, batch, train, rng)["logits"]
    log_probabilities = logits - jax.nn.logsumexp(logits, axis=-1, keepdims=True)
    hit = jnp.take_along_axis(log_probabilities, jnp.asarray(batch["labels"])[:, None], axis=-1)[:, 0]
    return -jnp.mean(0.9 * hit + 0.1 * log_probabilities.mean(axis=-1)), {}


@jax.jit
def train_step(
    variables: dict[str, Any], opt_state: Any, batch: Batch, rng: jax.Array | None = None
) -> tuple[dict[str, Any], Any, jax.Array]:
    """The variables and the optimizer's state after a step on a batch, and its loss."""
    (value, _), grads = jax.value_and_grad(loss, has_aux=True)(variables, batch, True, rng)
    updates, opt_state = optimizer.update(grads["params"], opt_state, variables["params"])
    return {**variables, "params": optax.apply_updates(variables["params"], updates)}, opt_state, value
