"""Predicts next tokens, in JAX: the port of `program`."""

from collections.abc import Mapping
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import linen as nn
from flax import traverse_util

Variables = dict[str, Any]
Batch = Mapping[str, jax.Array]

VOCABULARY, WIDTH, GATED, LAYERS = 32, 32, 48, 2
HEADS, KV_HEADS, HEAD_WIDTH = 4, 2, 8
ROPE_BASE = 10000.0

Dense = partial(nn.Dense, use_bias=False, precision="highest")


class RMSNorm(nn.Module):
    """Divides by the root mean square, computed in float32 at least."""

    epsilon: float = 1e-6

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        scale = self.param("scale", nn.initializers.ones, x.shape[-1:])
        wide = x.astype(jnp.promote_types(x.dtype, jnp.float32))
        wide *= jax.lax.rsqrt(jnp.mean(wide**2, axis=-1, keepdims=True) + self.epsilon)
        return wide.astype(x.dtype) * scale


def rotate(x: jax.Array) -> jax.Array:
    """Turns queries or keys `(batch, length, heads, width)` by angles that grow with the position."""
    length, width = x.shape[1], x.shape[-1]
    frequencies = ROPE_BASE ** (-jnp.arange(0, width, 2, dtype=x.dtype) / width)
    angles = jnp.outer(jnp.arange(length, dtype=x.dtype), frequencies)[:, None, :]
    cos, sin = jnp.cos(angles), jnp.sin(angles)
    first, second = jnp.split(x, 2, axis=-1)
    return jnp.concatenate([first * cos - second * sin, second * cos + first * sin], axis=-1)


