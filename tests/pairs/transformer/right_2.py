"""The encoder with flax's own attention and embeddings: queries, keys and values apart, `Embed.attend` for the head."""

from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import linen as nn

VOCABULARY, LENGTH, WIDTH, HEADS, LAYERS = 24, 12, 32, 4, 2
PAD, IGNORED, SMOOTHING = 0, -100, 0.1


class Block(nn.Module):
    """A layer of the encoder."""

    dropout: float
    dropping: bool

    def setup(self) -> None:
        self.attention_norm = nn.LayerNorm(epsilon=1e-5)
        self.attention = nn.MultiHeadDotProductAttention(HEADS, precision="highest", deterministic=True)
        self.mlp_norm = nn.LayerNorm(epsilon=1e-5)
        self.mlp_0 = nn.Dense(4 * WIDTH, precision="highest")
        self.mlp_2 = nn.Dense(WIDTH, precision="highest")
        self.drop = nn.Dropout(self.dropout, deterministic=not self.dropping)

    def __call__(self, x: jax.Array, mask: jax.Array) -> jax.Array:
        attended: jax.Array = self.attention(self.attention_norm(x), mask=mask)
        x = x + self.drop(attended)
        hidden = jax.nn.gelu(self.mlp_0(self.mlp_norm(x)), approximate=False)
        update: jax.Array = self.drop(self.mlp_2(hidden))
        return x + update


class Encoder(nn.Module):
    """Maps tokens `(batch, length)` to logits `(batch, length, 24)`."""

    dropout: float = 0.1
    dropping: bool = False

    def setup(self) -> None:
        self.tokens = nn.Embed(VOCABULARY, WIDTH)
        self.positions = nn.Embed(LENGTH, WIDTH)
        self.drop = nn.Dropout(self.dropout, deterministic=not self.dropping)
        self.layers = [Block(self.dropout, self.dropping) for _ in range(LAYERS)]
        self.norm = nn.LayerNorm(epsilon=1e-5)
        self.head_bias = self.param("head_bias", nn.initializers.zeros, (VOCABULARY,))

    def __call__(self, tokens: jax.Array) -> jax.Array:
        x = self.drop(self.tokens(tokens) + self.positions(jnp.arange(tokens.shape[1])))
        mask = nn.make_attention_mask(jnp.ones_like(tokens), tokens != PAD, dtype=bool)
        for layer in self.layers:
            x = layer(x, mask)
        with jax.default_matmul_precision("highest"):
            return self.tokens.attend(self.norm(x)) + self.head_bias


def learning_rate(count: jax.Array) -> jax.Array:
    """The rate after `count` steps: up in a line, down in a cosine."""
    down = (1 + jnp.cos(jnp.clip((count - 3) / 37.0, 0, 1) * jnp.pi)) / 2
    return 2e-3 * jnp.minimum((count + 1) / 3.0, 1.0) * down


def clip(grads: optax.Updates, _: optax.Params | None) -> optax.Updates:
    """torch's `clip_grad_norm_(…, 1.0)`."""
    return optax.tree.scale(1 / jnp.maximum(1.0, optax.tree.norm(grads) + 1e-6), grads)


def group(path: Any, _: Any) -> str:
    """Whether a parameter decays, by its name."""
    return "kept" if {"bias", "scale"} & {part.key for part in path} or path[-1].key == "head_bias" else "decayed"


model = Encoder()
optimizer = optax.chain(
    optax.stateless(clip),
    optax.multi_transform(
        {
            "decayed": optax.adamw(learning_rate, weight_decay=0.05),
            "kept": optax.adam(learning_rate),
        },
        lambda params: jax.tree_util.tree_map_with_path(group, params),
    ),
)


