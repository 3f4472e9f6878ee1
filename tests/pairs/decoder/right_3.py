"""The decoder with stacked layers under a scan, one packed projection and rotations as matrices."""

from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax import Array, lax

Tree = dict[str, Any]

WIDTH, HEADS, KV_HEADS, HEAD_WIDTH, LAYERS = 32, 4, 2, 8, 2
GROUP = HEADS // KV_HEADS
SPLITS = (HEADS * HEAD_WIDTH, (HEADS + KV_HEADS) * HEAD_WIDTH)


def einsum(equation: str, *arrays: Array) -> Array:
    """In full precision."""
    return jnp.einsum(equation, *arrays, precision=lax.Precision.HIGHEST)


def rms_norm(x: Array, scale: Array) -> Array:
    """x over its root mean square."""
    wide = x.astype(jnp.promote_types(x.dtype, jnp.float32))
    norms = jnp.linalg.norm(wide, axis=-1, keepdims=True)
    return (wide * lax.rsqrt(norms**2 / x.shape[-1] + 1e-6)).astype(x.dtype) * scale


def rotations(length: int, dtype: Any) -> Array:
    """A matrix `(8, 8)` for each position."""
    half = HEAD_WIDTH // 2
    angle = jnp.arange(length, dtype=dtype)[:, None] * jnp.power(10000.0, -jnp.arange(half, dtype=dtype) / half)
    cos, sin = (jax.vmap(jnp.diag)(function(angle)) for function in (jnp.cos, jnp.sin))
    return jnp.block([[cos, -sin], [sin, cos]])


def attend(layer: Tree, x: Array, rotation: Array) -> Array:
    """Causal attention of groups of queries."""
    batch, length, _ = x.shape
    packed = einsum("btw,wp->btp", x, layer["qkv"])
    q, k, v = jnp.split(packed, SPLITS, axis=-1)
    q = einsum("tij,btkgj->bkgti", rotation, q.reshape(batch, length, KV_HEADS, GROUP, HEAD_WIDTH))
    k = einsum("tij,btkj->bkti", rotation, k.reshape(batch, length, KV_HEADS, HEAD_WIDTH))
    scores = einsum("bkgqi,bksi->bkgqs", q, k) / HEAD_WIDTH**0.5
    future = jnp.triu(jnp.full((length, length), -jnp.inf, x.dtype), k=1)
    weights = jax.nn.softmax(scores + future)
    mixed = einsum("bkgqs,bskd->bqkgd", weights, v.reshape(batch, length, KV_HEADS, HEAD_WIDTH))
    return einsum("bqp,pw->bqw", mixed.reshape(batch, length, -1), layer["out"])


def model(params: Tree, tokens: Array) -> Array:
    """Maps tokens `(batch, length)` to logits of the next ones, `(batch, length, 32)`."""
    rotation = rotations(tokens.shape[1], params["embedding"].dtype)

    @jax.checkpoint
    def step(x: Array, layer: Tree) -> tuple[Array, None]:
        x = x + attend(layer, rms_norm(x, layer["attention_norm"]), rotation)
        gate, up = einsum("btw,pwg->pbtg", rms_norm(x, layer["mlp_norm"]), layer["gate_up"])
        return x + einsum("btg,gw->btw", jax.nn.silu(gate) * up, layer["down"]), None

    x, _ = lax.scan(step, jnp.take(params["embedding"], tokens, axis=0), params["layers"])
    return einsum("btw,vw->btv", rms_norm(x, params["norm"]), params["lm_head"])


def cosine(first: float, last: float, progress: Array) -> Array:
    """Half a cosine between two values."""
    return last + (first - last) * 0.5 * (1 + jnp.cos(jnp.pi * progress))


def one_cycle(first: float, top: float, last: float) -> optax.Schedule:
    """Up or down within nine steps, and to the last value within the ninety after them."""
    return lambda step: jnp.where(
        step < 9, cosine(first, top, step.astype(float) / 9), cosine(top, last, (step.astype(float) - 9) / 90)
    )


def scale_by_adam(b1: optax.Schedule, b2: float) -> optax.GradientTransformation:
    """Adam's direction with a first beta that moves."""

    def init(params: optax.Params) -> Any:
        return jnp.zeros((), jnp.int32), optax.tree.zeros_like(params), optax.tree.zeros_like(params)

    def update(grads: optax.Updates, state: Any, params: optax.Params | None = None) -> tuple[optax.Updates, Any]:
        step, mu, nu = state
        beta = b1(step)
        mu = jax.tree.map(lambda m, g: beta * m + (1 - beta) * g, mu, grads)
        nu = jax.tree.map(lambda v, g: b2 * v + (1 - b2) * g**2, nu, grads)
        corrections = 1 - beta ** (step + 1), 1 - b2 ** (step + 1)
        direction = jax.tree.map(lambda m, v: m / corrections[0] / (jnp.sqrt(v / corrections[1]) + 1e-8), mu, nu)
        return direction, (step + 1, mu, nu)

    return optax.GradientTransformation(init, update)


