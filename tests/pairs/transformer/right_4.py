"""The encoder on frozen dataclasses, on flax's function for attention."""

from collections.abc import Mapping
from dataclasses import dataclass, fields
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax.linen import dot_product_attention
from jax import Array
from jax.tree_util import register_dataclass

HEADS, LAYERS, DROPOUT = 4, 2, 0.1


@register_dataclass
@dataclass(frozen=True)
class Linear:
    """A kernel `(in, out)` and a bias."""

    kernel: Array
    bias: Array

    def __call__(self, x: Array) -> Array:
        return jnp.matmul(x, self.kernel, precision="highest") + self.bias


@register_dataclass
@dataclass(frozen=True)
class LayerNorm:
    """A scale and a shift of what is normalised."""

    scale: Array
    shift: Array

    def __call__(self, x: Array) -> Array:
        return jax.nn.standardize(x, epsilon=1e-5) * self.scale + self.shift


@register_dataclass
@dataclass(frozen=True)
class Layer:
    """Parameters of a layer, named by how torch names them with `_` for `.`."""

    attention_norm: LayerNorm
    attention_in: Linear
    attention_out: Linear
    mlp_norm: LayerNorm
    mlp_0: Linear
    mlp_2: Linear


@register_dataclass
@dataclass(frozen=True)
class Encoder:
    """All parameters."""

    tokens: Array
    positions: Array
    layers: list[Layer]
    norm: LayerNorm
    head_bias: Array


def drop(rng: Array | None, x: Array) -> Array:
    """x with a tenth of its elements dropped; all of x without a key."""
    if rng is None:
        return x
    kept = jax.random.uniform(rng, x.shape) >= DROPOUT
    return kept * x / (1 - DROPOUT)


def model(encoder: Encoder, tokens: Array, rng: Array | None = None) -> Array:
    """Maps tokens `(batch, length)` to logits `(batch, length, 24)`."""
    keys: list[Any] = [None] * (1 + 2 * LAYERS) if rng is None else list(jax.random.split(rng, 1 + 2 * LAYERS))
    batch, length = tokens.shape
    x = jnp.take(encoder.tokens, tokens, axis=0) + jnp.take(encoder.positions, jnp.arange(length), axis=0)
    x = drop(keys.pop(), x)
    mask = jnp.not_equal(tokens, 0)[:, None, None, :]
    for layer in encoder.layers:
        q, k, v = jnp.split(layer.attention_in(layer.attention_norm(x)), 3, axis=-1)
        q, k, v = (part.reshape(batch, length, HEADS, -1) for part in (q, k, v))
        attended = dot_product_attention(q, k, v, mask=mask, precision="highest")
        x = x + drop(keys.pop(), layer.attention_out(attended.reshape(batch, length, -1)))
        hidden = jax.nn.gelu(layer.mlp_0(layer.mlp_norm(x)), approximate=False)
        x = x + drop(keys.pop(), layer.mlp_2(hidden))
    return Linear(encoder.tokens.T, encoder.head_bias)(encoder.norm(x))


def warmup_cosine(step: Array) -> Array:
    """Three steps up, thirty-seven down."""
    step = step.astype(float)
    return jnp.piecewise(
        step,
        [step < 3, step >= 40],
        [lambda t: 2e-3 * (t + 1) / 3, 0.0, lambda t: 1e-3 * (1 + jnp.cos(jnp.pi * (t - 3) / 37))],
    )


def scale_to_norm(grads: optax.Updates, _: optax.Params | None) -> optax.Updates:
    """The gradients cut to a norm of 1, as torch cuts them."""
    squares = jax.tree.reduce(lambda a, b: a + b, jax.tree.map(lambda g: jnp.sum(g * g), grads))
    return jax.tree.map(lambda g: g * jnp.clip(1 / (jnp.sqrt(squares) + 1e-6), None, 1), grads)


optimizer = optax.chain(
    optax.stateless(scale_to_norm),
    optax.adamw(warmup_cosine, weight_decay=0.05, mask=lambda params: jax.tree.map(lambda leaf: leaf.ndim > 1, params)),
)

