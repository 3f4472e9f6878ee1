"""The U-net of one image under `vmap`, on named tuples; what goes up is the transpose of what would come down."""

from collections.abc import Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax import Array, lax


class Conv(NamedTuple):
    """Weights of torch's layout, and a bias."""

    weight: Array
    bias: Array


class Block(NamedTuple):
    """A convolution and a normalisation's gain and offset."""

    conv: Conv
    norm: Conv


class UNet(NamedTuple):
    """All parameters."""

    fine: Block
    down1: Conv
    middle: Block
    down2: Conv
    coarse: Block
    merge2: Block
    up1: Conv
    merge1: Block
    up0: Conv
    out: Conv


def down(x: Array, weight: Array, stride: int, padding: int) -> Array:
    """A convolution of an image `(channels, height, width)`."""
    pads = ((padding, padding), (padding, padding))
    return lax.conv_with_general_padding(
        x[None], weight, (stride, stride), pads, None, None, precision=lax.Precision.HIGHEST
    )[0]


def conv(layer: Conv, x: Array, stride: int = 1, padding: int = 1) -> Array:
    """A convolution and a bias."""
    return down(x, layer.weight, stride, padding) + layer.bias[:, None, None]


def up(layer: Conv, x: Array, padding: int) -> Array:
    """The transpose of a convolution of a stride of 2 that maps twice the size to the size of x."""
    large = jax.ShapeDtypeStruct((layer.weight.shape[1], 2 * x.shape[1], 2 * x.shape[2]), x.dtype)
    spread: Array
    (spread,) = jax.linear_transpose(lambda y: down(y, layer.weight, 2, padding), large)(x)
    return spread + layer.bias[:, None, None]


def block(layer: Block, x: Array) -> Array:
    """A convolution, a normalisation of four groups of channels and SiLU."""
    x = conv(layer.conv, x)
    groups = jnp.stack(jnp.split(x, 4))
    groups = jax.nn.standardize(groups, axis=(1, 2, 3), epsilon=1e-5).reshape(x.shape)
    x = groups * layer.norm.weight[:, None, None] + layer.norm.bias[:, None, None]
    return x * lax.logistic(x)


def resize(x: Array, size: int) -> Array:
    """Bilinear interpolation of a square image, without smoothing."""
    scale = jnp.full(2, size / x.shape[1], x.dtype)
    resized: Array = jax.image.scale_and_translate(
        x, (len(x), size, size), (1, 2), scale, jnp.zeros_like(scale), "bilinear", antialias=False, precision="highest"
    )
    return resized


def model(net: UNet, image: Array) -> Array:
    """Maps an image `(1, 14, 14)` to an image `(1, 28, 28)`."""
    image = image.astype(net.out.bias.dtype)
    fine = block(net.fine, image)
    middle = block(net.middle, conv(net.down1, fine, stride=2))
    coarse = block(net.coarse, conv(net.down2, middle, stride=2))
    x = block(net.merge2, jnp.vstack([resize(coarse, 7), middle]))
    x = block(net.merge1, jnp.vstack([up(net.up1, x, padding=1), fine]))
    x = conv(net.out, jax.nn.silu(up(net.up0, x, padding=0)), padding=0)
    return x + resize(image, 28)


def rate(step: Array) -> Array:
    """The learning rate: torch's cosine, over Adagrad's own decay."""
    step = step.astype(float)
    cosine = (0.02 + 0.002) / 2 + (0.02 - 0.002) / 2 * jnp.cos(jnp.pi / 12 * step)
    return cosine / (1 + 0.05 * step)


def adagrad(learning_rate: Any, epsilon: float = 1e-10) -> optax.GradientTransformation:
    """Adagrad without a start for its sums, and with epsilon outside of the root."""

    def init(params: Any) -> Any:
        return jax.tree.map(jnp.zeros_like, params)

    def update(grads: Any, sums: Any, params: Any = None) -> tuple[Any, Any]:
        sums = jax.tree.map(lambda s, g: s + jnp.square(g), sums, grads)
        return jax.tree.map(lambda g, s: -learning_rate * g / (jnp.sqrt(s) + epsilon), grads, sums), sums

    return optax.GradientTransformation(init, update)


optimizer = optax.chain(optax.add_decayed_weights(1e-3), optax.inject_hyperparams(adagrad)(rate))


def from_torch(state_dict: Mapping[str, np.ndarray]) -> dict[str, Any]:
    """The variables from torch's, as they are."""

    def layer(name: str) -> Conv:
        return Conv(jnp.asarray(state_dict[f"{name}.weight"]), jnp.asarray(state_dict[f"{name}.bias"]))

    layers: dict[str, Any] = {
        name: layer(name) if f"{name}.weight" in state_dict else Block(layer(f"{name}.conv"), layer(f"{name}.norm"))
        for name in UNet._fields
    }
    return {"params": UNet(**layers), "batch_stats": {}}


def to_torch(variables: dict[str, Any]) -> dict[str, np.ndarray]:
    """torch's state dict from the variables."""
    leaves, _ = jax.tree_util.tree_flatten_with_path(variables["params"])
    return {".".join(part.name for part in path): np.asarray(leaf) for path, leaf in leaves}


def outputs(
    variables: dict[str, Any], batch: Mapping[str, Array], train: bool, rng: Array | None = None
) -> dict[str, Array]:
    """The images at twice the resolution."""
    return {"images": jax.vmap(model, in_axes=(None, 0))(variables["params"], jnp.asarray(batch["images"]))}


def loss(
    variables: dict[str, Any], batch: Mapping[str, Array], train: bool, rng: Array | None = None
) -> tuple[Array, dict[str, Any]]:
    """Squared and absolute errors, the squared error of the output made small again, and no statistics."""

    @jax.vmap
    def of_image(image: Array, target: Array) -> Array:
        predicted = model(variables["params"], image)
        error, shrunk = predicted - target, resize(predicted, 14) - image
        return jnp.mean(error * error) + 0.5 * jnp.mean(jnp.abs(error)) + 0.25 * jnp.mean(shrunk * shrunk)

    return of_image(jnp.asarray(batch["images"]), jnp.asarray(batch["targets"])).mean(), {}


@jax.jit
def train_step(
    variables: dict[str, Any], opt_state: Any, batch: Mapping[str, Array], rng: Array | None = None
) -> tuple[dict[str, Any], Any, Array]:
    """The variables and the optimizer's state after a step on a batch, and its loss."""
    value, grads = jax.value_and_grad(lambda net: loss({"params": net}, batch, True)[0])(variables["params"])
    updates, opt_state = optimizer.update(grads, opt_state, variables["params"])
    return {"params": optax.apply_updates(variables["params"], updates), "batch_stats": {}}, opt_state, value
