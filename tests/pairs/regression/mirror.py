"""Four predictions from a table's rows, in JAX: the port of `program`."""

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

WIDTH = 24
HEADS = {"amount": 1, "event": 1, "mixture": 4, "direction": 3}
POSITIVE_WEIGHT = 3.0
# flax's layers, and what torch calls them.
DENSE = {
    "in": "trunk.0",
    "hidden": "trunk.3",
    "gate": "gate",
    "candidate": "candidate",
    **{f"{head}_head": f"heads.{head}" for head in HEADS},
}

Dense = partial(nn.Dense, precision="highest")


class Standardize(nn.Module):
    """Centres and scales rows by moving averages of their mean and standard deviation, which is the unbiased one."""

    momentum: float = 0.2
    epsilon: float = 1e-6

    @nn.compact
    def __call__(self, rows: jax.Array, train: bool) -> jax.Array:
        mean = self.variable("batch_stats", "mean", jnp.zeros, rows.shape[-1:])
        std = self.variable("batch_stats", "std", jnp.ones, rows.shape[-1:])
        if train and not self.is_initializing():
            rows = rows.astype(mean.value.dtype)
            mean.value += self.momentum * (rows.mean(axis=0) - mean.value)
            std.value += self.momentum * (rows.std(axis=0, ddof=1) - std.value)
        return (rows - mean.value) / (std.value + self.epsilon)


class BatchNorm(nn.Module):
    """torch's: the variance that normalises is the biased one, the one that is remembered is not."""

    momentum: float = 0.1
    epsilon: float = 1e-5

    @nn.compact
    def __call__(self, x: jax.Array, train: bool) -> jax.Array:
        scale = self.param("scale", nn.initializers.ones, x.shape[-1:])
        bias = self.param("bias", nn.initializers.zeros, x.shape[-1:])
        running_mean = self.variable("batch_stats", "mean", jnp.zeros, x.shape[-1:])
        running_var = self.variable("batch_stats", "var", jnp.ones, x.shape[-1:])
        steps = self.variable("batch_stats", "num_batches_tracked", jnp.zeros, (), jnp.int32)
        mean, var = running_mean.value, running_var.value
        if train:
            mean, var = x.mean(axis=0), x.var(axis=0)
            if not self.is_initializing():
                running_mean.value += self.momentum * (mean - running_mean.value)
                running_var.value += self.momentum * (x.var(axis=0, ddof=1) - running_var.value)
                steps.value += 1
        return (x - mean) * jax.lax.rsqrt(var + self.epsilon) * scale + bias


class TabularNetwork(nn.Module):
    """Maps rows `(batch, 8)` to an amount, an event's logit, a mixture's log-probabilities and a unit vector."""

    dropout: float = 0.1

    @nn.compact
    def __call__(self, rows: jax.Array, train: bool, deterministic: bool) -> dict[str, jax.Array]:
        x = Standardize(name="standardize")(rows, train)
        x = nn.elu(BatchNorm(name="norm")(Dense(WIDTH, use_bias=False, name="in")(x), train))
        x = nn.softplus(Dense(WIDTH, name="hidden")(x))
        x = nn.Dropout(self.dropout)(x, deterministic=deterministic)
        x = nn.sigmoid(Dense(WIDTH, name="gate")(x)) * jnp.tanh(Dense(WIDTH, name="candidate")(x))
        amount, event, mixture, direction = (Dense(size, name=f"{head}_head")(x) for head, size in HEADS.items())
        return {
            "amount": amount[:, 0],
            "event": event[:, 0],
            "mixture": nn.log_softmax(mixture),
            "direction": direction / jnp.maximum(jnp.linalg.norm(direction, axis=-1, keepdims=True), 1e-12),
        }


def adamax(learning_rate: float, weight_decay: float) -> optax.GradientTransformation:
    """Adamax with an L2 penalty and a linear warm-up of three steps from a quarter of the learning rate."""
    return optax.chain(
        optax.add_decayed_weights(weight_decay),
        optax.adamax(lambda step: learning_rate * (0.25 + 0.75 * jnp.minimum(step / 3.0, 1.0))),
    )


model = TabularNetwork()
optimizer = optax.multi_transform(
    {"heads": adamax(8e-3, weight_decay=0.0), "others": adamax(4e-3, weight_decay=1e-2)},
    lambda params: {layer: "heads" if layer.endswith("_head") else "others" for layer in params},
)


