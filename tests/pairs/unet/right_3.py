"""The U-net whose transposed convolutions stuff zeros, or shuffle pixels; on a nested dict of torch's layouts."""

from collections.abc import Mapping
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax import Array, lax

Tree = dict[str, Any]
Layer = Mapping[str, Array]


def conv(layer: Layer, x: Array, stride: int = 1, pads: tuple[int, int] = (1, 1)) -> Array:
    """A convolution of `(batch, channels, height, width)`."""
    patches = lax.conv_general_dilated_patches(
        x, layer["weight"].shape[2:], (stride, stride), (pads, pads), precision=lax.Precision.HIGHEST
    )
    weight = layer["weight"].reshape(len(layer["weight"]), -1)
    return jnp.einsum("bphw,op->bohw", patches, weight, precision="highest") + layer["bias"][:, None, None]


def stuffed(x: Array) -> Array:
    """x with a zero after every pixel but the last, in both directions."""
    return lax.pad(x, jnp.zeros((), x.dtype), ((0, 0, 0), (0, 0, 0), (0, 0, 1), (0, 0, 1)))


def up_3x3(layer: Layer, x: Array) -> Array:
    """`nn.ConvTranspose2d(…, 3, stride=2, padding=1, output_padding=1)`."""
    kernel = {"weight": layer["weight"].swapaxes(0, 1)[:, :, ::-1, ::-1], "bias": layer["bias"]}
    return conv(kernel, stuffed(x), pads=(1, 2))


def up_2x2(layer: Layer, x: Array) -> Array:
    """`nn.ConvTranspose2d(…, 2, stride=2)`: every pixel becomes four, and none overlap."""
    four = jnp.einsum("bihw,iokl->bohkwl", x, layer["weight"], precision="highest")
    batch, channels, height, _, width, _ = four.shape
    return four.reshape(batch, channels, 2 * height, 2 * width) + layer["bias"][:, None, None]


@partial(jax.vmap, in_axes=(None, 0))
def norm(layer: Layer, x: Array) -> Array:
    """Group normalisation of one image: E[x²] - E[x]² of a quarter of its channels."""
    grouped = x.reshape(4, -1)
    mean, square = grouped.mean(axis=1), jnp.square(grouped).mean(axis=1)
    scale = jnp.repeat(lax.rsqrt(square - mean**2 + 1e-5), len(x) // 4) * layer["weight"]
    shift = layer["bias"] - jnp.repeat(mean, len(x) // 4) * scale
    return x * scale[:, None, None] + shift[:, None, None]


def block(layer: Tree, x: Array) -> Array:
    """A convolution, a normalisation and SiLU."""
    x = norm(layer["norm"], conv(layer["conv"], x))
    return x / (1 + jnp.exp(-x))


def resize(x: Array, size: int) -> Array:
    """Bilinear interpolation to a square."""
    shape = (*x.shape[:2], size, size)
    resized: Array = jax.image.resize(x, shape, jax.image.ResizeMethod.LINEAR, False, "highest")
    return resized


def model(params: Tree, images: Array) -> Array:
    """Maps images `(batch, 1, 14, 14)` to images `(batch, 1, 28, 28)`."""
    images = images.astype(params["out"]["bias"].dtype)
    fine = block(params["fine"], images)
    middle = block(params["middle"], conv(params["down1"], fine, stride=2))
    coarse = block(params["coarse"], conv(params["down2"], middle, stride=2))
    x = block(params["merge2"], lax.concatenate([resize(coarse, middle.shape[-1]), middle], 1))
    x = block(params["merge1"], lax.concatenate([up_3x3(params["up1"], x), fine], 1))
    x = jax.nn.silu(up_2x2(params["up0"], x))
    return conv(params["out"], x, pads=(0, 0)) + resize(images, x.shape[-1])


def adagrad() -> optax.GradientTransformation:
    """torch's, with an L2 penalty, whose rate decays for two reasons."""

    def init(params: Any) -> Any:
        return {"step": jnp.zeros((), jnp.int32), "sum": jax.tree.map(jnp.zeros_like, params)}

    def update(grads: Any, state: Any, params: Any = None) -> tuple[Any, Any]:
        grads = optax.tree.add_scale(grads, 1e-3, params)
        sums = optax.tree.add(state["sum"], optax.tree.mul(grads, grads))
        cosine = 0.002 + 0.009 * (1 + jnp.cos(jnp.pi * state["step"].astype(float) / 12))
        rate = cosine / (1 + state["step"] * 0.05)
        updates = jax.tree.map(lambda g, s: -rate * g / (s**0.5 + 1e-10), grads, sums)
        return updates, {"step": state["step"] + 1, "sum": sums}

    return optax.GradientTransformation(init, update)


optimizer = adagrad()


def from_torch(state_dict: Mapping[str, np.ndarray]) -> Tree:
    """The variables: torch's names split at their dots."""
    params: Tree = {}
    for name, tensor in state_dict.items():
        *branches, leaf = name.split(".")
        branch = params
        for part in branches:
            branch = branch.setdefault(part, {})
        branch[leaf] = jnp.asarray(tensor)
    return {"params": params, "batch_stats": {}}


def to_torch(variables: Tree) -> dict[str, np.ndarray]:
    """torch's state dict: names joined by dots."""
    leaves, _ = jax.tree_util.tree_flatten_with_path(variables["params"])
    return {".".join(str(part.key) for part in path): np.asarray(leaf) for path, leaf in leaves}


def outputs(variables: Tree, batch: Mapping[str, Array], train: bool, rng: Array | None = None) -> dict[str, Array]:
    """The images at twice the resolution."""
    return {"images": model(variables["params"], jnp.asarray(batch["images"]))}


def loss(variables: Tree, batch: Mapping[str, Array], train: bool, rng: Array | None = None) -> tuple[Array, Tree]:
    """Squared and absolute errors, the squared error of the output made small again, and no statistics."""
    predicted = model(variables["params"], jnp.asarray(batch["images"]))
    error = jnp.ravel(predicted - batch["targets"])
    # Half the size, so that a new pixel's centre is the corner where four old ones meet.
    corner = lax.reduce_window(predicted, 0.0, lax.add, (1, 1, 2, 2), (1, 1, 2, 2), "VALID") / 4 - batch["images"]
    squared = jnp.vdot(error, error, precision="highest") / error.size
    return squared + 0.5 * jnp.linalg.norm(error, 1) / error.size + 0.25 * jnp.square(corner).mean(), {}


@jax.jit
def train_step(
    variables: Tree, opt_state: Any, batch: Mapping[str, Array], rng: Array | None = None
) -> tuple[Tree, Any, Array]:
    """The variables and the optimizer's state after a step on a batch, and its loss."""
    value, grads = jax.value_and_grad(lambda params: loss({"params": params}, batch, True)[0])(variables["params"])
    updates, opt_state = optimizer.update(grads, opt_state, variables["params"])
    return variables | {"params": optax.apply_updates(variables["params"], updates)}, opt_state, value
