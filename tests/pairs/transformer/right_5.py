"""The encoder in flax with four axes to attention's kernel, whose output is one einsum, and normalisation folded."""

from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import linen as nn
from jax.flatten_util import ravel_pytree

HEADS, LAYERS, WIDTH, VOCABULARY, LENGTH = 4, 2, 32, 24, 12
HEAD_WIDTH = WIDTH // HEADS


class Attention(nn.Module):
    """The kernel is `(3, heads, head width, width)`: queries are scaled, and the output's product is per head."""

    @nn.compact
    def __call__(self, x: jax.Array, padding: jax.Array) -> jax.Array:
        kernel = self.param("kernel", nn.initializers.xavier_uniform(), (3, HEADS, HEAD_WIDTH, WIDTH))
        bias = self.param("bias", nn.initializers.zeros, (3, HEADS, HEAD_WIDTH))
        out = self.param("out", nn.initializers.xavier_uniform(), (WIDTH, HEADS, HEAD_WIDTH))
        out_bias = self.param("out_bias", nn.initializers.zeros, (WIDTH,))
        packed = jnp.einsum("btw,phcw->pbhtc", x, kernel, precision="highest") + bias[:, None, :, None, :]
        query, key, value = packed[0] * HEAD_WIDTH**-0.5, packed[1], packed[2]
        scores = jnp.einsum("bhqc,bhkc->bhqk", query, key, precision="highest")
        scores = scores + -1e30 * padding[:, None, None, :]
        log_weights = scores - jax.nn.logsumexp(scores, axis=-1, keepdims=True)
        return jnp.einsum("bhqk,bhkc,whc->bqw", jnp.exp(log_weights), value, out, precision="highest") + out_bias


class Norm(nn.Module):
    """Layer normalisation as one scale and one shift of x."""

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        weight = self.param("weight", nn.initializers.ones, (WIDTH,))
        bias = self.param("bias", nn.initializers.zeros, (WIDTH,))
        mean = jnp.sum(x, axis=-1, keepdims=True) / WIDTH
        variance = jnp.einsum("...w,...w->...", x - mean, x - mean, precision="highest")[..., None] / WIDTH
        scale = weight / jnp.sqrt(variance + 1e-5)
        return x * scale + (bias - mean * scale)


class Encoder(nn.Module):
    """Maps tokens `(batch, length)` to logits `(batch, length, 24)`."""

    rate: float

    @nn.compact
    def __call__(self, tokens: jax.Array) -> jax.Array:
        table = self.param("tokens", nn.initializers.normal(0.1), (VOCABULARY, WIDTH))
        positions = self.param("positions", nn.initializers.normal(0.1), (LENGTH, WIDTH))

        def drop(x: jax.Array) -> jax.Array:
            dropped: jax.Array = nn.Dropout(self.rate, deterministic=self.rate == 0)(x)
            return dropped

        x = drop(table.at[tokens].get() + jax.lax.slice_in_dim(positions, 0, tokens.shape[1]))
        for index in range(LAYERS):
            attended = Attention(name=f"attention_{index}")(Norm(name=f"attention_norm_{index}")(x), tokens == 0)
            x += drop(attended)
            hidden = nn.Dense(4 * WIDTH, precision="highest", name=f"up_{index}")(Norm(name=f"mlp_norm_{index}")(x))
            hidden = hidden * jax.scipy.stats.norm.cdf(hidden)
            x += drop(nn.Dense(WIDTH, precision="highest", name=f"down_{index}")(hidden))
        bias = self.param("bias", nn.initializers.zeros, (VOCABULARY,))
        logits: jax.Array = jnp.tensordot(Norm(name="norm")(x), table, axes=((2,), (1,)), precision="highest") + bias
        return logits


model = Encoder(rate=0.0)


def rate(step: jax.Array) -> jax.Array:
    """The learning rate of a step, counted from 0."""
    warm = jnp.asarray(2e-3, float) * (step + 1) / 3
    cold = 1e-3 + 1e-3 * jnp.cos(jnp.asarray(step - 3, float) / 37 * jnp.pi)
    return jax.lax.select(step < 3, warm, jax.lax.select(step < 40, cold, jnp.zeros_like(cold)))


def decayed(params: Any) -> Any:
    """Which parameters decay."""
    return jax.tree_util.tree_map_with_path(
        lambda path, _: "bias" not in str(path[-1]) and "norm" not in str(path[0]), params
    )


def clip(grads: Any, _: Any) -> Any:
    """`clip_grad_norm_` to 1, on the gradients as one vector."""
    vector, unravel = ravel_pytree(grads)
    return unravel(vector * jnp.minimum(1, 1 / (jnp.linalg.norm(vector) + 1e-6)))