def from_torch(state_dict: Mapping[str, np.ndarray]) -> Variables:
    """The variables from torch's: a kernel is a weight transposed."""
    tensors = {name: jnp.asarray(tensor) for name, tensor in state_dict.items()}
    params = {layer: {"kernel": tensors[f"{name}.weight"].T} for layer, name in DENSE.items()}
    for layer, name in DENSE.items():
        if f"{name}.bias" in tensors:
            params[layer]["bias"] = tensors[f"{name}.bias"]
    params["norm"] = {"scale": tensors["trunk.1.weight"], "bias": tensors["trunk.1.bias"]}
    batch_stats = {
        "standardize": {"mean": tensors["standardize.mean"], "std": tensors["standardize.std"]},
        "norm": {
            "mean": tensors["trunk.1.running_mean"],
            "var": tensors["trunk.1.running_var"],
            "num_batches_tracked": tensors["trunk.1.num_batches_tracked"],
        },
    }
    return {"params": params, "batch_stats": batch_stats}


def to_torch(variables: Variables) -> dict[str, np.ndarray]:
    """torch's state dict from the variables."""
    params, batch_stats = jax.tree.map(np.asarray, (variables["params"], variables["batch_stats"]))
    state_dict = {
        "standardize.mean": batch_stats["standardize"]["mean"],
        "standardize.std": batch_stats["standardize"]["std"],
        "trunk.1.weight": params["norm"]["scale"],
        "trunk.1.bias": params["norm"]["bias"],
        "trunk.1.running_mean": batch_stats["norm"]["mean"],
        "trunk.1.running_var": batch_stats["norm"]["var"],
        "trunk.1.num_batches_tracked": batch_stats["norm"]["num_batches_tracked"].astype(np.int64),
    }
    for layer, name in DENSE.items():
        state_dict[f"{name}.weight"] = params[layer]["kernel"].T
        if "bias" in params[layer]:
            state_dict[f"{name}.bias"] = params[layer]["bias"]
    return state_dict


def apply(
    variables: Variables, rows: jax.Array, train: bool, rng: jax.Array | None = None
) -> tuple[dict[str, jax.Array], dict[str, Any]]:
    """All four predictions and the statistics after them."""
    rngs = {} if rng is None else {"dropout": rng}
    predictions, updates = model.apply(
        variables, rows, train, not train or rng is None, rngs=rngs, mutable=["batch_stats"]
    )
    return predictions, updates["batch_stats"]


def outputs(variables: Variables, batch: Batch, train: bool, rng: jax.Array | None = None) -> dict[str, jax.Array]:
    """All four predictions of a batch."""
    return apply(variables, jnp.asarray(batch["rows"]), train, rng)[0]


def weighted_cross_entropy(logits: jax.Array, targets: jax.Array) -> jax.Array:
    """The binary cross-entropy, an event's weighted by POSITIVE_WEIGHT."""
    return -(POSITIVE_WEIGHT * targets * nn.log_sigmoid(logits) + (1 - targets) * nn.log_sigmoid(-logits))


def loss(
    variables: Variables, batch: Batch, train: bool, rng: jax.Array | None = None
) -> tuple[jax.Array, dict[str, Any]]:
    """The sum of five losses of the four predictions, and the statistics after it."""
    predicted, batch_stats = apply(variables, jnp.asarray(batch["rows"]), train, rng)
    amount = optax.huber_loss(predicted["amount"], batch["amount"], delta=0.5).mean()
    amount += optax.huber_loss(predicted["amount"], batch["amount"], delta=2.0).mean() / 2.0
    event = weighted_cross_entropy(predicted["event"], batch["event"]).mean()
    mixture = optax.kl_divergence(predicted["mixture"], batch["mixture"]).mean()
    distance = 1 - optax.cosine_similarity(predicted["direction"], batch["direction"], epsilon=1e-8).mean()
    return amount + event + mixture + distance, batch_stats


@jax.jit
def train_step(
    variables: Variables, opt_state: optax.OptState, batch: Batch, rng: jax.Array | None = None
) -> tuple[Variables, optax.OptState, jax.Array]:
    """The variables and the optimizer's state after a step on a batch, and its loss."""

    def objective(params: Any) -> tuple[jax.Array, dict[str, Any]]:
        return loss({**variables, "params": params}, batch, train=True, rng=rng)

    (value, batch_stats), grads = jax.value_and_grad(objective, has_aux=True)(variables["params"])
    updates, opt_state = optimizer.update(grads, opt_state, variables["params"])
    params = optax.apply_updates(variables["params"], updates)
    return {"params": params, "batch_stats": batch_stats}, opt_state, value
