"""The network in plain JAX on torch's state dict: statistics by hand, losses from their definitions, Adamax by hand."""

from collections.abc import Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

Tensors = dict[str, jax.Array]
Batch = Mapping[str, jax.Array]

BUFFERS = (
    "standardize.mean",
    "standardize.std",
    "trunk.1.running_mean",
    "trunk.1.running_var",
    "trunk.1.num_batches_tracked",
)


def linear(params: Tensors, name: str, x: jax.Array) -> jax.Array:
    """`x @ weight.T + bias`, if there is a bias."""
    return jnp.matmul(x, params[f"{name}.weight"].T, precision="highest") + params.get(f"{name}.bias", 0)


def standardize(stats: Tensors, rows: jax.Array, train: bool) -> tuple[jax.Array, Tensors]:
    """Rows over moving averages, and the averages after them."""
    if train:
        mean, std = stats["standardize.mean"], stats["standardize.std"]
        rows = rows.astype(mean.dtype)
        centre = jnp.mean(rows, axis=0)
        spread = jnp.sqrt(jnp.sum((rows - centre) ** 2, axis=0) / (len(rows) - 1))
        stats = stats | {"standardize.mean": 0.8 * mean + 0.2 * centre, "standardize.std": 0.8 * std + 0.2 * spread}
    return (rows - stats["standardize.mean"]) / (stats["standardize.std"] + 1e-6), stats


def batch_norm(params: Tensors, stats: Tensors, x: jax.Array, train: bool) -> tuple[jax.Array, Tensors]:
    """The normalised x, and the statistics after it."""
    mean, var = stats["trunk.1.running_mean"], stats["trunk.1.running_var"]
    if train:
        count = len(x)
        seen_mean, seen_var = x.mean(axis=0), x.var(axis=0)
        stats = stats | {
            "trunk.1.running_mean": 0.9 * mean + 0.1 * seen_mean,
            "trunk.1.running_var": 0.9 * var + 0.1 * count / (count - 1) * seen_var,
            "trunk.1.num_batches_tracked": stats["trunk.1.num_batches_tracked"] + 1,
        }
        mean, var = seen_mean, seen_var
    return (x - mean) / jnp.sqrt(var + 1e-5) * params["trunk.1.weight"] + params["trunk.1.bias"], stats


def model(
    params: Tensors, stats: Tensors, rows: jax.Array, train: bool, rng: jax.Array | None = None
) -> tuple[dict[str, jax.Array], Tensors]:
    """Maps rows `(batch, 8)` to four predictions, and statistics to new ones."""
    x, stats = standardize(stats, rows, train)
    x, stats = batch_norm(params, stats, linear(params, "trunk.0", x), train)
    x = jnp.where(x > 0, x, jnp.expm1(jnp.minimum(x, 0)))
    x = jnp.logaddexp(linear(params, "trunk.3", x), 0)
    if train and rng is not None:
        x = jnp.where(jax.random.bernoulli(rng, 0.9, x.shape), x / 0.9, 0)
    x = jax.nn.sigmoid(linear(params, "gate", x)) * jnp.tanh(linear(params, "candidate", x))
    mixture, direction = linear(params, "heads.mixture", x), linear(params, "heads.direction", x)
    length = jnp.sqrt(jnp.sum(direction**2, axis=-1, keepdims=True))
    return {
        "amount": linear(params, "heads.amount", x).squeeze(-1),
        "event": linear(params, "heads.event", x).squeeze(-1),
        "mixture": mixture - jax.nn.logsumexp(mixture, axis=-1, keepdims=True),
        "direction": direction / jnp.maximum(length, 1e-12),
    }, stats


class AdamaxState(NamedTuple):
    """Steps taken, the moving averages of gradients, and their decaying maxima."""

    step: jax.Array
    average: Any
    largest: Any


def init(params: Any) -> AdamaxState:
    """No steps, zeros for the others."""
    return AdamaxState(jnp.zeros((), jnp.int32), optax.tree.zeros_like(params), optax.tree.zeros_like(params))


