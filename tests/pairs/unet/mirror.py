"""Doubles the resolution of images, in JAX: the port of `program`. Channels come last inside."""

from collections.abc import Mapping
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import linen as nn

Variables = dict[str, Any]
Batch = Mapping[str, jax.Array]

CHANNELS, GROUPS = 8, 4

Conv = partial(nn.Conv, kernel_size=(3, 3), padding=1, precision="highest")
ConvTranspose = partial(nn.ConvTranspose, strides=(2, 2), transpose_kernel=True, precision="highest")


class ConvBlock(nn.Module):
    """A 3×3 convolution, group normalisation and SiLU."""

    features: int

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        x = Conv(self.features, name="conv")(x)
        return nn.silu(nn.GroupNorm(GROUPS, epsilon=1e-5, use_fast_variance=False, name="norm")(x))


def resize(x: jax.Array, height: int, width: int) -> jax.Array:
    """Bilinear interpolation that, as torch's, does not smooth first when it shrinks."""
    shape = (x.shape[0], height, width, x.shape[3])
    resized: jax.Array = jax.image.resize(x, shape, "bilinear", antialias=False, precision="highest")
    return resized


class UNet(nn.Module):
    """Maps images `(batch, 14, 14, 1)` to images `(batch, 28, 28, 1)`."""

    @nn.compact
    def __call__(self, images: jax.Array) -> jax.Array:
        fine = ConvBlock(CHANNELS, name="fine")(images)
        middle = ConvBlock(2 * CHANNELS, name="middle")(Conv(CHANNELS, strides=2, name="down1")(fine))
        coarse = ConvBlock(2 * CHANNELS, name="coarse")(Conv(2 * CHANNELS, strides=2, name="down2")(middle))
        x = resize(coarse, *middle.shape[1:3])
        x = ConvBlock(CHANNELS, name="merge2")(jnp.concatenate([x, middle], axis=-1))
        # torch's padding 1 crops kernel - 1 - 1 on both sides; its output padding 1 adds one at the end.
        x = ConvTranspose(CHANNELS, (3, 3), padding=((1, 2), (1, 2)), name="up1")(x)
        x = ConvBlock(CHANNELS, name="merge1")(jnp.concatenate([x, fine], axis=-1))
        x = nn.silu(ConvTranspose(CHANNELS // 2, (2, 2), padding=((1, 1), (1, 1)), name="up0")(x))
        x = Conv(1, kernel_size=(1, 1), padding=0, name="out")(x)
        return x + resize(images.astype(x.dtype), *x.shape[1:3])


class AdagradState(NamedTuple):
    """The number of steps so far and the sums of squared gradients."""

    step: jax.Array
    sums: optax.Updates


def scale_by_adagrad(rate_decay: float, epsilon: float = 1e-10) -> optax.GradientTransformation:
    """torch's Adagrad: epsilon is outside of the root, and the rate decays with the inverse of time."""

    def init(params: optax.Params) -> AdagradState:
        return AdagradState(jnp.zeros((), jnp.int32), jax.tree.map(jnp.zeros_like, params))

    def update(
        updates: optax.Updates, state: AdagradState, params: optax.Params | None = None
    ) -> tuple[optax.Updates, AdagradState]:
        del params
        sums = jax.tree.map(lambda total, grad: total + grad * grad, state.sums, updates)
        rate = 1 / (1 + state.step * rate_decay)
        scaled = jax.tree.map(lambda grad, total: rate * grad / (jnp.sqrt(total) + epsilon), updates, sums)
        return scaled, AdagradState(state.step + 1, sums)

    return optax.GradientTransformation(init, update)


def learning_rate(step: jax.Array) -> jax.Array:
    """Half a cosine from 0.02 to 0.002 in twelve steps; as torch's, it would rise again."""
    return 0.002 + 0.009 * (1 + jnp.cos(step * (jnp.pi / 12)))


model = UNet()
optimizer = optax.chain(
    optax.add_decayed_weights(1e-3),
    scale_by_adagrad(rate_decay=0.05),
    optax.scale_by_learning_rate(learning_rate),
)


def layers(tree: Mapping[str, Any], prefix: str = "") -> dict[str, Mapping[str, Any]]:
    """The layers of nested blocks by torch's names, as `fine.conv`."""
    if "bias" in tree:
        return {prefix: tree}
    return {
        name: layer
        for key, branch in tree.items()
        for name, layer in layers(branch, f"{prefix}.{key}" if prefix else key).items()
    }


def from_torch(state_dict: Mapping[str, np.ndarray]) -> Variables:
    """The variables from torch's: kernels are torch's weights with the last two axes first, then the others swapped."""
    params: dict[str, Any] = {}
    for name in {name.rpartition(".")[0]: None for name in state_dict}:
        weight, bias = jnp.asarray(state_dict[f"{name}.weight"]), jnp.asarray(state_dict[f"{name}.bias"])
        *blocks, last = name.split(".")
        branch = params
        for block in blocks:
            branch = branch.setdefault(block, {})
        # A transposed convolution of torch has its inputs first, one of flax its outputs second to last: both swap.
        branch[last] = {"scale": weight} if weight.ndim == 1 else {"kernel": weight.transpose(2, 3, 1, 0)}
        branch[last]["bias"] = bias
    return {"params": params, "batch_stats": {}}


def to_torch(variables: Variables) -> dict[str, np.ndarray]:
    """torch's state dict from the variables."""
    state_dict = {}
    for name, layer in layers(jax.tree.map(np.asarray, variables["params"])).items():
        state_dict[f"{name}.weight"] = layer["kernel"].transpose(3, 2, 0, 1) if "kernel" in layer else layer["scale"]
        state_dict[f"{name}.bias"] = layer["bias"]
    return state_dict


def outputs(variables: Variables, batch: Batch, train: bool, rng: jax.Array | None = None) -> dict[str, jax.Array]:
    """The images at twice the resolution."""
    images = jnp.transpose(batch["images"], (0, 2, 3, 1))
    predicted: Any = model.apply({"params": variables["params"]}, images)
    return {"images": predicted.transpose(0, 3, 1, 2)}


def loss(
    variables: Variables, batch: Batch, train: bool, rng: jax.Array | None = None
) -> tuple[jax.Array, dict[str, Any]]:
    """Squared and absolute errors, the squared error of the output made small again, and no statistics."""
    predicted = outputs(variables, batch, train)["images"]
    error = predicted - batch["targets"]
    height, width = batch["images"].shape[2:]
    shrunk = resize(predicted.transpose(0, 2, 3, 1), height, width).transpose(0, 3, 1, 2)
    pixels = jnp.mean(error**2) + 0.5 * jnp.mean(jnp.abs(error))
    return pixels + 0.25 * jnp.mean((shrunk - batch["images"]) ** 2), {}


@jax.jit
def train_step(
    variables: Variables, opt_state: optax.OptState, batch: Batch, rng: jax.Array | None = None
) -> tuple[Variables, optax.OptState, jax.Array]:
    """The variables and the optimizer's state after a step on a batch, and its loss."""

    def objective(params: Any) -> tuple[jax.Array, dict[str, Any]]:
        return loss({**variables, "params": params}, batch, train=True)

    (value, batch_stats), grads = jax.value_and_grad(objective, has_aux=True)(variables["params"])
    updates, opt_state = optimizer.update(grads, opt_state, variables["params"])
    params = optax.apply_updates(variables["params"], updates)
    return {"params": params, "batch_stats": batch_stats}, opt_state, value
