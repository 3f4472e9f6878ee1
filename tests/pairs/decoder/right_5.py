"""The decoder in flax with attention that meets one key after the other, and never holds a matrix of scores."""

from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import linen as nn
from flax import traverse_util

HEADS, KV_HEADS, HEAD_WIDTH, WIDTH, GATED, LAYERS = 4, 2, 8, 32, 48, 2


def rotary(x: jax.Array) -> jax.Array:
    """Turns `(..., length, width)`; the first half of the width pairs with the second."""
    length, width = x.shape[-2:]
    frequencies = jnp.asarray(10000.0, x.dtype) ** jnp.linspace(0, -1, width // 2, endpoint=False, dtype=x.dtype)
    phase = jnp.multiply.outer(jnp.arange(length, dtype=x.dtype), frequencies)
    sin, cos = jnp.sin(phase), jnp.cos(phase)
    left, right = x[..., : width // 2], x[..., width // 2 :]
    return jnp.concatenate((left * cos - right * sin, right * cos + left * sin), axis=-1)


def streamed_attention(q: jax.Array, k: jax.Array, v: jax.Array) -> jax.Array:
    """Causal attention of queries `(batch, kv heads, group, length, width)` to keys and values without a group."""
    length = q.shape[-2]

    def meet(carry: tuple[jax.Array, jax.Array, jax.Array], now: Any) -> tuple[Any, None]:
        top, total, mixed = carry
        index, key, value = now
        score = jnp.einsum("bkgtd,bkd->bkgt", q, key, precision="highest") / jnp.sqrt(q.shape[-1]).astype(q.dtype)
        score = jnp.where(jnp.arange(length) >= index, score, -jnp.inf)
        higher = jax.lax.stop_gradient(jnp.maximum(top, score))
        shrink, power = jnp.exp(top - higher), jnp.exp(score - higher)
        mixed = mixed * shrink[..., None] + power[..., None] * value[:, :, None, None, :]
        return (higher, total * shrink + power, mixed), None

    # Every query sees the first key, so that no maximum stays at minus infinity.
    start = (
        jnp.full(q.shape[:-1], float(np.finfo(q.dtype).min), q.dtype),
        jnp.zeros(q.shape[:-1], q.dtype),
        jnp.zeros_like(q),
    )
    steps = jnp.arange(length), jnp.moveaxis(k, 2, 0), jnp.moveaxis(v, 2, 0)
    (_, total, mixed), _ = jax.lax.scan(meet, start, steps)
    return mixed / total[..., None]


class Scale(nn.Module):
    """RMS normalisation."""

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        gain = self.param("gain", nn.initializers.ones, (x.shape[-1],))
        wide = x.astype(jnp.promote_types(jnp.float32, x.dtype))
        power = jnp.einsum("...i,...i->...", wide, wide, precision="highest")[..., None] / x.shape[-1]
        return gain * (wide * (power + 1e-6) ** -0.5).astype(x.dtype)


class Product(nn.Module):
    """A product with weights `(out, in)`."""

    features: int

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        weight = self.param("weight", nn.initializers.lecun_normal(1, 0), (self.features, x.shape[-1]))
        return jnp.inner(x, weight, precision="highest")


class Decoder(nn.Module):
    """Maps tokens `(batch, length)` to logits of the next ones, `(batch, length, 32)`."""

    @nn.compact
    def __call__(self, tokens: jax.Array) -> jax.Array:
        table = self.param("embedding", nn.initializers.normal(1.0), (32, WIDTH))
        x = jnp.matmul(jax.nn.one_hot(tokens, 32, dtype=table.dtype), table, precision="highest")
        batch, length = tokens.shape
        for name in (f"layers.{index}" for index in range(LAYERS)):
            inner = Scale(name=f"{name}.attention_norm")(x)
            query, key, value = (
                Product(heads * HEAD_WIDTH, name=f"{name}.attention.{part}_proj")(inner)
                .reshape(batch, length, heads, HEAD_WIDTH)
                .swapaxes(1, 2)
                for part, heads in (("q", HEADS), ("k", KV_HEADS), ("v", KV_HEADS))
            )
            grouped = rotary(query).reshape(batch, KV_HEADS, -1, length, HEAD_WIDTH)
            mixed = streamed_attention(grouped, rotary(key), value)
            joined = mixed.reshape(batch, HEADS, length, HEAD_WIDTH).swapaxes(1, 2).reshape(batch, length, -1)
            x = x + Product(WIDTH, name=f"{name}.attention.o_proj")(joined)
            inner = Scale(name=f"{name}.mlp_norm")(x)
            gate = Product(GATED, name=f"{name}.gate_proj")(inner)
            up = Product(GATED, name=f"{name}.up_proj")(inner)
            x = x + Product(WIDTH, name=f"{name}.down_proj")(up * gate / (1 + jnp.exp(-gate)))
        logits: jax.Array = Product(32, name="lm_head")(Scale(name="norm")(x))
        return logits


def cycle(step: jax.Array, start: float, peak: float, end: float) -> jax.Array:
    """One cycle of a hundred steps."""
    step = jnp.asarray(step, float)
    progress = jnp.where(step <= 9, step / 9, 1 - (step - 9) / 90)  # up to one, and back
    base = jnp.where(step <= 9, start, end)
    return base + (peak - base) * (0.5 - 0.5 * jnp.cos(jnp.pi * progress))


def group(params: Any) -> Any:
    """Which of two optimizers a parameter has."""
    return traverse_util.path_aware_map(lambda path, _: "decayed" if path[-1] == "weight" else "kept", params)


def adamw(weight_decay: float) -> optax.GradientTransformation:
    """AdamW in a cycle of its rate and its first beta."""
    return optax.inject_hyperparams(optax.adamw)(
        learning_rate=lambda step: cycle(step, 1.2e-4, 3e-3, 1.2e-8),
        b1=lambda step: cycle(step, 0.95, 0.85, 0.95),
        b2=0.95,
        weight_decay=weight_decay,
    )


def clip(grads: optax.Updates, _: optax.Params | None) -> optax.Updates:
    """The gradients cut to a norm of 0.5."""
    total = jax.tree.reduce(jnp.add, jax.tree.map(lambda g: jnp.vdot(g, g, precision="highest"), grads))
    return jax.tree.map(lambda g: g * jnp.fmin(1.0, 0.5 / (total**0.5 + 1e-6)), grads)


model = Decoder()
optimizer = optax.chain(
    optax.stateless(clip), optax.multi_transform({"decayed": adamw(0.1), "kept": adamw(0.0)}, group)
)


def from_torch(state_dict: Mapping[str, np.ndarray]) -> dict[str, Any]:
    """The variables from torch's."""
    params: dict[str, Any] = {"embedding": jnp.asarray(state_dict["embedding.weight"])}
    for name, tensor in state_dict.items():
        if name != "embedding.weight":
            params[name.removesuffix(".weight")] = {"weight" if tensor.ndim == 2 else "gain": jnp.asarray(tensor)}
    return {"params": params, "batch_stats": {}}


def to_torch(variables: dict[str, Any]) -> dict[str, np.ndarray]:
    """torch's state dict from the variables."""
    return {f"{name}.weight": np.asarray(*jax.tree.leaves(branch)) for name, branch in variables["params"].items()}


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
    logits = outputs(variables, batch, train)["logits"][:, :-1]
    top = jax.lax.stop_gradient(logits.max(axis=-1, keepdims=True))
    normalizer = jnp.log(jnp.sum(jnp.exp(logits - top), axis=-1)) + top[..., 0]
    hits = jnp.einsum(
        "btv,btv->bt", logits, jax.nn.one_hot(batch["tokens"][:, 1:], 32, dtype=logits.dtype), precision="highest"
    )
    return jnp.mean(normalizer) - jnp.mean(hits), {}


@jax.jit
def train_step(
    variables: dict[str, Any], opt_state: Any, batch: Mapping[str, jax.Array], rng: jax.Array | None = None
) -> tuple[dict[str, Any], Any, jax.Array]:
    """The variables and the optimizer's state after a step on a batch, and its loss."""

    def objective(params: Any) -> tuple[jax.Array, dict[str, Any]]:
        return loss({"params": params}, batch, train=True)

    (value, batch_stats), grads = jax.value_and_grad(objective, has_aux=True)(variables["params"])
    updates, opt_state = optimizer.update(grads, opt_state, variables["params"])
    return {"params": optax.apply_updates(variables["params"], updates), "batch_stats": batch_stats}, opt_state, value
