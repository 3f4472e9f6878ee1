"""Guesses masked tokens, in JAX: the port of `program`."""

import re
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

VOCABULARY, LENGTH, WIDTH, HEADS, LAYERS = 24, 12, 32, 4, 2
PAD, IGNORED = 0, -100
WARMUP_STEPS, STEPS = 3, 40

Dense = partial(nn.Dense, precision="highest")
LayerNorm = partial(nn.LayerNorm, epsilon=1e-5, use_fast_variance=False)


class SelfAttention(nn.Module):
    """Attention whose queries, keys and values are one product's thirds; `padding` is not attended to."""

    @nn.compact
    def __call__(self, x: jax.Array, padding: jax.Array) -> jax.Array:
        batch, length, width = x.shape
        packed = Dense(3 * width, name="in_proj")(x).reshape(batch, length, 3, HEADS, width // HEADS)
        query, key, value = jnp.moveaxis(packed, 2, 0)
        scores = jnp.einsum("bqhd,bkhd->bhqk", query, key, precision="highest") / np.sqrt(width // HEADS)
        weights = nn.softmax(jnp.where(padding[:, None, None, :], -jnp.inf, scores))
        attended = jnp.einsum("bhqk,bkhd->bqhd", weights, value, precision="highest")
        mixed: jax.Array = Dense(width, name="out_proj")(attended.reshape(batch, length, width))
        return mixed


class EncoderLayer(nn.Module):
    """Attention and a two-layer perceptron, each normalised first and added to its input."""

    dropout: float

    @nn.compact
    def __call__(self, x: jax.Array, padding: jax.Array, deterministic: bool) -> jax.Array:
        dropout = partial(nn.Dropout(self.dropout), deterministic=deterministic)
        normed = LayerNorm(name="attention_norm")(x)
        x = x + dropout(SelfAttention(name="attention")(normed, padding))
        hidden = nn.gelu(Dense(4 * WIDTH, name="mlp_in")(LayerNorm(name="mlp_norm")(x)), approximate=False)
        update: jax.Array = dropout(Dense(WIDTH, name="mlp_out")(hidden))
        return x + update


class Encoder(nn.Module):
    """Maps tokens `(batch, length)` to logits `(batch, length, 24)`."""

    dropout: float = 0.1

    @nn.compact
    def __call__(self, tokens: jax.Array, deterministic: bool) -> jax.Array:
        embedding = self.param("tokens", nn.initializers.normal(1.0), (VOCABULARY, WIDTH))
        positions = self.param("positions", nn.initializers.normal(1.0), (LENGTH, WIDTH))
        x = embedding[tokens] + positions[: tokens.shape[1]]
        x = nn.Dropout(self.dropout)(x, deterministic=deterministic)
        for layer in range(LAYERS):
            x = EncoderLayer(self.dropout, name=f"layer{layer}")(x, tokens == PAD, deterministic)
        x = LayerNorm(name="norm")(x)
        bias = self.param("head_bias", nn.initializers.zeros, (VOCABULARY,))
        return jnp.einsum("btd,vd->btv", x, embedding, precision="highest") + bias


def clip_by_global_norm(limit: float) -> optax.GradientTransformation:
    """torch's `clip_grad_norm_`, which adds 1e-6 to the norm."""

    def update(updates: optax.Updates, params: optax.Params | None) -> optax.Updates:
        del params
        factor = jnp.minimum(1.0, limit / (optax.global_norm(updates) + 1e-6))
        return jax.tree.map(lambda leaf: leaf * factor, updates)

    return optax.stateless(update)


def learning_rate(step: jax.Array) -> jax.Array:
    """Three steps of linear warm-up to 2e-3, then half a cosine down to nothing."""
    progress = jnp.minimum(1.0, (step - WARMUP_STEPS) * (1 / (STEPS - WARMUP_STEPS)))
    cosine = 0.5 * (1 + jnp.cos(jnp.pi * progress))
    return 2e-3 * jnp.where(step < WARMUP_STEPS, (step + 1) * (1 / WARMUP_STEPS), cosine)


def decays(params: Any) -> Any:
    """Which parameters decay: kernels and embeddings."""
    return traverse_util.path_aware_map(lambda path, _: not re.search("norm|bias", "/".join(map(str, path))), params)


model = Encoder()
optimizer = optax.chain(
    clip_by_global_norm(1.0),
    optax.adamw(learning_rate, weight_decay=0.05, mask=decays),
)


def torch_name(path: tuple[str, ...]) -> str:
    """Where torch has the parameter at a path."""
    name = re.sub(r"^layer(\d)", r"layers.\1", ".".join(path))
    for pattern, replacement in {
        r"in_proj\.kernel": "in_proj_weight",
        r"in_proj\.bias": "in_proj_bias",
        "mlp_in": "mlp.0",
        "mlp_out": "mlp.2",
        "kernel$|scale$": "weight",
        "^(tokens|positions)$": r"\1.weight",
        "head_bias": "head.bias",
    }.items():
        name = re.sub(pattern, replacement, name)
    return name


def from_torch(state_dict: Mapping[str, np.ndarray]) -> Variables:
    """The variables from torch's: a kernel is a weight transposed."""
    tokens = jnp.zeros((1, LENGTH), int)
    shapes = jax.eval_shape(lambda rng: model.init(rng, tokens, deterministic=True), jax.random.key(0))["params"]

    def convert(path: tuple[Any, ...], _: Any) -> jax.Array:
        tensor = jnp.asarray(state_dict[torch_name(path)])
        return tensor.T if path[-1] == "kernel" else tensor

    return {"params": traverse_util.path_aware_map(convert, shapes), "batch_stats": {}}


def to_torch(variables: Variables) -> dict[str, np.ndarray]:
    """torch's state dict from the variables, in which the embedding is the head's weight, too."""
    state_dict = {}
    for path, leaf in traverse_util.flatten_dict(variables["params"]).items():
        state_dict[torch_name(path)] = np.asarray(leaf).T if path[-1] == "kernel" else np.asarray(leaf)
    state_dict["head.weight"] = state_dict["tokens.weight"]
    return state_dict


def outputs(variables: Variables, batch: Batch, train: bool, rng: jax.Array | None = None) -> dict[str, jax.Array]:
    """The logits of every position, padding's too."""
    rngs = {} if rng is None else {"dropout": rng}
    tokens = jnp.asarray(batch["tokens"])
    logits: Any = model.apply({"params": variables["params"]}, tokens, not train or rng is None, rngs=rngs)
    return {"logits": logits}


def loss(
    variables: Variables, batch: Batch, train: bool, rng: jax.Array | None = None
) -> tuple[jax.Array, dict[str, Any]]:
    """The cross-entropy's mean over masked positions, labels smoothed by 0.1, and no statistics."""
    logits = outputs(variables, batch, train, rng)["logits"]
    counted = batch["labels"] != IGNORED
    labels = jnp.where(counted, batch["labels"], 0)
    targets = optax.smooth_labels(jax.nn.one_hot(labels, VOCABULARY, dtype=logits.dtype), 0.1)
    losses = optax.softmax_cross_entropy(logits, targets)
    return jnp.sum(losses * counted) / jnp.sum(counted, dtype=logits.dtype), {}


@jax.jit
def train_step(
    variables: Variables, opt_state: optax.OptState, batch: Batch, rng: jax.Array | None = None
) -> tuple[Variables, optax.OptState, jax.Array]:
    """The variables and the optimizer's state after a step on a batch, and its loss."""

    def objective(params: Any) -> tuple[jax.Array, dict[str, Any]]:
        return loss({**variables, "params": params}, batch, train=True, rng=rng)

    (value, batch_stats), grads = jax.value_and_grad(objective, has_aux=True)(variables["params"])
    updates, opt_state = optimizer.update(grads, opt_state, variables["params"])
    params = optax.apply_updates(variables["params"], updates)
    return {"params": params, "batch_stats": batch_stats}, opt_state, value
