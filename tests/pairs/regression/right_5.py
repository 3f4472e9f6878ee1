"""The network in flax.nnx: layers are called by a list, statistics are variables of their own kind."""

from collections.abc import Mapping
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import nnx

Linear = partial(nnx.Linear, precision="highest")


class Moving(nnx.Variable[jax.Array]):
    """A statistic that training moves."""


class Standardize(nnx.Module):
    """Rows over moving averages of their mean and standard deviation."""

    def __init__(self, features: int) -> None:
        self.mean = Moving(jnp.zeros(features))
        self.std = Moving(jnp.ones(features))

    def __call__(self, rows: jax.Array, train: bool) -> jax.Array:
        rows = rows.astype(self.mean[...].dtype)
        if train:
            self.mean[...] = 0.8 * self.mean[...] + 0.2 * rows.mean(0)
            self.std[...] = 0.8 * self.std[...] + 0.2 * rows.std(0, ddof=1)
        return (rows - self.mean[...]) / (self.std[...] + 1e-6)


class BatchNorm(nnx.Module):
    """torch's `nn.BatchNorm1d`."""

    def __init__(self, features: int) -> None:
        self.weight = nnx.Param(jnp.ones(features))
        self.bias = nnx.Param(jnp.zeros(features))
        self.running_mean = Moving(jnp.zeros(features))
        self.running_var = Moving(jnp.ones(features))
        self.num_batches_tracked = Moving(jnp.zeros((), jnp.int32))

    def __call__(self, x: jax.Array, train: bool) -> jax.Array:
        mean, var = self.running_mean[...], self.running_var[...]
        if train:
            self.running_mean[...] = 0.9 * mean + 0.1 * x.mean(0)
            self.running_var[...] = 0.9 * var + 0.1 * x.var(0, ddof=1)
            self.num_batches_tracked[...] = self.num_batches_tracked[...] + 1
            mean, var = x.mean(0), x.var(0)
        return jax.nn.standardize(x, 0, mean, var, epsilon=1e-5) * self.weight[...] + self.bias[...]


class Network(nnx.Module):
    """Maps rows `(batch, 8)` to an amount, an event's logit, a mixture's log-probabilities and a unit vector."""

    def __init__(self, rngs: nnx.Rngs, width: int = 24) -> None:
        self.standardize = Standardize(8)
        self.first = Linear(8, width, use_bias=False, rngs=rngs)
        self.norm = BatchNorm(width)
        self.second = Linear(width, width, rngs=rngs)
        self.dropout = nnx.Dropout(0.1)
        self.gate = Linear(width, width, rngs=rngs)
        self.candidate = Linear(width, width, rngs=rngs)
        self.amount = Linear(width, 1, rngs=rngs)
        self.event = Linear(width, 1, rngs=rngs)
        self.mixture = Linear(width, 4, rngs=rngs)
        self.direction = Linear(width, 3, rngs=rngs)

    def __call__(self, rows: jax.Array, train: bool, rngs: nnx.Rngs | None = None) -> dict[str, jax.Array]:
        x = self.norm(self.first(self.standardize(rows, train)), train)
        x = nnx.softplus(self.second(nnx.elu(x)))
        x = self.dropout(x, deterministic=rngs is None, rngs=rngs)
        x = nnx.sigmoid(self.gate(x)) * nnx.tanh(self.candidate(x))
        direction = self.direction(x)
        return {
            "amount": jnp.squeeze(self.amount(x), 1),
            "event": jnp.squeeze(self.event(x), 1),
            "mixture": nnx.log_softmax(self.mixture(x)),
            "direction": direction / jnp.maximum(jnp.linalg.norm(direction, axis=1, keepdims=True), 1e-12),
        }


HEADS = ("amount", "event", "mixture", "direction")
NAMES = {"first": "trunk.0", "norm": "trunk.1", "second": "trunk.3"} | {head: f"heads.{head}" for head in HEADS}


def split() -> Any:
    """The network's graph, its parameters and its statistics."""
    return nnx.split(Network(nnx.Rngs(0)), nnx.Param, Moving)


model = split()[0]


def adamax(rate: float, penalty: float) -> optax.GradientTransformation:
    """Adamax with an L2 penalty and a warm-up."""
    return optax.chain(
        optax.add_decayed_weights(penalty),
        optax.scale_by_adamax(),
        optax.scale_by_schedule(lambda step: -rate * jnp.clip(0.25 * (1 + step.astype(float)), 0, 1)),
    )


