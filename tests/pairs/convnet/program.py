"""Classifies small colour images: strided, depthwise and grouped convolutions, batch normalisation, two poolings."""

from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.optim.lr_scheduler import MultiStepLR

HEIGHT, WIDTH, CLASSES = 18, 14, 5


class ConvNet(nn.Module):
    """Maps images `(batch, 3, 18, 14)` to logits `(batch, 5)`."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Sequential(nn.Conv2d(3, 8, 3, stride=2, padding=1, bias=False), nn.BatchNorm2d(8), nn.ReLU())
        self.depthwise = nn.Conv2d(8, 8, 3, padding=1, groups=8, bias=False)
        self.pointwise = nn.Conv2d(8, 16, 1, bias=False)
        self.norm = nn.BatchNorm2d(16)
        self.grouped = nn.Conv2d(16, 16, 3, padding=1, groups=4)
        self.head = nn.Linear(16 * 3 * 2, CLASSES)

    def forward(self, images: Tensor) -> Tensor:
        x = self.stem(images)  # (batch, 8, 9, 7)
        x = F.max_pool2d(x, 3, stride=2, padding=1)  # (batch, 8, 5, 4)
        x = F.relu(self.norm(self.pointwise(self.depthwise(x))))
        x = F.avg_pool2d(x, 3, stride=2, padding=1)  # (batch, 16, 3, 2)
        x = F.relu(self.grouped(x))
        logits: Tensor = self.head(torch.flatten(x, 1))
        return logits


def module() -> nn.Module:
    """A freshly drawn network."""
    return ConvNet()


def outputs(module: nn.Module, batch: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The logits of a batch."""
    return {"logits": module(batch["images"])}


def loss(module: nn.Module, batch: Mapping[str, Tensor]) -> Tensor:
    """The mean cross-entropy."""
    return F.cross_entropy(module(batch["images"]), batch["labels"])


def optimizer(module: nn.Module) -> torch.optim.Optimizer:
    """Adam with an L2 penalty on kernels, none on biases and normalisations."""
    kernels = [parameter for parameter in module.parameters() if parameter.ndim > 1]
    others = [parameter for parameter in module.parameters() if parameter.ndim == 1]
    groups: list[dict[str, Any]] = [{"params": kernels, "weight_decay": 1e-2}, {"params": others}]
    return torch.optim.Adam(groups, lr=3e-3)


def scheduler(optimizer: torch.optim.Optimizer) -> MultiStepLR:
    """Three tenths of the learning rate after the second step and again after the fourth."""
    return MultiStepLR(optimizer, milestones=[2, 4], gamma=0.3)


def clip(module: nn.Module) -> None:
    """Scales the gradients so that none of their elements exceeds 0.1."""
    nn.utils.clip_grad_norm_(module.parameters(), 0.1, norm_type=float("inf"))


def batches(seed: int = 0) -> list[dict[str, np.ndarray]]:
    """Five batches of noisy prototypes, the last of them short: `images` float32, `labels` int64."""
    rng = np.random.default_rng(seed)
    prototypes = rng.normal(size=(CLASSES, 3, HEIGHT, WIDTH))
    drawn: list[dict[str, np.ndarray]] = []
    for size in (12, 12, 12, 12, 5):
        labels = rng.integers(CLASSES, size=size)
        images = 0.5 + prototypes[labels] + rng.normal(size=(size, 3, HEIGHT, WIDTH))
        drawn.append({"images": images.astype(np.float32), "labels": labels})
    return drawn
