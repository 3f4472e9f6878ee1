"""The U-net in flax with `setup`; pixels are interpolated from their four neighbours, `lax.conv_transpose` goes up."""

from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import linen as nn

CHANNELS = 8
BLOCKS = ("fine", "middle", "coarse", "merge2", "merge1")
CONVS = ("down1", "down2", "out", "up1", "up0")


class Block(nn.Module):
    """A convolution, group normalisation and SiLU."""

    features: int

    def setup(self) -> None:
        self.conv = nn.Conv(self.features, (3, 3), padding=1, precision="highest")
        self.norm = nn.GroupNorm(num_groups=4, epsilon=1e-5)

    def __call__(self, x: jax.Array) -> jax.Array:
        return nn.swish(self.norm(self.conv(x)))


class Up(nn.Module):
    """A transposed convolution of a stride of 2; the kernel is `(height, width, in, out)` and already flipped."""

    features: int
    size: int
    border: tuple[int, int]

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        shape = (self.size, self.size, x.shape[-1], self.features)
        kernel = self.param("kernel", nn.initializers.lecun_normal(), shape)
        bias = self.param("bias", nn.initializers.zeros, (self.features,))
        return jax.lax.conv_transpose(x, kernel, (2, 2), [self.border] * 2, precision="highest") + bias


