"""The network in flax with `setup` and flax's own batch normalisation, whose variance is unbiased afterwards."""

from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import linen as nn

MOMENTUM, WINDOW, STRIDE, PADDING = 0.9, (3, 3), (2, 2), ((1, 1), (1, 1))
CONVS = {"stem": "stem.0", "depthwise": "depthwise", "pointwise": "pointwise", "grouped": "grouped"}
NORMS = {"stem_norm": "stem.1", "norm": "norm"}
FLAT = (16, 3, 2)  # what torch flattens


class Network(nn.Module):
    """Maps images `(batch, 18, 14, 3)` to logits `(batch, 5)`, and the number of elements each mean was over."""

    training: bool

    def setup(self) -> None:
        self.stem = nn.Conv(8, WINDOW, STRIDE, PADDING, use_bias=False, precision="highest")
        self.stem_norm = self.batch_norm()
        self.depthwise = nn.Conv(8, WINDOW, padding=PADDING, feature_group_count=8, use_bias=False, precision="highest")
        self.pointwise = nn.Conv(16, (1, 1), use_bias=False, precision="highest")
        self.norm = self.batch_norm()
        self.grouped = nn.Conv(16, WINDOW, padding=PADDING, feature_group_count=4, precision="highest")
        self.head = nn.Dense(5, precision="highest")

    def batch_norm(self) -> nn.BatchNorm:
        return nn.BatchNorm(not self.training, momentum=MOMENTUM, epsilon=1e-5, use_fast_variance=False)

    def __call__(self, images: jax.Array) -> tuple[jax.Array, dict[str, int]]:
        x = self.stem(images)
        counts = {"stem_norm": x[..., 0].size}
        x = nn.max_pool(nn.relu(self.stem_norm(x)), WINDOW, STRIDE, PADDING)
        x = self.pointwise(self.depthwise(x))
        counts["norm"] = x[..., 0].size
        x = nn.avg_pool(nn.relu(self.norm(x)), WINDOW, STRIDE, PADDING, count_include_pad=True)
        x = nn.relu(self.grouped(x))
        return self.head(x.reshape(len(x), -1)), counts


model = Network(training=True)


def factor(step: jax.Array) -> jax.Array:
    """1, then 0.3 after the second step and 0.09 after the fourth."""
    return jnp.where(step >= 2, 0.3, 1.0) * jnp.where(step >= 4, 0.3, 1.0)


def clip(grads: optax.Updates, _: optax.Params | None) -> optax.Updates:
    """The gradients scaled to a largest element of 0.1, as by torch's `clip_grad_norm_`."""
    largest = jax.tree.reduce(jnp.maximum, jax.tree.map(lambda g: jnp.max(jnp.abs(g)), grads))
    scale = 0.1 / (largest + 1e-6)
    return jax.tree.map(lambda g: jnp.where(scale < 1, g * scale, g), grads)


optimizer = optax.chain(
    optax.stateless(clip),
    optax.masked(optax.add_decayed_weights(1e-2), lambda params: jax.tree.map(lambda leaf: leaf.ndim > 1, params)),
    optax.scale_by_adam(),
    optax.scale_by_schedule(lambda step: -3e-3 * factor(step)),
)


def from_torch(state_dict: Mapping[str, np.ndarray]) -> dict[str, Any]:
    """The variables from torch's; the head's rows go where channels last flatten them to."""
    params: dict[str, Any] = {
        layer: {"kernel": np.moveaxis(state_dict[f"{name}.weight"], (0, 1), (3, 2))} for layer, name in CONVS.items()
    }
    params["grouped"]["bias"] = state_dict["grouped.bias"]
    head = state_dict["head.weight"].reshape(-1, *FLAT).transpose(2, 3, 1, 0)
    params["head"] = {"kernel": head.reshape(-1, head.shape[-1]), "bias": state_dict["head.bias"]}
    stats: dict[str, Any] = {"counts": {}}
    for layer, name in NORMS.items():
        params[layer] = {"scale": state_dict[f"{name}.weight"], "bias": state_dict[f"{name}.bias"]}
        stats[layer] = {"mean": state_dict[f"{name}.running_mean"], "var": state_dict[f"{name}.running_var"]}
        stats["counts"][layer] = state_dict[f"{name}.num_batches_tracked"]
    return {"params": jax.tree.map(jnp.asarray, params), "batch_stats": jax.tree.map(jnp.asarray, stats)}


