"""The network of one image, under a `vmap` whose named axis is the batch that normalisation averages over."""

from collections.abc import Mapping
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax import lax

Tree = dict[str, Any]
Batch = Mapping[str, jax.Array]

BATCH = "batch"


def conv(x: jax.Array, kernel: jax.Array, stride: int = 1, padding: int = 1) -> jax.Array:
    """A convolution of `(height, width, in)` with `(height, width, in, out)`."""
    pads = ((padding, padding), (padding, padding))
    numbers = ("NHWC", "HWIO", "NHWC")
    return lax.conv_general_dilated(
        x[None], kernel, (stride, stride), pads, dimension_numbers=numbers, precision=lax.Precision.HIGHEST
    )[0]


def grouped_conv(x: jax.Array, kernel: jax.Array, groups: int) -> jax.Array:
    """A convolution of each group of channels on its own."""
    parts = zip(jnp.split(x, groups, axis=-1), jnp.split(kernel, groups, axis=-1), strict=True)
    return jnp.concatenate([conv(channels, weights) for channels, weights in parts], axis=-1)


def norm(params: Tree, stats: Tree, x: jax.Array, train: bool) -> tuple[jax.Array, Tree]:
    """x over the batch's statistics in training, over the running ones otherwise."""
    if train:
        mean = lax.pmean(x.mean(axis=(0, 1)), BATCH)
        var = lax.pmean(jnp.square(x - mean).mean(axis=(0, 1)), BATCH)
        count = lax.psum(x.shape[0] * x.shape[1], BATCH)
        stats = {
            "mean": 0.9 * stats["mean"] + 0.1 * mean,
            "var": 0.9 * stats["var"] + 0.1 * var * count / (count - 1),
            "steps": stats["steps"] + 1,
        }
    else:
        mean, var = stats["mean"], stats["var"]
    return params["scale"] * (x - mean) / jnp.sqrt(var + 1e-5) + params["bias"], stats


def pool(x: jax.Array, reduce: Any, start: float) -> jax.Array:
    """What reduces 3×3 windows at every second pixel."""
    pads = ((1, 1), (1, 1), (0, 0))
    pooled: jax.Array = lax.reduce_window(x, start, reduce, (3, 3, 1), (2, 2, 1), pads)
    return pooled


@partial(jax.vmap, in_axes=(None, None, 0, None), out_axes=(0, None), axis_name=BATCH)
def model(params: Tree, stats: Tree, image: jax.Array, train: bool) -> tuple[jax.Array, Tree]:
    """Maps images `(batch, 3, 18, 14)` to logits `(batch, 5)`, and statistics to new ones."""
    x = conv(jnp.moveaxis(image, 0, -1).astype(params["stem"].dtype), params["stem"], stride=2)
    x, stem_stats = norm(params["stem_norm"], stats["stem_norm"], x, train)
    x = pool(jnp.maximum(x, 0), lax.max, -jnp.inf)
    x = grouped_conv(x, params["depthwise"], groups=8)
    x = conv(x, params["pointwise"], padding=0)
    x, norm_stats = norm(params["norm"], stats["norm"], x, train)
    x = pool(jnp.maximum(x, 0), lax.add, 0.0) / 9
    x = jnp.maximum(grouped_conv(x, params["grouped"]["kernel"], groups=4) + params["grouped"]["bias"], 0)
    features = jnp.moveaxis(x, -1, 0).ravel()
    logits = jnp.dot(features, params["head"]["kernel"], precision=lax.Precision.HIGHEST) + params["head"]["bias"]
    return logits, {"stem_norm": stem_stats, "norm": norm_stats}


def is_kernel(params: Any) -> Any:
    """Which parameters decay."""
    return jax.tree.map(lambda leaf: jnp.ndim(leaf) > 1, params)


def limit_largest(grads: optax.Updates, params: optax.Params | None) -> optax.Updates:
    """torch's `clip_grad_norm_(…, 0.1, inf)`."""
    return jax.tree.map(lambda g: g * jnp.minimum(1, 0.1 / (optax.tree.norm(grads, ord=jnp.inf) + 1e-6)), grads)


optimizer = optax.chain(
    optax.stateless(limit_largest),
    optax.add_decayed_weights(1e-2, is_kernel),
    optax.inject_hyperparams(optax.adam)(lambda step: 3e-3 * 0.3 ** jnp.sum(step >= np.array([2, 4]))),
)


