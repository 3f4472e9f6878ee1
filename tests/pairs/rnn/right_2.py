"""The classifier in flax: cells of one's own under flax's `nn.RNN`, kernels that keep torch's layouts."""

from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import linen as nn

EMBEDDED, HIDDEN, CLASSES, VOCABULARY = 12, 16, 4, 20
WEIGHTS = (1.0, 0.5, 2.0, 1.5)
RNNS = {"lstm_0": ("lstm", "l0"), "lstm_1": ("lstm", "l1"), "gru": ("gru", "l0")}
PARTS = ("weight_ih", "weight_hh", "bias_ih", "bias_hh")


class TorchCell(nn.RNNCellBase):
    """What the cells of torch share: packed weights and two biases."""

    inputs: int
    gates: int

    def setup(self) -> None:
        rows, uniform = self.gates * HIDDEN, nn.initializers.uniform(HIDDEN**-0.5)
        self.weight_ih = self.param("weight_ih", uniform, (rows, self.inputs))
        self.weight_hh = self.param("weight_hh", uniform, (rows, HIDDEN))
        self.bias_ih = self.param("bias_ih", uniform, (rows,))
        self.bias_hh = self.param("bias_hh", uniform, (rows,))

    def products(self, x: jax.Array, h: jax.Array) -> tuple[jax.Array, jax.Array]:
        """What comes from the input and what from the state, `(batch, gates, hidden)` both."""
        from_x = jnp.einsum("bi,gi->bg", x, self.weight_ih, precision="highest") + self.bias_ih
        from_h = jnp.einsum("bh,gh->bg", h, self.weight_hh, precision="highest") + self.bias_hh
        return from_x.reshape(-1, self.gates, HIDDEN), from_h.reshape(-1, self.gates, HIDDEN)

    @property
    def num_feature_axes(self) -> int:
        return 1


class LSTMCell(TorchCell):
    """A carry of the state and the cell."""

    gates: int = 4

    def __call__(self, carry: Any, inputs: jax.Array) -> tuple[Any, jax.Array]:
        h, c = carry
        from_x, from_h = self.products(inputs, h)
        summed = from_x + from_h
        gate = nn.sigmoid(summed)
        c = gate[:, 1] * c + gate[:, 0] * jnp.tanh(summed[:, 2])
        h = gate[:, 3] * jnp.tanh(c)
        return (h, c), h

    def initialize_carry(self, rng: jax.Array, input_shape: tuple[int, ...]) -> Any:
        zeros = jnp.zeros((input_shape[0], HIDDEN), self.weight_hh.dtype)
        return zeros, zeros


class GRUCell(TorchCell):
    """A carry of the state."""

    gates: int = 3

    def __call__(self, carry: Any, inputs: jax.Array) -> tuple[Any, jax.Array]:
        from_x, from_h = self.products(inputs, carry)
        gate = nn.sigmoid(from_x[:, :2] + from_h[:, :2])
        candidate = nn.tanh(from_x[:, 2] + gate[:, 0] * from_h[:, 2])
        h = (1 - gate[:, 1]) * candidate + gate[:, 1] * carry
        return h, h

    def initialize_carry(self, rng: jax.Array, input_shape: tuple[int, ...]) -> Any:
        return jnp.zeros((input_shape[0], HIDDEN), self.weight_hh.dtype)


class Classifier(nn.Module):
    """Maps tokens `(batch, length)` and lengths `(batch,)` to logits `(batch, 4)`."""

    rate: float = 0.0

    def setup(self) -> None:
        self.embedding = nn.Embed(VOCABULARY, EMBEDDED)
        self.lstm_0, self.lstm_1 = LSTMCell(EMBEDDED), LSTMCell(HIDDEN)
        self.gru = GRUCell(HIDDEN)
        self.rnns = [nn.RNN(cell) for cell in (self.lstm_0, self.lstm_1, self.gru)]
        self.head = nn.Dense(CLASSES, precision="highest")
        self.drop = nn.Dropout(self.rate, deterministic=self.rate == 0)

    def __call__(self, tokens: jax.Array, lengths: jax.Array) -> jax.Array:
        embedded = self.embedding(tokens)
        x = self.drop(jnp.where(tokens[..., None] == 0, jax.lax.stop_gradient(embedded), embedded))
        for rnn in self.rnns:
            x = rnn(x)
        present = jnp.arange(tokens.shape[-1])[None, :, None] < lengths[:, None, None]
        logits: jax.Array = self.head(self.drop(jnp.mean(x, axis=1, where=present)))
        return logits


