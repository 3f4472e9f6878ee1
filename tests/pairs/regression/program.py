"""Four predictions from a table's rows: an amount, an event, a mixture and a direction, each with its own loss."""

from collections.abc import Mapping

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.optim.lr_scheduler import LinearLR

FEATURES, WIDTH, PARTS, DIRECTIONS = 8, 24, 4, 3
POSITIVE_WEIGHT = 3.0


class Standardize(nn.Module):
    """Centres and scales rows by moving averages of their mean and standard deviation."""

    mean: Tensor
    std: Tensor

    def __init__(self, momentum: float = 0.2, eps: float = 1e-6) -> None:
        super().__init__()
        self.momentum, self.eps = momentum, eps
        self.register_buffer("mean", torch.zeros(FEATURES))
        self.register_buffer("std", torch.ones(FEATURES))

    def forward(self, rows: Tensor) -> Tensor:
        if self.training:
            self.mean.lerp_(rows.mean(dim=0), self.momentum)
            self.std.lerp_(rows.std(dim=0), self.momentum)
        return (rows - self.mean) / (self.std + self.eps)


class TabularNetwork(nn.Module):
    """Maps rows `(batch, 8)` to an amount, an event's logit, a mixture's log-probabilities and a unit vector."""

    def __init__(self, dropout: float = 0.1) -> None:
        super().__init__()
        self.standardize = Standardize()
        self.trunk = nn.Sequential(
            nn.Linear(FEATURES, WIDTH, bias=False),
            nn.BatchNorm1d(WIDTH),
            nn.ELU(),
            nn.Linear(WIDTH, WIDTH),
            nn.Softplus(),
            nn.Dropout(dropout),
        )
        self.gate = nn.Linear(WIDTH, WIDTH)
        self.candidate = nn.Linear(WIDTH, WIDTH)
        self.heads = nn.ModuleDict(
            {
                "amount": nn.Linear(WIDTH, 1),
                "event": nn.Linear(WIDTH, 1),
                "mixture": nn.Linear(WIDTH, PARTS),
                "direction": nn.Linear(WIDTH, DIRECTIONS),
            }
        )

    def forward(self, rows: Tensor) -> dict[str, Tensor]:
        x = self.trunk(self.standardize(rows))
        x = torch.sigmoid(self.gate(x)) * torch.tanh(self.candidate(x))
        return {
            "amount": self.heads["amount"](x).squeeze(-1),
            "event": self.heads["event"](x).squeeze(-1),
            "mixture": F.log_softmax(self.heads["mixture"](x), dim=-1),
            "direction": F.normalize(self.heads["direction"](x), dim=-1),
        }


def module() -> nn.Module:
    """A freshly drawn network."""
    return TabularNetwork()


def outputs(module: nn.Module, batch: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """All four predictions of a batch."""
    predictions: dict[str, Tensor] = module(batch["rows"])
    return predictions


def loss(module: nn.Module, batch: Mapping[str, Tensor]) -> Tensor:
    """The sum of a Huber and a smooth L1 loss, a weighted cross-entropy, a divergence and a cosine distance."""
    predicted = module(batch["rows"])
    amount = F.huber_loss(predicted["amount"], batch["amount"], delta=0.5)
    amount = amount + F.smooth_l1_loss(predicted["amount"], batch["amount"], beta=2.0)
    weight = predicted["event"].new_tensor(POSITIVE_WEIGHT)
    event = F.binary_cross_entropy_with_logits(predicted["event"], batch["event"], pos_weight=weight)
    mixture = F.kl_div(predicted["mixture"], batch["mixture"], reduction="batchmean")
    distance = 1 - F.cosine_similarity(predicted["direction"], batch["direction"], dim=-1).mean()
    return amount + event + mixture + distance


def optimizer(module: nn.Module) -> torch.optim.Optimizer:
    """Adamax; the heads learn twice as fast, and only the other parameters decay."""
    heads = [parameter for name, parameter in module.named_parameters() if name.startswith("heads.")]
    others = [parameter for name, parameter in module.named_parameters() if not name.startswith("heads.")]
    return torch.optim.Adamax([{"params": others, "weight_decay": 1e-2}, {"params": heads, "lr": 8e-3}], lr=4e-3)


def scheduler(optimizer: torch.optim.Optimizer) -> LinearLR:
    """A linear warm-up of three steps, from a quarter of the learning rate."""
    return LinearLR(optimizer, start_factor=0.25, total_iters=3)


def batches(seed: int = 0) -> list[dict[str, np.ndarray]]:
    """Five batches of rows and their four targets, the last of them short; all float32."""
    rng = np.random.default_rng(seed)
    scales, weights = np.exp(rng.normal(size=FEATURES)), rng.normal(size=(FEATURES, 1 + 1 + PARTS + DIRECTIONS))
    drawn: list[dict[str, np.ndarray]] = []
    for size in (16, 16, 16, 16, 6):
        hidden = rng.normal(size=(size, FEATURES))
        amount, event, mixture, direction = np.split(hidden @ weights, [1, 2, 2 + PARTS], axis=1)
        mixture = np.exp(mixture - mixture.max(axis=1, keepdims=True))
        batch = {
            "rows": 1 + scales * hidden,
            "amount": amount[:, 0] + 0.1 * rng.normal(size=size),
            "event": event[:, 0] > 1,
            "mixture": mixture / mixture.sum(axis=1, keepdims=True),
            "direction": direction,
        }
        drawn.append({name: values.astype(np.float32) for name, values in batch.items()})
    return drawn
