"""The network in plain JAX, channels first as in torch, on a flat dict that keeps torch's names and layouts."""

from collections.abc import Mapping
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax import lax

Tensors = dict[str, jax.Array]
Batch = Mapping[str, jax.Array]

STATISTICS = ("running_mean", "running_var", "num_batches_tracked")
WINDOW, STRIDES, PADDING = (1, 1, 3, 3), (1, 1, 2, 2), ((0, 0), (0, 0), (1, 1), (1, 1))


def conv(x: jax.Array, weight: jax.Array, stride: int = 1, padding: int = 1, groups: int = 1) -> jax.Array:
    """`F.conv2d` without a bias."""
    return lax.conv_general_dilated(
        x,
        weight,
        window_strides=(stride, stride),
        padding=[(padding, padding)] * 2,
        dimension_numbers=("NCHW", "OIHW", "NCHW"),
        feature_group_count=groups,
        precision="highest",
    )


def batch_norm(params: Tensors, stats: Tensors, name: str, x: jax.Array, train: bool) -> tuple[jax.Array, Tensors]:
    """The normalised x, and the statistics it leaves."""
    channels = (None, slice(None), None, None)
    mean, var = stats[f"{name}.running_mean"], stats[f"{name}.running_var"]
    if train:
        seen = x.size // x.shape[1]
        batch_mean, batch_var = jnp.mean(x, (0, 2, 3)), jnp.var(x, (0, 2, 3))
        stats = stats | {
            f"{name}.running_mean": 0.9 * mean + 0.1 * batch_mean,
            f"{name}.running_var": 0.9 * var + 0.1 * batch_var * (seen / (seen - 1)),
            f"{name}.num_batches_tracked": stats[f"{name}.num_batches_tracked"] + 1,
        }
        mean, var = batch_mean, batch_var
    x = (x - mean[channels]) / jnp.sqrt(var[channels] + 1e-5)
    return x * params[f"{name}.weight"][channels] + params[f"{name}.bias"][channels], stats


def model(params: Tensors, stats: Tensors, images: jax.Array, train: bool) -> tuple[jax.Array, Tensors]:
    """Maps images `(batch, 3, 18, 14)` to logits `(batch, 5)`, and statistics to new ones."""
    x = conv(images.astype(params["stem.0.weight"].dtype), params["stem.0.weight"], stride=2)
    x, stats = batch_norm(params, stats, "stem.1", x, train)
    x = lax.reduce_window(jax.nn.relu(x), -jnp.inf, lax.max, WINDOW, STRIDES, PADDING)
    x = conv(x, params["depthwise.weight"], groups=8)
    x = conv(x, params["pointwise.weight"], padding=0)
    x, stats = batch_norm(params, stats, "norm", x, train)
    x = lax.reduce_window(jax.nn.relu(x), 0.0, lax.add, WINDOW, STRIDES, PADDING) / 9
    x = jax.nn.relu(conv(x, params["grouped.weight"], groups=4) + params["grouped.bias"][:, None, None])
    x = x.reshape(x.shape[0], -1)
    return jnp.matmul(x, params["head.weight"].T, precision="highest") + params["head.bias"], stats


class AdamState(NamedTuple):
    """Steps taken, and the moving averages of gradients and of their squares."""

    step: jax.Array
    first: optax.Updates
    second: optax.Updates


def adam_init(params: optax.Params) -> AdamState:
    """No steps, averages of zero."""
    zeros = jax.tree.map(jnp.zeros_like, params)
    return AdamState(jnp.zeros((), jnp.int32), zeros, zeros)


def adam_update(
    grads: optax.Updates, state: AdamState, params: optax.Params | None = None
) -> tuple[optax.Updates, AdamState]:
    """A step of torch's Adam on gradients cut to a largest element of 0.1, with an L2 penalty on kernels."""
    largest = optax.tree.norm(grads, ord="inf")
    grads = jax.tree.map(lambda g: g * jnp.minimum(0.1 / (largest + 1e-6), 1.0), grads)
    grads = jax.tree.map(lambda g, p: g + 1e-2 * p if p.ndim > 1 else g, grads, params)
    step = state.step + 1
    first = jax.tree.map(lambda m, g: m + (1 - 0.9) * (g - m), state.first, grads)
    second = jax.tree.map(lambda v, g: 0.999 * v + (1 - 0.999) * g * g, state.second, grads)
    rate = 3e-3 * jnp.where(state.step < 2, 1.0, jnp.where(state.step < 4, 0.3, 0.09))
    size, root = rate / (1 - 0.9**step), jnp.sqrt(1 - 0.999**step)
    return jax.tree.map(lambda m, v: -size * m / (jnp.sqrt(v) / root + 1e-8), first, second), AdamState(
        step, first, second
    )


optimizer = optax.GradientTransformation(adam_init, adam_update)


def from_torch(state_dict: Mapping[str, np.ndarray]) -> dict[str, Tensors]:
    """torch's state dict, parameters and statistics apart."""
    tensors = {name: jnp.asarray(tensor) for name, tensor in state_dict.items()}
    stats = {name: tensor for name, tensor in tensors.items() if name.endswith(STATISTICS)}
    return {"params": {name: tensors[name] for name in tensors.keys() - stats.keys()}, "batch_stats": stats}


def to_torch(variables: Mapping[str, Tensors]) -> dict[str, np.ndarray]:
    """torch's state dict."""
    tensors = {name: np.asarray(leaf) for name, leaf in (variables["params"] | variables["batch_stats"]).items()}
    return {name: t.astype(np.int64) if name.endswith("tracked") else t for name, t in tensors.items()}


def outputs(
    variables: Mapping[str, Tensors], batch: Batch, train: bool, rng: jax.Array | None = None
) -> dict[str, jax.Array]:
    """The logits of a batch."""
    return {"logits": model(variables["params"], variables["batch_stats"], jnp.asarray(batch["images"]), train)[0]}


def loss(
    variables: Mapping[str, Tensors], batch: Batch, train: bool, rng: jax.Array | None = None
) -> tuple[jax.Array, Tensors]:
    """The mean cross-entropy and the statistics after it."""
    logits, stats = model(variables["params"], variables["batch_stats"], jnp.asarray(batch["images"]), train)
    hits = jnp.take_along_axis(jax.nn.log_softmax(logits), jnp.asarray(batch["labels"])[:, None], 1)
    return -hits.mean(), stats


@jax.jit
def train_step(
    variables: dict[str, Tensors], opt_state: AdamState, batch: Batch, rng: jax.Array | None = None
) -> tuple[dict[str, Tensors], AdamState, jax.Array]:
    """The variables and the optimizer's state after a step on a batch, and its loss."""
    params, stats = variables["params"], variables["batch_stats"]
    grad = jax.value_and_grad(lambda params: loss({"params": params, "batch_stats": stats}, batch, True), has_aux=True)
    (value, stats), grads = grad(params)
    updates, opt_state = adam_update(grads, opt_state, params)
    return {"params": optax.apply_updates(params, updates), "batch_stats": stats}, opt_state, value
