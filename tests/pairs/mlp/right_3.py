"""The classifier as a list of layers and a function of one image, which `vmap` makes one of a batch."""

from collections.abc import Mapping
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax import Array
from jax.scipy.special import erf, logsumexp

Layers = list[tuple[Array, Array]]
Variables = dict[str, Any]

NAMES = ["features.1", "features.4", "features.7", "head"]
KEEP = 0.9


def relu(x: Array) -> Array:
    """The positive part."""
    return x * (x > 0)


def gelu(x: Array) -> Array:
    """x times the normal distribution's cumulative function of x."""
    return 0.5 * x * (1 + erf(x / 2**0.5))


def leaky_relu(x: Array) -> Array:
    """The positive part and a tenth of the negative one."""
    return jnp.maximum(x, 0) + 0.1 * jnp.minimum(x, 0)


def identity(x: Array) -> Array:
    """x."""
    return x


def model(layers: Layers, image: Array, masks: list[Array | float]) -> Array:
    """Maps an image `(1, 8, 8)` to logits `(10,)`; masks multiply what the layers return."""
    x = image.ravel()
    for (kernel, bias), activation, mask in zip(layers, (relu, gelu, leaky_relu, identity), masks, strict=True):
        x = activation(jnp.matmul(x, kernel, precision=jax.lax.Precision.HIGHEST) + bias) * mask
    return x


def dropout_masks(rng: Array, layers: Layers, size: int) -> list[Array | float]:
    """Masks of the first two layers' outputs for a whole batch."""
    keys = jax.random.split(rng, 2)
    return [
        jax.random.bernoulli(key, KEEP, (size, *bias.shape)).astype(bias.dtype) / KEEP
        for key, (_, bias) in zip(keys, layers, strict=False)
    ]


optimizer = optax.chain(
    optax.add_decayed_weights(5e-4),
    optax.inject_hyperparams(optax.sgd)(
        learning_rate=lambda step: 0.1 * 0.8 ** (step // 2), momentum=0.9, nesterov=True
    ),
)


def from_torch(state_dict: Mapping[str, np.ndarray]) -> Variables:
    """The variables from torch's: kernels and biases, layer by layer."""
    layers = [(jnp.asarray(state_dict[f"{name}.weight"]).T, jnp.asarray(state_dict[f"{name}.bias"])) for name in NAMES]
    return {"params": layers, "batch_stats": {}}


def to_torch(variables: Variables) -> dict[str, np.ndarray]:
    """torch's state dict from the variables."""
    state_dict: dict[str, np.ndarray] = {}
    for name, (kernel, bias) in zip(NAMES, variables["params"], strict=True):
        state_dict |= {f"{name}.weight": np.asarray(kernel.T), f"{name}.bias": np.asarray(bias)}
    return state_dict


def outputs(
    variables: Variables, batch: Mapping[str, Array], train: bool, rng: Array | None = None
) -> dict[str, Array]:
    """The logits of a batch."""
    layers, images = variables["params"], jnp.asarray(batch["images"])
    if not train or rng is None:
        return {"logits": jax.vmap(partial(model, layers, masks=[1.0, 1.0, 1.0, 1.0]))(images)}
    masks = dropout_masks(rng, layers, len(images))
    return {
        "logits": jax.vmap(lambda image, first, second: model(layers, image, [first, second, 1.0, 1.0]))(images, *masks)
    }


def loss(
    variables: Variables, batch: Mapping[str, Array], train: bool, rng: Array | None = None
) -> tuple[Array, dict[str, Any]]:
    """The mean cross-entropy, labels smoothed by 0.1, and no statistics."""

    def of_one(logits: Array, label: Array) -> Array:
        losses = logsumexp(logits) - logits  # what each class would cost
        return 0.9 * losses[label] + 0.1 * losses.mean()

    logits = outputs(variables, batch, train, rng)["logits"]
    return jax.vmap(of_one)(logits, jnp.asarray(batch["labels"])).mean(), {}


@jax.jit
def train_step(
    variables: Variables, opt_state: Any, batch: Mapping[str, Array], rng: Array | None = None
) -> tuple[Variables, Any, Array]:
    """The variables and the optimizer's state after a step on a batch, and its loss."""
    grad = jax.value_and_grad(lambda params: loss({"params": params}, batch, True, rng)[0])
    value, grads = grad(variables["params"])
    updates, opt_state = optimizer.update(grads, opt_state, variables["params"])
    return {"params": optax.apply_updates(variables["params"], updates), "batch_stats": {}}, opt_state, value
