"""The network of one row under a `vmap` whose named axis is the batch; parameters as pairs in a nested dict."""

from collections.abc import Mapping
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax import Array, lax

Tree = dict[str, Any]
LAYERS = {
    "trunk": ("trunk.0", "trunk.3"),
    "gates": ("gate", "candidate"),
    "heads": ("heads.amount", "heads.event", "heads.mixture", "heads.direction"),
}


def affine(layer: tuple[Array, ...], x: Array) -> Array:
    """A weight `(out, in)` times a vector, plus a bias if the layer has one."""
    weight, *bias = layer
    return sum(bias, start=jnp.dot(weight, x, precision="highest"))


def across(x: Array) -> tuple[Array, Array, Any]:
    """The mean over the batch, the sum of squares around it, and the batch's size."""
    size = lax.psum(1, "rows")
    mean = lax.psum(x, "rows") / size
    return mean, lax.psum(jnp.square(x - mean), "rows"), size


@partial(jax.vmap, in_axes=(None, None, 0, None, 0), out_axes=(0, None), axis_name="rows")
def model(params: Tree, stats: Tree, row: Array, train: bool, mask: Array) -> tuple[Tree, Tree]:
    """Maps rows `(batch, 8)` to four predictions, and statistics to new ones; the mask multiplies what may drop out."""
    (mean, std), (running_mean, running_var, steps) = stats["rows"], stats["norm"]
    row = row.astype(mean.dtype)
    if train:
        centre, squares, size = across(row)
        mean, std = mean + 0.2 * (centre - mean), std + 0.2 * (jnp.sqrt(squares / (size - 1)) - std)
    x = affine(params["trunk"][0], (row - mean) / (std + 1e-6))
    centre, var = running_mean, running_var
    if train:
        centre, squares, size = across(x)
        var = squares / size
        running_mean = running_mean + 0.1 * (centre - running_mean)
        running_var = running_var + 0.1 * (squares / (size - 1) - running_var)
        steps = steps + 1
    scale, shift = params["norm"]
    x = jax.nn.elu(scale * ((x - centre) * lax.rsqrt(var + 1e-5)) + shift)
    x = jax.nn.softplus(affine(params["trunk"][1], x)) * mask
    gate, candidate = (affine(layer, x) for layer in params["gates"])
    x = jnp.tanh(candidate) / (1 + jnp.exp(-gate))
    amount, event, mixture, direction = (affine(layer, x) for layer in params["heads"])
    predictions = {
        "amount": amount[0],
        "event": event[0],
        "mixture": jax.nn.log_softmax(mixture),
        "direction": direction / jnp.maximum(jnp.linalg.norm(direction), 1e-12),
    }
    return predictions, {"rows": (mean, std), "norm": (running_mean, running_var, steps)}


def rates(base: float) -> optax.Schedule:
    """A linear warm-up in three steps from a quarter."""
    return lambda step: base * (1 - 0.25 * jnp.maximum(3 - step, 0))


optimizer = optax.multi_transform(
    {
        "slow": optax.chain(optax.add_decayed_weights(1e-2), optax.inject_hyperparams(optax.adamax)(rates(4e-3))),
        "fast": optax.inject_hyperparams(optax.adamax)(rates(8e-3)),
    },
    {"trunk": "slow", "norm": "slow", "gates": "slow", "heads": "fast"},
)


def from_torch(state_dict: Mapping[str, np.ndarray]) -> Tree:
    """The variables: torch's tensors, layer by layer."""
    tensors = {name: jnp.asarray(tensor) for name, tensor in state_dict.items()}

    def layer(name: str) -> tuple[Array, ...]:
        return tuple(tensors[f"{name}.{part}"] for part in ("weight", "bias") if f"{name}.{part}" in tensors)

    params: Tree = {group: [layer(name) for name in names] for group, names in LAYERS.items()}
    params["norm"] = layer("trunk.1")
    norm = tuple(tensors[f"trunk.1.{name}"] for name in ("running_mean", "running_var", "num_batches_tracked"))
    rows = tensors["standardize.mean"], tensors["standardize.std"]
    return {"params": params, "batch_stats": {"rows": rows, "norm": norm}}