def from_torch(state_dict: Mapping[str, np.ndarray]) -> dict[str, Any]:
    """The variables from torch's, the packed projection taken apart."""
    tensors = {name: jnp.asarray(tensor) for name, tensor in state_dict.items()}

    def scaled(name: str) -> dict[str, jax.Array]:
        return {"scale": tensors[f"{name}.weight"], "bias": tensors[f"{name}.bias"]}

    def dense(name: str) -> dict[str, jax.Array]:
        return {"kernel": tensors[f"{name}.weight"].T, "bias": tensors[f"{name}.bias"]}

    params: dict[str, Any] = {
        "tokens": {"embedding": tensors["tokens.weight"]},
        "positions": {"embedding": tensors["positions.weight"]},
        "norm": scaled("norm"),
        "head_bias": tensors["head.bias"],
    }
    for layer in range(LAYERS):
        name = f"layers.{layer}"
        kernels = tensors[f"{name}.attention.in_proj_weight"].reshape(3, HEADS, -1, WIDTH).transpose(0, 3, 1, 2)
        biases = tensors[f"{name}.attention.in_proj_bias"].reshape(3, HEADS, -1)
        out = dense(f"{name}.attention.out_proj")
        attention = {
            part: {"kernel": kernels[index], "bias": biases[index]}
            for index, part in enumerate(("query", "key", "value"))
        }
        attention["out"] = {"kernel": out["kernel"].reshape(HEADS, -1, WIDTH), "bias": out["bias"]}
        params[f"layers_{layer}"] = {
            "attention_norm": scaled(f"{name}.attention_norm"),
            "attention": attention,
            "mlp_norm": scaled(f"{name}.mlp_norm"),
            "mlp_0": dense(f"{name}.mlp.0"),
            "mlp_2": dense(f"{name}.mlp.2"),
        }
    return {"params": params, "batch_stats": {}}


def to_torch(variables: dict[str, Any]) -> dict[str, np.ndarray]:
    """torch's state dict from the variables."""
    params = jax.tree.map(np.asarray, variables["params"])
    tokens = params["tokens"]["embedding"]
    state_dict = {"tokens.weight": tokens, "head.weight": tokens, "head.bias": params["head_bias"]}
    state_dict["positions.weight"] = params["positions"]["embedding"]
    state_dict |= {"norm.weight": params["norm"]["scale"], "norm.bias": params["norm"]["bias"]}
    for layer in range(LAYERS):
        name, block = f"layers.{layer}", params[f"layers_{layer}"]
        parts = [block["attention"][part] for part in ("query", "key", "value")]
        kernels = np.stack([part["kernel"] for part in parts]).transpose(0, 2, 3, 1)
        state_dict[f"{name}.attention.in_proj_weight"] = kernels.reshape(-1, WIDTH)
        state_dict[f"{name}.attention.in_proj_bias"] = np.stack([part["bias"] for part in parts]).ravel()
        state_dict[f"{name}.attention.out_proj.weight"] = block["attention"]["out"]["kernel"].reshape(-1, WIDTH).T
        state_dict[f"{name}.attention.out_proj.bias"] = block["attention"]["out"]["bias"]
        for norm in ("attention_norm", "mlp_norm"):
            state_dict[f"{name}.{norm}.weight"], state_dict[f"{name}.{norm}.bias"] = (
                block[norm]["scale"],
                block[norm]["bias"],
            )
        for index in (0, 2):
            state_dict[f"{name}.mlp.{index}.weight"] = block[f"mlp_{index}"]["kernel"].T
            state_dict[f"{name}.mlp.{index}.bias"] = block[f"mlp_{index}"]["bias"]
    return state_dict


def outputs(
    variables: dict[str, Any], batch: Mapping[str, jax.Array], train: bool, rng: jax.Array | None = None
) -> dict[str, jax.Array]:
    """The logits of every position, padding's too."""
    encoder = model.clone(dropping=train and rng is not None)
    rngs = {} if rng is None else {"dropout": rng}
    logits: Any = encoder.apply({"params": variables["params"]}, jnp.asarray(batch["tokens"]), rngs=rngs)
    return {"logits": logits}


def loss(
    variables: dict[str, Any], batch: Mapping[str, jax.Array], train: bool, rng: jax.Array | None = None
) -> tuple[jax.Array, dict[str, Any]]:
    """The cross-entropy's mean over masked positions, labels smoothed by 0.1, and no statistics."""
    log_probabilities = jax.nn.log_softmax(outputs(variables, batch, train, rng)["logits"])
    one_hot = jax.nn.one_hot(batch["labels"], VOCABULARY, dtype=log_probabilities.dtype)  # nothing where ignored
    counted = one_hot.sum(axis=-1, keepdims=True)
    targets = (1 - SMOOTHING) * one_hot + counted * SMOOTHING / VOCABULARY
    return -jnp.sum(targets * log_probabilities) / counted.sum(), {}


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
