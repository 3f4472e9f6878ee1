"""GPT-2 with an option that its Flax class ignores: judged by `make examples`."""

import numpy as np
import optax
import torch
from transformers import FlaxGPT2LMHeadModel, GPT2Config, GPT2LMHeadModel

import parity

SIZES = {"vocab_size": 61, "n_embd": 32, "n_layer": 2, "n_head": 4, "bos_token_id": 0, "eos_token_id": 0}
# PyTorch's own "sdpa" ignores the option, too.
CONFIG = GPT2Config(**SIZES, scale_attn_by_inverse_layer_idx=True, attn_implementation="eager")
random = np.random.default_rng(0)
batches = [{"input_ids": random.integers(1, 61, (2, 12))} for _ in range(2)]


def loss(outputs, batch):
    return optax.softmax_cross_entropy_with_integer_labels(outputs.logits[:, :-1], batch["input_ids"][:, 1:]).mean()


reference = parity.Reference(
    module=lambda: GPT2LMHeadModel(CONFIG),
    loss=lambda model, batch: model(**batch, labels=batch["input_ids"]).loss,
    outputs=lambda model, batch: {"logits": model(**batch, use_cache=False).logits},
    optimizer=lambda model: torch.optim.AdamW(model.parameters(), lr=1e-3, weight_decay=0.01),
    batches=batches,
    name="gpt2",
)
port = parity.port.from_transformers(FlaxGPT2LMHeadModel(CONFIG), optax.adamw(1e-3, weight_decay=0.01), loss=loss)
