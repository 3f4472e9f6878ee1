"""Classifies small grey images, in JAX: the port of `program`."""

from collections.abc import Mapping
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import linen as nn

Variables = dict[str, Any]
Batch = Mapping[str, jax.Array]

WIDTH, CLASSES = 32, 10
# flax's layers, and where torch's `nn.Sequential` has them.
LAYERS = {"fc1": "features.1", "fc2": "features.4", "fc3": "features.7", "head": "head"}


class Classifier(nn.Module):
    """Maps images `(batch, 1, 8, 8)` to logits `(batch, 10)`."""

    dropout: float = 0.1

    @nn.compact
    def __call__(self, images: jax.Array, deterministic: bool) -> jax.Array:
        dense = partial(nn.Dense, precision="highest")
        dropout = partial(nn.Dropout(self.dropout), deterministic=deterministic)
        x = images.reshape(images.shape[0], -1)
        x = dropout(nn.relu(dense(WIDTH, name="fc1")(x)))
        x = dropout(nn.gelu(dense(WIDTH, name="fc2")(x), approximate=False))
        x = nn.leaky_relu(dense(WIDTH, name="fc3")(x), negative_slope=0.1)
        return dense(CLASSES, name="head")(x)


model = Classifier()
optimizer = optax.chain(
    optax.add_decayed_weights(5e-4),
    optax.sgd(lambda step: 0.1 * 0.8 ** (step // 2), momentum=0.9, nesterov=True),
)


def from_torch(state_dict: Mapping[str, np.ndarray]) -> Variables:
    """The variables from torch's: a kernel is a weight transposed."""
    params = {
        layer: {
            "kernel": jnp.asarray(state_dict[f"{name}.weight"].T),
            "bias": jnp.asarray(state_dict[f"{name}.bias"]),
        }
        for layer, name in LAYERS.items()
    }
    return {"params": params, "batch_stats": {}}


def to_torch(variables: Variables) -> dict[str, np.ndarray]:
    """torch's state dict from the variables."""
    state_dict = {}
    for layer, name in LAYERS.items():
        state_dict[f"{name}.weight"] = np.asarray(variables["params"][layer]["kernel"]).T
        state_dict[f"{name}.bias"] = np.asarray(variables["params"][layer]["bias"])
    return state_dict


def outputs(variables: Variables, batch: Batch, train: bool, rng: jax.Array | None = None) -> dict[str, jax.Array]:
    """The logits of a batch."""
    rngs = {} if rng is None else {"dropout": rng}
    logits: Any = model.apply({"params": variables["params"]}, batch["images"], not train or rng is None, rngs=rngs)
    return {"logits": logits}


def loss(
    variables: Variables, batch: Batch, train: bool, rng: jax.Array | None = None
) -> tuple[jax.Array, dict[str, Any]]:
    """The mean cross-entropy, labels smoothed by 0.1, and no statistics."""
    logits = outputs(variables, batch, train, rng)["logits"]
    targets = optax.smooth_labels(jax.nn.one_hot(batch["labels"], CLASSES, dtype=logits.dtype), 0.1)
    return optax.softmax_cross_entropy(logits, targets).mean(), {}


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