optimizer = optax.chain(
    optax.stateless(clip),
    optax.inject_hyperparams(optax.adamw, static_args="mask")(rate, weight_decay=0.05, mask=decayed),
)

# Names of ours, torch's of them, and the shape that ours has of a tensor that is not transposed.
TABLE: dict[tuple[str, ...], tuple[str, tuple[int, ...] | None]] = {
    ("tokens",): ("tokens.weight", None),
    ("positions",): ("positions.weight", None),
    ("bias",): ("head.bias", None),
    ("norm", "weight"): ("norm.weight", None),
    ("norm", "bias"): ("norm.bias", None),
}
for _index in range(LAYERS):
    _layer = f"layers.{_index}"
    TABLE |= {
        (f"attention_{_index}", "kernel"): (f"{_layer}.attention.in_proj_weight", (3, HEADS, HEAD_WIDTH, WIDTH)),
        (f"attention_{_index}", "bias"): (f"{_layer}.attention.in_proj_bias", (3, HEADS, HEAD_WIDTH)),
        (f"attention_{_index}", "out"): (f"{_layer}.attention.out_proj.weight", (WIDTH, HEADS, HEAD_WIDTH)),
        (f"attention_{_index}", "out_bias"): (f"{_layer}.attention.out_proj.bias", None),
    }
    for _norm in ("attention_norm", "mlp_norm"):
        TABLE |= {(f"{_norm}_{_index}", part): (f"{_layer}.{_norm}.{part}", None) for part in ("weight", "bias")}
    for _dense, _place in (("up", 0), ("down", 2)):
        TABLE[f"{_dense}_{_index}", "kernel"] = (f"{_layer}.mlp.{_place}.weight", ())
        TABLE[f"{_dense}_{_index}", "bias"] = (f"{_layer}.mlp.{_place}.bias", None)


def from_torch(state_dict: Mapping[str, np.ndarray]) -> dict[str, Any]:
    """The variables from torch's."""
    params: dict[str, Any] = {}
    for path, (name, shape) in TABLE.items():
        tensor = jnp.asarray(state_dict[name])
        leaf = tensor.T if shape == () else tensor.reshape(shape or tensor.shape)
        branch = params.setdefault(path[0], {}) if len(path) == 2 else params
        branch[path[-1]] = leaf
    return {"params": params, "batch_stats": {}}


def to_torch(variables: dict[str, Any]) -> dict[str, np.ndarray]:
    """torch's state dict from the variables."""
    state_dict = {}
    for path, (name, shape) in TABLE.items():
        leaf: Any = variables["params"]
        for part in path:
            leaf = leaf[part]
        leaf = np.asarray(leaf)
        if shape == ():
            leaf = leaf.T
        elif shape is not None:
            leaf = leaf.reshape(-1) if name.endswith("bias") else leaf.reshape(-1, WIDTH)
        state_dict[name] = leaf
    return state_dict | {"head.weight": state_dict["tokens.weight"]}


def outputs(
    variables: dict[str, Any], batch: Mapping[str, jax.Array], train: bool, rng: jax.Array | None = None
) -> dict[str, jax.Array]:
    """The logits of every position, padding's too."""
    encoder = Encoder(rate=0.1 if train and rng is not None else 0.0)
    rngs = {} if rng is None else {"dropout": rng}
    logits: Any = encoder.apply({"params": variables["params"]}, jnp.asarray(batch["tokens"]), rngs=rngs)
    return {"logits": logits}


def loss(
    variables: dict[str, Any], batch: Mapping[str, jax.Array], train: bool, rng: jax.Array | None = None
) -> tuple[jax.Array, dict[str, Any]]:
    """The cross-entropy's mean over masked positions, labels smoothed by 0.1, and no statistics."""
    costs = -jax.nn.log_softmax(outputs(variables, batch, train, rng)["logits"])
    labels = jnp.asarray(batch["labels"])[..., None]
    chosen = jnp.sum(jnp.where(labels == jnp.arange(VOCABULARY), costs, 0))
    everywhere = jnp.sum(costs, where=labels >= 0)
    return (0.9 * chosen + 0.1 / VOCABULARY * everywhere) / jnp.sum(labels >= 0, dtype=costs.dtype), {}


@jax.jit
def train_step(
    variables: dict[str, Any], opt_state: Any, batch: Mapping[str, jax.Array], rng: jax.Array | None = None
) -> tuple[dict[str, Any], Any, jax.Array]:
    """The variables and the optimizer's state after a step on a batch, and its loss."""
    (value, _), grads = jax.value_and_grad(
        lambda params: loss({**variables, "params": params}, batch, True, rng), has_aux=True
    )(variables["params"])
    updates, opt_state = optimizer.update(grads, opt_state, variables["params"])
    return {**variables, "params": optax.apply_updates(variables["params"], updates)}, opt_state, value
