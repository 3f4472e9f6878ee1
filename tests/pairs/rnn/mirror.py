"""Classifies sequences of unequal lengths, in JAX: the port of `program`."""

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

VOCABULARY, EMBEDDED, HIDDEN, CLASSES = 20, 12, 16, 4
PAD = 0
CLASS_WEIGHTS = (1.0, 0.5, 2.0, 1.5)
# Recurrent layers here, torch's module and its suffix of them.
RECURRENT = {"lstm0": ("lstm", "l0"), "lstm1": ("lstm", "l1"), "gru": ("gru", "l0")}

Dense = partial(nn.Dense, precision="highest")


class Gates(nn.Module):
    """The products of inputs and of the state with the kernels of all gates; each has a bias of its own, as torch's."""

    gates: int

    @nn.compact
    def __call__(self, x: jax.Array, h: jax.Array) -> tuple[list[jax.Array], list[jax.Array]]:
        from_x = Dense(self.gates * h.shape[-1], name="ih")(x)
        from_h = Dense(self.gates * h.shape[-1], name="hh")(h)
        return jnp.split(from_x, self.gates, axis=-1), jnp.split(from_h, self.gates, axis=-1)


class LSTMCell(nn.Module):
    """torch's LSTM cell, whose gates are input, forget, cell and output."""

    @nn.compact
    def __call__(self, carry: tuple[jax.Array, jax.Array], x: jax.Array) -> tuple[Any, jax.Array]:
        h, c = carry
        i, f, g, o = (a + b for a, b in zip(*Gates(4, name="gates")(x, h), strict=True))
        c = nn.sigmoid(f) * c + nn.sigmoid(i) * jnp.tanh(g)
        h = nn.sigmoid(o) * jnp.tanh(c)
        return (h, c), h


class GRUCell(nn.Module):
    """torch's GRU cell, which resets the product of the state, not the state."""

    @nn.compact
    def __call__(self, h: jax.Array, x: jax.Array) -> tuple[jax.Array, jax.Array]:
        (xr, xz, xn), (hr, hz, hn) = Gates(3, name="gates")(x, h)
        update = nn.sigmoid(xz + hz)
        candidate = jnp.tanh(xn + nn.sigmoid(xr + hr) * hn)
        h = (1 - update) * candidate + update * h
        return h, h


def over_time(cell: type[nn.Module]) -> Any:
    """A cell applied to `(batch, time, features)`, step by step."""
    return nn.scan(cell, variable_broadcast="params", split_rngs={"params": False}, in_axes=1, out_axes=1)


class SequenceClassifier(nn.Module):
    """Maps tokens `(batch, length)` and lengths `(batch,)` to logits `(batch, 4)`."""

    dropout: float = 0.2

    @nn.compact
    def __call__(self, tokens: jax.Array, lengths: jax.Array, deterministic: bool) -> jax.Array:
        dropout = partial(nn.Dropout(self.dropout), deterministic=deterministic)
        table = self.param("embedding", nn.initializers.normal(1.0), (VOCABULARY, EMBEDDED))
        table = table.at[PAD].set(jax.lax.stop_gradient(table[PAD]))
        x = dropout(table[tokens])
        zeros = jnp.zeros((tokens.shape[0], HIDDEN), x.dtype)
        for layer in range(2):
            _, x = over_time(LSTMCell)(name=f"lstm{layer}")((zeros, zeros), x)
        _, x = over_time(GRUCell)(name="gru")(zeros, x)
        present = jnp.arange(tokens.shape[1]) < lengths[:, None]
        mean = jnp.sum(x * present[..., None], axis=1) / lengths[:, None].astype(x.dtype)
        return Dense(CLASSES, name="head")(dropout(mean))


model = SequenceClassifier()
optimizer = optax.chain(
    optax.clip(0.02),
    optax.scale_by_rms(decay=0.9, eps=1e-6, eps_in_sqrt=False),
    optax.trace(decay=0.8),  # torch's momentum gathers steps before they meet the learning rate
    optax.scale_by_learning_rate(lambda step: 2e-3 * 0.9**step),
)


def from_torch(state_dict: Mapping[str, np.ndarray]) -> Variables:
    """The variables from torch's: a kernel is a weight transposed."""
    tensors = {name: jnp.asarray(tensor) for name, tensor in state_dict.items()}
    params: dict[str, Any] = {
        "embedding": tensors["embedding.weight"],
        "head": {"kernel": tensors["head.weight"].T, "bias": tensors["head.bias"]},
    }
    for layer, (name, suffix) in RECURRENT.items():
        params[layer] = {
            "gates": {
                side: {
                    "kernel": tensors[f"{name}.weight_{side}_{suffix}"].T,
                    "bias": tensors[f"{name}.bias_{side}_{suffix}"],
                }
                for side in ("ih", "hh")
            }
        }
    return {"params": params, "batch_stats": {}}


def to_torch(variables: Variables) -> dict[str, np.ndarray]:
    """torch's state dict from the variables."""
    params = jax.tree.map(np.asarray, variables["params"])
    state_dict = {
        "embedding.weight": params["embedding"],
        "head.weight": params["head"]["kernel"].T,
        "head.bias": params["head"]["bias"],
    }
    for layer, (name, suffix) in RECURRENT.items():
        for side, dense in params[layer]["gates"].items():
            state_dict[f"{name}.weight_{side}_{suffix}"] = dense["kernel"].T
            state_dict[f"{name}.bias_{side}_{suffix}"] = dense["bias"]
    return state_dict


def outputs(variables: Variables, batch: Batch, train: bool, rng: jax.Array | None = None) -> dict[str, jax.Array]:
    """The logits of a batch."""
    rngs = {} if rng is None else {"dropout": rng}
    inputs = jnp.asarray(batch["tokens"]), jnp.asarray(batch["lengths"])
    logits: Any = model.apply({"params": variables["params"]}, *inputs, not train or rng is None, rngs=rngs)
    return {"logits": logits}


def loss(
    variables: Variables, batch: Batch, train: bool, rng: jax.Array | None = None
) -> tuple[jax.Array, dict[str, Any]]:
    """The cross-entropy's mean, weighted by class, and no statistics."""
    logits = outputs(variables, batch, train, rng)["logits"]
    weights = jnp.asarray(CLASS_WEIGHTS, logits.dtype)[batch["labels"]]
    losses = optax.softmax_cross_entropy_with_integer_labels(logits, batch["labels"])
    return jnp.sum(weights * losses) / jnp.sum(weights), {}


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
