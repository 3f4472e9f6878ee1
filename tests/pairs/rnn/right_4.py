"""The classifier of one sequence, all three recurrent layers in one scan that stops counting at the length."""

from collections.abc import Mapping
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import struct
from jax import Array, lax

Carry = tuple[Array, Array, Array, Array, Array, Array]


@struct.dataclass
class Recurrent:
    """Kernels `(in, gates × hidden)` of inputs and of states, and a bias of each."""

    kernel_x: Array
    kernel_h: Array
    bias_x: Array
    bias_h: Array


@struct.dataclass
class Params:
    """All parameters."""

    embedding: Array
    lstm_l0: Recurrent
    lstm_l1: Recurrent
    gru_l0: Recurrent
    head_kernel: Array
    head_bias: Array


def vecmat(x: Array, kernel: Array) -> Array:
    """A vector times a matrix."""
    return lax.dot_general(x, kernel, (((0,), (0,)), ((), ())), precision=lax.Precision.HIGHEST)


def lstm_step(layer: Recurrent, x: Array, h: Array, c: Array) -> tuple[Array, Array]:
    """The state and the cell after x."""
    joined, kernel = jnp.concatenate([x, h]), jnp.concatenate([layer.kernel_x, layer.kernel_h])
    i, f, g, o = (vecmat(joined, kernel) + layer.bias_x + layer.bias_h).reshape(4, -1)
    c = lax.logistic(f) * c + lax.logistic(i) * lax.tanh(g)
    return lax.logistic(o) * lax.tanh(c), c


def gru_step(layer: Recurrent, x: Array, h: Array) -> Array:
    """The state after x."""
    from_x = (vecmat(x, layer.kernel_x) + layer.bias_x).reshape(3, -1)
    from_h = (vecmat(h, layer.kernel_h) + layer.bias_h).reshape(3, -1)
    reset, keep = lax.logistic(from_x[:2] + from_h[:2])
    new = lax.tanh(from_x[2] + reset * from_h[2])
    state: Array = new + keep * (h - new)
    return state


@partial(jax.vmap, in_axes=(None, 0, 0, 0))
def model(params: Params, tokens: Array, length: Array, rng: Array | None) -> Array:
    """Maps tokens `(length,)` of a sequence and its length to logits `(4,)`."""
    keys = None if rng is None else jax.random.split(rng)

    def drop(index: int, x: Array) -> Array:
        return x if keys is None else x * jax.random.bernoulli(keys[index], 0.8, x.shape) / 0.8

    def step(carry: Carry, now: tuple[Array, Array]) -> tuple[Carry, None]:
        total, h0, c0, h1, c1, h = carry
        index, x = now
        h0, c0 = lstm_step(params.lstm_l0, x, h0, c0)
        h1, c1 = lstm_step(params.lstm_l1, h0, h1, c1)
        h = gru_step(params.gru_l0, h1, h)
        return (total + h * (index < length), h0, c0, h1, c1, h), None

    table = params.embedding.at[0].set(lax.stop_gradient(params.embedding[0]))
    zeros = jnp.zeros_like(params.head_kernel[:, 0])
    inputs = jnp.arange(len(tokens)), drop(0, table[tokens])
    start = zeros, zeros, zeros, zeros, zeros, zeros
    (total, *_), _ = lax.scan(step, start, inputs, unroll=3)
    return vecmat(drop(1, total / length.astype(total.dtype)), params.head_kernel) + params.head_bias


optimizer = optax.chain(
    optax.clip(max_delta=0.02),
    optax.scale_by_rms(decay=0.9, eps=1e-6, initial_scale=0.0, eps_in_sqrt=False),
    optax.trace(decay=0.8, nesterov=False),
    optax.scale_by_schedule(lambda count: 2e-3 * 0.9 ** count.astype(float)),
    optax.scale(-1.0),
)

KINDS = {"kernel_x": "weight_ih", "kernel_h": "weight_hh", "bias_x": "bias_ih", "bias_h": "bias_hh"}
LAYERS = ("lstm_l0", "lstm_l1", "gru_l0")


def torch_name(layer: str, kind: str) -> str:
    """torch's name of a part of a recurrent layer, as `lstm.weight_ih_l0`."""
    module, suffix = layer.split("_")
    return f"{module}.{KINDS[kind]}_{suffix}"


def from_torch(state_dict: Mapping[str, np.ndarray]) -> dict[str, Any]:
    """The variables from torch's: kernels are transposed."""
    tensors = {name: jnp.asarray(tensor) for name, tensor in state_dict.items()}
    layers = (Recurrent(**{kind: tensors[torch_name(layer, kind)].T for kind in KINDS}) for layer in LAYERS)
    lstm_l0, lstm_l1, gru_l0 = layers
    params = Params(
        embedding=tensors["embedding.weight"],
        lstm_l0=lstm_l0,
        lstm_l1=lstm_l1,
        gru_l0=gru_l0,
        head_kernel=tensors["head.weight"].T,
        head_bias=tensors["head.bias"],
    )
    return {"params": params, "batch_stats": {}}


def to_torch(variables: dict[str, Any]) -> dict[str, np.ndarray]:
    """torch's state dict from the variables."""
    params: Params = jax.tree.map(np.asarray, variables["params"])
    state_dict: dict[str, Any] = {
        torch_name(layer, kind): getattr(getattr(params, layer), kind).T for layer in LAYERS for kind in KINDS
    }
    state_dict["embedding.weight"] = params.embedding
    return state_dict | {"head.weight": params.head_kernel.T, "head.bias": params.head_bias}


def outputs(
    variables: dict[str, Any], batch: Mapping[str, Array], train: bool, rng: Array | None = None
) -> dict[str, Array]:
    """The logits of a batch."""
    tokens, lengths = jnp.asarray(batch["tokens"]), jnp.asarray(batch["lengths"])
    keys = jax.random.split(rng, len(tokens)) if train and rng is not None else None
    return {"logits": model(variables["params"], tokens, lengths, keys)}


def loss(
    variables: dict[str, Any], batch: Mapping[str, Array], train: bool, rng: Array | None = None
) -> tuple[Array, dict[str, Any]]:
    """The cross-entropy's mean, weighted by class, and no statistics."""
    logits = outputs(variables, batch, train, rng)["logits"]
    one_hot = jax.nn.one_hot(batch["labels"], logits.shape[-1], dtype=logits.dtype)
    weights = jnp.dot(one_hot, jnp.array([1.0, 0.5, 2.0, 1.5], logits.dtype), precision="highest")
    return jnp.dot(weights / weights.sum(), optax.softmax_cross_entropy(logits, one_hot), precision="highest"), {}


@jax.jit
def train_step(
    variables: dict[str, Any], opt_state: Any, batch: Mapping[str, Array], rng: Array | None = None
) -> tuple[dict[str, Any], Any, Array]:
    """The variables and the optimizer's state after a step on a batch, and its loss."""

    def objective(params: Params) -> tuple[Array, dict[str, Any]]:
        return loss({"params": params}, batch, True, rng)

    (value, stats), grads = jax.value_and_grad(objective, has_aux=True)(variables["params"])
    updates, opt_state = optimizer.update(grads, opt_state, variables["params"])
    return {"params": optax.apply_updates(variables["params"], updates), "batch_stats": stats}, opt_state, value