def neighbours(size: int, new_size: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """For every new pixel the old ones before and after it, and how far it is on the way between them."""
    position = np.maximum((np.arange(new_size) + 0.5) * (size / new_size) - 0.5, 0)
    before = position.astype(int)
    return before, np.minimum(before + 1, size - 1), position - before


def resize(x: jax.Array, size: tuple[int, ...]) -> jax.Array:
    """Bilinear interpolation of images `(batch, height, width, channels)`."""
    for axis, new_size in zip((1, 2), size, strict=True):
        before, after, way = neighbours(x.shape[axis], new_size)
        shape = [1, 1, 1, 1]
        shape[axis] = new_size
        share = jnp.asarray(way, x.dtype).reshape(shape)
        x = jnp.take(x, before, axis) * (1 - share) + jnp.take(x, after, axis) * share
    return x


class UNet(nn.Module):
    """Maps images `(batch, 14, 14, 1)` to images `(batch, 28, 28, 1)`."""

    def setup(self) -> None:
        self.fine, self.middle, self.coarse = Block(CHANNELS), Block(2 * CHANNELS), Block(2 * CHANNELS)
        self.down1 = nn.Conv(CHANNELS, (3, 3), (2, 2), ((1, 1), (1, 1)), precision="highest")
        self.down2 = nn.Conv(2 * CHANNELS, (3, 3), (2, 2), ((1, 1), (1, 1)), precision="highest")
        self.merge2, self.merge1 = Block(CHANNELS), Block(CHANNELS)
        self.up1, self.up0 = Up(CHANNELS, 3, (1, 2)), Up(CHANNELS // 2, 2, (1, 1))
        self.out = nn.Conv(1, (1, 1), precision="highest")

    def __call__(self, images: jax.Array) -> jax.Array:
        fine = self.fine(images)
        middle = self.middle(self.down1(fine))
        coarse = self.coarse(self.down2(middle))
        x = self.merge2(jnp.concatenate([resize(coarse, middle.shape[1:3]), middle], axis=-1))
        x = self.merge1(jnp.concatenate([self.up1(x), fine], axis=-1))
        detail: jax.Array = self.out(nn.swish(self.up0(x)))
        return detail + resize(images.astype(detail.dtype), detail.shape[1:3])


def scale_by_root_of_sums(epsilon: float) -> optax.GradientTransformation:
    """Gradients over the root of the sums of their squares, plus epsilon."""

    def update(grads: Any, sums: Any, params: Any = None) -> tuple[Any, Any]:
        sums = jax.tree.map(lambda total, grad: total + grad**2, sums, grads)
        return jax.tree.map(lambda grad, total: grad / (jnp.sqrt(total) + epsilon), grads, sums), sums

    return optax.GradientTransformation(optax.tree.zeros_like, update)


model = UNet()
optimizer = optax.chain(
    optax.add_decayed_weights(1e-3),
    scale_by_root_of_sums(1e-10),
    optax.scale_by_schedule(lambda step: 1 / (1 + 0.05 * step)),
    optax.scale_by_schedule(lambda step: -0.002 - 0.018 * jnp.cos(jnp.pi / 24 * step) ** 2),
)


def from_torch(state_dict: Mapping[str, np.ndarray]) -> dict[str, Any]:
    """The variables from torch's."""

    def conv(name: str) -> dict[str, jax.Array]:
        weight = jnp.asarray(state_dict[f"{name}.weight"])
        up = name.startswith("up")
        kernel = weight[:, :, ::-1, ::-1].transpose(2, 3, 0, 1) if up else weight.transpose(2, 3, 1, 0)
        return {"kernel": kernel, "bias": jnp.asarray(state_dict[f"{name}.bias"])}

    params: dict[str, Any] = {name: conv(name) for name in CONVS}
    for name in BLOCKS:
        scale, bias = (jnp.asarray(state_dict[f"{name}.norm.{part}"]) for part in ("weight", "bias"))
        params[name] = {"conv": conv(f"{name}.conv"), "norm": {"scale": scale, "bias": bias}}
    return {"params": params, "batch_stats": {}}


def to_torch(variables: dict[str, Any]) -> dict[str, np.ndarray]:
    """torch's state dict from the variables."""
    params = jax.tree.map(np.asarray, variables["params"])
    convs = {name: params[name] for name in CONVS} | {f"{name}.conv": params[name]["conv"] for name in BLOCKS}
    state_dict: dict[str, np.ndarray] = {}
    for name, conv in convs.items():
        kernel = conv["kernel"]
        up = name.startswith("up")
        weight = kernel[::-1, ::-1].transpose(2, 3, 0, 1) if up else kernel.transpose(3, 2, 0, 1)
        state_dict |= {f"{name}.weight": weight, f"{name}.bias": conv["bias"]}
    for name in BLOCKS:
        norm = params[name]["norm"]
        state_dict |= {f"{name}.norm.weight": norm["scale"], f"{name}.norm.bias": norm["bias"]}
    return state_dict


def outputs(
    variables: dict[str, Any], batch: Mapping[str, jax.Array], train: bool, rng: jax.Array | None = None
) -> dict[str, jax.Array]:
    """The images at twice the resolution."""
    predicted: Any = model.apply({"params": variables["params"]}, jnp.moveaxis(batch["images"], 1, 3))
    return {"images": jnp.moveaxis(predicted, 3, 1)}


def loss(
    variables: dict[str, Any], batch: Mapping[str, jax.Array], train: bool, rng: jax.Array | None = None
) -> tuple[jax.Array, dict[str, Any]]:
    """Squared and absolute errors, the squared error of the output made small again, and no statistics."""
    predicted = jnp.moveaxis(outputs(variables, batch, train)["images"], 1, 3)
    images, targets = (jnp.moveaxis(batch[name], 1, 3) for name in ("images", "targets"))
    shrunk = resize(predicted, images.shape[1:3])
    squared = 2 * optax.l2_loss(predicted, targets).mean() + 0.5 * optax.l2_loss(shrunk, images).mean()
    return squared + 0.5 * jnp.abs(predicted - targets).mean(), {}


@jax.jit
def train_step(
    variables: dict[str, Any], opt_state: Any, batch: Mapping[str, jax.Array], rng: jax.Array | None = None
) -> tuple[dict[str, Any], Any, jax.Array]:
    """The variables and the optimizer's state after a step on a batch, and its loss."""
    value, grads = jax.value_and_grad(lambda params: loss({"params": params}, batch, True)[0])(variables["params"])
    updates, opt_state = optimizer.update(grads, opt_state, variables["params"])
    return {"params": optax.apply_updates(variables["params"], updates), "batch_stats": {}}, opt_state, value
