"""ResNet of transformers, PyTorch beside Flax: judged by `make examples`."""

import re

import numpy as np
import optax
import torch
from transformers import FlaxResNetForImageClassification, ResNetConfig, ResNetForImageClassification

import parity

CONFIG = ResNetConfig(embedding_size=8, hidden_sizes=[8, 16], depths=[1, 2], layer_type="basic", num_labels=5)
random = np.random.default_rng(0)
batches = [
    {"pixel_values": random.normal(size=(4, 3, 32, 32)).astype(np.float32), "labels": random.integers(0, 5, 4)}
    for _ in range(2)
]
reference = parity.Reference(
    module=lambda: ResNetForImageClassification(CONFIG),
    loss=lambda model, batch: torch.nn.functional.cross_entropy(model(batch["pixel_values"]).logits, batch["labels"]),
    optimizer=lambda model: torch.optim.SGD(model.parameters(), lr=0.01, momentum=0.9),
    batches=batches,
    name="resnet",
)
port = parity.port.from_transformers(
    FlaxResNetForImageClassification(CONFIG),
    optax.sgd(0.01, momentum=0.9),
    loss=lambda outputs, batch: optax.softmax_cross_entropy_with_integer_labels(outputs.logits, batch["labels"]).mean(),
    rename=lambda name: re.sub(r"\.layer\.(\d)\.", r".layer.layer_\1.", name),
)
