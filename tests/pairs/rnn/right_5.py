"""The classifier in flax with `nn.compact`, one generic recurrence, and padding dropped from the sums by segments."""

from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import linen as nn
from flax import traverse_util

HIDDEN = 16
Step = Callable[[jax.Array, jax.Array, Any], tuple[Any, jax.Array]]


def lstm_step(a: jax.Array, b: jax.Array, carry: Any) -> tuple[Any, jax.Array]:
    """The next carry and state of an LSTM, from what comes from the input and from the state."""
    ifo = jax.nn.sigmoid((a + b)[jnp.array([0, 1, 3])])
    cell = ifo[1] * carry[1] + ifo[0] * jnp.tanh(a[2] + b[2])
    state = ifo[2] * jnp.tanh(cell)
    return jnp.stack([state, cell]), state


def gru_step(a: jax.Array, b: jax.Array, carry: Any) -> tuple[Any, jax.Array]:
    """The next carry and state of a GRU."""
    r, z = jax.nn.sigmoid(a[:2] + b[:2])
    n = jnp.tanh(a[2] + r * b[2])
    state = n - z * n + z * carry[0]
    return state[None], state


class Recurrence(nn.Module):
    """A step over time; kernels are `(gates, in, hidden)`."""

    step: Step
    gates: int
    carried: int

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        uniform = nn.initializers.uniform(HIDDEN**-0.5)
        input_kernel = self.param("input_kernel", uniform, (self.gates, x.shape[-1], HIDDEN))
        state_kernel = self.param("state_kernel", uniform, (self.gates, HIDDEN, HIDDEN))
        input_bias = self.param("input_bias", uniform, (self.gates, HIDDEN))
        state_bias = self.param("state_bias", uniform, (self.gates, HIDDEN))
        from_inputs = jnp.einsum("bti,gih->tgbh", x, input_kernel, precision="highest") + input_bias[:, None]

        def body(carry: jax.Array, from_input: jax.Array) -> tuple[jax.Array, jax.Array]:
            from_state = jnp.einsum("bs,gsh->gbh", carry[0], state_kernel, precision="highest")
            return self.step(from_input, from_state + state_bias[:, None], carry)

        start = jnp.zeros((self.carried, len(x), HIDDEN), from_inputs.dtype)
        return jnp.moveaxis(jax.lax.scan(body, start, from_inputs)[1], 0, 1)


class Classifier(nn.Module):
    """Maps tokens `(batch, length)` and lengths `(batch,)` to logits `(batch, 4)`."""

    @nn.compact
    def __call__(self, tokens: jax.Array, lengths: jax.Array, *, dropping: bool) -> jax.Array:
        drop = partial(nn.Dropout(0.2), deterministic=not dropping)
        table = self.param("embedding", nn.initializers.normal(1.0), (20, 12))
        learnt = (jnp.arange(20) > 0)[:, None]  # the embedding of padding never moves
        table = jnp.where(learnt, table, jax.lax.stop_gradient(table))
        x = drop(jnp.take(table, tokens, axis=0))
        x = Recurrence(lstm_step, 4, 2, name="lstm_l0")(x)
        x = Recurrence(lstm_step, 4, 2, name="lstm_l1")(x)
        x = Recurrence(gru_step, 3, 1, name="gru_l0")(x)
        batch, length, _ = x.shape
        rows = jnp.where(jnp.arange(length) < lengths[:, None], jnp.arange(batch)[:, None], batch)
        sums = jax.ops.segment_sum(x.reshape(batch * length, HIDDEN), rows.ravel(), num_segments=batch + 1)[:-1]
        mean = sums * (1 / lengths.astype(x.dtype))[:, None]
        return nn.DenseGeneral(4, precision="highest", name="head")(drop(mean))


model = Classifier()


def clip(grads: optax.Updates, _: optax.Params | None) -> optax.Updates:
    """torch's `clip_grad_value_`."""
    return jax.tree.map(lambda g: jnp.minimum(jnp.maximum(g, -0.02), 0.02), grads)