def label(path: Any, _: Any) -> str:
    """Whether a parameter is a head's."""
    return "heads" if path[0].key in HEADS else "others"


optimizer = optax.partition(
    {"heads": adamax(8e-3, 0.0), "others": adamax(4e-3, 1e-2)},
    lambda params: jax.tree_util.tree_map_with_path(label, params),
)


def torch_name(path: tuple[Any, ...]) -> str:
    """torch's name of the variable at a path."""
    layer, part = path
    return f"{NAMES.get(layer, layer)}.{'weight' if part == 'kernel' else part}"


def from_torch(state_dict: Mapping[str, np.ndarray]) -> dict[str, Any]:
    """The variables from torch's, as nested dicts."""
    _, params, stats = split()

    def converted(state: Any) -> Any:
        tree: dict[str, Any] = {}
        for layer, parts in nnx.to_pure_dict(state).items():
            tensors = {part: jnp.asarray(state_dict[torch_name((layer, part))]) for part in parts}
            tree[layer] = {part: tensor.T if part == "kernel" else tensor for part, tensor in tensors.items()}
        return tree

    return {"params": converted(params), "batch_stats": converted(stats)}


def to_torch(variables: dict[str, Any]) -> dict[str, np.ndarray]:
    """torch's state dict from the variables."""
    state_dict = {}
    for collection in ("params", "batch_stats"):
        for layer, parts in variables[collection].items():
            for part, leaf in parts.items():
                tensor = np.asarray(leaf, np.int64 if part == "num_batches_tracked" else None)
                state_dict[torch_name((layer, part))] = tensor.T if part == "kernel" else tensor
    return state_dict


def apply(
    variables: dict[str, Any], batch: Mapping[str, jax.Array], train: bool, rng: jax.Array | None
) -> tuple[dict[str, jax.Array], dict[str, Any]]:
    """All four predictions and the statistics after them."""
    _, params, stats = split()
    nnx.replace_by_pure_dict(params, variables["params"])
    nnx.replace_by_pure_dict(stats, variables["batch_stats"])
    network = nnx.merge(model, params, stats)
    rngs = nnx.Rngs(dropout=rng) if train and rng is not None else None
    predictions = network(jnp.asarray(batch["rows"]), train, rngs)
    return predictions, nnx.to_pure_dict(nnx.state(network, Moving))


def outputs(
    variables: dict[str, Any], batch: Mapping[str, jax.Array], train: bool, rng: jax.Array | None = None
) -> dict[str, jax.Array]:
    """All four predictions of a batch."""
    return apply(variables, batch, train, rng)[0]


def loss(
    variables: dict[str, Any], batch: Mapping[str, jax.Array], train: bool, rng: jax.Array | None = None
) -> tuple[jax.Array, dict[str, Any]]:
    """The sum of five losses of the four predictions, and the statistics after it."""
    predicted, stats = apply(variables, batch, train, rng)
    huber = optax.huber_loss(predicted["amount"], batch["amount"], delta=0.5)
    smooth = optax.huber_loss(predicted["amount"] / 2, batch["amount"] / 2) * 2
    amount = jnp.mean(huber + smooth)
    odds = jax.nn.log_sigmoid(jnp.stack([predicted["event"], -predicted["event"]]))
    event = jnp.asarray(batch["event"])
    weights = jnp.stack([3 * event, 1 - event])
    cross_entropy = -jnp.sum(weights * odds) / len(event)
    wanted = jnp.asarray(batch["mixture"])
    divergence = (jnp.sum(wanted * jnp.log(wanted)) - jnp.sum(wanted * predicted["mixture"])) / len(wanted)
    distance = jnp.mean(optax.losses.cosine_distance(predicted["direction"], batch["direction"], epsilon=1e-8))
    return amount + cross_entropy + divergence + distance, stats


@jax.jit
def train_step(
    variables: dict[str, Any], opt_state: Any, batch: Mapping[str, jax.Array], rng: jax.Array | None = None
) -> tuple[dict[str, Any], Any, jax.Array]:
    """The variables and the optimizer's state after a step on a batch, and its loss."""

    def objective(params: Any) -> tuple[jax.Array, dict[str, Any]]:
        return loss({**variables, "params": params}, batch, True, rng)

    (value, stats), grads = jax.value_and_grad(objective, has_aux=True)(variables["params"])
    updates, opt_state = optimizer.update(grads, opt_state, variables["params"])
    return {"params": optax.apply_updates(variables["params"], updates), "batch_stats": stats}, opt_state, value
