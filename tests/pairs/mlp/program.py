"""Classifies small grey images: dense layers with three kinds of rectifier, dropout and smoothed labels."""

from collections.abc import Mapping

import numpy as np
import torch
from torch import Tensor, nn
from torch.optim.lr_scheduler import StepLR

SIDE, WIDTH, CLASSES = 8, 32, 10


class Classifier(nn.Module):
    """Maps images `(batch, 1, 8, 8)` to logits `(batch, 10)`."""

    def __init__(self, dropout: float = 0.1) -> None:
        super().__init__()
        self.features = nn.Sequential(
            nn.Flatten(),
            nn.Linear(SIDE * SIDE, WIDTH),
            nn.ReLU(),
            nn.Dropout(dropout),
            nn.Linear(WIDTH, WIDTH),
            nn.GELU(),
            nn.Dropout(dropout),
            nn.Linear(WIDTH, WIDTH),
            nn.LeakyReLU(0.1),
        )
        self.head = nn.Linear(WIDTH, CLASSES)

    def forward(self, images: Tensor) -> Tensor:
        logits: Tensor = self.head(self.features(images))
        return logits


criterion = nn.CrossEntropyLoss(label_smoothing=0.1)


def module() -> nn.Module:
    """A freshly drawn classifier."""
    return Classifier()


def outputs(module: nn.Module, batch: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The logits of a batch."""
    return {"logits": module(batch["images"])}


def loss(module: nn.Module, batch: Mapping[str, Tensor]) -> Tensor:
    """The mean cross-entropy, labels smoothed by 0.1."""
    value: Tensor = criterion(module(batch["images"]), batch["labels"])
    return value


def optimizer(module: nn.Module) -> torch.optim.Optimizer:
    """SGD with Nesterov's momentum; all parameters decay."""
    return torch.optim.SGD(module.parameters(), lr=0.1, momentum=0.9, nesterov=True, weight_decay=5e-4)


def scheduler(optimizer: torch.optim.Optimizer) -> StepLR:
    """A fifth less learning rate every second step."""
    return StepLR(optimizer, step_size=2, gamma=0.8)


def batches(seed: int = 0) -> list[dict[str, np.ndarray]]:
    """Five batches of noisy prototypes, the last of them short: `images` float32, `labels` int64."""
    rng = np.random.default_rng(seed)
    prototypes = rng.normal(size=(CLASSES, 1, SIDE, SIDE))
    drawn: list[dict[str, np.ndarray]] = []
    for size in (16, 16, 16, 16, 7):
        labels = rng.integers(CLASSES, size=size)
        images = prototypes[labels] + rng.normal(size=(size, 1, SIDE, SIDE))
        drawn.append({"images": images.astype(np.float32), "labels": labels})
    return drawn
