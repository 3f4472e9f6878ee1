"""The network with its four heads, and its gate and candidate, fused into one product each; on a dataclass."""

import dataclasses
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import struct

WIDTH, HEADS = 24, {"amount": 1, "event": 1, "mixture": 4, "direction": 3}
CUTS = tuple(np.cumsum(list(HEADS.values()))[:-1])


@struct.dataclass
class Params:
    """Kernels `(in, out)` and biases; those of heads and of gates are side by side."""

    first: jax.Array
    scale: jax.Array
    shift: jax.Array
    second: jax.Array
    second_bias: jax.Array
    gates: jax.Array
    gates_bias: jax.Array
    heads: jax.Array
    heads_bias: jax.Array


@struct.dataclass
class Statistics:
    """Moments `(2, features)` of rows, of which the second is the standard deviation, and of hidden values."""

    rows: jax.Array
    hidden: jax.Array
    steps: jax.Array


def product(x: jax.Array, kernel: jax.Array) -> jax.Array:
    """In full precision."""
    return jax.lax.dot_general(x, kernel, (((1,), (0,)), ((), ())), precision=jax.lax.Precision.HIGHEST)


def moments(x: jax.Array, ddof: int) -> jax.Array:
    """The mean and the variance, `(2, features)`."""
    return jnp.stack([jnp.mean(x, axis=0), jnp.var(x, axis=0, ddof=ddof)])


def model(
    params: Params, stats: Statistics, rows: jax.Array, train: bool, rng: jax.Array | None = None
) -> tuple[dict[str, jax.Array], Statistics]:
    """Maps rows `(batch, 8)` to four predictions, and statistics to new ones."""
    rows = rows.astype(stats.rows.dtype)
    if train:
        seen = moments(rows, ddof=1)
        seen = seen.at[1].set(jnp.sqrt(seen[1]))
        stats = dataclasses.replace(stats, rows=0.2 * seen + 0.8 * stats.rows)
    x = product((rows - stats.rows[0]) / (stats.rows[1] + 1e-6), params.first)
    mean, var = moments(x, ddof=0) if train else stats.hidden
    if train:
        stats = dataclasses.replace(stats, hidden=0.1 * moments(x, ddof=1) + 0.9 * stats.hidden, steps=stats.steps + 1)
    gain = params.scale / jnp.sqrt(var + 1e-5)
    x = jax.nn.elu(x * gain + (params.shift - mean * gain))
    x = jax.nn.softplus(product(x, params.second) + params.second_bias)
    if train and rng is not None:
        x = x * (jax.random.uniform(rng, x.shape) < 0.9) / 0.9
    gate, candidate = jnp.split(product(x, params.gates) + params.gates_bias, 2, axis=1)
    fused = product(jax.nn.sigmoid(gate) * jnp.tanh(candidate), params.heads) + params.heads_bias
    amount, event, mixture, direction = jnp.split(fused, CUTS, axis=1)
    squared = jnp.sum(direction * direction, axis=1, keepdims=True)
    return {
        "amount": amount.ravel(),
        "event": event.ravel(),
        "mixture": mixture - jnp.log(jnp.sum(jnp.exp(mixture), axis=1, keepdims=True)),
        "direction": direction * jax.lax.rsqrt(jnp.maximum(squared, 1e-24)),
    }, stats


def update(grads: Any, state: Any, params: Any) -> tuple[Any, Any]:
    """A step of Adamax for all: what heads and others have apart are factors of each leaf."""
    step, average, largest = state

    def factors(name: str) -> tuple[float, float]:
        return (8e-3, 0.0) if name.startswith("heads") else (4e-3, 1e-2)

    names = list(Params.__dataclass_fields__)
    rates, penalties = (Params(*column) for column in zip(*map(factors, names), strict=True))
    grads = jax.tree.map(lambda g, p, penalty: g + penalty * p, grads, params, penalties)
    average = jax.tree.map(lambda m, g: m + 0.1 * (g - m), average, grads)
    largest = jax.tree.map(lambda n, g: jnp.fmax(n * 0.999, jnp.abs(g) + 1e-8), largest, grads)
    warm = jnp.interp(step.astype(float), jnp.array([0.0, 3.0]), jnp.array([0.25, 1.0]))
    correction = -warm / (1 - 0.9 ** (step + 1))
    return jax.tree.map(lambda m, n, rate: correction * rate * m / n, average, largest, rates), (
        step + 1,
        average,
        largest,
    )


optimizer = optax.GradientTransformation(
    lambda params: (jnp.zeros((), jnp.int32), optax.tree.zeros_like(params), optax.tree.zeros_like(params)),
    update,
)