model = Classifier()
optimizer = optax.chain(
    optax.clip(0.02),
    optax.rmsprop(1.0, decay=0.9, eps=1e-6, eps_in_sqrt=False, momentum=0.8),  # without a rate: it would be within
    optax.scale_by_schedule(lambda step: 2e-3 * 0.9**step),
)


def from_torch(state_dict: Mapping[str, np.ndarray]) -> dict[str, Any]:
    """The variables from torch's."""
    params: dict[str, Any] = {
        layer: {part: jnp.asarray(state_dict[f"{name}.{part}_{suffix}"]) for part in PARTS}
        for layer, (name, suffix) in RNNS.items()
    }
    params["embedding"] = {"embedding": jnp.asarray(state_dict["embedding.weight"])}
    kernel, bias = state_dict["head.weight"].T, state_dict["head.bias"]
    params["head"] = {"kernel": jnp.asarray(kernel), "bias": jnp.asarray(bias)}
    return {"params": params, "batch_stats": {}}


def to_torch(variables: dict[str, Any]) -> dict[str, np.ndarray]:
    """torch's state dict from the variables."""
    params = jax.tree.map(np.asarray, variables["params"])
    state_dict = {
        f"{name}.{part}_{suffix}": params[layer][part] for layer, (name, suffix) in RNNS.items() for part in PARTS
    }
    state_dict["embedding.weight"] = params["embedding"]["embedding"]
    return state_dict | {"head.weight": params["head"]["kernel"].T, "head.bias": params["head"]["bias"]}


def outputs(
    variables: dict[str, Any], batch: Mapping[str, jax.Array], train: bool, rng: jax.Array | None = None
) -> dict[str, jax.Array]:
    """The logits of a batch."""
    dropping = Classifier(rate=0.2) if train and rng is not None else model
    tokens, lengths = jnp.asarray(batch["tokens"]), jnp.asarray(batch["lengths"])
    rngs = {} if rng is None else {"dropout": rng}
    logits: Any = dropping.apply({"params": variables["params"]}, tokens, lengths, rngs=rngs)
    return {"logits": logits}


def loss(
    variables: dict[str, Any], batch: Mapping[str, jax.Array], train: bool, rng: jax.Array | None = None
) -> tuple[jax.Array, dict[str, Any]]:
    """The cross-entropy's mean, weighted by class, and no statistics."""
    logits = outputs(variables, batch, train, rng)["logits"]
    weighted = jax.nn.one_hot(batch["labels"], CLASSES, dtype=logits.dtype) * jnp.asarray(WEIGHTS, logits.dtype)
    return -jnp.sum(weighted * nn.log_softmax(logits)) / jnp.sum(weighted), {}


@jax.jit
def train_step(
    variables: dict[str, Any], opt_state: Any, batch: Mapping[str, jax.Array], rng: jax.Array | None = None
) -> tuple[dict[str, Any], Any, jax.Array]:
    """The variables and the optimizer's state after a step on a batch, and its loss."""

    def objective(params: Any) -> jax.Array:
        return loss({"params": params}, batch, True, rng)[0]

    value, grads = jax.value_and_grad(objective)(variables["params"])
    updates, opt_state = optimizer.update(grads, opt_state, variables["params"])
    return {"params": optax.apply_updates(variables["params"], updates), "batch_stats": {}}, opt_state, value
