"""The network with what can be fused fused: depthwise with pointwise kernels, normalisation as one scale and shift."""

from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import struct
from jax import lax


@struct.dataclass
class Norm:
    """A normalisation's parameters."""

    gamma: jax.Array
    beta: jax.Array


@struct.dataclass
class Network:
    """Parameters in torch's layouts; the head's rows are transposed."""

    stem: jax.Array
    stem_norm: Norm
    depthwise: jax.Array
    pointwise: jax.Array
    norm: Norm
    grouped: jax.Array
    grouped_bias: jax.Array
    head: jax.Array
    head_bias: jax.Array


def conv(x: jax.Array, kernel: jax.Array, stride: int = 1, groups: int = 1) -> jax.Array:
    """A convolution of `(channels, height, width, batch)` with a 3×3 kernel of torch's layout and a padding of 1."""
    return lax.conv_general_dilated(
        x, kernel, (stride,) * 2, ((1, 1),) * 2, dimension_numbers=("CHWN", "OIHW", "CHWN"),
        feature_group_count=groups, precision="highest",
    )  # fmt: skip


def pool(x: jax.Array, start: float, reduce: Any) -> jax.Array:
    """3×3 windows at every second pixel, reduced."""
    pads = ((0, 0), (1, 1), (1, 1), (0, 0))
    pooled: jax.Array = lax.reduce_window(x, start, reduce, (1, 3, 3, 1), (1, 2, 2, 1), pads)
    return pooled


def scaled(norm: Norm, x: jax.Array, running: jax.Array, train: bool) -> tuple[jax.Array, jax.Array]:
    """The normalised x, and the moments of the batch that the running ones move towards."""
    moments = running
    if train:
        mean = x.mean(axis=(1, 2, 3))
        centred = x - mean[:, None, None, None]
        squares = jnp.einsum("chwn,chwn->c", centred, centred, precision="highest")
        count = x[0].size
        moments, target = jnp.stack([mean, squares / count]), jnp.stack([mean, squares / (count - 1)])
        running = running + 0.1 * (target - running)
    scale = norm.gamma / jnp.sqrt(moments[1] + 1e-5)
    shift = norm.beta - scale * moments[0]
    return x * scale[:, None, None, None] + shift[:, None, None, None], running


def model(net: Network, stats: dict[str, Any], images: jax.Array, train: bool) -> tuple[jax.Array, dict[str, Any]]:
    """Maps images `(batch, 3, 18, 14)` to logits `(batch, 5)`, and statistics to new ones."""
    x = conv(images.transpose(1, 2, 3, 0).astype(net.stem.dtype), net.stem, stride=2)
    x, stem_norm = scaled(net.stem_norm, x, stats["stem_norm"], train)
    x = jax.nn.relu(pool(x, -jnp.inf, lax.max))  # the maximum of positive parts is the maximum's positive part
    x = conv(x, net.pointwise * net.depthwise[:, 0])
    x, norm = scaled(net.norm, x, stats["norm"], train)
    x = pool(jax.nn.relu(x), 0.0, lax.add) / 9
    x = jax.nn.relu(conv(x, net.grouped, groups=4) + net.grouped_bias[:, None, None, None])
    logits = jnp.einsum("fn,fo->no", x.reshape(-1, x.shape[-1]), net.head, precision="highest") + net.head_bias
    return logits, {"stem_norm": stem_norm, "norm": norm, "steps": stats["steps"] + int(train)}


def decays(net: Any) -> Any:
    """Which parameters decay."""
    return jax.tree.map(lambda leaf: leaf.ndim != 1, net)


def labels(net: Any) -> Any:
    """Which optimizer a parameter has."""
    return jax.tree.map(lambda decayed: "penalised" if decayed else "free", decays(net))


def rate(step: jax.Array) -> jax.Array:
    """The learning rate after a number of steps."""
    return jnp.select([step < 2, step < 4], [3e-3, 9e-4], 2.7e-4)


