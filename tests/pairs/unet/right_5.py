"""The U-net in flax from one module per kind of layer, `compact`, with weights in the order height, width, out, in."""

from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import linen as nn
from flax import traverse_util
from jax import lax


class Conv(nn.Module):
    """A convolution, or with `up` the gradient of one by its input."""

    features: int
    size: int = 3
    stride: int = 1
    up: bool = False

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        inputs = x.shape[-1]
        order = (inputs, self.features) if self.up else (self.features, inputs)
        kernel = self.param("kernel", nn.initializers.lecun_normal(), (self.size, self.size, *order))
        bias = self.param("bias", nn.initializers.zeros, (self.features,))
        side = (self.size - 1) // 2

        def convolve(y: jax.Array) -> jax.Array:
            return lax.conv_general_dilated(
                y, kernel.astype(y.dtype), (self.stride,) * 2, ((side, side),) * 2, precision="highest",
                dimension_numbers=("NHWC", "HWOI", "NHWC"),
            )  # fmt: skip

        if not self.up:
            return convolve(x.astype(kernel.dtype)) + bias
        batch, height, width, _ = x.shape
        large = jnp.zeros((batch, self.stride * height, self.stride * width, self.features), x.dtype)
        spread: jax.Array = jax.vjp(convolve, large)[1](x)[0]
        return spread + bias


class GroupNorm(nn.Module):
    """Normalises four groups of channels, which an indicator matrix sums."""

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        channels = x.shape[-1]
        scale = self.param("scale", nn.initializers.ones, (channels,))
        bias = self.param("bias", nn.initializers.zeros, (channels,))
        same = np.kron(np.eye(4), np.ones((channels // 4, channels // 4))) * 4 / (x.size // len(x))
        average = jnp.asarray(same, x.dtype)
        mean = jnp.einsum("bhwc,cd->bd", x, average, precision="highest")
        centred = x - mean[:, None, None]
        variance = jnp.einsum("bhwc,bhwc,cd->bd", centred, centred, average, precision="highest")
        return centred * (scale / jnp.sqrt(variance + 1e-5))[:, None, None] + bias


class Block(nn.Module):
    """A convolution, group normalisation and SiLU."""

    features: int

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        return jax.nn.silu(GroupNorm(name="norm")(Conv(self.features, name="conv")(x)))


def resize(x: jax.Array, size: int) -> jax.Array:
    """Bilinear interpolation of square images, by columns and then by rows."""
    old = x.shape[1]
    position = jnp.clip((jnp.arange(size, dtype=x.dtype) + 0.5) * old / size - 0.5, 0, old - 1)
    matrix = jax.nn.relu(1 - jnp.abs(position[:, None] - jnp.arange(old, dtype=x.dtype)))
    for axis in (1, 2):
        x = jnp.moveaxis(jnp.tensordot(matrix, x, axes=(1, axis), precision="highest"), 0, axis)
    return x


class UNet(nn.Module):
    """Maps images `(batch, 14, 14, 1)` to images `(batch, 28, 28, 1)`."""

    @nn.compact
    def __call__(self, images: jax.Array) -> jax.Array:
        skips = [x := Block(8, name="fine")(images)]
        x = Conv(8, stride=2, name="down1")(x)
        skips.append(x := Block(16, name="middle")(x))
        x = Conv(16, stride=2, name="down2")(x)
        x = resize(Block(16, name="coarse")(x), 7)
        x = Block(8, name="merge2")(jnp.append(x, skips.pop(), axis=-1))
        x = Conv(8, stride=2, up=True, name="up1")(x)
        x = Block(8, name="merge1")(jnp.append(x, skips.pop(), axis=-1))
        x = jax.nn.silu(Conv(4, size=2, stride=2, up=True, name="up0")(x))
        detail: jax.Array = Conv(1, size=1, name="out")(x)
        return detail + resize(images.astype(detail.dtype), 28)


model = UNet()


def half_wave(step: jax.Array) -> jax.Array:
    """torch's cosine annealing in twelve steps."""
    return 0.002 + 0.018 * jnp.square(jnp.cos(step * (np.pi / 24)))


def accumulate(grads: Any, state: Any, params: Any = None) -> tuple[Any, Any]:
    """Adagrad's step, for a learning rate of one."""
    count, sums = state
    grads = jax.tree.map(lambda g, p: g + 0.001 * p, grads, params)
    sums = jax.tree.map(lambda s, g: s + g * g, sums, grads)
    steps = jax.tree.map(lambda g, s: g / ((jnp.sqrt(s) + 1e-10) * (1 + 0.05 * count)), grads, sums)
    return steps, (count + 1, sums)


optimizer = optax.chain(
    optax.GradientTransformation(lambda params: (jnp.zeros((), int), optax.tree.zeros_like(params)), accumulate),
    optax.scale_by_learning_rate(half_wave),
)


def from_torch(state_dict: Mapping[str, np.ndarray]) -> dict[str, Any]:
    """The variables from torch's: the first two axes of a kernel go last."""
    params = {}
    for name, tensor in state_dict.items():
        *layer, part = name.split(".")
        here = part if part == "bias" else ("kernel" if tensor.ndim == 4 else "scale")
        params[(*layer, here)] = jnp.asarray(tensor.transpose(2, 3, 0, 1) if tensor.ndim == 4 else tensor)
    return {"params": traverse_util.unflatten_dict(params), "batch_stats": {}}


def to_torch(variables: dict[str, Any]) -> dict[str, np.ndarray]:
    """torch's state dict from the variables."""
    state_dict = {}
    for (*layer, part), leaf in traverse_util.flatten_dict(variables["params"]).items():
        name = ".".join((*layer, "bias" if part == "bias" else "weight"))
        state_dict[name] = np.asarray(leaf).transpose(2, 3, 0, 1) if leaf.ndim == 4 else np.asarray(leaf)
    return state_dict


def outputs(
    variables: dict[str, Any], batch: Mapping[str, jax.Array], train: bool, rng: jax.Array | None = None
) -> dict[str, jax.Array]:
    """The images at twice the resolution."""
    images: Any = model.apply({"params": variables["params"]}, jnp.asarray(batch["images"]).transpose(0, 2, 3, 1))
    return {"images": images.transpose(0, 3, 1, 2)}


def loss(
    variables: dict[str, Any], batch: Mapping[str, jax.Array], train: bool, rng: jax.Array | None = None
) -> tuple[jax.Array, dict[str, Any]]:
    """Squared and absolute errors, the squared error of the output made small again, and no statistics."""
    predicted = outputs(variables, batch, train)["images"]
    small = resize(predicted[:, 0], 14)[:, None]
    squared = optax.losses.squared_error(predicted, batch["targets"]).mean()
    consistent = optax.losses.squared_error(small, batch["images"]).mean()
    absolute = jnp.mean(jnp.maximum(predicted - batch["targets"], batch["targets"] - predicted))
    return squared + 0.5 * absolute + 0.25 * consistent, {}


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
