"""Guesses masked tokens: a small encoder whose output embedding is the input's."""

import math
from collections.abc import Mapping

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.optim.lr_scheduler import LambdaLR

VOCABULARY, LENGTH, WIDTH, HEADS, LAYERS = 24, 12, 32, 4, 2
PAD, MASK, IGNORED = 0, 1, -100
WARMUP_STEPS, STEPS = 3, 40


class EncoderLayer(nn.Module):
    """Attention and a two-layer perceptron, each normalised first and added to its input."""

    def __init__(self, dropout: float) -> None:
        super().__init__()
        self.attention_norm = nn.LayerNorm(WIDTH)
        self.attention = nn.MultiheadAttention(WIDTH, HEADS, batch_first=True)
        self.mlp_norm = nn.LayerNorm(WIDTH)
        self.mlp = nn.Sequential(nn.Linear(WIDTH, 4 * WIDTH), nn.GELU(), nn.Linear(4 * WIDTH, WIDTH))
        self.dropout = nn.Dropout(dropout)

    def forward(self, x: Tensor, padding: Tensor) -> Tensor:
        normed = self.attention_norm(x)
        attended, _ = self.attention(normed, normed, normed, key_padding_mask=padding, need_weights=False)
        x = x + self.dropout(attended)
        update: Tensor = self.dropout(self.mlp(self.mlp_norm(x)))
        return x + update


class Encoder(nn.Module):
    """Maps tokens `(batch, length)` to logits `(batch, length, 24)`."""

    def __init__(self, dropout: float = 0.1) -> None:
        super().__init__()
        self.tokens = nn.Embedding(VOCABULARY, WIDTH)
        self.positions = nn.Embedding(LENGTH, WIDTH)
        self.dropout = nn.Dropout(dropout)
        self.layers = nn.ModuleList(EncoderLayer(dropout) for _ in range(LAYERS))
        self.norm = nn.LayerNorm(WIDTH)
        self.head = nn.Linear(WIDTH, VOCABULARY)
        self.head.weight = self.tokens.weight
        for embedding in (self.tokens, self.positions):
            nn.init.normal_(embedding.weight, std=0.1)

    def forward(self, tokens: Tensor) -> Tensor:
        positions = torch.arange(tokens.shape[1], device=tokens.device)
        x = self.dropout(self.tokens(tokens) + self.positions(positions))
        for layer in self.layers:
            x = layer(x, tokens == PAD)
        logits: Tensor = self.head(self.norm(x))
        return logits


def module() -> nn.Module:
    """A freshly drawn encoder."""
    return Encoder()


def outputs(module: nn.Module, batch: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The logits of every position, padding's too."""
    return {"logits": module(batch["tokens"])}


def loss(module: nn.Module, batch: Mapping[str, Tensor]) -> Tensor:
    """The cross-entropy's mean over masked positions, labels smoothed by 0.1."""
    logits = module(batch["tokens"])
    return F.cross_entropy(logits.flatten(0, 1), batch["labels"].flatten(), ignore_index=IGNORED, label_smoothing=0.1)


def optimizer(module: nn.Module) -> torch.optim.Optimizer:
    """AdamW; biases and normalisations do not decay."""
    kept = [parameter for name, parameter in module.named_parameters() if name.endswith("bias") or "norm" in name]
    decayed = [parameter for parameter in module.parameters() if all(parameter is not other for other in kept)]
    groups = [{"params": decayed, "weight_decay": 0.05}, {"params": kept, "weight_decay": 0.0}]
    return torch.optim.AdamW(groups, lr=2e-3)


def scheduler(optimizer: torch.optim.Optimizer) -> LambdaLR:
    """Three steps of linear warm-up, then half a cosine down to nothing."""

    def factor(step: int) -> float:
        if step < WARMUP_STEPS:
            return (step + 1) / WARMUP_STEPS
        progress = min(1.0, (step - WARMUP_STEPS) / (STEPS - WARMUP_STEPS))
        return 0.5 * (1 + math.cos(math.pi * progress))

    return LambdaLR(optimizer, factor)


def clip(module: nn.Module) -> None:
    """Scales the gradients to a norm of 1 at most."""
    nn.utils.clip_grad_norm_(module.parameters(), 1.0)


def batches(seed: int = 0) -> list[dict[str, np.ndarray]]:
    """Five batches of padded sequences, the last of them short: `tokens` and `labels` int64, -100 where not masked."""
    rng = np.random.default_rng(seed)
    drawn: list[dict[str, np.ndarray]] = []
    for size in (8, 8, 8, 8, 3):
        steps = rng.integers(1, 4, size=(size, 1))
        sentences = 2 + (rng.integers(VOCABULARY, size=(size, 1)) + steps * np.arange(LENGTH)) % (VOCABULARY - 2)
        present = np.arange(LENGTH) < rng.integers(4, LENGTH + 1, size=(size, 1))
        masked = present & ((rng.random((size, LENGTH)) < 0.3) | (np.arange(LENGTH) == 2))
        tokens = np.where(masked, MASK, np.where(present, sentences, PAD))
        drawn.append({"tokens": tokens, "labels": np.where(masked, sentences, IGNORED)})
    return drawn
