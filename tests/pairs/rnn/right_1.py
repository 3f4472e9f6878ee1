"""The classifier in plain JAX on torch's state dict: all steps' inputs multiplied at once, then a scan of the rest."""

from collections.abc import Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax import lax

Params = dict[str, jax.Array]
Batch = Mapping[str, jax.Array]

CLASS_WEIGHTS = np.array([1.0, 0.5, 2.0, 1.5])


def linear(x: jax.Array, weight: jax.Array, bias: jax.Array) -> jax.Array:
    """`x @ weight.T + bias`."""
    return jnp.matmul(x, weight.T, precision="highest") + bias


def lstm(params: Params, layer: int, x: jax.Array) -> jax.Array:
    """A layer of `nn.LSTM` on `(time, batch, features)`."""
    w_ih, w_hh, b_ih, b_hh = (
        params[f"lstm.{part}_l{layer}"] for part in ("weight_ih", "weight_hh", "bias_ih", "bias_hh")
    )

    def step(carry: tuple[jax.Array, jax.Array], from_x: jax.Array) -> tuple[tuple[jax.Array, jax.Array], jax.Array]:
        h, c = carry
        i, f, g, o = jnp.split(from_x + linear(h, w_hh, b_hh), 4, axis=-1)
        c = jax.nn.sigmoid(f) * c + jax.nn.sigmoid(i) * jnp.tanh(g)
        h = jax.nn.sigmoid(o) * jnp.tanh(c)
        return (h, c), h

    zeros = jnp.zeros((x.shape[1], w_hh.shape[1]), x.dtype)
    return lax.scan(step, (zeros, zeros), linear(x, w_ih, b_ih))[1]


def gru(params: Params, x: jax.Array) -> jax.Array:
    """`nn.GRU` on `(time, batch, features)`."""
    w_hh, b_hh = params["gru.weight_hh_l0"], params["gru.bias_hh_l0"]

    def step(h: jax.Array, from_x: jax.Array) -> tuple[jax.Array, jax.Array]:
        xr, xz, xn = jnp.split(from_x, 3, axis=-1)
        hr, hz, hn = jnp.split(linear(h, w_hh, b_hh), 3, axis=-1)
        n = jnp.tanh(xn + jax.nn.sigmoid(xr + hr) * hn)
        h = n + jax.nn.sigmoid(xz + hz) * (h - n)
        return h, h

    zeros = jnp.zeros((x.shape[1], w_hh.shape[1]), x.dtype)
    return lax.scan(step, zeros, linear(x, params["gru.weight_ih_l0"], params["gru.bias_ih_l0"]))[1]


def dropout(rng: jax.Array | None, x: jax.Array, rate: float = 0.2) -> jax.Array:
    """x with a share of its elements dropped, if there is an `rng`."""
    return x if rng is None else jnp.where(jax.random.bernoulli(rng, 1 - rate, x.shape), x / (1 - rate), 0)


def model(params: Params, tokens: jax.Array, lengths: jax.Array, rng: jax.Array | None = None) -> jax.Array:
    """Maps tokens `(batch, length)` and lengths `(batch,)` to logits `(batch, 4)`."""
    first, second = (None, None) if rng is None else jax.random.split(rng)
    table = params["embedding.weight"]
    embedded = jnp.where((tokens == 0)[..., None], lax.stop_gradient(table)[tokens], table[tokens])
    x = jnp.swapaxes(dropout(first, embedded), 0, 1)
    x = gru(params, lstm(params, 1, lstm(params, 0, x)))
    present = (jnp.arange(len(x))[:, None] < lengths).astype(x.dtype)  # (time, batch)
    mean = jnp.einsum("tbf,tb->bf", x, present / lengths, precision="highest")
    return linear(dropout(second, mean), params["head.weight"], params["head.bias"])


class RMSpropState(NamedTuple):
    """The learning rate, moving averages of squared gradients and momenta."""

    learning_rate: jax.Array
    squares: optax.Updates
    momenta: optax.Updates


def init(params: optax.Params) -> RMSpropState:
    """The first learning rate, zeros for the others."""
    rate = jnp.asarray(2e-3, jnp.result_type(*jax.tree.leaves(params)))
    return RMSpropState(rate, optax.tree.zeros_like(params), optax.tree.zeros_like(params))


def update(
    grads: optax.Updates, state: RMSpropState, params: optax.Params | None = None
) -> tuple[optax.Updates, RMSpropState]:
    """A step of torch's RMSprop with momentum on clamped gradients, and of its `ExponentialLR`."""
    grads = jax.tree.map(lambda g: jnp.clip(g, -0.02, 0.02), grads)
    squares = jax.tree.map(lambda s, g: 0.9 * s + 0.1 * g * g, state.squares, grads)
    momenta = jax.tree.map(lambda m, g, s: 0.8 * m + g / (jnp.sqrt(s) + 1e-6), state.momenta, grads, squares)
    updates = jax.tree.map(lambda m: -state.learning_rate * m, momenta)
    return updates, RMSpropState(0.9 * state.learning_rate, squares, momenta)


optimizer = optax.GradientTransformation(init, update)


def from_torch(state_dict: Mapping[str, np.ndarray]) -> dict[str, Any]:
    """The variables: torch's state dict."""
    return {"params": {name: jnp.asarray(tensor) for name, tensor in state_dict.items()}, "batch_stats": {}}


def to_torch(variables: dict[str, Any]) -> dict[str, np.ndarray]:
    """torch's state dict."""
    return {name: np.asarray(leaf) for name, leaf in variables["params"].items()}


def outputs(variables: dict[str, Any], batch: Batch, train: bool, rng: jax.Array | None = None) -> dict[str, jax.Array]:
    """The logits of a batch."""
    tokens, lengths = jnp.asarray(batch["tokens"]), jnp.asarray(batch["lengths"])
    return {"logits": model(variables["params"], tokens, lengths, rng if train else None)}


def loss(
    variables: dict[str, Any], batch: Batch, train: bool, rng: jax.Array | None = None
) -> tuple[jax.Array, dict[str, Any]]:
    """The cross-entropy's mean, weighted by class, and no statistics."""
    logits = outputs(variables, batch, train, rng)["logits"]
    labels = jnp.asarray(batch["labels"])
    hits = jnp.take_along_axis(logits - jax.nn.logsumexp(logits, axis=-1, keepdims=True), labels[:, None], axis=-1)
    return -jnp.average(hits[:, 0], weights=jnp.asarray(CLASS_WEIGHTS, logits.dtype)[labels]), {}


@jax.jit
def train_step(
    variables: dict[str, Any], opt_state: Any, batch: Batch, rng: jax.Array | None = None
) -> tuple[dict[str, Any], Any, jax.Array]:
    """The variables and the optimizer's state after a step on a batch, and its loss."""
    (value, _), grads = jax.value_and_grad(loss, has_aux=True)(variables, batch, True, rng)
    updates, opt_state = update(grads["params"], opt_state, variables["params"])
    return {**variables, "params": optax.apply_updates(variables["params"], updates)}, opt_state, value
