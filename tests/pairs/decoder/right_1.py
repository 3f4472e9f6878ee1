"""The decoder in plain JAX on torch's state dict: rotations as complex products, AdamW and its cycle by hand."""

from collections.abc import Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

Params = dict[str, jax.Array]
Batch = Mapping[str, jax.Array]

HEADS, KV_HEADS, LAYERS = 4, 2, 2


def linear(params: Params, name: str, x: jax.Array) -> jax.Array:
    """`x @ weight.T`."""
    return jnp.einsum("...i,oi->...o", x, params[f"{name}.weight"], precision="highest")


def rms_norm(params: Params, name: str, x: jax.Array) -> jax.Array:
    """x over its root mean square, in float32 at least."""
    wide = x.astype(jnp.promote_types(x.dtype, jnp.float32))
    wide = wide / jnp.sqrt(jnp.mean(jnp.square(wide), axis=-1, keepdims=True) + 1e-6)
    return params[f"{name}.weight"] * wide.astype(x.dtype)


def rotate(x: jax.Array) -> jax.Array:
    """Turns pairs of the halves of `(batch, length, heads, width)` in the complex plane."""
    length, half = x.shape[1], x.shape[-1] // 2
    speeds = 1e4 ** (-jnp.arange(half, dtype=x.dtype) / half)
    turns = jnp.exp(1j * jnp.arange(length, dtype=x.dtype)[:, None] * speeds)[:, None, :]
    turned = jax.lax.complex(x[..., :half], x[..., half:]) * turns
    return jnp.concatenate([turned.real, turned.imag], axis=-1)


def attention(params: Params, name: str, x: jax.Array) -> jax.Array:
    """Causal attention; keys and values are repeated for the heads that share them."""
    batch, length, _ = x.shape
    q, k, v = (linear(params, f"{name}.{part}_proj", x).reshape(batch, length, -1, 8) for part in "qkv")
    q, k = rotate(q), jnp.repeat(rotate(k), HEADS // KV_HEADS, axis=2)
    v = jnp.repeat(v, HEADS // KV_HEADS, axis=2)
    scores = jnp.einsum("bqhd,bkhd->bhqk", q, k, precision="highest") / np.sqrt(8)
    scores = jnp.where(jnp.arange(length)[:, None] >= jnp.arange(length), scores, float(np.finfo(scores.dtype).min))
    weights = jax.nn.softmax(scores, axis=-1)
    mixed = jnp.einsum("bhqk,bkhd->bqhd", weights, v, precision="highest")
    return linear(params, f"{name}.o_proj", mixed.reshape(batch, length, -1))


def model(params: Params, tokens: jax.Array) -> jax.Array:
    """Maps tokens `(batch, length)` to logits of the next ones, `(batch, length, 32)`."""
    x = params["embedding.weight"][tokens]
    for name in (f"layers.{layer}" for layer in range(LAYERS)):
        x = x + attention(params, f"{name}.attention", rms_norm(params, f"{name}.attention_norm", x))
        normed = rms_norm(params, f"{name}.mlp_norm", x)
        gate, up = linear(params, f"{name}.gate_proj", normed), linear(params, f"{name}.up_proj", normed)
        x = x + linear(params, f"{name}.down_proj", gate * jax.nn.sigmoid(gate) * up)
    return linear(params, "lm_head", rms_norm(params, "norm", x))


class AdamWState(NamedTuple):
    """Steps taken, and the moving averages of gradients and of their squares."""

    step: jax.Array
    first: Any
    second: Any


def init(params: Any) -> AdamWState:
    """No steps, averages of zero."""
    return AdamWState(jnp.zeros((), jnp.int32), optax.tree.zeros_like(params), optax.tree.zeros_like(params))


def cycle(step: jax.Array, start: float, top: float, end: float) -> jax.Array:
    """torch's `OneCycleLR`: by half a cosine to the top at step 9, by half a cosine to the end at step 99."""
    rise, fall = (1 - jnp.cos(jnp.pi * step / 9.0)) / 2, (1 - jnp.cos(jnp.pi * (step - 9) / 90.0)) / 2
    return jnp.where(step <= 9, start + (top - start) * rise, top + (end - top) * fall)


def update(grads: Any, state: AdamWState, params: Any = None) -> tuple[Any, AdamWState]:
    """A step of torch's AdamW on gradients cut to a norm of 0.5, whose rate and first beta go through a cycle."""
    cut = jnp.minimum(0.5 / (optax.tree.norm(grads) + 1e-6), 1.0)
    rate = cycle(state.step, 1.2e-4, 3e-3, 1.2e-8)
    beta1, beta2, step = cycle(state.step, 0.95, 0.85, 0.95), 0.95, state.step + 1
    first, second, updates = {}, {}, {}
    for name, parameter in params.items():
        grad = grads[name] * cut
        first[name] = state.first[name] + (1 - beta1) * (grad - state.first[name])
        second[name] = beta2 * state.second[name] + (1 - beta2) * grad * grad
        root = jnp.sqrt(second[name]) / jnp.sqrt(1 - beta2**step) + 1e-8
        decay = 0.0 if "norm" in name or "embedding" in name else 0.1 * parameter
        updates[name] = -rate * (first[name] / (1 - beta1**step) / root + decay)
    return updates, AdamWState(step, first, second)


optimizer = optax.GradientTransformation(init, update)


def from_torch(state_dict: Mapping[str, np.ndarray]) -> dict[str, Any]:
    """The variables: torch's state dict."""
    return {"params": {name: jnp.asarray(tensor) for name, tensor in state_dict.items()}, "batch_stats": {}}


def to_torch(variables: dict[str, Any]) -> dict[str, np.ndarray]:
    """torch's state dict."""
    return {name: np.asarray(leaf) for name, leaf in variables["params"].items()}


def outputs(variables: dict[str, Any], batch: Batch, train: bool, rng: jax.Array | None = None) -> dict[str, jax.Array]:
    """The logits of every position."""
    return {"logits": model(variables["params"], jnp.asarray(batch["tokens"]))}


def loss(
    variables: dict[str, Any], batch: Batch, train: bool, rng: jax.Array | None = None
) -> tuple[jax.Array, dict[str, Any]]:
    """The mean cross-entropy of every token but the first, given those before it, and no statistics."""
    tokens = jnp.asarray(batch["tokens"])
    logits = model(variables["params"], tokens[:, :-1])  # causal: the last token's logits are not needed
    hits = jnp.take_along_axis(logits, tokens[:, 1:, None], axis=-1)[..., 0]
    return jnp.mean(jax.nn.logsumexp(logits, axis=-1) - hits), {}


@jax.jit
def train_step(
    variables: dict[str, Any], opt_state: Any, batch: Batch, rng: jax.Array | None = None
) -> tuple[dict[str, Any], Any, jax.Array]:
    """The variables and the optimizer's state after a step on a batch, and its loss."""
    (value, _), grads = jax.value_and_grad(loss, has_aux=True)(variables, batch, True)
    updates, opt_state = update(grads["params"], opt_state, variables["params"])
    return {**variables, "params": optax.apply_updates(variables["params"], updates)}, opt_state, value
