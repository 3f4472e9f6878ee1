"""Classifies small colour images, in JAX: the port of `program`. Channels come last inside."""

from collections.abc import Mapping
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import linen as nn

Variables = dict[str, Any]
Batch = Mapping[str, jax.Array]

CLASSES = 5
CONVOLUTIONS = {"stem": "stem.0", "depthwise": "depthwise", "pointwise": "pointwise", "grouped": "grouped"}
NORMS = {"stem_norm": "stem.1", "norm": "norm"}


class BatchNorm(nn.Module):
    """torch's: the variance that normalises is the biased one, the one that is remembered is not."""

    momentum: float = 0.1
    epsilon: float = 1e-5

    @nn.compact
    def __call__(self, x: jax.Array, train: bool) -> jax.Array:
        features = x.shape[-1]
        scale = self.param("scale", nn.initializers.ones, (features,))
        bias = self.param("bias", nn.initializers.zeros, (features,))
        running_mean = self.variable("batch_stats", "mean", jnp.zeros, (features,))
        running_var = self.variable("batch_stats", "var", jnp.ones, (features,))
        steps = self.variable("batch_stats", "num_batches_tracked", jnp.zeros, (), jnp.int32)
        mean, var = running_mean.value, running_var.value
        if train:
            axes = tuple(range(x.ndim - 1))
            mean, var = x.mean(axes), x.var(axes)
            count = x.size // features
            if not self.is_initializing():
                running_mean.value += self.momentum * (mean - running_mean.value)
                running_var.value += self.momentum * (var * count / (count - 1) - running_var.value)
                steps.value += 1
        return (x - mean) * jax.lax.rsqrt(var + self.epsilon) * scale + bias


class ConvNet(nn.Module):
    """Maps images `(batch, 18, 14, 3)` to logits `(batch, 5)`."""

    @nn.compact
    def __call__(self, images: jax.Array, train: bool) -> jax.Array:
        conv = partial(nn.Conv, padding=1, precision="highest")
        x = conv(8, (3, 3), strides=2, use_bias=False, name="stem")(images)
        x = nn.relu(BatchNorm(name="stem_norm")(x, train))
        x = nn.max_pool(x, (3, 3), strides=(2, 2), padding=((1, 1), (1, 1)))
        x = conv(8, (3, 3), feature_group_count=8, use_bias=False, name="depthwise")(x)
        x = conv(16, (1, 1), padding=0, use_bias=False, name="pointwise")(x)
        x = nn.relu(BatchNorm(name="norm")(x, train))
        x = nn.avg_pool(x, (3, 3), strides=(2, 2), padding=((1, 1), (1, 1)))
        x = nn.relu(conv(16, (3, 3), feature_group_count=4, name="grouped")(x))
        x = x.transpose(0, 3, 1, 2).reshape(x.shape[0], -1)  # torch flattens with the channels first
        return nn.Dense(CLASSES, precision="highest", name="head")(x)


def clip_by_global_max(limit: float) -> optax.GradientTransformation:
    """torch's `clip_grad_norm_` with the infinity norm."""

    def update(updates: optax.Updates, params: optax.Params | None) -> optax.Updates:
        del params
        largest = jnp.max(jnp.stack([jnp.abs(leaf).max() for leaf in jax.tree.leaves(updates)]))
        factor = jnp.minimum(1.0, limit / (largest + 1e-6))
        return jax.tree.map(lambda leaf: leaf * factor, updates)

    return optax.stateless(update)


def kernels(params: Any) -> Any:
    """Which parameters decay."""
    return jax.tree.map(lambda leaf: leaf.ndim > 1, params)


def learning_rate(step: jax.Array) -> jax.Array:
    """3e-3, three tenths of it after the second step and again after the fourth."""
    return 3e-3 * 0.3 ** ((step >= 2).astype(int) + (step >= 4))


model = ConvNet()
optimizer = optax.chain(
    clip_by_global_max(0.1),
    optax.add_decayed_weights(1e-2, mask=kernels),
    optax.adam(learning_rate),
)


