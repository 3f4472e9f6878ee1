"""The classifier with each bias as its kernel's last row, which meets a column of ones."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax import lax


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class Parameters:
    """Matrices `(in + 1, out)`; the last row is the bias."""

    first: jax.Array
    second: jax.Array
    third: jax.Array
    head: jax.Array


LAYERS = {"first": "features.1", "second": "features.4", "third": "features.7", "head": "head"}


def affine(matrix: jax.Array, x: jax.Array) -> jax.Array:
    """The product of rows, lengthened by a one, with a matrix."""
    ones = jnp.ones((*x.shape[:-1], 1), x.dtype)
    return jnp.dot(jnp.concatenate([x, ones], axis=-1), matrix, precision=lax.Precision.HIGHEST)


def dropped(x: jax.Array, key: jax.Array | None, rate: float = 0.1) -> jax.Array:
    """x with a share of its elements dropped, if there is a key."""
    return x if key is None else x * jax.random.bernoulli(key, 1 - rate, x.shape) / (1 - rate)


def model(params: Parameters, images: jax.Array, key: jax.Array | None) -> jax.Array:
    """Maps images `(batch, 1, 8, 8)` to logits `(batch, 10)`."""
    keys = (None, None) if key is None else (jax.random.fold_in(key, 0), jax.random.fold_in(key, 1))
    x = lax.collapse(images, 1)
    x = dropped(jnp.clip(affine(params.first, x), 0), keys[0])
    x = affine(params.second, x)
    x = dropped(x * jax.scipy.stats.norm.cdf(x), keys[1])
    x = affine(params.third, x)
    return affine(params.head, jnp.maximum(x, 0.1 * x))


def learning_rate(step: jax.Array) -> jax.Array:
    """A fifth less every second step."""
    return 0.1 * jnp.exp((step // 2) * float(np.log(0.8)))


optimizer = optax.chain(
    optax.add_decayed_weights(5e-4),
    optax.trace(0.9, nesterov=True),
    optax.scale_by_learning_rate(learning_rate),
)


def from_torch(state_dict: Mapping[str, np.ndarray]) -> dict[str, Any]:
    """The variables from torch's weights and biases."""
    matrices = {
        layer: jnp.vstack([jnp.asarray(state_dict[f"{name}.weight"]).T, jnp.asarray(state_dict[f"{name}.bias"])])
        for layer, name in LAYERS.items()
    }
    return {"params": Parameters(**matrices), "batch_stats": {}}


def to_torch(variables: dict[str, Any]) -> dict[str, np.ndarray]:
    """torch's weights and biases from the variables."""
    state_dict: dict[str, np.ndarray] = {}
    for layer, name in LAYERS.items():
        matrix = np.asarray(getattr(variables["params"], layer))
        state_dict[f"{name}.weight"], state_dict[f"{name}.bias"] = matrix[:-1].T, matrix[-1]
    return state_dict


def outputs(
    variables: dict[str, Any], batch: Mapping[str, jax.Array], train: bool, rng: jax.Array | None = None
) -> dict[str, jax.Array]:
    """The logits of a batch."""
    return {"logits": model(variables["params"], jnp.asarray(batch["images"]), rng if train else None)}


def loss(
    variables: dict[str, Any], batch: Mapping[str, jax.Array], train: bool, rng: jax.Array | None = None
) -> tuple[jax.Array, dict[str, Any]]:
    """The mean cross-entropy, labels smoothed by 0.1, and no statistics."""
    logits = outputs(variables, batch, train, rng)["logits"]
    hard = optax.softmax_cross_entropy_with_integer_labels(logits, batch["labels"])
    uniform = optax.softmax_cross_entropy(logits, jnp.full_like(logits, 1 / logits.shape[-1]))
    return jnp.mean(0.9 * hard + 0.1 * uniform), {}


@jax.jit
def train_step(
    variables: dict[str, Any], opt_state: Any, batch: Mapping[str, jax.Array], rng: jax.Array | None = None
) -> tuple[dict[str, Any], Any, jax.Array]:
    """The variables and the optimizer's state after a step on a batch, and its loss."""
    value, backward, batch_stats = jax.vjp(
        lambda params: loss({**variables, "params": params}, batch, True, rng), variables["params"], has_aux=True
    )
    (grads,) = backward(jnp.ones_like(value))
    updates, opt_state = optimizer.update(grads, opt_state, variables["params"])
    return {"params": optax.apply_updates(variables["params"], updates), "batch_stats": batch_stats}, opt_state, value