def to_torch(variables: dict[str, Any]) -> dict[str, np.ndarray]:
    """torch's state dict from the variables."""
    params, stats = jax.tree.map(np.asarray, (variables["params"], variables["batch_stats"]))
    channels, height, width = FLAT
    head = params["head"]["kernel"].reshape(height, width, channels, -1).transpose(3, 2, 0, 1)
    state_dict = {"head.weight": head.reshape(len(head), -1), "head.bias": params["head"]["bias"]}
    state_dict["grouped.bias"] = params["grouped"]["bias"]
    for layer, name in CONVS.items():
        state_dict[f"{name}.weight"] = np.moveaxis(params[layer]["kernel"], (3, 2), (0, 1))
    for layer, name in NORMS.items():
        state_dict |= {f"{name}.weight": params[layer]["scale"], f"{name}.bias": params[layer]["bias"]}
        state_dict |= {f"{name}.running_{part}": stats[layer][part] for part in ("mean", "var")}
        state_dict[f"{name}.num_batches_tracked"] = stats["counts"][layer].astype(np.int64)
    return state_dict


def apply(variables: dict[str, Any], images: jax.Array, train: bool) -> tuple[jax.Array, dict[str, Any]]:
    """Logits and the statistics after them."""
    stats = dict(variables["batch_stats"])
    steps = stats.pop("counts")
    (logits, counts), mutated = Network(train).apply(
        {"params": variables["params"], "batch_stats": stats}, jnp.moveaxis(images, 1, -1), mutable=["batch_stats"]
    )
    if not train:
        return logits, variables["batch_stats"]
    updated: dict[str, Any] = {"counts": jax.tree.map(lambda step: step + 1, steps)}
    for layer, count in counts.items():
        # flax mixes the biased variance into the running one, torch the unbiased.
        kept, mixed = MOMENTUM * stats[layer]["var"], mutated["batch_stats"][layer]["var"]
        unbiased = kept + (mixed - kept) * count / (count - 1)
        updated[layer] = {"mean": mutated["batch_stats"][layer]["mean"], "var": unbiased}
    return logits, updated


def outputs(
    variables: dict[str, Any], batch: Mapping[str, jax.Array], train: bool, rng: jax.Array | None = None
) -> dict[str, jax.Array]:
    """The logits of a batch."""
    return {"logits": apply(variables, jnp.asarray(batch["images"]), train)[0]}


def loss(
    variables: dict[str, Any], batch: Mapping[str, jax.Array], train: bool, rng: jax.Array | None = None
) -> tuple[jax.Array, dict[str, Any]]:
    """The mean cross-entropy and the statistics after it."""
    logits, stats = apply(variables, jnp.asarray(batch["images"]), train)
    one_hot = jax.nn.one_hot(batch["labels"], logits.shape[-1], dtype=logits.dtype)
    return -jnp.sum(one_hot * nn.log_softmax(logits)) / len(logits), stats


@jax.jit
def train_step(
    variables: dict[str, Any], opt_state: Any, batch: Mapping[str, jax.Array], rng: jax.Array | None = None
) -> tuple[dict[str, Any], Any, jax.Array]:
    """The variables and the optimizer's state after a step on a batch, and its loss."""
    params, stats = variables["params"], variables["batch_stats"]

    def objective(params: Any) -> Any:
        return loss({"params": params, "batch_stats": stats}, batch, train=True)

    (value, stats), grads = jax.value_and_grad(objective, has_aux=True)(params)
    updates, opt_state = optimizer.update(grads, opt_state, params)
    return {"params": optax.apply_updates(params, updates), "batch_stats": stats}, opt_state, value
