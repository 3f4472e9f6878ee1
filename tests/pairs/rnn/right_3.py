"""The classifier with a kernel for every gate and a Python loop over time."""

from collections.abc import Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax import Array
from jax.nn import sigmoid


class Gate(NamedTuple):
    """Kernels `(in, hidden)` and biases, of inputs and of the state."""

    from_x: Array
    from_h: Array
    bias_x: Array
    bias_h: Array

    def both(self, x: Array, h: Array) -> Array:
        """What the input and the state give."""
        return dot(x, self.from_x) + self.bias_x + (dot(h, self.from_h) + self.bias_h)


Params = dict[str, Any]
GATES = {"lstm_l0": "ifgo", "lstm_l1": "ifgo", "gru_l0": "rzn"}


def dot(x: Array, kernel: Array) -> Array:
    """The product in full precision."""
    return jnp.dot(x, kernel, precision="highest")


def lstm(gates: dict[str, Gate], inputs: list[Array]) -> list[Array]:
    """The states after every input."""
    states = []
    h = c = jnp.zeros((len(inputs[0]), gates["i"].from_h.shape[0]), inputs[0].dtype)
    for x in inputs:
        c = sigmoid(gates["f"].both(x, h)) * c + sigmoid(gates["i"].both(x, h)) * jnp.tanh(gates["g"].both(x, h))
        h = sigmoid(gates["o"].both(x, h)) * jnp.tanh(c)
        states.append(h)
    return states


def gru(gates: dict[str, Gate], inputs: list[Array]) -> list[Array]:
    """The states after every input."""
    states = []
    h = jnp.zeros((len(inputs[0]), gates["r"].from_h.shape[0]), inputs[0].dtype)
    for x in inputs:
        reset, keep, new = sigmoid(gates["r"].both(x, h)), sigmoid(gates["z"].both(x, h)), gates["n"]
        candidate = jnp.tanh(dot(x, new.from_x) + new.bias_x + reset * (dot(h, new.from_h) + new.bias_h))
        h = keep * h + (1 - keep) * candidate
        states.append(h)
    return states


def model(params: Params, tokens: Array, lengths: Array, masks: tuple[Any, Any] = (1, 1)) -> Array:
    """Maps tokens `(batch, length)` and lengths `(batch,)` to logits `(batch, 4)`; masks multiply what may drop out."""
    table = jnp.concatenate([jax.lax.stop_gradient(params["embedding"][:1]), params["embedding"][1:]])
    inputs = list(jnp.moveaxis(table[tokens] * masks[0], 1, 0))
    states = gru(params["gru_l0"], lstm(params["lstm_l1"], lstm(params["lstm_l0"], inputs)))
    total = sum(jnp.where((step < lengths)[:, None], h, 0) for step, h in enumerate(states))
    mean = total / lengths[:, None].astype(table.dtype)
    logits: Array = dot(mean * masks[1], params["head"]["kernel"]) + params["head"]["bias"]
    return logits


def scale_by_torch_rms(decay: float, eps: float) -> optax.GradientTransformation:
    """Gradients over the root of their squares' moving average, plus epsilon."""

    def update(grads: optax.Updates, squares: Any, params: optax.Params | None = None) -> tuple[optax.Updates, Any]:
        squares = optax.tree.update_moment(grads, squares, decay, 2)
        return jax.tree.map(lambda g, s: g / (s**0.5 + eps), grads, squares), squares

    return optax.GradientTransformation(optax.tree.zeros_like, update)


optimizer = optax.chain(
    optax.clip(0.02),
    scale_by_torch_rms(0.9, 1e-6),
    optax.trace(0.8),
    optax.inject_hyperparams(optax.scale)(step_size=lambda step: -2e-3 * jnp.exp(step * float(np.log(0.9)))),
)


def from_torch(state_dict: Mapping[str, np.ndarray]) -> dict[str, Any]:
    """The variables from torch's, gate by gate."""
    params: Params = {
        "embedding": jnp.asarray(state_dict["embedding.weight"]),
        "head": {"kernel": jnp.asarray(state_dict["head.weight"]).T, "bias": jnp.asarray(state_dict["head.bias"])},
    }
    for layer, gates in GATES.items():
        name, suffix = layer.split("_")
        packed = [state_dict[f"{name}.{kind}_{suffix}"] for kind in ("weight_ih", "weight_hh", "bias_ih", "bias_hh")]
        split = zip(*(np.split(tensor, len(gates)) for tensor in packed), strict=True)
        params[layer] = {
            gate: Gate(*(jnp.asarray(part).T for part in parts)) for gate, parts in zip(gates, split, strict=True)
        }
    return {"params": params, "batch_stats": {}}


def to_torch(variables: dict[str, Any]) -> dict[str, np.ndarray]:
    """torch's state dict from the variables."""
    params = variables["params"]
    state_dict = {
        "embedding.weight": np.asarray(params["embedding"]),
        "head.weight": np.asarray(params["head"]["kernel"].T),
        "head.bias": np.asarray(params["head"]["bias"]),
    }
    for layer, gates in GATES.items():
        name, suffix = layer.split("_")
        kinds = zip(*(params[layer][gate] for gate in gates), strict=True)
        for kind, parts in zip(("weight_ih", "weight_hh", "bias_ih", "bias_hh"), kinds, strict=True):
            state_dict[f"{name}.{kind}_{suffix}"] = np.concatenate([np.asarray(part).T for part in parts])
    return state_dict


def outputs(
    variables: dict[str, Any], batch: Mapping[str, Array], train: bool, rng: Array | None = None
) -> dict[str, Array]:
    """The logits of a batch."""
    params, tokens, lengths = variables["params"], jnp.asarray(batch["tokens"]), jnp.asarray(batch["lengths"])
    if not train or rng is None:
        return {"logits": model(params, tokens, lengths)}
    first, second = jax.random.split(rng)
    shapes = (*tokens.shape, params["embedding"].shape[1]), (len(tokens), params["head"]["kernel"].shape[0])
    masks = jax.random.bernoulli(first, 0.8, shapes[0]) / 0.8, jax.random.bernoulli(second, 0.8, shapes[1]) / 0.8
    return {"logits": model(params, tokens, lengths, masks)}


def loss(
    variables: dict[str, Any], batch: Mapping[str, Array], train: bool, rng: Array | None = None
) -> tuple[Array, dict[str, Any]]:
    """The cross-entropy's mean, weighted by class, and no statistics."""
    logits, labels = outputs(variables, batch, train, rng)["logits"], jnp.asarray(batch["labels"])
    weights = jnp.select([labels == 1, labels == 2, labels == 3], [0.5, 2.0, 1.5], 1.0)
    costs = jnp.log(jnp.sum(jnp.exp(logits - logits[jnp.arange(len(labels)), labels][:, None]), axis=1))
    return (weights * costs).sum() / weights.sum(), {}


@jax.jit
def train_step(
    variables: dict[str, Any], opt_state: Any, batch: Mapping[str, Array], rng: Array | None = None
) -> tuple[dict[str, Any], Any, Array]:
    """The variables and the optimizer's state after a step on a batch, and its loss."""
    value, grads = jax.value_and_grad(lambda params: loss({"params": params}, batch, True, rng)[0])(variables["params"])
    updates, opt_state = optimizer.update(grads, opt_state, variables["params"])
    return {**variables, "params": optax.apply_updates(variables["params"], updates)}, opt_state, value
