"""The network in flax with `setup`; flax's own batch normalisation, whose variance is unbiased afterwards."""

from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import linen as nn

WIDTH = 24
DENSE = {
    "first": "trunk.0",
    "second": "trunk.3",
    "gate": "gate",
    "candidate": "candidate",
    "amount": "heads.amount",
    "event": "heads.event",
    "mixture": "heads.mixture",
    "direction": "heads.direction",
}
HEADS = ("amount", "event", "mixture", "direction")


class Network(nn.Module):
    """Maps standardised rows `(batch, 8)` to four predictions."""

    training: bool = False
    dropping: bool = False

    def setup(self) -> None:
        self.first = nn.Dense(WIDTH, use_bias=False, precision="highest")
        self.norm = nn.BatchNorm(not self.training, momentum=0.9, epsilon=1e-5, use_fast_variance=False)
        self.second = nn.Dense(WIDTH, precision="highest")
        self.drop = nn.Dropout(0.1, deterministic=not self.dropping)
        self.gate = nn.Dense(WIDTH, precision="highest")
        self.candidate = nn.Dense(WIDTH, precision="highest")
        self.amount = nn.Dense(1, precision="highest")
        self.event = nn.Dense(1, precision="highest")
        self.mixture = nn.Dense(4, precision="highest")
        self.direction = nn.Dense(3, precision="highest")

    def __call__(self, rows: jax.Array) -> dict[str, jax.Array]:
        x = self.drop(nn.softplus(self.second(nn.elu(self.norm(self.first(rows))))))
        x = nn.sigmoid(self.gate(x)) * nn.tanh(self.candidate(x))
        direction = self.direction(x)
        return {
            "amount": self.amount(x)[..., 0],
            "event": self.event(x)[..., 0],
            "mixture": nn.log_softmax(self.mixture(x)),
            "direction": direction / jnp.clip(optax.safe_norm(direction, 0.0, axis=-1, keepdims=True), 1e-12),
        }


model = Network()


def warmed(rate: float) -> optax.Schedule:
    """A quarter of the rate, then one quarter more every step."""
    return lambda step: rate * jnp.clip((step + 1) / 4.0, max=1.0)


def is_head(params: Any) -> Any:
    """Which parameters belong to heads."""
    return jax.tree_util.tree_map_with_path(lambda path, _: path[0].key in HEADS, params)


def is_no_head(params: Any) -> Any:
    """Which do not."""
    return jax.tree.map(lambda head: not head, is_head(params))


optimizer = optax.chain(
    optax.masked(optax.add_decayed_weights(1e-2), is_no_head),
    optax.scale_by_adamax(b1=0.9, b2=0.999, eps=1e-8),
    optax.masked(optax.scale(2.0), is_head),
    optax.scale_by_learning_rate(warmed(4e-3)),
)


def from_torch(state_dict: Mapping[str, np.ndarray]) -> dict[str, Any]:
    """The variables from torch's."""
    tensors = {name: jnp.asarray(tensor) for name, tensor in state_dict.items()}
    params: dict[str, Any] = {}
    for layer, name in DENSE.items():
        params[layer] = {"kernel": tensors[f"{name}.weight"].T}
        if layer != "first":
            params[layer]["bias"] = tensors[f"{name}.bias"]
    params["norm"] = {"scale": tensors["trunk.1.weight"], "bias": tensors["trunk.1.bias"]}
    stats = {
        "norm": {"mean": tensors["trunk.1.running_mean"], "var": tensors["trunk.1.running_var"]},
        "steps": tensors["trunk.1.num_batches_tracked"],
        "rows": (tensors["standardize.mean"], tensors["standardize.std"]),
    }
    return {"params": params, "batch_stats": stats}


def to_torch(variables: dict[str, Any]) -> dict[str, np.ndarray]:
    """torch's state dict from the variables."""
    params, stats = jax.tree.map(np.asarray, (variables["params"], variables["batch_stats"]))
    mean, std = stats["rows"]
    state_dict = {"standardize.mean": mean, "standardize.std": std}
    for layer, name in DENSE.items():
        state_dict[f"{name}.weight"] = params[layer]["kernel"].T
        if "bias" in params[layer]:
            state_dict[f"{name}.bias"] = params[layer]["bias"]
    return state_dict | {
        "trunk.1.weight": params["norm"]["scale"],
        "trunk.1.bias": params["norm"]["bias"],
        "trunk.1.running_mean": stats["norm"]["mean"],
        "trunk.1.running_var": stats["norm"]["var"],
        "trunk.1.num_batches_tracked": stats["steps"].astype(np.int64),
    }


def apply(
    variables: dict[str, Any], rows: jax.Array, train: bool, rng: jax.Array | None
) -> tuple[dict[str, jax.Array], dict[str, Any]]:
    """All four predictions and the statistics after them."""
    stats = dict(variables["batch_stats"])
    mean, std = stats["rows"]
    if train:
        rows = rows.astype(mean.dtype)
        mean = optax.incremental_update(rows.mean(axis=0), mean, 0.2)
        std = optax.incremental_update(rows.std(axis=0, ddof=1), std, 0.2)
        stats |= {"rows": (mean, std), "steps": stats["steps"] + 1}
    network = Network(training=train, dropping=train and rng is not None)
    rngs = {} if rng is None else {"dropout": rng}
    collections = {"params": variables["params"], "batch_stats": {"norm": stats["norm"]}}
    predictions, mutated = network.apply(
        collections, (rows - mean) / (std + 1e-6), rngs=rngs, mutable=["batch_stats"] if train else []
    )
    if train:
        count, old, new = len(rows), stats["norm"]["var"], mutated["batch_stats"]["norm"]
        unbiased = 0.9 * old + (new["var"] - 0.9 * old) * count / (count - 1)  # flax keeps the biased variance
        stats["norm"] = {"mean": new["mean"], "var": unbiased}
    return predictions, stats


def outputs(
    variables: dict[str, Any], batch: Mapping[str, jax.Array], train: bool, rng: jax.Array | None = None
) -> dict[str, jax.Array]:
    """All four predictions of a batch."""
    return apply(variables, jnp.asarray(batch["rows"]), train, rng)[0]


def loss(
    variables: dict[str, Any], batch: Mapping[str, jax.Array], train: bool, rng: jax.Array | None = None
) -> tuple[jax.Array, dict[str, Any]]:
    """The sum of five losses of the four predictions, and the statistics after it."""
    predicted, stats = apply(variables, jnp.asarray(batch["rows"]), train, rng)
    cross_entropy = optax.sigmoid_binary_cross_entropy(predicted["event"], jnp.asarray(batch["event"]))
    losses = {
        "huber": optax.huber_loss(predicted["amount"], batch["amount"], delta=0.5),
        "smooth": optax.huber_loss(predicted["amount"], batch["amount"], delta=2.0) / 2,
        "event": cross_entropy * jnp.where(jnp.asarray(batch["event"]) == 1, 3.0, 1.0),
        "mixture": optax.kl_divergence(predicted["mixture"], jnp.asarray(batch["mixture"])),
        "direction": optax.cosine_distance(predicted["direction"], batch["direction"], epsilon=1e-8),
    }
    return sum(jax.tree.leaves(jax.tree.map(jnp.mean, losses)), start=jnp.zeros(())), stats


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
