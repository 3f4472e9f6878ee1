"""Learns to sort eight digits: a small transformer in PyTorch, trained as people train them."""

import math
from collections.abc import Iterator

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional

DIGITS, COUNT, WIDTH, HEADS, LAYERS = 10, 8, 32, 4, 2
LENGTH = 2 * COUNT - 1
RATE, DECAY, WARMUP, STEPS, LIMIT = 3e-3, 0.1, 20, 500, 1.0
IGNORED = -100


class Sorter(nn.Module):
    """Maps tokens `(batch, 15)`, eight digits and the first seven of them sorted, to logits of the next ones."""

    def __init__(self) -> None:
        super().__init__()
        self.tokens = nn.Embedding(DIGITS, WIDTH)
        self.positions = nn.Embedding(LENGTH, WIDTH)
        self.layers = nn.ModuleList(
            nn.TransformerEncoderLayer(
                WIDTH, HEADS, 4 * WIDTH, dropout=0.1, activation="gelu", batch_first=True, norm_first=True
            )
            for _ in range(LAYERS)
        )
        self.norm = nn.LayerNorm(WIDTH)
        self.head = nn.Linear(WIDTH, DIGITS, bias=False)

    def forward(self, tokens: Tensor) -> Tensor:
        length = tokens.shape[1]
        causal = torch.ones(length, length, dtype=torch.bool, device=tokens.device).triu(1)
        x = self.tokens(tokens) + self.positions.weight[:length]
        for layer in self.layers:
            x = layer(x, src_mask=causal)
        logits: Tensor = self.head(self.norm(x))
        return logits


def loss_of(model: nn.Module, batch: dict[str, Tensor]) -> Tensor:
    """Mean cross-entropy of the sorted digits; what stands before them is not asked for."""
    return functional.cross_entropy(model(batch["tokens"]).flatten(0, 1), batch["targets"].flatten())


def make_optimizer(model: nn.Module) -> torch.optim.Optimizer:
    """AdamW that decays matrices, and neither biases nor norms."""
    matrices = [param for param in model.parameters() if param.ndim > 1]
    vectors = [param for param in model.parameters() if param.ndim < 2]
    groups = [{"params": matrices, "weight_decay": DECAY}, {"params": vectors, "weight_decay": 0.0}]
    return torch.optim.AdamW(groups, lr=RATE)


def make_scheduler(optimizer: torch.optim.Optimizer) -> torch.optim.lr_scheduler.LambdaLR:
    """Twenty steps of warm-up, then half a cosine down to 0."""

    def factor(step: int) -> float:
        if step < WARMUP:
            return (step + 1) / WARMUP
        return 0.5 * (1 + math.cos(math.pi * (step - WARMUP) / (STEPS - WARMUP)))

    return torch.optim.lr_scheduler.LambdaLR(optimizer, factor)


def clip(model: nn.Module) -> None:
    """Keep the norm of all gradients together at most 1."""
    nn.utils.clip_grad_norm_(model.parameters(), LIMIT)


def make_batches(count: int, size: int = 32, seed: int = 0) -> Iterator[dict[str, np.ndarray]]:
    """`tokens (size, 15) int64`, and `targets (size, 15) int64`, -100 where nothing is asked for."""
    random = np.random.default_rng(seed)
    for _ in range(count):
        digits = random.integers(0, DIGITS, (size, COUNT))
        whole = np.concatenate([digits, np.sort(digits)], axis=1)
        targets = whole[:, 1:].copy()
        targets[:, : COUNT - 1] = IGNORED
        yield {"tokens": whole[:, :-1], "targets": targets}


def main() -> None:
    torch.manual_seed(0)
    model = Sorter()
    optimizer = make_optimizer(model)
    scheduler = make_scheduler(optimizer)
    for step, arrays in enumerate(make_batches(STEPS), 1):
        loss = loss_of(model, {name: torch.from_numpy(array) for name, array in arrays.items()})
        optimizer.zero_grad()
        loss.backward()
        clip(model)
        optimizer.step()
        scheduler.step()
        if step % 100 == 0:
            print(f"step {step}, loss {loss:.4f}")


if __name__ == "__main__":
    main()
