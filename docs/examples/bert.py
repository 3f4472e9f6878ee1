"""BERT of transformers, PyTorch beside Flax: judged by `make examples`."""

import jax.numpy as jnp
import numpy as np
import optax
import torch
from transformers import BertConfig, BertForMaskedLM, FlaxBertForMaskedLM

import parity

CONFIG = BertConfig(vocab_size=61, hidden_size=32, num_hidden_layers=2, num_attention_heads=4, intermediate_size=48)
random = np.random.default_rng(0)
mask = np.array([[1] * 12, [1] * 8 + [0] * 4])
tokens = random.integers(3, 61, (2, 2, 12))
batches = [
    {"input_ids": ids, "attention_mask": mask, "labels": np.where(mask & (ids > 30), ids, -100)} for ids in tokens
]


def loss(outputs, batch):
    counted = batch["labels"] != -100
    losses = optax.softmax_cross_entropy_with_integer_labels(outputs.logits, jnp.where(counted, batch["labels"], 0))
    return jnp.where(counted, losses, 0).sum() / counted.sum()


reference = parity.Reference(
    module=lambda: BertForMaskedLM(CONFIG),
    loss=lambda model, batch: model(**batch).loss,
    outputs=lambda model, batch: model(batch["input_ids"], batch["attention_mask"]),
    counts=lambda batch: {"logits": batch["attention_mask"] == 1},
    optimizer=lambda model: torch.optim.AdamW(model.parameters(), lr=1e-3, weight_decay=0.01),
    batches=batches,
    name="bert",
)
port = parity.port.from_transformers(FlaxBertForMaskedLM(CONFIG), optax.adamw(1e-3, weight_decay=0.01), loss=loss)
