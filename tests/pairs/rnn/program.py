"""Classifies sequences of unequal lengths: an LSTM, a GRU and the mean over the steps that exist."""

from collections.abc import Mapping

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.optim.lr_scheduler import ExponentialLR

VOCABULARY, LENGTH, EMBEDDED, HIDDEN, CLASSES = 20, 9, 12, 16, 4
PAD = 0
CLASS_WEIGHTS = (1.0, 0.5, 2.0, 1.5)


class SequenceClassifier(nn.Module):
    """Maps tokens `(batch, length)` and lengths `(batch,)` to logits `(batch, 4)`."""

    def __init__(self, dropout: float = 0.2) -> None:
        super().__init__()
        self.embedding = nn.Embedding(VOCABULARY, EMBEDDED, padding_idx=PAD)
        self.lstm = nn.LSTM(EMBEDDED, HIDDEN, num_layers=2, batch_first=True)
        self.gru = nn.GRU(HIDDEN, HIDDEN, batch_first=True)
        self.dropout = nn.Dropout(dropout)
        self.head = nn.Linear(HIDDEN, CLASSES)

    def forward(self, tokens: Tensor, lengths: Tensor) -> Tensor:
        x = self.dropout(self.embedding(tokens))
        x, _ = self.lstm(x)
        x, _ = self.gru(x)
        present = torch.arange(tokens.shape[1], device=tokens.device) < lengths[:, None]
        mean = (x * present.unsqueeze(-1)).sum(dim=1) / lengths.unsqueeze(-1)
        logits: Tensor = self.head(self.dropout(mean))
        return logits


def module() -> nn.Module:
    """A freshly drawn classifier."""
    return SequenceClassifier()


def outputs(module: nn.Module, batch: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The logits of a batch."""
    return {"logits": module(batch["tokens"], batch["lengths"])}


def loss(module: nn.Module, batch: Mapping[str, Tensor]) -> Tensor:
    """The mean cross-entropy, weighted by class."""
    logits = module(batch["tokens"], batch["lengths"])
    return F.cross_entropy(logits, batch["labels"], weight=logits.new_tensor(CLASS_WEIGHTS))


def optimizer(module: nn.Module) -> torch.optim.Optimizer:
    """RMSprop with momentum; nothing decays."""
    return torch.optim.RMSprop(module.parameters(), lr=2e-3, alpha=0.9, eps=1e-6, momentum=0.8)


def scheduler(optimizer: torch.optim.Optimizer) -> ExponentialLR:
    """A tenth less learning rate every step."""
    return ExponentialLR(optimizer, gamma=0.9)


def clip(module: nn.Module) -> None:
    """Clamps every element of the gradients to ±0.02."""
    nn.utils.clip_grad_value_(module.parameters(), 0.02)


def batches(seed: int = 0) -> list[dict[str, np.ndarray]]:
    """Five batches of padded sequences, the last of them short: `tokens`, `lengths` and `labels`, all int64."""
    rng = np.random.default_rng(seed)
    drawn: list[dict[str, np.ndarray]] = []
    for size in (10, 10, 10, 10, 4):
        labels = rng.integers(CLASSES, size=size)
        lengths = rng.integers(2, LENGTH + 1, size=size)
        words = 1 + (rng.integers(8, size=(size, LENGTH)) + 4 * labels[:, None]) % (VOCABULARY - 1)
        tokens = np.where(np.arange(LENGTH) < lengths[:, None], words, PAD)
        drawn.append({"tokens": tokens, "lengths": lengths, "labels": labels})
    return drawn
