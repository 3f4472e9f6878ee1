"""The decoder from flax's own parts: `nn.RMSNorm`, `nn.DenseGeneral`, `nn.dot_product_attention`, a fused gate."""

from collections.abc import Mapping
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import linen as nn

WIDTH, GATED, HEADS, KV_HEADS, LAYERS, VOCABULARY, HEAD_WIDTH = 32, 48, 4, 2, 2, 32, 8


def angles(length: int, dtype: Any) -> jax.Array:
    """What each position turns each pair by, `(length, 1, 4)`."""
    exponents = jnp.arange(0, HEAD_WIDTH, 2).astype(dtype) / HEAD_WIDTH
    return jnp.einsum("t,f->tf", jnp.arange(length).astype(dtype), 10000**-exponents)[:, None, :]


def rotate(x: jax.Array, theta: jax.Array) -> jax.Array:
    """Turns the two halves of the last axis by theta."""
    pairs = x.reshape(*x.shape[:-1], 2, -1)
    first, second = pairs[..., 0, :], pairs[..., 1, :]
    turned = [first * jnp.cos(theta) - second * jnp.sin(theta), first * jnp.sin(theta) + second * jnp.cos(theta)]
    return jnp.stack(turned, axis=-2).reshape(x.shape)


class Layer(nn.Module):
    """A layer of the decoder."""

    def setup(self) -> None:
        dense = partial(nn.DenseGeneral, use_bias=False, precision="highest")
        self.attention_norm = nn.RMSNorm(epsilon=1e-6)
        self.q_proj = dense((HEADS, HEAD_WIDTH))
        self.k_proj = dense((KV_HEADS, HEAD_WIDTH))
        self.v_proj = dense((KV_HEADS, HEAD_WIDTH))
        self.o_proj = dense(WIDTH, axis=(-2, -1))
        self.mlp_norm = nn.RMSNorm(epsilon=1e-6)
        self.gate_and_up = dense(2 * GATED)
        self.down_proj = dense(WIDTH)

    def __call__(self, x: jax.Array, mask: jax.Array) -> jax.Array:
        normed = self.attention_norm(x)
        theta = angles(x.shape[1], x.dtype)
        q, k, v = rotate(self.q_proj(normed), theta), rotate(self.k_proj(normed), theta), self.v_proj(normed)
        k, v = (jnp.repeat(part, HEADS // KV_HEADS, axis=-2) for part in (k, v))
        x = x + self.o_proj(nn.dot_product_attention(q, k, v, mask=mask, precision="highest"))
        gate, up = jnp.split(self.gate_and_up(self.mlp_norm(x)), 2, axis=-1)
        update: jax.Array = self.down_proj(nn.swish(gate) * up)
        return x + update


class Decoder(nn.Module):
    """Maps tokens `(batch, length)` to logits of the next ones, `(batch, length, 32)`."""

    def setup(self) -> None:
        self.embedding = nn.Embed(VOCABULARY, WIDTH)
        self.layers = [Layer() for _ in range(LAYERS)]
        self.norm = nn.RMSNorm(epsilon=1e-6)
        self.lm_head = nn.Dense(VOCABULARY, use_bias=False, precision="highest")

    def __call__(self, tokens: jax.Array) -> jax.Array:
        x = self.embedding(tokens)
        mask = nn.make_causal_mask(tokens, dtype=bool)
        for layer in self.layers:
            x = layer(x, mask)
        logits: jax.Array = self.lm_head(self.norm(x))
        return logits


def half_cosine(step: jax.Array, first: float, middle: float, last: float) -> jax.Array:
    """From first to middle in nine steps, from there to last in ninety."""
    nine, ninety = jnp.clip(step / 9.0, 0, 1), jnp.clip((step - 9) / 90.0, 0, 1)
    weights = jnp.cos(jnp.pi / 2 * nine) ** 2, jnp.sin(jnp.pi / 2 * ninety) ** 2
    return weights[0] * first + weights[1] * last + (1 - weights[0] - weights[1]) * middle


def clip(grads: optax.Updates, _: optax.Params | None) -> optax.Updates:
    """torch's `clip_grad_norm_(…, 0.5)`."""
    norm = optax.global_norm(grads) + 1e-6
    return jax.tree.map(lambda g: jnp.where(norm > 0.5, g * (0.5 / norm), g), grads)


def decays(params: Any) -> Any:
    """Kernels decay, embeddings and scales do not."""
    return jax.tree_util.tree_map_with_path(lambda path, _: path[-1].key == "kernel", params)


def adamw(learning_rate: Any, b1: Any, weight_decay: Any) -> optax.GradientTransformation:
    """AdamW of which all numbers can change."""
    return optax.chain(
        optax.scale_by_adam(b1, b2=0.95),
        optax.add_decayed_weights(weight_decay, mask=decays),
        optax.scale_by_learning_rate(learning_rate),
    )


model = Decoder()
optimizer = optax.chain(
    optax.stateless(clip),
    optax.inject_hyperparams(adamw)(
        learning_rate=lambda step: half_cosine(step, 1.2e-4, 3e-3, 1.2e-8),
        b1=lambda step: half_cosine(step, 0.95, 0.85, 0.95),
        weight_decay=0.1,
    ),
)


def from_torch(state_dict: Mapping[str, np.ndarray]) -> dict[str, Any]:
    """The variables from torch's."""
    weights = {name.removesuffix(".weight"): jnp.asarray(tensor) for name, tensor in state_dict.items()}
    params: dict[str, Any] = {
        "embedding": {"embedding": weights["embedding"]},
        "norm": {"scale": weights["norm"]},
        "lm_head": {"kernel": weights["lm_head"].T},
    }
    for index in range(LAYERS):
        name = f"layers.{index}"
        layer = {norm: {"scale": weights[f"{name}.{norm}"]} for norm in ("attention_norm", "mlp_norm")}
        for part in "qkv":
            kernel = weights[f"{name}.attention.{part}_proj"].T
            layer[f"{part}_proj"] = {"kernel": kernel.reshape(WIDTH, -1, HEAD_WIDTH)}
        layer["o_proj"] = {"kernel": weights[f"{name}.attention.o_proj"].T.reshape(HEADS, HEAD_WIDTH, WIDTH)}
        gate_and_up = jnp.concatenate([weights[f"{name}.gate_proj"], weights[f"{name}.up_proj"]])
        layer["gate_and_up"] = {"kernel": gate_and_up.T}
        layer["down_proj"] = {"kernel": weights[f"{name}.down_proj"].T}
        params[f"layers_{index}"] = layer
    return {"params": params, "batch_stats": {}}


def to_torch(variables: dict[str, Any]) -> dict[str, np.ndarray]:
    """torch's state dict from the variables."""
    params = jax.tree.map(np.asarray, variables["params"])
    weights = {
        "embedding": params["embedding"]["embedding"],
        "norm": params["norm"]["scale"],
        "lm_head": params["lm_head"]["kernel"].T,
    }
    for index in range(LAYERS):
        name, layer = f"layers.{index}", params[f"layers_{index}"]
        weights |= {f"{name}.{norm}": layer[norm]["scale"] for norm in ("attention_norm", "mlp_norm")}
        for part in "qkv":
            weights[f"{name}.attention.{part}_proj"] = layer[f"{part}_proj"]["kernel"].reshape(WIDTH, -1).T
        weights[f"{name}.attention.o_proj"] = layer["o_proj"]["kernel"].reshape(-1, WIDTH).T
        weights[f"{name}.gate_proj"], weights[f"{name}.up_proj"] = np.split(layer["gate_and_up"]["kernel"].T, 2)
        weights[f"{name}.down_proj"] = layer["down_proj"]["kernel"].T
    return {f"{name}.weight": weight for name, weight in weights.items()}


def outputs(
    variables: dict[str, Any], batch: Mapping[str, jax.Array], train: bool, rng: jax.Array | None = None
) -> dict[str, jax.Array]:
    """The logits of every position."""
    logits: Any = model.apply({"params": variables["params"]}, jnp.asarray(batch["tokens"]))
    return {"logits": logits}


def loss(
    variables: dict[str, Any], batch: Mapping[str, jax.Array], train: bool, rng: jax.Array | None = None
) -> tuple[jax.Array, dict[str, Any]]:
    """The mean cross-entropy of every token but the first, given those before it, and no statistics."""
    log_probabilities = nn.log_softmax(outputs(variables, batch, train)["logits"][:, :-1])
    targets = jax.nn.one_hot(batch["tokens"][:, 1:], VOCABULARY, dtype=log_probabilities.dtype)
    return -jnp.mean(jnp.sum(targets * log_probabilities, axis=-1)), {}


@jax.jit
def train_step(
    variables: dict[str, Any], opt_state: Any, batch: Mapping[str, jax.Array], rng: jax.Array | None = None
) -> tuple[dict[str, Any], Any, jax.Array]:
    """The variables and the optimizer's state after a step on a batch, and its loss."""
    value, grads = jax.value_and_grad(lambda params: loss({"params": params}, batch, True)[0])(variables["params"])
    updates, opt_state = optimizer.update(grads, opt_state, variables["params"])
    return {"params": optax.apply_updates(variables["params"], updates), "batch_stats": {}}, opt_state, value
