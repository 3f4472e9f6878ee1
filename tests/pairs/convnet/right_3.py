"""The network without a primitive for convolutions or pools: shifted views of the padded image, and einsums."""

from collections.abc import Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax import Array


class Params(NamedTuple):
    """Weights in torch's layouts, in the order in which they are used."""

    stem: Array
    stem_scale: Array
    stem_shift: Array
    depthwise: Array
    pointwise: Array
    scale: Array
    shift: Array
    grouped: Array
    grouped_bias: Array
    head: Array
    head_bias: Array


class Statistics(NamedTuple):
    """Of one normalisation."""

    running_mean: Array
    running_var: Array
    num_batches_tracked: Array


NAMES = (
    "stem.0.weight", "stem.1.weight", "stem.1.bias", "depthwise.weight", "pointwise.weight", "norm.weight",
    "norm.bias", "grouped.weight", "grouped.bias", "head.weight", "head.bias",
)  # fmt: skip
NORMS = ("stem.1", "norm")


def views(x: Array, stride: int, fill: float = 0.0) -> Array:
    """The nine views `(batch, channels, 9, height, width)` that a 3×3 window with a padding of 1 has of an image."""
    height, width = ((size - 1) // stride + 1 for size in x.shape[2:])
    padded = jnp.pad(x, ((0, 0), (0, 0), (1, 1), (1, 1)), constant_values=fill)
    rows, columns = stride * (height - 1) + 1, stride * (width - 1) + 1
    shifted = [padded[:, :, i : i + rows : stride, j : j + columns : stride] for i in range(3) for j in range(3)]
    return jnp.stack(shifted, axis=2)


def conv3x3(x: Array, weight: Array, stride: int = 1, groups: int = 1) -> Array:
    """A convolution with a padding of 1, whose channels are in groups."""
    seen = views(x, stride)
    seen = seen.reshape(seen.shape[0], groups, -1, *seen.shape[2:])
    kernel = weight.reshape(groups, -1, weight.shape[1], 9)
    out = jnp.einsum("bgikhw,goik->bgohw", seen, kernel, precision="highest")
    return out.reshape(x.shape[0], -1, *out.shape[3:])


def normalize(x: Array, scale: Array, shift: Array, stats: Statistics, train: bool) -> tuple[Array, Statistics]:
    """x over its statistics, and the statistics after it."""
    mean, var, steps = stats
    if train:
        columns = x.transpose(1, 0, 2, 3).reshape(x.shape[1], -1)
        batch_mean, batch_var = columns.mean(1), columns.var(1, ddof=1)
        stats = Statistics(mean + 0.1 * (batch_mean - mean), var + 0.1 * (batch_var - var), steps + 1)
        mean, var = batch_mean, columns.var(1)
    gain = scale * (var + 1e-5) ** -0.5
    return x * gain[:, None, None] + (shift - mean * gain)[:, None, None], stats


def model(params: Params, stats: list[Statistics], images: Array, train: bool) -> tuple[Array, list[Statistics]]:
    """Maps images `(batch, 3, 18, 14)` to logits `(batch, 5)`, and statistics to new ones."""
    x = conv3x3(images.astype(params.stem.dtype), params.stem, stride=2)
    x, first = normalize(x, params.stem_scale, params.stem_shift, stats[0], train)
    x = views(jax.nn.relu(x), stride=2, fill=-jnp.inf).max(axis=2)
    x = conv3x3(x, params.depthwise, groups=8)
    x = jnp.einsum("bihw,oi->bohw", x, params.pointwise[:, :, 0, 0], precision="highest")
    x, second = normalize(x, params.scale, params.shift, stats[1], train)
    x = views(jax.nn.relu(x), stride=2).mean(axis=2)
    x = jax.nn.relu(conv3x3(x, params.grouped, groups=4) + params.grouped_bias[:, None, None])
    x = jnp.einsum("bchw,ochw->bo", x, params.head.reshape(-1, *x.shape[1:]), precision="highest")
    return x + params.head_bias, [first, second]


def clip(limit: float) -> optax.GradientTransformation:
    """torch's `clip_grad_norm_` of the infinity norm."""

    def update(grads: optax.Updates, params: optax.Params | None) -> optax.Updates:
        del params
        largest = jnp.max(jnp.concatenate([jnp.abs(grad).ravel() for grad in jax.tree.leaves(grads)]))
        return optax.tree.scale(jnp.clip(limit / (largest + 1e-6), max=1.0), grads)

    return optax.stateless(update)


DECAYED: Any = Params._make(
    "shift" not in name and "bias" not in name and "scale" not in name for name in Params._fields
)
RATES = (3e-3, 3e-3, 9e-4, 9e-4, 2.7e-4)
optimizer = optax.chain(
    clip(0.1),
    optax.add_decayed_weights(1e-2, mask=DECAYED),
    optax.adam(lambda step: jnp.asarray(np.array(RATES))[jnp.minimum(step, 4)], b1=0.9, b2=0.999, eps=1e-8),
)


def from_torch(state_dict: Mapping[str, np.ndarray]) -> dict[str, Any]:
    """The variables: torch's tensors, as they are."""
    stats = [Statistics(*(jnp.asarray(state_dict[f"{norm}.{part}"]) for part in Statistics._fields)) for norm in NORMS]
    return {"params": Params(*(jnp.asarray(state_dict[name]) for name in NAMES)), "batch_stats": stats}


def to_torch(variables: dict[str, Any]) -> dict[str, np.ndarray]:
    """torch's state dict from the variables."""
    state_dict: dict[str, np.ndarray] = {
        name: np.asarray(leaf) for name, leaf in zip(NAMES, variables["params"], strict=True)
    }
    for norm, (mean, var, steps) in zip(NORMS, variables["batch_stats"], strict=True):
        state_dict |= {f"{norm}.running_mean": np.asarray(mean), f"{norm}.running_var": np.asarray(var)}
        state_dict[f"{norm}.num_batches_tracked"] = np.asarray(steps).astype(np.int64)
    return state_dict


def outputs(
    variables: dict[str, Any], batch: Mapping[str, Array], train: bool, rng: Array | None = None
) -> dict[str, Array]:
    """The logits of a batch."""
    logits, _ = model(variables["params"], variables["batch_stats"], jnp.asarray(batch["images"]), train)
    return {"logits": logits}


def loss(
    variables: dict[str, Any], batch: Mapping[str, Array], train: bool, rng: Array | None = None
) -> tuple[Array, list[Statistics]]:
    """The mean cross-entropy and the statistics after it."""
    logits, stats = model(variables["params"], variables["batch_stats"], jnp.asarray(batch["images"]), train)
    top = logits.max(axis=1, keepdims=True)
    normalizer = jnp.log(jnp.exp(logits - top).sum(axis=1)) + top[:, 0]
    return jnp.mean(normalizer - logits[jnp.arange(len(logits)), batch["labels"]]), stats


@jax.jit
def train_step(
    variables: dict[str, Any], opt_state: Any, batch: Mapping[str, Array], rng: Array | None = None
) -> tuple[dict[str, Any], Any, Array]:
    """The variables and the optimizer's state after a step on a batch, and its loss."""
    params, stats = variables["params"], variables["batch_stats"]
    value_and_grad = jax.value_and_grad(lambda p: loss({"params": p, "batch_stats": stats}, batch, True), has_aux=True)
    (value, stats), grads = value_and_grad(params)
    updates, opt_state = optimizer.update(grads, opt_state, params)
    return {"params": optax.apply_updates(params, updates), "batch_stats": stats}, opt_state, value