class Attention(nn.Module):
    """Causal attention in which two heads of queries share a head of keys and values."""

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        batch, length, width = x.shape
        q = Dense(HEADS * HEAD_WIDTH, name="q_proj")(x).reshape(batch, length, HEADS, HEAD_WIDTH)
        k = Dense(KV_HEADS * HEAD_WIDTH, name="k_proj")(x).reshape(batch, length, KV_HEADS, HEAD_WIDTH)
        v = Dense(KV_HEADS * HEAD_WIDTH, name="v_proj")(x).reshape(batch, length, KV_HEADS, HEAD_WIDTH)
        grouped = rotate(q).reshape(batch, length, KV_HEADS, HEADS // KV_HEADS, HEAD_WIDTH)
        scores = jnp.einsum("bqkgd,bskd->bkgqs", grouped, rotate(k), precision="highest") * HEAD_WIDTH**-0.5
        causal = jnp.tril(jnp.ones((length, length), bool))
        weights = nn.softmax(jnp.where(causal, scores, -jnp.inf))
        attended = jnp.einsum("bkgqs,bskd->bqkgd", weights, v, precision="highest")
        return Dense(width, name="o_proj")(attended.reshape(batch, length, HEADS * HEAD_WIDTH))


class DecoderLayer(nn.Module):
    """Attention and a SwiGLU perceptron, each normalised first and added to its input."""

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        x = x + Attention(name="attention")(RMSNorm(name="attention_norm")(x))
        normed = RMSNorm(name="mlp_norm")(x)
        gate, up = Dense(GATED, name="gate_proj")(normed), Dense(GATED, name="up_proj")(normed)
        return x + Dense(x.shape[-1], name="down_proj")(nn.silu(gate) * up)


class Decoder(nn.Module):
    """Maps tokens `(batch, length)` to logits of the next ones, `(batch, length, 32)`."""

    @nn.compact
    def __call__(self, tokens: jax.Array) -> jax.Array:
        x = nn.Embed(VOCABULARY, WIDTH, name="embedding")(tokens)
        for layer in range(LAYERS):
            x = DecoderLayer(name=f"layers_{layer}")(x)
        return Dense(VOCABULARY, name="lm_head")(RMSNorm(name="norm")(x))


def one_cycle(start: float, peak: float, end: float, peak_step: int = 9, last_step: int = 99) -> optax.Schedule:
    """torch's `OneCycleLR` of a hundred steps: half a cosine to the peak, half a cosine to the end."""

    def between(first: float, last: float, progress: jax.Array) -> jax.Array:
        return last + 0.5 * (first - last) * (1 + jnp.cos(jnp.pi * progress))

    def schedule(step: jax.Array) -> jax.Array:
        rising = between(start, peak, step / float(peak_step))
        falling = between(peak, end, (step - peak_step) / float(last_step - peak_step))
        return jnp.where(step <= peak_step, rising, falling)

    return schedule


def clip_by_global_norm(limit: float) -> optax.GradientTransformation:
    """torch's `clip_grad_norm_`, which adds 1e-6 to the norm."""

    def update(updates: optax.Updates, params: optax.Params | None) -> optax.Updates:
        del params
        factor = jnp.minimum(1.0, limit / (optax.global_norm(updates) + 1e-6))
        return jax.tree.map(lambda leaf: leaf * factor, updates)

    return optax.stateless(update)


def decays(params: Any) -> Any:
    """Which parameters decay: the kernels."""
    return traverse_util.path_aware_map(lambda path, _: path[-1] == "kernel", params)


model = Decoder()
# torch's OneCycleLR moves Adam's beta1 against the learning rate, between 0.95 and 0.85.
optimizer = optax.chain(
    clip_by_global_norm(0.5),
    optax.inject_hyperparams(optax.adamw, static_args="mask")(
        learning_rate=one_cycle(3e-3 / 25, 3e-3, 3e-3 / 25 / 1e4),
        b1=one_cycle(0.95, 0.85, 0.95),
        b2=0.95,
        weight_decay=0.1,
        mask=decays,
    ),
)

LEAVES = {"kernel": "weight", "scale": "weight", "embedding": "weight"}


def torch_name(path: tuple[str, ...]) -> str:
    """Where torch has the parameter at a path."""
    return ".".join((*path[:-1], LEAVES[path[-1]])).replace("layers_", "layers.")


def from_torch(state_dict: Mapping[str, np.ndarray]) -> Variables:
    """The variables from torch's: a kernel is a weight transposed."""
    tokens = jnp.zeros((1, 1), int)
    shapes = jax.eval_shape(lambda rng: model.init(rng, tokens), jax.random.key(0))["params"]

    def convert(path: tuple[Any, ...], _: Any) -> jax.Array:
        tensor = jnp.asarray(state_dict[torch_name(path)])
        return tensor.T if path[-1] == "kernel" else tensor

    return {"params": traverse_util.path_aware_map(convert, shapes), "batch_stats": {}}


def to_torch(variables: Variables) -> dict[str, np.ndarray]:
    """torch's state dict from the variables."""
    return {
        torch_name(path): np.asarray(leaf).T if path[-1] == "kernel" else np.asarray(leaf)
        for path, leaf in traverse_util.flatten_dict(variables["params"]).items()
    }


def outputs(variables: Variables, batch: Batch, train: bool, rng: jax.Array | None = None) -> dict[str, jax.Array]:
    """The logits of every position."""
    logits: Any = model.apply({"params": variables["params"]}, jnp.asarray(batch["tokens"]))
    return {"logits": logits}


def loss(
    variables: Variables, batch: Batch, train: bool, rng: jax.Array | None = None
) -> tuple[jax.Array, dict[str, Any]]:
    """The mean cross-entropy of every token but the first, given those before it, and no statistics."""
    logits = outputs(variables, batch, train)["logits"]
    return optax.softmax_cross_entropy_with_integer_labels(logits[:, :-1], batch["tokens"][:, 1:]).mean(), {}


@jax.jit
def train_step(
    variables: Variables, opt_state: optax.OptState, batch: Batch, rng: jax.Array | None = None
) -> tuple[Variables, optax.OptState, jax.Array]:
    """The variables and the optimizer's state after a step on a batch, and its loss."""

    def objective(params: Any) -> tuple[jax.Array, dict[str, Any]]:
        return loss({**variables, "params": params}, batch, train=True)

    (value, batch_stats), grads = jax.value_and_grad(objective, has_aux=True)(variables["params"])
    updates, opt_state = optimizer.update(grads, opt_state, variables["params"])
    params = optax.apply_updates(variables["params"], updates)
    return {"params": params, "batch_stats": batch_stats}, opt_state, value
