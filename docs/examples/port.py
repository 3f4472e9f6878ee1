"""Shows the port to JAX to parity."""

import jax
import train_jax

import parity

port = parity.port.from_functions(
    outputs=lambda params, batch, train: train_jax.logits_of(params, batch["tokens"]),
    loss=train_jax.loss_of,
    optimizer=train_jax.optimizer,
    params=jax.eval_shape(train_jax.init, jax.random.key(0)),
    names={
        f"layers.{layer}.self_attn.in_proj_{part}": tuple(
            f"layers_{layer}/self_attn/{name}/{leaf}" for name in ("query", "key", "value")
        )
        for layer in range(train_jax.LAYERS)
        for part, leaf in (("weight", "kernel"), ("bias", "bias"))
    },
)
