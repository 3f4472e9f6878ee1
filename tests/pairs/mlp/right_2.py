"""The classifier in flax with `setup`: kernels by einsum, one-hot targets, an optax chain from its smallest parts."""

from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import linen as nn

CLASSES, SMOOTHING, DROPOUT = 10, 0.1, 0.1
TORCH_NAMES = ("features.1", "features.4", "features.7", "head")


class Affine(nn.Module):
    """Weights `(out, in)` and a bias."""

    features_in: int
    features_out: int

    def setup(self) -> None:
        shape = (self.features_out, self.features_in)
        self.weight = self.param("weight", nn.initializers.lecun_uniform(in_axis=1, out_axis=0), shape)
        self.bias = self.param("bias", nn.initializers.zeros, (self.features_out,))

    def __call__(self, x: jax.Array) -> jax.Array:
        return jnp.einsum("...i,oi->...o", x, self.weight, precision="highest") + self.bias


class Network(nn.Module):
    """Maps images `(batch, 1, 8, 8)` to logits `(batch, 10)`."""

    widths: tuple[int, ...] = (64, 32, 32, 32, CLASSES)

    def setup(self) -> None:
        self.layers = [Affine(*sizes) for sizes in zip(self.widths, self.widths[1:], strict=False)]
        self.drop = nn.Dropout(DROPOUT)

    def __call__(self, images: jax.Array, dropping: bool = False) -> jax.Array:
        first, second, third, head = self.layers
        x = jnp.reshape(images, (images.shape[0], self.widths[0]))
        x = self.drop(jnp.maximum(first(x), 0), deterministic=not dropping)
        x = self.drop(jax.nn.gelu(second(x), approximate=False), deterministic=not dropping)
        return head(jax.nn.leaky_relu(third(x), 0.1))


model = Network()
optimizer = optax.chain(
    optax.add_decayed_weights(5e-4),
    optax.trace(decay=0.9, nesterov=True),
    optax.scale_by_schedule(lambda count: -0.1 * 0.8 ** (count // 2)),
)


def from_torch(state_dict: Mapping[str, np.ndarray]) -> dict[str, Any]:
    """The variables from torch's, in torch's layouts."""
    params = {
        f"layers_{index}": {part: jnp.asarray(state_dict[f"{name}.{part}"]) for part in ("weight", "bias")}
        for index, name in enumerate(TORCH_NAMES)
    }
    return {"params": params, "batch_stats": {}}


def to_torch(variables: dict[str, Any]) -> dict[str, np.ndarray]:
    """torch's state dict from the variables."""
    params = variables["params"]
    return {
        f"{name}.{part}": np.asarray(params[f"layers_{index}"][part])
        for index, name in enumerate(TORCH_NAMES)
        for part in ("weight", "bias")
    }


def outputs(
    variables: dict[str, Any], batch: Mapping[str, jax.Array], train: bool, rng: jax.Array | None = None
) -> dict[str, jax.Array]:
    """The logits of a batch."""
    dropping = train and rng is not None
    rngs = {} if rng is None else {"dropout": rng}
    logits: Any = model.apply({"params": variables["params"]}, batch["images"], dropping, rngs=rngs)
    return {"logits": logits}


def loss(
    variables: dict[str, Any], batch: Mapping[str, jax.Array], train: bool, rng: jax.Array | None = None
) -> tuple[jax.Array, dict[str, Any]]:
    """The mean cross-entropy, labels smoothed by 0.1, and no statistics."""
    logits = outputs(variables, batch, train, rng)["logits"]
    targets = jax.nn.one_hot(batch["labels"], CLASSES, dtype=logits.dtype)
    targets = targets * (1 - SMOOTHING) + SMOOTHING / CLASSES
    log_normalizer = jnp.log(jnp.exp(logits - logits.max(-1, keepdims=True)).sum(-1)) + logits.max(-1)
    return jnp.mean(log_normalizer - jnp.einsum("bc,bc->b", targets, logits, precision="highest")), {}


@jax.jit
def train_step(
    variables: dict[str, Any], opt_state: Any, batch: Mapping[str, jax.Array], rng: jax.Array | None = None
) -> tuple[dict[str, Any], Any, jax.Array]:
    """The variables and the optimizer's state after a step on a batch, and its loss."""

    def objective(params: Any) -> jax.Array:
        return loss({"params": params, "batch_stats": {}}, batch, True, rng)[0]

    value, grads = jax.value_and_grad(objective)(variables["params"])
    updates, opt_state = optimizer.update(grads, opt_state, variables["params"])
    return {**variables, "params": optax.apply_updates(variables["params"], updates)}, opt_state, value