def update(grads: Any, state: AdamaxState, params: Any = None) -> tuple[Any, AdamaxState]:
    """A step of torch's Adamax; heads learn twice as fast, and only the others have an L2 penalty."""
    step = state.step + 1
    warm = jnp.minimum(0.25 + 0.25 * state.step, 1.0)
    average, largest, updates = {}, {}, {}
    for name, grad in grads.items():
        rate, penalty = (8e-3, 0.0) if name.startswith("heads.") else (4e-3, 1e-2)
        grad = grad + penalty * params[name]
        average[name] = 0.9 * state.average[name] + 0.1 * grad
        largest[name] = jnp.maximum(0.999 * state.largest[name], jnp.abs(grad) + 1e-8)
        updates[name] = -warm * rate / (1 - 0.9**step) * average[name] / largest[name]
    return updates, AdamaxState(step, average, largest)


optimizer = optax.GradientTransformation(init, update)


def from_torch(state_dict: Mapping[str, np.ndarray]) -> dict[str, Tensors]:
    """torch's state dict, parameters and buffers apart."""
    tensors = {name: jnp.asarray(tensor) for name, tensor in state_dict.items()}
    stats = {name: tensors.pop(name) for name in BUFFERS}
    return {"params": tensors, "batch_stats": stats}


def to_torch(variables: Mapping[str, Tensors]) -> dict[str, np.ndarray]:
    """torch's state dict."""
    tensors = {name: np.asarray(leaf) for name, leaf in (variables["params"] | variables["batch_stats"]).items()}
    return tensors | {BUFFERS[-1]: tensors[BUFFERS[-1]].astype(np.int64)}


def outputs(
    variables: Mapping[str, Tensors], batch: Batch, train: bool, rng: jax.Array | None = None
) -> dict[str, jax.Array]:
    """All four predictions of a batch."""
    return model(variables["params"], variables["batch_stats"], jnp.asarray(batch["rows"]), train, rng)[0]


def loss(
    variables: Mapping[str, Tensors], batch: Batch, train: bool, rng: jax.Array | None = None
) -> tuple[jax.Array, Tensors]:
    """The sum of five losses of the four predictions, and the statistics after it."""
    predicted, stats = model(variables["params"], variables["batch_stats"], jnp.asarray(batch["rows"]), train, rng)
    error = jnp.abs(predicted["amount"] - batch["amount"])
    huber = jnp.where(error <= 0.5, 0.5 * error**2, 0.5 * (error - 0.25))
    smooth = jnp.where(error < 2, error**2 / 4, error - 1)
    logits, happened = predicted["event"], jnp.asarray(batch["event"])
    weight = 1 + (3.0 - 1) * happened
    event = (1 - happened) * logits + weight * (jnp.log1p(jnp.exp(-jnp.abs(logits))) + jnp.maximum(-logits, 0))
    parts = jnp.asarray(batch["mixture"])
    divergence = jnp.sum(jax.scipy.special.xlogy(parts, parts) - parts * predicted["mixture"]) / len(parts)
    towards = jnp.asarray(batch["direction"])
    lengths = [jnp.maximum(jnp.sqrt(jnp.sum(v * v, axis=-1)), 1e-8) for v in (predicted["direction"], towards)]
    cosine = jnp.sum(predicted["direction"] * towards, axis=-1) / (lengths[0] * lengths[1])
    return jnp.mean(huber) + jnp.mean(smooth) + jnp.mean(event) + divergence + 1 - jnp.mean(cosine), stats


@jax.jit
def train_step(
    variables: dict[str, Tensors], opt_state: Any, batch: Batch, rng: jax.Array | None = None
) -> tuple[dict[str, Tensors], Any, jax.Array]:
    """The variables and the optimizer's state after a step on a batch, and its loss."""
    params, stats = variables["params"], variables["batch_stats"]
    grad = jax.value_and_grad(lambda p: loss({"params": p, "batch_stats": stats}, batch, True, rng), has_aux=True)
    (value, stats), grads = grad(params)
    updates, opt_state = update(grads, opt_state, params)
    return {"params": optax.apply_updates(params, updates), "batch_stats": stats}, opt_state, value
