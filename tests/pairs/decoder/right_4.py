"""The decoder of one sequence under `vmap`, on dataclasses, with a Python loop over its heads."""

from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax import Array, lax
from jax.tree_util import register_dataclass

HEADS, KV_HEADS, LAYERS = 4, 2, 2


@register_dataclass
@dataclass(frozen=True)
class Layer:
    """Kernels `(in, out)`, those of attention by head, and the scales of two norms."""

    attention_norm: Array
    queries: list[Array]
    keys: list[Array]
    values: list[Array]
    outs: list[Array]
    mlp_norm: Array
    gate: Array
    up: Array
    down: Array


@register_dataclass
@dataclass(frozen=True)
class Decoder:
    """All parameters."""

    embedding: Array
    layers: list[Layer]
    norm: Array
    lm_head: Array


def dot(x: Array, kernel: Array) -> Array:
    """The product in full precision."""
    return lax.dot(x, kernel, precision=lax.Precision.HIGHEST)


def normed(x: Array, scale: Array) -> Array:
    """Rows over their root mean squares."""
    dtype = jnp.promote_types(x.dtype, jnp.float32)
    rows = x.astype(dtype)
    return scale * (rows / jnp.sqrt((rows * rows).mean(axis=1, keepdims=True) + 1e-6)).astype(x.dtype)


