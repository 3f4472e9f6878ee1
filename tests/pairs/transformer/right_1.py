"""The encoder in plain JAX on a flat dict of torch's names: one-hot look-ups, `dot_general`, AdamW by hand."""

import re
from collections.abc import Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax import lax

Params = dict[str, jax.Array]
Batch = Mapping[str, jax.Array]

HEADS, LAYERS, EPSILON = 4, 2, 1e-5
HIGHEST = lax.Precision.HIGHEST


def linear(params: Params, weight: str, bias: str, x: jax.Array) -> jax.Array:
    """`x @ weight.T + bias`."""
    return lax.dot_general(x, params[weight], (((x.ndim - 1,), (1,)), ((), ())), HIGHEST) + params[bias]


def layer_norm(params: Params, name: str, x: jax.Array) -> jax.Array:
    """`nn.LayerNorm` over the last axis."""
    x = x - x.mean(axis=-1, keepdims=True)
    x = x * lax.rsqrt(jnp.square(x).mean(axis=-1, keepdims=True) + EPSILON)
    return x * params[f"{name}.weight"] + params[f"{name}.bias"]


def attention(params: Params, name: str, x: jax.Array, bias: jax.Array) -> jax.Array:
    """`nn.MultiheadAttention` of x to itself; the bias `(batch, 1, 1, length)` is added to the scores."""
    packed = linear(params, f"{name}.in_proj_weight", f"{name}.in_proj_bias", x)
    q, k, v = (part.reshape(*x.shape[:2], HEADS, -1) for part in jnp.split(packed, 3, axis=-1))
    scores = lax.dot_general(q, k, (((3,), (3,)), ((0, 2), (0, 2))), HIGHEST)  # (batch, heads, queries, keys)
    weights = jax.nn.softmax(scores / q.shape[-1] ** 0.5 + bias, axis=-1)
    mixed = lax.dot_general(weights, v, (((3,), (1,)), ((0, 1), (0, 2))), HIGHEST)  # (batch, heads, queries, width)
    joined = jnp.swapaxes(mixed, 1, 2).reshape(x.shape)
    return linear(params, f"{name}.out_proj.weight", f"{name}.out_proj.bias", joined)


def model(params: Params, tokens: jax.Array, rng: jax.Array | None = None, rate: float = 0.1) -> jax.Array:
    """Maps tokens `(batch, length)` to logits `(batch, length, 24)`; without an `rng` nothing drops out."""
    keys = iter([None] * 5 if rng is None else list(jax.random.split(rng, 1 + 2 * LAYERS)))

    def dropout(x: jax.Array) -> jax.Array:
        key = next(keys)
        return x if key is None else jnp.where(jax.random.bernoulli(key, 1 - rate, x.shape), x / (1 - rate), 0)

    table = params["tokens.weight"]
    hot = jax.nn.one_hot(tokens, len(table), dtype=table.dtype)
    x = lax.dot_general(hot, table, (((2,), (0,)), ((), ())), HIGHEST)
    x = dropout(x + params["positions.weight"][None, : tokens.shape[1]])
    bias = jnp.where(tokens == 0, -jnp.inf, 0).astype(table.dtype)[:, None, None, :]
    for layer in (f"layers.{index}" for index in range(LAYERS)):
        normed = layer_norm(params, f"{layer}.attention_norm", x)
        x = x + dropout(attention(params, f"{layer}.attention", normed, bias))
        normed = layer_norm(params, f"{layer}.mlp_norm", x)
        hidden = jax.nn.gelu(linear(params, f"{layer}.mlp.0.weight", f"{layer}.mlp.0.bias", normed), approximate=False)
        x = x + dropout(linear(params, f"{layer}.mlp.2.weight", f"{layer}.mlp.2.bias", hidden))
    return linear(params, "tokens.weight", "head.bias", layer_norm(params, "norm", x))


