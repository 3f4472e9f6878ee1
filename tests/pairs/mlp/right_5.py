"""The classifier in flax.nnx, split into a graph and its parameters."""

from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import nnx

LAYERS = {"fc1": "features.1", "fc2": "features.4", "fc3": "features.7", "head": "head"}


class Classifier(nnx.Module):
    """Maps images `(batch, 1, 8, 8)` to logits `(batch, 10)`."""

    def __init__(self, rngs: nnx.Rngs) -> None:
        self.fc1 = nnx.Linear(64, 32, precision="highest", rngs=rngs)
        self.fc2 = nnx.Linear(32, 32, precision="highest", rngs=rngs)
        self.fc3 = nnx.Linear(32, 32, precision="highest", rngs=rngs)
        self.head = nnx.Linear(32, 10, precision="highest", rngs=rngs)
        self.dropout = nnx.Dropout(0.1)

    def __call__(self, images: jax.Array, rngs: nnx.Rngs | None) -> jax.Array:
        still = rngs is None
        x = jnp.reshape(images, (images.shape[0], -1))
        x = self.dropout(nnx.relu(self.fc1(x)), deterministic=still, rngs=rngs)
        x = self.dropout(nnx.gelu(self.fc2(x), approximate=False), deterministic=still, rngs=rngs)
        return self.head(nnx.leaky_relu(self.fc3(x), negative_slope=0.1))


model, _ = nnx.split(Classifier(nnx.Rngs(0)))
optimizer = optax.chain(
    optax.add_decayed_weights(5e-4),
    optax.sgd(lambda count: 0.1 * 0.8 ** (count // 2), momentum=0.9, nesterov=True),
)


def from_torch(state_dict: Mapping[str, np.ndarray]) -> dict[str, Any]:
    """The variables from torch's: a kernel is a weight transposed."""
    _, params = nnx.split(Classifier(nnx.Rngs(0)))
    for layer, name in LAYERS.items():
        params[layer]["kernel"] = nnx.Param(jnp.asarray(state_dict[f"{name}.weight"].T))
        params[layer]["bias"] = nnx.Param(jnp.asarray(state_dict[f"{name}.bias"]))
    return {"params": params, "batch_stats": {}}


def to_torch(variables: dict[str, Any]) -> dict[str, np.ndarray]:
    """torch's state dict from the variables."""
    state_dict = {}
    for layer, name in LAYERS.items():
        state_dict[f"{name}.weight"] = np.asarray(variables["params"][layer]["kernel"][...]).T
        state_dict[f"{name}.bias"] = np.asarray(variables["params"][layer]["bias"][...])
    return state_dict


def outputs(
    variables: dict[str, Any], batch: Mapping[str, jax.Array], train: bool, rng: jax.Array | None = None
) -> dict[str, jax.Array]:
    """The logits of a batch."""
    network = nnx.merge(model, variables["params"])
    rngs = nnx.Rngs(dropout=rng) if train and rng is not None else None
    return {"logits": network(jnp.asarray(batch["images"]), rngs)}


def loss(
    variables: dict[str, Any], batch: Mapping[str, jax.Array], train: bool, rng: jax.Array | None = None
) -> tuple[jax.Array, dict[str, Any]]:
    """The mean cross-entropy, labels smoothed by 0.1, and no statistics."""
    log_probabilities = nnx.log_softmax(outputs(variables, batch, train, rng)["logits"])
    rows = jnp.arange(len(log_probabilities))
    hits = log_probabilities[rows, batch["labels"]]
    return -(0.9 * hits.mean() + 0.1 * log_probabilities.mean()), {}


@jax.jit
def train_step(
    variables: dict[str, Any], opt_state: Any, batch: Mapping[str, jax.Array], rng: jax.Array | None = None
) -> tuple[dict[str, Any], Any, jax.Array]:
    """The variables and the optimizer's state after a step on a batch, and its loss."""

    def objective(params: Any) -> tuple[jax.Array, dict[str, Any]]:
        return loss({"params": params}, batch, True, rng)

    (value, batch_stats), grads = jax.value_and_grad(objective, has_aux=True)(variables["params"])
    updates, opt_state = optimizer.update(grads, opt_state, variables["params"])
    return {"params": optax.apply_updates(variables["params"], updates), "batch_stats": batch_stats}, opt_state, value