optimizer = optax.chain(
    optax.stateless(clip),
    optax.scale_by_rms(0.9, 1e-6, eps_in_sqrt=False),
    optax.trace(0.8),
    optax.scale_by_learning_rate(lambda count: jnp.power(0.9, jnp.asarray(count, float)) * 2e-3),
)

KINDS = {"input_kernel": "weight_ih", "state_kernel": "weight_hh", "input_bias": "bias_ih", "state_bias": "bias_hh"}
GATES = {"lstm_l0": 4, "lstm_l1": 4, "gru_l0": 3}
SIMPLE = {("embedding",): "embedding.weight", ("head", "kernel"): "head.weight", ("head", "bias"): "head.bias"}


def torch_name(path: tuple[str, ...]) -> str:
    """torch's name of the parameter at a path."""
    if path in SIMPLE:
        return SIMPLE[path]
    module, suffix = path[0].split("_")
    return f"{module}.{KINDS[path[1]]}_{suffix}"


PATHS = (*SIMPLE, *((layer, kind) for layer in GATES for kind in KINDS))


def from_torch(state_dict: Mapping[str, np.ndarray]) -> dict[str, Any]:
    """The variables from torch's."""
    params = {}
    for path in PATHS:
        tensor = jnp.asarray(state_dict[torch_name(path)])
        if path[0] in GATES:
            tensor = tensor.reshape(GATES[path[0]], HIDDEN, -1).swapaxes(1, 2)
            tensor = tensor[:, 0] if path[1].endswith("bias") else tensor
        params[path] = tensor.T if path == ("head", "kernel") else tensor
    return {"params": traverse_util.unflatten_dict(params), "batch_stats": {}}


def to_torch(variables: dict[str, Any]) -> dict[str, np.ndarray]:
    """torch's state dict from the variables."""
    state_dict = {}
    for path, leaf in traverse_util.flatten_dict(variables["params"]).items():
        tensor = np.asarray(leaf)
        if path[0] in GATES:
            packed = tensor.swapaxes(1, 2) if tensor.ndim == 3 else tensor
            tensor = packed.reshape(-1, *packed.shape[2:])
        state_dict[torch_name(path)] = tensor.T if path == ("head", "kernel") else tensor
    return state_dict


def outputs(
    variables: dict[str, Any], batch: Mapping[str, jax.Array], train: bool, rng: jax.Array | None = None
) -> dict[str, jax.Array]:
    """The logits of a batch."""
    dropping = train and rng is not None
    rngs = {} if rng is None else {"dropout": rng}
    tokens, lengths = (jnp.asarray(batch[name]) for name in ("tokens", "lengths"))
    logits: Any = model.apply({"params": variables["params"]}, tokens, lengths, dropping=dropping, rngs=rngs)
    return {"logits": logits}


def loss(
    variables: dict[str, Any], batch: Mapping[str, jax.Array], train: bool, rng: jax.Array | None = None
) -> tuple[jax.Array, dict[str, Any]]:
    """The cross-entropy's mean, weighted by class, and no statistics."""
    log_probabilities = jax.nn.log_softmax(outputs(variables, batch, train, rng)["logits"])
    weights = jnp.array([1.0, 0.5, 2.0, 1.5], log_probabilities.dtype)
    chosen = jnp.arange(4) == jnp.asarray(batch["labels"])[:, None]
    return -jnp.sum(weights * log_probabilities, where=chosen) / jnp.sum(weights * chosen), {}


@jax.jit
def train_step(
    variables: dict[str, Any], opt_state: Any, batch: Mapping[str, jax.Array], rng: jax.Array | None = None
) -> tuple[dict[str, Any], Any, jax.Array]:
    """The variables and the optimizer's state after a step on a batch, and its loss."""
    value, backward = jax.vjp(lambda params: loss({"params": params}, batch, True, rng)[0], variables["params"])
    (grads,) = backward(jnp.ones_like(value))
    updates, opt_state = optimizer.update(grads, opt_state, variables["params"])
    return variables | {"params": optax.apply_updates(variables["params"], updates)}, opt_state, value