def turned(x: Array) -> Array:
    """Rows turned by their position."""
    length, width = x.shape
    positions, pairs = jnp.arange(length, dtype=x.dtype), jnp.arange(width // 2, dtype=x.dtype)
    angle = jnp.tile(positions[:, None] * jnp.exp(-2 * float(np.log(10000.0)) / width * pairs), 2)
    halves = jnp.roll(x, width // 2, axis=1) * jnp.where(jnp.arange(width) < width // 2, -1, 1)
    return x * jnp.cos(angle) + halves * jnp.sin(angle)


def attention(layer: Layer, x: Array) -> Array:
    """The sum over heads of what each attends to."""
    earlier = jnp.tri(len(x), dtype=bool)
    total = jnp.zeros_like(x)
    for head, (query, out) in enumerate(zip(layer.queries, layer.outs, strict=True)):
        shared = head * KV_HEADS // HEADS
        q, k, v = turned(dot(x, query)), turned(dot(x, layer.keys[shared])), dot(x, layer.values[shared])
        scores = dot(q, k.T) / q.shape[1] ** 0.5
        weights = jax.nn.softmax(scores, where=earlier, axis=1)
        total = total + dot(dot(weights, v), out)
    return total


@partial(jax.vmap, in_axes=(None, 0))
def model(decoder: Decoder, tokens: Array) -> Array:
    """Maps tokens `(batch, length)` to logits of the next ones, `(batch, length, 32)`."""
    x = decoder.embedding[tokens]
    for layer in decoder.layers:
        x = x + attention(layer, normed(x, layer.attention_norm))
        inner = normed(x, layer.mlp_norm)
        x = x + dot(jax.nn.silu(dot(inner, layer.gate)) * dot(inner, layer.up), layer.down)
    return dot(normed(x, decoder.norm), decoder.lm_head)


def clip(grads: Any, _: Any) -> Any:
    """torch's `clip_grad_norm_(…, 0.5)`."""
    norm = jnp.linalg.norm(jnp.stack([jnp.linalg.norm(leaf) for leaf in jax.tree.leaves(grads)]))
    return jax.tree.map(lambda grad: grad * jnp.clip(0.5 / (norm + 1e-6), max=1), grads)


def cycle(first: float, top: float, last: float) -> optax.Schedule:
    """A table of torch's one cycle."""
    up, down = np.arange(9) / 9, np.arange(91) / 90
    rise = top + (first - top) * (1 + np.cos(np.pi * up)) / 2
    fall = last + (top - last) * (1 + np.cos(np.pi * down)) / 2
    table = [*rise.tolist(), *fall.tolist()]
    return lambda step: jnp.array(table)[step]


def decays(decoder: Any) -> Any:
    """The matrices of layers and head."""
    mask = jax.tree.map(lambda leaf: leaf.ndim == 2, decoder)
    return Decoder(embedding=False, layers=mask.layers, norm=False, lm_head=True)  # type: ignore[arg-type]


optimizer = optax.chain(
    optax.stateless(clip),
    optax.inject_hyperparams(optax.adamw, static_args=("mask",))(
        cycle(1.2e-4, 3e-3, 1.2e-8), b1=cycle(0.95, 0.85, 0.95), b2=0.95, weight_decay=0.1, mask=decays
    ),
)


def from_torch(state_dict: Mapping[str, np.ndarray]) -> dict[str, Any]:
    """The variables from torch's, head by head."""

    def weight(name: str) -> Array:
        return jnp.asarray(state_dict[f"{name}.weight"]).T

    def layer(name: str) -> Layer:
        return Layer(
            attention_norm=weight(f"{name}.attention_norm"),
            queries=jnp.split(weight(f"{name}.attention.q_proj"), HEADS, axis=1),
            keys=jnp.split(weight(f"{name}.attention.k_proj"), KV_HEADS, axis=1),
            values=jnp.split(weight(f"{name}.attention.v_proj"), KV_HEADS, axis=1),
            outs=jnp.split(weight(f"{name}.attention.o_proj"), HEADS, axis=0),
            mlp_norm=weight(f"{name}.mlp_norm"),
            gate=weight(f"{name}.gate_proj"),
            up=weight(f"{name}.up_proj"),
            down=weight(f"{name}.down_proj"),
        )

    layers = [layer(f"layers.{index}") for index in range(LAYERS)]
    decoder = Decoder(weight("embedding").T, layers, weight("norm"), weight("lm_head"))
    return {"params": decoder, "batch_stats": {}}


def to_torch(variables: dict[str, Any]) -> dict[str, np.ndarray]:
    """torch's state dict from the variables."""
    decoder: Any = jax.tree.map(np.asarray, variables["params"])
    kernels = {"embedding": decoder.embedding.T, "norm": decoder.norm, "lm_head": decoder.lm_head}
    for index, layer in enumerate(decoder.layers):
        name = f"layers.{index}"
        kernels |= {f"{name}.attention_norm": layer.attention_norm, f"{name}.mlp_norm": layer.mlp_norm}
        kernels[f"{name}.attention.q_proj"] = np.concatenate(layer.queries, axis=1)
        kernels[f"{name}.attention.k_proj"] = np.concatenate(layer.keys, axis=1)
        kernels[f"{name}.attention.v_proj"] = np.concatenate(layer.values, axis=1)
        kernels[f"{name}.attention.o_proj"] = np.concatenate(layer.outs, axis=0)
        kernels |= {f"{name}.{part}_proj": getattr(layer, part) for part in ("gate", "up", "down")}
    return {f"{name}.weight": kernel.T for name, kernel in kernels.items()}


def outputs(
    variables: dict[str, Any], batch: Mapping[str, Array], train: bool, rng: Array | None = None
) -> dict[str, Array]:
    """The logits of every position."""
    return {"logits": model(variables["params"], jnp.asarray(batch["tokens"]))}


def loss(
    variables: dict[str, Any], batch: Mapping[str, Array], train: bool, rng: Array | None = None
) -> tuple[Array, dict[str, Any]]:
    """The mean cross-entropy of every token but the first, given those before it, and no statistics."""

    @jax.vmap
    def of_sequence(logits: Array, tokens: Array) -> Array:
        log_probabilities = jax.nn.log_softmax(logits[:-1])
        return -jnp.mean(log_probabilities[jnp.arange(len(tokens) - 1), tokens[1:]])

    tokens = jnp.asarray(batch["tokens"])
    return of_sequence(model(variables["params"], tokens), tokens).mean(), {}


@jax.jit
def train_step(
    variables: dict[str, Any], opt_state: Any, batch: Mapping[str, Array], rng: Array | None = None
) -> tuple[dict[str, Any], Any, Array]:
    """The variables and the optimizer's state after a step on a batch, and its loss."""
    (value, stats), grads = jax.value_and_grad(lambda decoder: loss({"params": decoder}, batch, True), has_aux=True)(
        variables["params"]
    )
    updates, opt_state = optimizer.update(grads, opt_state, variables["params"])
    return {"params": optax.apply_updates(variables["params"], updates), "batch_stats": stats}, opt_state, value
