"""The encoder of one sequence, its layers stacked and scanned over; `vmap` makes it one of a batch."""

from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax import Array, lax

Tree = dict[str, Any]

HEADS, LAYERS, KEEP = 4, 2, 0.9
LAYER_NAMES = (
    "attention_norm.weight", "attention_norm.bias", "attention.in_proj_weight", "attention.in_proj_bias",
    "attention.out_proj.weight", "attention.out_proj.bias", "mlp_norm.weight", "mlp_norm.bias",
    "mlp.0.weight", "mlp.0.bias", "mlp.2.weight", "mlp.2.bias",
)  # fmt: skip
OUTER_NAMES = ("tokens.weight", "positions.weight", "norm.weight", "norm.bias", "head.bias")


def affine(x: Array, weight: Array, bias: Array) -> Array:
    """Rows by a weight of torch's layout, and a bias."""
    return jnp.inner(x, weight, precision="highest") + bias


def norm(x: Array, weight: Array, bias: Array) -> Array:
    """Normalised rows."""
    centred = x - x.mean(-1, keepdims=True)
    return weight * centred / jnp.sqrt(centred.var(-1, keepdims=True) + 1e-5) + bias


def attend(layer: Tree, x: Array, present: Array) -> Array:
    """The attention of a sequence `(length, width)` to itself, head by head."""
    packed = affine(x, layer["attention.in_proj_weight"], layer["attention.in_proj_bias"])

    @jax.vmap
    def head(q: Array, k: Array, v: Array) -> Array:
        scores = jnp.matmul(q, k.T, precision="highest") * (q.shape[-1] ** -0.5)
        scores = jnp.where(present, scores, -jnp.inf)
        powers = jnp.exp(scores - lax.stop_gradient(scores.max(-1, keepdims=True)))
        return jnp.matmul(powers, v, precision="highest") / powers.sum(-1, keepdims=True)

    q, k, v = packed.reshape(len(x), 3, HEADS, -1).transpose(1, 2, 0, 3)
    joined = head(q, k, v).transpose(1, 0, 2).reshape(x.shape)
    return affine(joined, layer["attention.out_proj.weight"], layer["attention.out_proj.bias"])


def model(params: Tree, tokens: Array, masks: Array) -> Array:
    """Maps tokens `(length,)` to logits `(length, 24)`; masks `(1 + layers, 2, …)` multiply what may drop out."""
    present = tokens != 0
    table = params["tokens.weight"]
    x = (table[tokens] + params["positions.weight"][jnp.arange(len(tokens))]) * masks[0, 0]

    def step(x: Array, layer_and_masks: tuple[Tree, Array]) -> tuple[Array, None]:
        layer, (first, second) = layer_and_masks
        normed = norm(x, layer["attention_norm.weight"], layer["attention_norm.bias"])
        x = x + first * attend(layer, normed, present)
        normed = norm(x, layer["mlp_norm.weight"], layer["mlp_norm.bias"])
        hidden = affine(normed, layer["mlp.0.weight"], layer["mlp.0.bias"])
        hidden = hidden * lax.erfc(-hidden * 0.5**0.5) / 2
        return x + second * affine(hidden, layer["mlp.2.weight"], layer["mlp.2.bias"]), None

    x, _ = lax.scan(step, x, (params["layers"], masks[1:]))
    return affine(norm(x, params["norm.weight"], params["norm.bias"]), table, params["head.bias"])


def clip_by_norm(limit: float) -> optax.GradientTransformation:
    """torch's `clip_grad_norm_`."""
    return optax.stateless(
        lambda grads, _: jax.tree.map(lambda g: g * jnp.minimum(1, limit / (optax.global_norm(grads) + 1e-6)), grads)
    )


def decays(params: Any) -> Any:
    """Which parameters decay: matrices, stacked or not."""
    layers = {name: leaf.ndim == 3 for name, leaf in params["layers"].items()}
    return {name: layers if name == "layers" else leaf.ndim == 2 for name, leaf in params.items()}


def learning_rate(step: Array) -> Array:
    """Warm-up in three steps, then half a cosine."""
    return jnp.where(step < 3, 2e-3 / 3 * (step + 1), 2e-3 * jnp.cos(jnp.pi / 74 * jnp.minimum(step - 3, 37)) ** 2)


optimizer = optax.chain(
    clip_by_norm(1.0),
    optax.scale_by_adam(b1=0.9, b2=0.999, eps=1e-8),
    optax.add_decayed_weights(0.05, mask=decays),
    optax.scale_by_learning_rate(learning_rate),
)


def from_torch(state_dict: Mapping[str, np.ndarray]) -> Tree:
    """The variables from torch's, layers stacked."""
    layers = {
        name: jnp.stack([state_dict[f"layers.{index}.{name}"] for index in range(LAYERS)]) for name in LAYER_NAMES
    }
    return {
        "params": {"layers": layers} | {name: jnp.asarray(state_dict[name]) for name in OUTER_NAMES},
        "batch_stats": {},
    }


def to_torch(variables: Tree) -> dict[str, np.ndarray]:
    """torch's state dict from the variables."""
    params = variables["params"]
    state_dict = {name: np.asarray(params[name]) for name in OUTER_NAMES}
    for name, stacked in params["layers"].items():
        state_dict |= {f"layers.{index}.{name}": np.asarray(leaf) for index, leaf in enumerate(stacked)}
    return state_dict | {"head.weight": state_dict["tokens.weight"]}


def outputs(variables: Tree, batch: Mapping[str, Array], train: bool, rng: Array | None = None) -> dict[str, Array]:
    """The logits of every position, padding's too."""
    params, tokens = variables["params"], jnp.asarray(batch["tokens"])
    if train and rng is not None:
        shape = (*tokens.shape, params["tokens.weight"].shape[1])
        kept = jax.random.bernoulli(rng, KEEP, (shape[0], 1 + LAYERS, 2, *shape[1:]))
        masks = kept.astype(params["tokens.weight"].dtype) / KEEP
    else:
        masks = jnp.ones((len(tokens), 1 + LAYERS, 2, 1, 1), params["tokens.weight"].dtype)
    return {"logits": jax.vmap(model, in_axes=(None, 0, 0))(params, tokens, masks)}


def loss(variables: Tree, batch: Mapping[str, Array], train: bool, rng: Array | None = None) -> tuple[Array, Tree]:
    """The cross-entropy's mean over masked positions, labels smoothed by 0.1, and no statistics."""

    def of_position(logits: Array, label: Array) -> Array:
        log_probabilities = jax.nn.log_softmax(logits)
        return jnp.where(label == -100, 0, -0.9 * log_probabilities[label] - 0.1 * log_probabilities.mean())

    logits, labels = outputs(variables, batch, train, rng)["logits"], jnp.asarray(batch["labels"])
    return jax.vmap(jax.vmap(of_position))(logits, labels).sum() / jnp.count_nonzero(labels != -100).astype(
        logits.dtype
    ), {}


@jax.jit
def train_step(
    variables: Tree, opt_state: Any, batch: Mapping[str, Array], rng: Array | None = None
) -> tuple[Tree, Any, Array]:
    """The variables and the optimizer's state after a step on a batch, and its loss."""
    grad = jax.value_and_grad(lambda params: loss({"params": params}, batch, True, rng)[0])
    value, grads = grad(variables["params"])
    updates, opt_state = optimizer.update(grads, opt_state, variables["params"])
    return variables | {"params": optax.apply_updates(variables["params"], updates)}, opt_state, value