def renamed(tensors: Mapping[str, Any]) -> Tree:
    """torch's tensors as a tree, in torch's layouts."""
    return {
        "stem": tensors["stem.0.weight"],
        "stem_norm": {"scale": tensors["stem.1.weight"], "bias": tensors["stem.1.bias"]},
        "depthwise": tensors["depthwise.weight"],
        "pointwise": tensors["pointwise.weight"],
        "norm": {"scale": tensors["norm.weight"], "bias": tensors["norm.bias"]},
        "grouped": {"kernel": tensors["grouped.weight"], "bias": tensors["grouped.bias"]},
        "head": {"kernel": tensors["head.weight"], "bias": tensors["head.bias"]},
    }


def renamed_statistics(tensors: Mapping[str, Any]) -> Tree:
    """torch's running statistics as a tree."""
    parts = {"mean": "running_mean", "var": "running_var", "steps": "num_batches_tracked"}
    norms = {"stem_norm": "stem.1", "norm": "norm"}
    return {here: {part: tensors[f"{name}.{there}"] for part, there in parts.items()} for here, name in norms.items()}


PARAMETERS = tuple(
    f"{name}.weight" for name in ("stem.0", "stem.1", "depthwise", "pointwise", "norm", "grouped", "head")
)
BIASES = ("stem.1.bias", "norm.bias", "grouped.bias", "head.bias")
STATISTICS = tuple(
    f"{norm}.{part}" for norm in ("stem.1", "norm") for part in ("running_mean", "running_var", "num_batches_tracked")
)


def from_torch(state_dict: Mapping[str, np.ndarray]) -> Tree:
    """The variables from torch's: kernels are transposed, which puts rows where columns were, and then turned back."""

    def convert(tensor: np.ndarray) -> jax.Array:
        return jnp.asarray(tensor.transpose(2, 3, 1, 0) if tensor.ndim == 4 else tensor.T)

    return {
        "params": jax.tree.map(convert, renamed(state_dict)),
        "batch_stats": jax.tree.map(jnp.asarray, renamed_statistics(state_dict)),
    }


def to_torch(variables: Tree) -> dict[str, np.ndarray]:
    """torch's state dict from the variables."""
    names = jax.tree.leaves(renamed({name: name for name in PARAMETERS + BIASES}))
    leaves = [np.asarray(leaf) for leaf in jax.tree.leaves(variables["params"])]
    state_dict = {
        name: leaf.transpose(3, 2, 0, 1) if leaf.ndim == 4 else leaf.T for name, leaf in zip(names, leaves, strict=True)
    }
    statistics = jax.tree.leaves(renamed_statistics({name: name for name in STATISTICS}))
    for name, leaf in zip(statistics, jax.tree.leaves(variables["batch_stats"]), strict=True):
        state_dict[name] = np.asarray(leaf, np.int64 if leaf.ndim == 0 else None)
    return state_dict


def outputs(variables: Tree, batch: Batch, train: bool, rng: jax.Array | None = None) -> dict[str, jax.Array]:
    """The logits of a batch."""
    return {"logits": model(variables["params"], variables["batch_stats"], jnp.asarray(batch["images"]), train)[0]}


def loss(variables: Tree, batch: Batch, train: bool, rng: jax.Array | None = None) -> tuple[jax.Array, Tree]:
    """The mean cross-entropy and the statistics after it."""
    logits, stats = model(variables["params"], variables["batch_stats"], jnp.asarray(batch["images"]), train)
    losses = jax.vmap(lambda row, label: jax.nn.logsumexp(row) - row[label])(logits, jnp.asarray(batch["labels"]))
    return losses.mean(), stats


@jax.jit
def train_step(
    variables: Tree, opt_state: Any, batch: Batch, rng: jax.Array | None = None
) -> tuple[Tree, Any, jax.Array]:
    """The variables and the optimizer's state after a step on a batch, and its loss."""

    def objective(params: Tree) -> tuple[jax.Array, Tree]:
        return loss({**variables, "params": params}, batch, True)

    (value, stats), grads = jax.value_and_grad(objective, has_aux=True)(variables["params"])
    updates, opt_state = optimizer.update(grads, opt_state, variables["params"])
    return {"params": optax.apply_updates(variables["params"], updates), "batch_stats": stats}, opt_state, value
