"""The convolutional network as a CPU computes it fast: images in columns, and products in place of convolutions.

XLA's convolutions take twenty times as long on a CPU. With an image in each column all that is moved are whole rows.
"""

import itertools
from typing import Any

import jax
import jax.numpy as jnp

from fmnist.experiment import SIDE


def logits(params: Any, images: jax.Array) -> jax.Array:
    """Those of `fmnist_jax.model.ConvolutionalNetwork`, `(batch, 10)`, of images `(batch, 784)`."""
    activations = images.T.reshape(1, SIDE, SIDE, -1)
    for layer in range(1, len(params)):
        activations = _convolve_and_pool(activations, **params[f"conv{layer}"])
    features = activations.reshape(-1, len(images))
    columns: jax.Array = _product(params["fc"]["kernel"].T, features) + params["fc"]["bias"][:, None]
    return jnp.transpose(columns)


def _convolve_and_pool(images: jax.Array, kernel: jax.Array, bias: jax.Array) -> jax.Array:
    """A 3x3 convolution, a 2x2 max pool and a ReLU, `(out, height // 2, width // 2, batch)`.

    The four values that are pooled all lie in one window of 4x4 pixels, as four places of the kernel: each of them is
    a product with all windows. A ReLU of the largest is the largest of ReLUs.

    Args:
        images: `(in, height, width, batch)`.
        kernel: `(3, 3, in, out)`.
    """
    channels, height, width, batch = images.shape
    rows, columns = height // 2, width // 2
    padded = jnp.pad(images, ((0, 0), (1, 1), (1, 1), (0, 0)))[:, : 2 * rows + 2, : 2 * columns + 2]
    # Squares of 2x2 pixels as channels: a window is four of them.
    squares = padded.reshape(channels, rows + 1, 2, columns + 1, 2, batch).transpose(2, 4, 0, 1, 3, 5)
    squares = squares.reshape(4 * channels, rows + 1, columns + 1, batch)
    corners = list(itertools.product((0, 1), repeat=2))
    windows = jnp.concatenate([squares[:, row : row + rows, column : column + columns] for row, column in corners])
    windows = windows.reshape(16 * channels, -1)

    def values(row: int, column: int) -> jax.Array:
        """Of the convolution at one place of all windows, `(out, rows * columns * batch)`."""
        placed = jnp.pad(kernel, ((row, 1 - row), (column, 1 - column), (0, 0), (0, 0)))
        weights = placed.reshape(2, 2, 2, 2, channels, -1).transpose(5, 0, 2, 1, 3, 4).reshape(-1, len(windows))
        return _product(weights, windows) + bias[:, None]

    first, second, third, fourth = itertools.starmap(values, corners)
    pooled = _larger(_larger(first, second), _larger(third, fourth))
    return jax.nn.relu(pooled).reshape(-1, rows, columns, batch)


def _larger(one: jax.Array, other: jax.Array) -> jax.Array:
    """Of each two; where they are equal, the gradient goes to the first, as torch's does: jnp.maximum halves it."""
    return jnp.where(other > one, other, one)


def _product(one: jax.Array, other: jax.Array) -> jax.Array:
    return jnp.matmul(one, other, precision="highest")