def clip(grads: optax.Updates, net: optax.Params | None) -> optax.Updates:
    """torch's `clip_grad_norm_` of the infinity norm to 0.1."""
    norm: Any = jax.tree.reduce(jnp.maximum, jax.tree.map(lambda grad: jnp.abs(grad).max(), grads))
    return jax.tree.map(lambda grad: grad * jnp.minimum(0.1 / (norm + 1e-6), 1), grads)


optimizer = optax.chain(
    optax.stateless(clip),
    optax.partition(
        {"penalised": optax.chain(optax.add_decayed_weights(1e-2), optax.adam(rate)), "free": optax.adam(rate)}, labels
    ),
)


def from_torch(state_dict: Mapping[str, np.ndarray]) -> dict[str, Any]:
    """The variables from torch's."""
    tensors = {name: jnp.asarray(tensor) for name, tensor in state_dict.items()}
    net = Network(
        stem=tensors["stem.0.weight"],
        stem_norm=Norm(tensors["stem.1.weight"], tensors["stem.1.bias"]),
        depthwise=tensors["depthwise.weight"],
        pointwise=tensors["pointwise.weight"],
        norm=Norm(tensors["norm.weight"], tensors["norm.bias"]),
        grouped=tensors["grouped.weight"],
        grouped_bias=tensors["grouped.bias"],
        head=tensors["head.weight"].T,
        head_bias=tensors["head.bias"],
    )
    stats = {
        "stem_norm": jnp.stack([tensors["stem.1.running_mean"], tensors["stem.1.running_var"]]),
        "norm": jnp.stack([tensors["norm.running_mean"], tensors["norm.running_var"]]),
        "steps": tensors["norm.num_batches_tracked"],
    }
    return {"params": net, "batch_stats": stats}


def to_torch(variables: dict[str, Any]) -> dict[str, np.ndarray]:
    """torch's state dict from the variables."""
    net, stats = jax.tree.map(np.asarray, (variables["params"], variables["batch_stats"]))
    steps = stats["steps"].astype(np.int64)
    return {
        "stem.0.weight": net.stem,
        "stem.1.weight": net.stem_norm.gamma,
        "stem.1.bias": net.stem_norm.beta,
        "stem.1.running_mean": stats["stem_norm"][0],
        "stem.1.running_var": stats["stem_norm"][1],
        "stem.1.num_batches_tracked": steps,
        "depthwise.weight": net.depthwise,
        "pointwise.weight": net.pointwise,
        "norm.weight": net.norm.gamma,
        "norm.bias": net.norm.beta,
        "norm.running_mean": stats["norm"][0],
        "norm.running_var": stats["norm"][1],
        "norm.num_batches_tracked": steps,
        "grouped.weight": net.grouped,
        "grouped.bias": net.grouped_bias,
        "head.weight": net.head.T,
        "head.bias": net.head_bias,
    }


def outputs(
    variables: dict[str, Any], batch: Mapping[str, jax.Array], train: bool, rng: jax.Array | None = None
) -> dict[str, jax.Array]:
    """The logits of a batch."""
    return {"logits": model(variables["params"], variables["batch_stats"], jnp.asarray(batch["images"]), train)[0]}


def loss(
    variables: dict[str, Any], batch: Mapping[str, jax.Array], train: bool, rng: jax.Array | None = None
) -> tuple[jax.Array, dict[str, Any]]:
    """The mean cross-entropy and the statistics after it."""
    logits, stats = model(variables["params"], variables["batch_stats"], jnp.asarray(batch["images"]), train)
    return optax.losses.softmax_cross_entropy_with_integer_labels(logits, batch["labels"]).mean(), stats


@jax.jit
def train_step(
    variables: dict[str, Any], opt_state: Any, batch: Mapping[str, jax.Array], rng: jax.Array | None = None
) -> tuple[dict[str, Any], Any, jax.Array]:
    """The variables and the optimizer's state after a step on a batch, and its loss."""
    net, stats = variables["params"], variables["batch_stats"]
    (value, stats), grads = jax.value_and_grad(
        lambda net: loss({"params": net, "batch_stats": stats}, batch, True), has_aux=True
    )(net)
    updates, opt_state = optimizer.update(grads, opt_state, net)
    return {"params": optax.apply_updates(net, updates), "batch_stats": stats}, opt_state, value