def from_torch(state_dict: Mapping[str, np.ndarray]) -> Variables:
    """The variables from torch's: kernels are `(height, width, in, out)`, from `(out, in, height, width)`."""
    tensors = {name: jnp.asarray(tensor) for name, tensor in state_dict.items()}
    params = {
        layer: {"kernel": tensors[f"{name}.weight"].transpose(2, 3, 1, 0)} for layer, name in CONVOLUTIONS.items()
    }
    params["grouped"]["bias"] = tensors["grouped.bias"]
    params["head"] = {"kernel": tensors["head.weight"].T, "bias": tensors["head.bias"]}
    batch_stats = {}
    for layer, name in NORMS.items():
        params[layer] = {"scale": tensors[f"{name}.weight"], "bias": tensors[f"{name}.bias"]}
        batch_stats[layer] = {
            "mean": tensors[f"{name}.running_mean"],
            "var": tensors[f"{name}.running_var"],
            "num_batches_tracked": tensors[f"{name}.num_batches_tracked"],
        }
    return {"params": params, "batch_stats": batch_stats}


def to_torch(variables: Variables) -> dict[str, np.ndarray]:
    """torch's state dict from the variables."""
    params, batch_stats = jax.tree.map(np.asarray, (variables["params"], variables["batch_stats"]))
    state_dict = {
        f"{name}.weight": params[layer]["kernel"].transpose(3, 2, 0, 1) for layer, name in CONVOLUTIONS.items()
    }
    state_dict["grouped.bias"] = params["grouped"]["bias"]
    state_dict["head.weight"] = params["head"]["kernel"].T
    state_dict["head.bias"] = params["head"]["bias"]
    for layer, name in NORMS.items():
        state_dict[f"{name}.weight"] = params[layer]["scale"]
        state_dict[f"{name}.bias"] = params[layer]["bias"]
        state_dict[f"{name}.running_mean"] = batch_stats[layer]["mean"]
        state_dict[f"{name}.running_var"] = batch_stats[layer]["var"]
        state_dict[f"{name}.num_batches_tracked"] = batch_stats[layer]["num_batches_tracked"].astype(np.int64)
    return state_dict


def apply(variables: Variables, images: jax.Array, train: bool) -> tuple[jax.Array, dict[str, Any]]:
    """Logits and the batch statistics after them."""
    channels_last = jnp.transpose(images, (0, 2, 3, 1))
    if not train:
        evaluated: Any = model.apply(variables, channels_last, train=False)
        return evaluated, variables["batch_stats"]
    logits, updates = model.apply(variables, channels_last, train=True, mutable=["batch_stats"])
    return logits, updates["batch_stats"]


def outputs(variables: Variables, batch: Batch, train: bool, rng: jax.Array | None = None) -> dict[str, jax.Array]:
    """The logits of a batch."""
    return {"logits": apply(variables, batch["images"], train)[0]}


def loss(
    variables: Variables, batch: Batch, train: bool, rng: jax.Array | None = None
) -> tuple[jax.Array, dict[str, Any]]:
    """The mean cross-entropy and the batch statistics after it."""
    logits, batch_stats = apply(variables, batch["images"], train)
    return optax.softmax_cross_entropy_with_integer_labels(logits, batch["labels"]).mean(), batch_stats


@jax.jit
def train_step(
    variables: Variables, opt_state: optax.OptState, batch: Batch, rng: jax.Array | None = None
) -> tuple[Variables, optax.OptState, jax.Array]:
    """The variables and the optimizer's state after a step on a batch, and its loss."""

    def objective(params: Any) -> tuple[jax.Array, dict[str, Any]]:
        return loss({**variables, "params": params}, batch, train=True)

    (value, batch_stats), grads = jax.value_and_grad(objective, has_aux=True)(variables["params"])
    updates, opt_state = optimizer.update(grads, opt_state, variables["params"])
    params = optax.apply_updates(variables["params"], updates)
    return {"params": params, "batch_stats": batch_stats}, opt_state, value
