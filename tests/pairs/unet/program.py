"""Doubles the resolution of images: a small U-net on top of bilinear interpolation."""

from collections.abc import Mapping

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.optim.lr_scheduler import CosineAnnealingLR

SIDE, CHANNELS, GROUPS = 14, 8, 4


class ConvBlock(nn.Module):
    """A 3×3 convolution, group normalisation and SiLU."""

    def __init__(self, channels_in: int, channels_out: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(channels_in, channels_out, 3, padding=1)
        self.norm = nn.GroupNorm(GROUPS, channels_out)

    def forward(self, x: Tensor) -> Tensor:
        return F.silu(self.norm(self.conv(x)))


class UNet(nn.Module):
    """Maps images `(batch, 1, 14, 14)` to images `(batch, 1, 28, 28)`."""

    def __init__(self) -> None:
        super().__init__()
        self.fine = ConvBlock(1, CHANNELS)
        self.down1 = nn.Conv2d(CHANNELS, CHANNELS, 3, stride=2, padding=1)
        self.middle = ConvBlock(CHANNELS, 2 * CHANNELS)
        self.down2 = nn.Conv2d(2 * CHANNELS, 2 * CHANNELS, 3, stride=2, padding=1)
        self.coarse = ConvBlock(2 * CHANNELS, 2 * CHANNELS)
        self.merge2 = ConvBlock(4 * CHANNELS, CHANNELS)
        self.up1 = nn.ConvTranspose2d(CHANNELS, CHANNELS, 3, stride=2, padding=1, output_padding=1)
        self.merge1 = ConvBlock(2 * CHANNELS, CHANNELS)
        self.up0 = nn.ConvTranspose2d(CHANNELS, CHANNELS // 2, 2, stride=2)
        self.out = nn.Conv2d(CHANNELS // 2, 1, 1)

    def forward(self, images: Tensor) -> Tensor:
        fine = self.fine(images)  # 14×14
        middle = self.middle(self.down1(fine))  # 7×7
        coarse = self.coarse(self.down2(middle))  # 4×4
        x = F.interpolate(coarse, size=middle.shape[-2:], mode="bilinear", align_corners=False)
        x = self.merge2(torch.cat([x, middle], dim=1))
        x = self.merge1(torch.cat([self.up1(x), fine], dim=1))  # 14×14
        detail: Tensor = self.out(F.silu(self.up0(x)))  # 28×28
        return detail + F.interpolate(images, scale_factor=2, mode="bilinear", align_corners=False)


def module() -> nn.Module:
    """A freshly drawn U-net."""
    return UNet()


def outputs(module: nn.Module, batch: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The images at twice the resolution."""
    return {"images": module(batch["images"])}


def loss(module: nn.Module, batch: Mapping[str, Tensor]) -> Tensor:
    """Squared and absolute errors, and the squared error of the output made small again."""
    predicted = module(batch["images"])
    shrunk = F.interpolate(predicted, scale_factor=0.5, mode="bilinear", align_corners=False)
    pixels = F.mse_loss(predicted, batch["targets"]) + 0.5 * F.l1_loss(predicted, batch["targets"])
    return pixels + 0.25 * F.mse_loss(shrunk, batch["images"])


def optimizer(module: nn.Module) -> torch.optim.Optimizer:
    """Adagrad with a decaying rate and an L2 penalty on all parameters."""
    return torch.optim.Adagrad(module.parameters(), lr=0.02, lr_decay=0.05, weight_decay=1e-3)


def scheduler(optimizer: torch.optim.Optimizer) -> CosineAnnealingLR:
    """Half a cosine from 0.02 to 0.002 in twelve steps."""
    return CosineAnnealingLR(optimizer, T_max=12, eta_min=0.002)


def batches(seed: int = 0) -> list[dict[str, np.ndarray]]:
    """Four batches of noisy waves, the last of them short: `images` and twice as fine `targets`, float32."""
    rng = np.random.default_rng(seed)
    grid = np.arange(2 * SIDE) / SIDE
    drawn: list[dict[str, np.ndarray]] = []
    for size in (6, 6, 6, 2):
        x, y, phase = rng.normal(scale=2.0, size=(3, size, 1, 1, 1))
        targets = np.sin(x * grid + y * grid[:, None] + phase)
        images = targets.reshape(size, 1, SIDE, 2, SIDE, 2).mean(axis=(3, 5))
        images += 0.1 * rng.normal(size=images.shape)
        drawn.append({"images": images.astype(np.float32), "targets": targets.astype(np.float32)})
    return drawn
