"""The U-net in plain JAX, channels first, on torch's state dict; interpolation is a matrix for each axis."""

from collections.abc import Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax import lax

Params = dict[str, jax.Array]
Batch = Mapping[str, jax.Array]

NUMBERS = ("NCHW", "OIHW", "NCHW")


def conv(params: Params, name: str, x: jax.Array, stride: int = 1, padding: int = 1) -> jax.Array:
    """`nn.Conv2d`."""
    strides, pads = (stride, stride), [(padding, padding)] * 2
    weight, bias = params[f"{name}.weight"], params[f"{name}.bias"]
    x = lax.conv_general_dilated(x, weight, strides, pads, dimension_numbers=NUMBERS, precision="highest")
    return x + bias[:, None, None]


def conv_transpose(params: Params, name: str, x: jax.Array, padding: int, output_padding: int) -> jax.Array:
    """`nn.ConvTranspose2d` of a stride of 2: a convolution of x with zeros between its pixels."""
    weight = jnp.flip(params[f"{name}.weight"], (2, 3)).swapaxes(0, 1)
    border = weight.shape[-1] - 1 - padding
    x = lax.conv_general_dilated(
        x,
        weight,
        window_strides=(1, 1),
        padding=[(border, border + output_padding)] * 2,
        lhs_dilation=(2, 2),
        dimension_numbers=NUMBERS,
        precision="highest",
    )
    return x + params[f"{name}.bias"][:, None, None]


def group_norm(params: Params, name: str, x: jax.Array, groups: int = 4) -> jax.Array:
    """`nn.GroupNorm`."""
    grouped = x.reshape(x.shape[0], groups, -1)
    grouped = grouped - grouped.mean(axis=-1, keepdims=True)
    grouped = grouped * lax.rsqrt(grouped.var(axis=-1, keepdims=True) + 1e-5)
    weight, bias = params[f"{name}.weight"], params[f"{name}.bias"]
    return grouped.reshape(x.shape) * weight[:, None, None] + bias[:, None, None]


def block(params: Params, name: str, x: jax.Array) -> jax.Array:
    """A convolution, group normalisation and SiLU."""
    return jax.nn.silu(group_norm(params, f"{name}.norm", conv(params, f"{name}.conv", x)))


def interpolation(size: int, new_size: int) -> np.ndarray:
    """The matrix `(new_size, size)` of a linear interpolation between pixels' centres."""
    centres = np.clip((np.arange(new_size) + 0.5) * size / new_size - 0.5, 0, size - 1)
    matrix: np.ndarray = np.maximum(0, 1 - np.abs(centres[:, None] - np.arange(size)))
    return matrix


def resize(x: jax.Array, height: int, width: int) -> jax.Array:
    """`F.interpolate(…, mode="bilinear")`."""
    rows = jnp.asarray(interpolation(x.shape[2], height), x.dtype)
    columns = jnp.asarray(interpolation(x.shape[3], width), x.dtype)
    return jnp.einsum("Hh,Ww,bchw->bcHW", rows, columns, x, precision="highest")


def model(params: Params, images: jax.Array) -> jax.Array:
    """Maps images `(batch, 1, 14, 14)` to images `(batch, 1, 28, 28)`."""
    images = images.astype(params["out.bias"].dtype)
    fine = block(params, "fine", images)
    middle = block(params, "middle", conv(params, "down1", fine, stride=2))
    coarse = block(params, "coarse", conv(params, "down2", middle, stride=2))
    x = block(params, "merge2", jnp.concatenate([resize(coarse, 7, 7), middle], axis=1))
    x = conv_transpose(params, "up1", x, padding=1, output_padding=1)
    x = block(params, "merge1", jnp.concatenate([x, fine], axis=1))
    x = jax.nn.silu(conv_transpose(params, "up0", x, padding=0, output_padding=0))
    return conv(params, "out", x, padding=0) + resize(images, 28, 28)


class AdagradState(NamedTuple):
    """Steps taken, and sums of squared gradients."""

    step: jax.Array
    sums: Any


def init(params: Any) -> AdagradState:
    """No steps, sums of zero."""
    return AdagradState(jnp.zeros((), jnp.int32), optax.tree.zeros_like(params))


def update(grads: Any, state: AdagradState, params: Any = None) -> tuple[Any, AdagradState]:
    """A step of torch's Adagrad with an L2 penalty and an annealed rate."""
    grads = jax.tree.map(lambda g, p: g + 1e-3 * p, grads, params)
    sums = jax.tree.map(lambda s, g: s + g * g, state.sums, grads)
    annealed = 0.002 + (0.02 - 0.002) * (1 + jnp.cos(jnp.pi * state.step / 12.0)) / 2
    rate = annealed / (1 + state.step * 0.05)
    return jax.tree.map(lambda g, s: -rate * g / (jnp.sqrt(s) + 1e-10), grads, sums), AdagradState(state.step + 1, sums)


optimizer = optax.GradientTransformation(init, update)


def from_torch(state_dict: Mapping[str, np.ndarray]) -> dict[str, Any]:
    """The variables: torch's state dict."""
    return {"params": {name: jnp.asarray(tensor) for name, tensor in state_dict.items()}, "batch_stats": {}}


def to_torch(variables: dict[str, Any]) -> dict[str, np.ndarray]:
    """torch's state dict."""
    return {name: np.asarray(leaf) for name, leaf in variables["params"].items()}


def outputs(variables: dict[str, Any], batch: Batch, train: bool, rng: jax.Array | None = None) -> dict[str, jax.Array]:
    """The images at twice the resolution."""
    return {"images": model(variables["params"], jnp.asarray(batch["images"]))}


def loss(
    variables: dict[str, Any], batch: Batch, train: bool, rng: jax.Array | None = None
) -> tuple[jax.Array, dict[str, Any]]:
    """Squared and absolute errors, the squared error of the output made small again, and no statistics."""
    predicted = model(variables["params"], jnp.asarray(batch["images"]))
    error = predicted - batch["targets"]
    shrunk = resize(predicted, 14, 14) - batch["images"]
    return jnp.mean(error**2 + 0.5 * jnp.abs(error)) + 0.25 * jnp.mean(shrunk**2), {}


@jax.jit
def train_step(
    variables: dict[str, Any], opt_state: Any, batch: Batch, rng: jax.Array | None = None
) -> tuple[dict[str, Any], Any, jax.Array]:
    """The variables and the optimizer's state after a step on a batch, and its loss."""
    (value, _), grads = jax.value_and_grad(loss, has_aux=True)(variables, batch, True)
    updates, opt_state = update(grads["params"], opt_state, variables["params"])
    return {**variables, "params": optax.apply_updates(variables["params"], updates)}, opt_state, value