TORCH_NAMES = {"attention_out": "attention.out_proj", "mlp_0": "mlp.0", "mlp_2": "mlp.2"}


def from_torch(state_dict: Mapping[str, np.ndarray]) -> dict[str, Any]:
    """The variables from torch's."""
    tensors = {name: jnp.asarray(tensor) for name, tensor in state_dict.items()}

    def part(layer: str, name: str) -> Linear | LayerNorm:
        if name == "attention_in":
            packed = f"{layer}.attention.in_proj_"
            return Linear(tensors[f"{packed}weight"].T, tensors[f"{packed}bias"])
        name = f"{layer}.{TORCH_NAMES.get(name, name)}"
        weight, bias = tensors[f"{name}.weight"], tensors[f"{name}.bias"]
        return LayerNorm(weight, bias) if weight.ndim == 1 else Linear(weight.T, bias)

    def layer(index: int) -> Layer:
        parts: dict[str, Any] = {field.name: part(f"layers.{index}", field.name) for field in fields(Layer)}
        return Layer(**parts)

    encoder = Encoder(
        tokens=tensors["tokens.weight"],
        positions=tensors["positions.weight"],
        layers=[layer(index) for index in range(LAYERS)],
        norm=LayerNorm(tensors["norm.weight"], tensors["norm.bias"]),
        head_bias=tensors["head.bias"],
    )
    return {"params": encoder, "batch_stats": {}}


def to_torch(variables: dict[str, Any]) -> dict[str, np.ndarray]:
    """torch's state dict from the variables."""
    encoder: Encoder = jax.tree.map(np.asarray, variables["params"])
    state_dict: dict[str, Any] = {
        "tokens.weight": encoder.tokens,
        "head.weight": encoder.tokens,
        "positions.weight": encoder.positions,
        "norm.weight": encoder.norm.scale,
        "norm.bias": encoder.norm.shift,
        "head.bias": encoder.head_bias,
    }
    for index, layer in enumerate(encoder.layers):
        for field in fields(Layer):
            part, name = getattr(layer, field.name), f"layers.{index}.{TORCH_NAMES.get(field.name, field.name)}."
            name = name.replace("attention_in.", "attention.in_proj_")
            weight, bias = (part.scale, part.shift) if isinstance(part, LayerNorm) else (part.kernel.T, part.bias)
            state_dict |= {f"{name}weight": weight, f"{name}bias": bias}
    return state_dict


def outputs(
    variables: dict[str, Any], batch: Mapping[str, Array], train: bool, rng: Array | None = None
) -> dict[str, Array]:
    """The logits of every position, padding's too."""
    return {"logits": model(variables["params"], jnp.asarray(batch["tokens"]), rng if train else None)}


def loss(
    variables: dict[str, Any], batch: Mapping[str, Array], train: bool, rng: Array | None = None
) -> tuple[Array, dict[str, Any]]:
    """The cross-entropy's mean over masked positions, labels smoothed by 0.1, and no statistics."""
    logits, labels = outputs(variables, batch, train, rng)["logits"], jnp.asarray(batch["labels"])
    counted = (labels != -100).astype(logits.dtype)
    hard = optax.softmax_cross_entropy_with_integer_labels(logits, jnp.where(labels == -100, 0, labels))
    soft = jax.nn.logsumexp(logits, axis=-1) - logits.mean(axis=-1)
    return jnp.average(0.9 * hard + 0.1 * soft, weights=counted), {}


@jax.jit
def train_step(
    variables: dict[str, Any], opt_state: Any, batch: Mapping[str, Array], rng: Array | None = None
) -> tuple[dict[str, Any], Any, Array]:
    """The variables and the optimizer's state after a step on a batch, and its loss."""

    def objective(encoder: Encoder) -> tuple[Array, dict[str, Any]]:
        return loss({"params": encoder}, batch, True, rng)

    (value, stats), grads = jax.value_and_grad(objective, has_aux=True)(variables["params"])
    updates, opt_state = optimizer.update(grads, opt_state, variables["params"])
    return {"params": optax.apply_updates(variables["params"], updates), "batch_stats": stats}, opt_state, value
