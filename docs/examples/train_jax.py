"""Learns to sort eight digits: the port of `train_torch` to plain JAX functions and optax."""

from typing import Any

import jax
import jax.numpy as jnp
import optax

DIGITS, COUNT, WIDTH, HEADS, LAYERS = 10, 8, 32, 4, 2
LENGTH = 2 * COUNT - 1
RATE, DECAY, WARMUP, STEPS, LIMIT = 3e-3, 0.1, 20, 500, 1.0
IGNORED = -100

Params = dict[str, Any]
Batch = dict[str, jax.Array]


def init(key: jax.Array) -> Params:
    """Fresh parameters; distributed as torch's, but other numbers."""
    keys = iter(jax.random.split(key, 3 + 6 * LAYERS))

    def dense(fan_in: int, fan_out: int) -> Params:
        kernel = jax.random.uniform(next(keys), (fan_in, fan_out), minval=-1, maxval=1) * fan_in**-0.5
        return {"kernel": kernel, "bias": jnp.zeros(fan_out)}

    def norm() -> Params:
        return {"scale": jnp.ones(WIDTH), "bias": jnp.zeros(WIDTH)}

    layers = {
        f"layers_{layer}": {
            "norm1": norm(),
            "self_attn": {name: dense(WIDTH, WIDTH) for name in ("query", "key", "value", "out_proj")},
            "norm2": norm(),
            "linear1": dense(WIDTH, 4 * WIDTH),
            "linear2": dense(4 * WIDTH, WIDTH),
        }
        for layer in range(LAYERS)
    }
    return {
        "tokens": {"embedding": jax.random.normal(next(keys), (DIGITS, WIDTH))},
        "positions": {"embedding": jax.random.normal(next(keys), (LENGTH, WIDTH))},
        **layers,
        "norm": norm(),
        "head": {"kernel": dense(WIDTH, DIGITS)["kernel"]},
    }


def linear(params: Params, x: jax.Array) -> jax.Array:
    return jnp.dot(x, params["kernel"], precision="highest") + params.get("bias", 0)


def layer_norm(params: Params, x: jax.Array) -> jax.Array:
    centred = x - x.mean(-1, keepdims=True)
    variance = jnp.square(centred).mean(-1, keepdims=True)
    return centred / jnp.sqrt(variance + 1e-5) * params["scale"] + params["bias"]


def attention(params: Params, x: jax.Array) -> jax.Array:
    batch, length, width = x.shape

    def heads(name: str) -> jax.Array:
        return linear(params[name], x).reshape(batch, length, HEADS, width // HEADS)

    scores = jnp.einsum("bqhd,bkhd->bhqk", heads("query"), heads("key"), precision="highest")
    scores = scores / (width // HEADS) ** 0.5
    scores = jnp.where(jnp.tri(length, dtype=bool), scores, -jnp.inf)
    mixed = jnp.einsum("bhqk,bkhd->bqhd", jax.nn.softmax(scores), heads("value"), precision="highest")
    return linear(params["out_proj"], mixed.reshape(batch, length, width))


def block(params: Params, x: jax.Array) -> jax.Array:
    x = x + attention(params["self_attn"], layer_norm(params["norm1"], x))
    hidden = jax.nn.gelu(linear(params["linear1"], layer_norm(params["norm2"], x)), approximate=False)
    return x + linear(params["linear2"], hidden)


def logits_of(params: Params, tokens: jax.Array) -> jax.Array:
    """Logits `(batch, 15, 10)` of what comes next."""
    x = params["tokens"]["embedding"][tokens] + params["positions"]["embedding"][: tokens.shape[1]]
    for layer in range(LAYERS):
        x = block(params[f"layers_{layer}"], x)
    return linear(params["head"], layer_norm(params["norm"], x))


def loss_of(params: Params, batch: Batch) -> jax.Array:
    """Mean cross-entropy of the sorted digits; what stands before them is not asked for."""
    asked = batch["targets"] != IGNORED
    log_probabilities = jax.nn.log_softmax(logits_of(params, batch["tokens"]))
    chosen = jax.nn.one_hot(batch["targets"], DIGITS, dtype=log_probabilities.dtype)
    return -(log_probabilities * chosen).sum() / asked.sum()


def learning_rate(step: jax.Array) -> jax.Array:
    """Twenty steps of warm-up, then half a cosine down to 0."""
    step = 1.0 * step  # optax counts in int32, and JAX divides that in float32, in float64 programs too
    cosine = 0.5 * (1 + jnp.cos(jnp.pi * ((step - WARMUP) / (STEPS - WARMUP))))
    return RATE * jnp.where(step < WARMUP, (step + 1) / WARMUP, cosine)


def clip_by_global_norm(limit: float) -> optax.GradientTransformation:
    """torch's `clip_grad_norm_`, which adds 1e-6 to the norm; optax's does not."""

    def update(grads: Params, params: Params | None) -> Params:
        factor = jnp.minimum(1, limit / (optax.global_norm(grads) + 1e-6))
        return jax.tree.map(lambda grad: grad * factor, grads)

    return optax.stateless(update)


def decays(params: Params) -> Params:
    """Which parameters AdamW decays: matrices."""
    return jax.tree.map(lambda param: param.ndim > 1, params)


optimizer = optax.chain(
    clip_by_global_norm(LIMIT),
    optax.adamw(learning_rate, weight_decay=DECAY, mask=decays),
)
