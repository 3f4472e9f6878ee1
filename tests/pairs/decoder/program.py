"""Predicts next tokens: a small decoder with rotary positions, grouped-query attention and gated perceptrons."""

from collections.abc import Mapping

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.optim.lr_scheduler import OneCycleLR

VOCABULARY, LENGTH, WIDTH, GATED, LAYERS = 32, 10, 32, 48, 2
HEADS, KV_HEADS, HEAD_WIDTH = 4, 2, 8
ROPE_BASE = 10000.0


class RMSNorm(nn.Module):
    """Divides by the root mean square, computed in float32 at least."""

    def __init__(self, width: int, eps: float = 1e-6) -> None:
        super().__init__()
        self.eps = eps
        self.weight = nn.Parameter(torch.ones(width))

    def forward(self, x: Tensor) -> Tensor:
        wide = x.to(torch.promote_types(x.dtype, torch.float32))
        wide = wide * torch.rsqrt(wide.square().mean(dim=-1, keepdim=True) + self.eps)
        return wide.to(x.dtype) * self.weight


def rotate(x: Tensor) -> Tensor:
    """Turns queries or keys `(batch, heads, length, width)` by angles that grow with the position."""
    length, width = x.shape[-2:]
    frequencies = ROPE_BASE ** (-torch.arange(0, width, 2, dtype=x.dtype, device=x.device) / width)
    angles = torch.outer(torch.arange(length, dtype=x.dtype, device=x.device), frequencies).repeat(1, 2)
    first, second = x.chunk(2, dim=-1)
    return x * angles.cos() + torch.cat([-second, first], dim=-1) * angles.sin()


class Attention(nn.Module):
    """Causal attention in which two heads of queries share a head of keys and values."""

    def __init__(self) -> None:
        super().__init__()
        self.q_proj = nn.Linear(WIDTH, HEADS * HEAD_WIDTH, bias=False)
        self.k_proj = nn.Linear(WIDTH, KV_HEADS * HEAD_WIDTH, bias=False)
        self.v_proj = nn.Linear(WIDTH, KV_HEADS * HEAD_WIDTH, bias=False)
        self.o_proj = nn.Linear(HEADS * HEAD_WIDTH, WIDTH, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        batch, length, _ = x.shape
        q = self.q_proj(x).view(batch, length, HEADS, HEAD_WIDTH).transpose(1, 2)
        k = self.k_proj(x).view(batch, length, KV_HEADS, HEAD_WIDTH).transpose(1, 2)
        v = self.v_proj(x).view(batch, length, KV_HEADS, HEAD_WIDTH).transpose(1, 2)
        k = rotate(k).repeat_interleave(HEADS // KV_HEADS, dim=1)
        v = v.repeat_interleave(HEADS // KV_HEADS, dim=1)
        attended = F.scaled_dot_product_attention(rotate(q), k, v, is_causal=True)
        mixed: Tensor = self.o_proj(attended.transpose(1, 2).reshape(batch, length, -1))
        return mixed


class DecoderLayer(nn.Module):
    """Attention and a SwiGLU perceptron, each normalised first and added to its input."""

    def __init__(self) -> None:
        super().__init__()
        self.attention_norm = RMSNorm(WIDTH)
        self.attention = Attention()
        self.mlp_norm = RMSNorm(WIDTH)
        self.gate_proj = nn.Linear(WIDTH, GATED, bias=False)
        self.up_proj = nn.Linear(WIDTH, GATED, bias=False)
        self.down_proj = nn.Linear(GATED, WIDTH, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.attention(self.attention_norm(x))
        normed = self.mlp_norm(x)
        update: Tensor = self.down_proj(F.silu(self.gate_proj(normed)) * self.up_proj(normed))
        return x + update


class Decoder(nn.Module):
    """Maps tokens `(batch, length)` to logits of the next ones, `(batch, length, 32)`."""

    def __init__(self) -> None:
        super().__init__()
        self.embedding = nn.Embedding(VOCABULARY, WIDTH)
        self.layers = nn.ModuleList(DecoderLayer() for _ in range(LAYERS))
        self.norm = RMSNorm(WIDTH)
        self.lm_head = nn.Linear(WIDTH, VOCABULARY, bias=False)

    def forward(self, tokens: Tensor) -> Tensor:
        x = self.embedding(tokens)
        for layer in self.layers:
            x = layer(x)
        logits: Tensor = self.lm_head(self.norm(x))
        return logits


def module() -> nn.Module:
    """A freshly drawn decoder."""
    return Decoder()


def outputs(module: nn.Module, batch: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The logits of every position."""
    return {"logits": module(batch["tokens"])}


def loss(module: nn.Module, batch: Mapping[str, Tensor]) -> Tensor:
    """The mean cross-entropy of every token but the first, given those before it."""
    logits = module(batch["tokens"])
    return F.cross_entropy(logits[:, :-1].flatten(0, 1), batch["tokens"][:, 1:].flatten())


def optimizer(module: nn.Module) -> torch.optim.Optimizer:
    """AdamW; matrices decay, embeddings and normalisations do not."""
    kept = [parameter for name, parameter in module.named_parameters() if "embedding" in name or "norm" in name]
    decayed = [p for name, p in module.named_parameters() if not ("embedding" in name or "norm" in name)]
    groups = [{"params": decayed, "weight_decay": 0.1}, {"params": kept, "weight_decay": 0.0}]
    return torch.optim.AdamW(groups, lr=3e-3, betas=(0.9, 0.95))


def scheduler(optimizer: torch.optim.Optimizer) -> OneCycleLR:
    """One cycle of a hundred steps: the learning rate rises for ten, beta1 falls, and both return."""
    return OneCycleLR(optimizer, max_lr=3e-3, total_steps=100, pct_start=0.1)


def clip(module: nn.Module) -> None:
    """Scales the gradients to a norm of 0.5 at most."""
    nn.utils.clip_grad_norm_(module.parameters(), 0.5)


def batches(seed: int = 0) -> list[dict[str, np.ndarray]]:
    """Five batches of arithmetic sequences, the last of them short: `tokens` int64."""
    rng = np.random.default_rng(seed)
    drawn: list[dict[str, np.ndarray]] = []
    for size in (8, 8, 8, 8, 3):
        starts, strides = rng.integers(VOCABULARY, size=(size, 1)), rng.integers(1, 6, size=(size, 1))
        drawn.append({"tokens": (starts + strides * np.arange(LENGTH)) % VOCABULARY})
    return drawn