def clip(grads: optax.Updates, _: optax.Params | None) -> optax.Updates:
    """Gradients of a norm of 0.5 at most."""
    return optax.tree.scale(jnp.minimum(1, 0.5 / (jnp.sqrt(optax.tree.norm(grads, squared=True)) + 1e-6)), grads)


MASK = {
    "embedding": False,
    "norm": False,
    "lm_head": True,
    "layers": {"attention_norm": False, "mlp_norm": False, "qkv": True, "out": True, "gate_up": True, "down": True},
}
optimizer = optax.chain(
    optax.stateless(clip),
    scale_by_adam(one_cycle(0.95, 0.85, 0.95), 0.95),
    optax.add_decayed_weights(0.1, MASK),
    optax.scale_by_learning_rate(one_cycle(3e-3 / 25, 3e-3, 3e-3 / 25e4)),
)


def from_torch(state_dict: Mapping[str, np.ndarray]) -> Tree:
    """The variables from torch's, stacked and packed."""

    def stacked(name: str) -> np.ndarray:
        return np.stack([state_dict[f"layers.{index}.{name}.weight"] for index in range(LAYERS)])

    layers = {
        "attention_norm": stacked("attention_norm"),
        "mlp_norm": stacked("mlp_norm"),
        "qkv": np.concatenate([stacked(f"attention.{part}_proj") for part in "qkv"], axis=1).swapaxes(1, 2),
        "out": stacked("attention.o_proj").swapaxes(1, 2),
        "gate_up": np.stack([stacked("gate_proj"), stacked("up_proj")], axis=1).swapaxes(2, 3),
        "down": stacked("down_proj").swapaxes(1, 2),
    }
    outer = {name: state_dict[f"{name}.weight"] for name in ("embedding", "norm", "lm_head")}
    return {"params": jax.tree.map(jnp.asarray, outer | {"layers": layers}), "batch_stats": {}}


def to_torch(variables: Tree) -> dict[str, np.ndarray]:
    """torch's state dict from the variables."""
    params = jax.tree.map(np.asarray, variables["params"])
    layers = params.pop("layers")
    parts = dict(zip("qkv", np.split(layers["qkv"].swapaxes(1, 2), SPLITS, axis=1), strict=True))
    stacked = {f"attention.{part}_proj": weight for part, weight in parts.items()}
    stacked["attention.o_proj"] = layers["out"].swapaxes(1, 2)
    stacked["gate_proj"], stacked["up_proj"] = np.moveaxis(layers["gate_up"].swapaxes(2, 3), 1, 0)
    stacked["down_proj"] = layers["down"].swapaxes(1, 2)
    stacked |= {name: layers[name] for name in ("attention_norm", "mlp_norm")}
    weights = {f"layers.{index}.{name}": weight[index] for name, weight in stacked.items() for index in range(LAYERS)}
    return {f"{name}.weight": weight for name, weight in (params | weights).items()}


def outputs(variables: Tree, batch: Mapping[str, Array], train: bool, rng: Array | None = None) -> dict[str, Array]:
    """The logits of every position."""
    return {"logits": model(variables["params"], jnp.asarray(batch["tokens"]))}


def loss(variables: Tree, batch: Mapping[str, Array], train: bool, rng: Array | None = None) -> tuple[Array, Tree]:
    """The mean cross-entropy of every token but the first, given those before it, and no statistics."""
    tokens = jnp.asarray(batch["tokens"])
    logits = model(variables["params"], tokens)
    targets = jnp.roll(tokens, -1, axis=1)
    costs = optax.softmax_cross_entropy_with_integer_labels(logits, targets)
    return jnp.mean(costs, where=jnp.arange(tokens.shape[1]) < tokens.shape[1] - 1), {}


@jax.jit
def train_step(
    variables: Tree, opt_state: Any, batch: Mapping[str, Array], rng: Array | None = None
) -> tuple[Tree, Any, Array]:
    """The variables and the optimizer's state after a step on a batch, and its loss."""
    value, grads = jax.value_and_grad(lambda params: loss({"params": params}, batch, True)[0])(variables["params"])
    updates, opt_state = optimizer.update(grads, opt_state, variables["params"])
    return variables | {"params": optax.apply_updates(variables["params"], updates)}, opt_state, value