def from_torch(state_dict: Mapping[str, np.ndarray]) -> dict[str, Any]:
    """The variables from torch's, heads and gates side by side."""
    heads, gates = [f"heads.{head}" for head in HEADS], ["gate", "candidate"]

    def fused(names: list[str], part: str) -> jax.Array:
        return jnp.concatenate([state_dict[f"{name}.{part}"] for name in names])

    params = Params(
        first=fused(["trunk.0"], "weight").T,
        scale=fused(["trunk.1"], "weight"),
        shift=fused(["trunk.1"], "bias"),
        second=fused(["trunk.3"], "weight").T,
        second_bias=fused(["trunk.3"], "bias"),
        gates=fused(gates, "weight").T,
        gates_bias=fused(gates, "bias"),
        heads=fused(heads, "weight").T,
        heads_bias=fused(heads, "bias"),
    )
    stats = Statistics(
        rows=jnp.stack([state_dict["standardize.mean"], state_dict["standardize.std"]]),
        hidden=jnp.stack([state_dict["trunk.1.running_mean"], state_dict["trunk.1.running_var"]]),
        steps=jnp.asarray(state_dict["trunk.1.num_batches_tracked"]),
    )
    return {"params": params, "batch_stats": stats}


def to_torch(variables: dict[str, Any]) -> dict[str, np.ndarray]:
    """torch's state dict from the variables."""
    params, stats = jax.tree.map(np.asarray, (variables["params"], variables["batch_stats"]))
    state_dict = {
        "standardize.mean": stats.rows[0],
        "standardize.std": stats.rows[1],
        "trunk.0.weight": params.first.T,
        "trunk.1.weight": params.scale,
        "trunk.1.bias": params.shift,
        "trunk.1.running_mean": stats.hidden[0],
        "trunk.1.running_var": stats.hidden[1],
        "trunk.1.num_batches_tracked": stats.steps.astype(np.int64),
        "trunk.3.weight": params.second.T,
        "trunk.3.bias": params.second_bias,
    }
    for names, cuts, kernel, bias in (
        (["gate", "candidate"], (WIDTH,), params.gates, params.gates_bias),
        ([f"heads.{head}" for head in HEADS], CUTS, params.heads, params.heads_bias),
    ):
        weights, biases = np.split(kernel.T, cuts), np.split(bias, cuts)
        state_dict |= {f"{name}.weight": weight for name, weight in zip(names, weights, strict=True)}
        state_dict |= {f"{name}.bias": part for name, part in zip(names, biases, strict=True)}
    return state_dict


def outputs(
    variables: dict[str, Any], batch: Mapping[str, jax.Array], train: bool, rng: jax.Array | None = None
) -> dict[str, jax.Array]:
    """All four predictions of a batch."""
    return model(variables["params"], variables["batch_stats"], jnp.asarray(batch["rows"]), train, rng)[0]


def huber(error: jax.Array, delta: float) -> jax.Array:
    """Half a square near zero, a line away from it."""
    near = jnp.clip(error, -delta, delta)
    return near * (error - 0.5 * near)


def loss(
    variables: dict[str, Any], batch: Mapping[str, jax.Array], train: bool, rng: jax.Array | None = None
) -> tuple[jax.Array, Statistics]:
    """The sum of five losses of the four predictions, and the statistics after it."""
    predicted, stats = model(variables["params"], variables["batch_stats"], jnp.asarray(batch["rows"]), train, rng)
    error = predicted["amount"] - batch["amount"]
    event, logits = jnp.asarray(batch["event"]), predicted["event"]
    weighted = jnp.logaddexp(0, jnp.where(event > 0.5, -logits, logits)) * (1 + 2 * event)
    wanted = jnp.asarray(batch["mixture"])
    divergence = jnp.mean(jnp.sum(wanted * jnp.log(wanted / jnp.exp(predicted["mixture"])), axis=1))
    direction = jnp.asarray(batch["direction"])
    unit = direction / jnp.maximum(jnp.linalg.norm(direction, axis=1, keepdims=True), 1e-8)
    cosine = jnp.einsum("bd,bd->b", predicted["direction"], unit, precision="highest")
    amount = jnp.mean(huber(error, 0.5) + huber(error, 2.0) / 2)
    return amount + jnp.mean(weighted) + divergence + jnp.mean(1 - cosine), stats


@jax.jit
def train_step(
    variables: dict[str, Any], opt_state: Any, batch: Mapping[str, jax.Array], rng: jax.Array | None = None
) -> tuple[dict[str, Any], Any, jax.Array]:
    """The variables and the optimizer's state after a step on a batch, and its loss."""
    params, stats = variables["params"], variables["batch_stats"]

    def objective(params: Params) -> tuple[jax.Array, Statistics]:
        return loss({"params": params, "batch_stats": stats}, batch, True, rng)

    (value, stats), grads = jax.value_and_grad(objective, has_aux=True)(params)
    updates, opt_state = optimizer.update(grads, opt_state, params)
    return {"params": optax.apply_updates(params, updates), "batch_stats": stats}, opt_state, value