def to_torch(variables: Tree) -> dict[str, np.ndarray]:
    """torch's state dict from the variables."""
    params, stats = jax.tree.map(np.asarray, (variables["params"], variables["batch_stats"]))
    named = [("trunk.1", params["norm"])]
    for group, names in LAYERS.items():
        named += list(zip(names, params[group], strict=True))
    state_dict = {
        f"{name}.{part}": tensor
        for name, layer in named
        for part, tensor in zip(("weight", "bias"), layer, strict=False)
    }
    (mean, std), (running_mean, running_var, steps) = stats["rows"], stats["norm"]
    state_dict |= {"standardize.mean": mean, "standardize.std": std}
    state_dict |= {"trunk.1.running_mean": running_mean, "trunk.1.running_var": running_var}
    return state_dict | {"trunk.1.num_batches_tracked": steps.astype(np.int64)}


def forward(variables: Tree, batch: Mapping[str, Array], train: bool, rng: Array | None) -> tuple[Tree, Tree]:
    """All four predictions and the statistics after them."""
    params, rows = variables["params"], jnp.asarray(batch["rows"])
    width = params["gates"][0][0].shape[1]
    mask = jnp.ones((len(rows), width), params["norm"][0].dtype)
    if train and rng is not None:
        mask = mask * jax.random.bernoulli(rng, 0.9, mask.shape) / 0.9
    predictions, stats = model(params, variables["batch_stats"], rows, train, mask)
    return predictions, stats


def outputs(variables: Tree, batch: Mapping[str, Array], train: bool, rng: Array | None = None) -> dict[str, Array]:
    """All four predictions of a batch."""
    return forward(variables, batch, train, rng)[0]


@jax.vmap
def costs(predicted: Mapping[str, Array], wanted: Mapping[str, Array]) -> Array:
    """The losses of a row."""
    error = predicted["amount"] - wanted["amount"]
    huber = jnp.where(jnp.abs(error) < 0.5, 0.5 * error**2, 0.5 * jnp.abs(error) - 0.125)
    smooth = jnp.where(jnp.abs(error) < 2, 0.25 * error**2, jnp.abs(error) - 1)
    event, logit = wanted["event"], predicted["event"]
    cross_entropy = 3 * event * jax.nn.softplus(-logit) + (1 - event) * jax.nn.softplus(logit)
    divergence = jnp.sum(wanted["mixture"] * (jnp.log(wanted["mixture"]) - predicted["mixture"]))
    product = jnp.vdot(predicted["direction"], wanted["direction"], precision="highest")
    norms = [jnp.maximum(jnp.linalg.norm(side["direction"]), 1e-8) for side in (predicted, wanted)]
    return huber + smooth + cross_entropy + divergence + (1 - product / norms[0] / norms[1])


def loss(variables: Tree, batch: Mapping[str, Array], train: bool, rng: Array | None = None) -> tuple[Array, Tree]:
    """The sum of five losses of the four predictions, and the statistics after it."""
    predicted, stats = forward(variables, batch, train, rng)
    return costs(predicted, {name: jnp.asarray(batch[name]) for name in predicted}).mean(), stats


@jax.jit
def train_step(
    variables: Tree, opt_state: Any, batch: Mapping[str, Array], rng: Array | None = None
) -> tuple[Tree, Any, Array]:
    """The variables and the optimizer's state after a step on a batch, and its loss."""
    grad = jax.value_and_grad(lambda params: loss({**variables, "params": params}, batch, True, rng), has_aux=True)
    (value, stats), grads = grad(variables["params"])
    updates, opt_state = optimizer.update(grads, opt_state, variables["params"])
    return {"params": optax.apply_updates(variables["params"], updates), "batch_stats": stats}, opt_state, value