class AdamWState(NamedTuple):
    """Steps taken, and the moving averages of gradients and of their squares."""

    step: jax.Array
    first: Params
    second: Params


def init(params: Any) -> AdamWState:
    """No steps, averages of zero."""
    return AdamWState(
        jnp.zeros((), jnp.int32), jax.tree.map(jnp.zeros_like, params), jax.tree.map(jnp.zeros_like, params)
    )


def update(grads: Any, state: AdamWState, params: Any = None) -> tuple[Any, AdamWState]:
    """A step of torch's AdamW on gradients cut to a norm of 1."""
    norm = jnp.sqrt(sum(jnp.vdot(grad, grad) for grad in grads.values()))
    cut = jnp.minimum(1.0, 1.0 / (norm + 1e-6))
    progress = (state.step - 3) / 37.0
    factor = jnp.where(state.step < 3, (state.step + 1) / 3.0, 0.5 + 0.5 * jnp.cos(jnp.pi * jnp.minimum(progress, 1.0)))
    rate, step = 2e-3 * factor, state.step + 1
    first = {name: 0.9 * state.first[name] + 0.1 * cut * grad for name, grad in grads.items()}
    second = {name: 0.999 * state.second[name] + 0.001 * jnp.square(cut * grad) for name, grad in grads.items()}
    updates = {}
    for name, parameter in params.items():
        decay = 0.0 if re.search("bias|norm", name) else 0.05
        root = jnp.sqrt(second[name]) / jnp.sqrt(1 - 0.999**step) + 1e-8
        updates[name] = -rate * decay * parameter - rate / (1 - 0.9**step) * first[name] / root
    return updates, AdamWState(step, first, second)


optimizer = optax.GradientTransformation(init, update)


def from_torch(state_dict: Mapping[str, np.ndarray]) -> dict[str, Any]:
    """The variables: torch's state dict without the head's weight, which is the embedding."""
    params = {name: jnp.asarray(tensor) for name, tensor in state_dict.items() if name != "head.weight"}
    return {"params": params, "batch_stats": {}}


def to_torch(variables: dict[str, Any]) -> dict[str, np.ndarray]:
    """torch's state dict."""
    state_dict = {name: np.asarray(leaf) for name, leaf in variables["params"].items()}
    return state_dict | {"head.weight": state_dict["tokens.weight"]}


def outputs(variables: dict[str, Any], batch: Batch, train: bool, rng: jax.Array | None = None) -> dict[str, jax.Array]:
    """The logits of every position, padding's too."""
    return {"logits": model(variables["params"], jnp.asarray(batch["tokens"]), rng if train else None)}


def loss(
    variables: dict[str, Any], batch: Batch, train: bool, rng: jax.Array | None = None
) -> tuple[jax.Array, dict[str, Any]]:
    """The cross-entropy's mean over masked positions, labels smoothed by 0.1, and no statistics."""
    logits = outputs(variables, batch, train, rng)["logits"]
    logits = logits.reshape(-1, logits.shape[-1])
    labels = jnp.ravel(batch["labels"])
    log_normalizer = jax.nn.logsumexp(logits, axis=-1)
    hits = jnp.take_along_axis(logits, jnp.maximum(labels, 0)[:, None], axis=-1)[:, 0]
    losses = log_normalizer - 0.9 * hits - 0.1 * logits.mean(axis=-1)
    return jnp.mean(losses, where=labels >= 0), {}


@jax.jit
def train_step(
    variables: dict[str, Any], opt_state: Any, batch: Batch, rng: jax.Array | None = None
) -> tuple[dict[str, Any], Any, jax.Array]:
    """The variables and the optimizer's state after a step on a batch, and its loss."""
    (value, _), grads = jax.value_and_grad(loss, has_aux=True)(variables, batch, True, rng)
    updates, opt_state = update(grads["params"], opt_state, variables["params"])
    return {**variables, "params": optax.apply_updates(variables["params"], updates)}, opt_state, value
