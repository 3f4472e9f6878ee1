"""What people took for a bug and was rounding: right ports that no examination may object to."""

import itertools
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
import torch
from torch import nn
from torch.nn import functional as F

from parity import Reference, judge
from parity.port import from_functions

Params = Mapping[str, Any]


@dataclass(frozen=True)
class Control:
    """The same formula in torch and in JAX, and inputs on which people saw them differ."""

    module: Callable[[], nn.Module]
    outputs: Callable[[Params, Any], Any]
    x: np.ndarray
    precision: str = "float32"


def draw(*shape: int, scale: float = 1.0) -> np.ndarray:
    return np.asarray(scale * np.random.default_rng(0).normal(size=shape), np.float32)


class Layers(nn.Module):
    """Linear layers with a nonlinearity between them."""

    def __init__(self, *widths: int, scale: float | None = None) -> None:
        super().__init__()
        self.layers = nn.ModuleList(nn.Linear(inside, outside) for inside, outside in itertools.pairwise(widths))
        for layer in self.layers if scale else ():
            assert isinstance(layer, nn.Linear)
            nn.init.normal_(layer.weight, std=scale or 1.0)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        for layer in self.layers[:-1]:
            x = torch.relu(layer(x))
        return self.layers[-1](x)  # type: ignore[no-any-return]


def layers(params: Params, x: Any) -> Any:
    count = len(params) // 2
    for at in range(count):
        x = x @ params[f"layers.{at}.weight"].T + params[f"layers.{at}.bias"]
        x = jax.nn.relu(x) if at < count - 1 else x
    return x


def row_by_row(params: Params, x: Any) -> Any:
    return jnp.concatenate([layers(params, x[at : at + 1]) for at in range(x.shape[0])])


def in_float64(params: Params, x: Any) -> Any:
    """More exact than the reference, as far as a port can be: sums of halves, each of them summed by itself."""
    x = jnp.einsum("bhi,ohi->boh", x.reshape(len(x), -1, 2), params["layers.0.weight"].reshape(4, -1, 2))
    return x.sum(-1) + params["layers.0.bias"]


class Convolution(nn.Module):
    def __init__(self, channels: int, kernel: tuple[int, int], padding: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(channels, 2, kernel, padding=padding)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.conv(x)  # type: ignore[no-any-return]


def convolution(padding: int) -> Callable[[Params, Any], Any]:
    def outputs(params: Params, x: Any) -> Any:
        pad = [(padding, padding)] * 2
        y = jax.lax.conv_general_dilated(x, params["conv.weight"], (1, 1), pad)
        return y + params["conv.bias"][:, None, None]

    return outputs


class Attention(nn.Module):
    """Of keys with a bias, whose gradient is zero in real arithmetic and noise in any other."""

    def __init__(self) -> None:
        super().__init__()
        self.q, self.k, self.v = nn.Linear(8, 8), nn.Linear(8, 8), nn.Linear(8, 8)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return F.scaled_dot_product_attention(self.q(x), self.k(x), self.v(x))


def attention(params: Params, x: Any) -> Any:
    q, k, v = (x @ params[f"{name}.weight"].T + params[f"{name}.bias"] for name in "qkv")
    return jax.nn.softmax(q @ k.swapaxes(-1, -2) / np.sqrt(8).astype(x.dtype)) @ v


class Pivots(nn.Module):
    """The factor of a matrix that is nearly singular."""

    def __init__(self) -> None:
        super().__init__()
        self.factor = nn.Parameter(torch.from_numpy(draw(6, 6)))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        low = self.factor * torch.logspace(0, -2, 6)
        pivots: torch.Tensor = torch.linalg.cholesky(low @ low.T + 1e-5 * torch.eye(6))
        return x @ pivots


def pivots(params: Params, x: Any) -> Any:
    low = params["factor"] * jnp.logspace(0, -2, 6, dtype=x.dtype)
    return x @ jnp.linalg.cholesky(low @ low.T + 1e-5 * jnp.eye(6, dtype=x.dtype))


class Norm(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.norm = nn.RMSNorm(64, eps=1e-6)
        self.out = nn.Linear(64, 4)
        self.bfloat16()

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.out(self.norm(x.bfloat16())).float()  # type: ignore[no-any-return]


def norm(params: Params, x: Any) -> Any:
    weights = {name: value.astype(jnp.bfloat16) for name, value in params.items()}
    x = x.astype(jnp.bfloat16)
    y = x.astype(jnp.float32)
    y = (y * jax.lax.rsqrt(jnp.mean(y * y, -1, keepdims=True) + 1e-6)).astype(jnp.bfloat16) * weights["norm.weight"]
    return (y @ weights["out.weight"].T + weights["out.bias"]).astype(jnp.float32)


CONTROLS = {
    "a sum of 2048 terms (flax#963)": Control(lambda: Layers(2048, 10), layers, np.ones((4, 2048), np.float32)),
    "outputs in the millions (mlx#1424)": Control(lambda: Layers(*[64] * 6, scale=1.0), layers, draw(8, 64)),
    "a convolution of a large picture (jax#11790)": Control(lambda: Convolution(3, (3, 3), 1), convolution(1), draw(1, 3, 96, 96)),  # noqa: E501
    "a convolution of 28,672 terms (keras#20804)": Control(lambda: Convolution(1024, (4, 7), 0), convolution(0), draw(2, 1024, 4, 7)),  # noqa: E501
    "a product of bfloat16 (jax#18165)": Control(Norm, norm, draw(8, 64, scale=4.0), "bfloat16"),
    "one row at a time (flax#1755)": Control(lambda: Layers(64, 32, 4), row_by_row, draw(5, 64)),
    "a gradient that is zero (transformers#16058)": Control(Attention, attention, draw(3, 5, 8)),
    "the last pivot (jax#16185)": Control(Pivots, pivots, draw(4, 6)),
    "twelve layers (kornia#2786)": Control(lambda: Layers(*[48] * 13), layers, draw(6, 48)),
    "more exact than the reference (torch#198210)": Control(lambda: Layers(512, 4), in_float64, draw(4, 512)),
}  # fmt: skip


@pytest.mark.parametrize("name", CONTROLS)
def test_rounding_is_called_rounding(name: str) -> None:
    control = CONTROLS[name]

    def loss(module: nn.Module, batch: dict[str, torch.Tensor]) -> torch.Tensor:
        return (module(batch["x"]) ** 2).mean()  # type: ignore[no-any-return]

    def port_loss(params: Params, batch: Any) -> Any:
        return (control.outputs(params, batch["x"]) ** 2).mean()

    torch.manual_seed(0)
    reference = Reference(
        module=control.module,
        loss=loss,
        outputs=lambda module, batch: {"output": module(batch["x"])},
        optimizer=lambda module: torch.optim.SGD(module.parameters(), 1e-3),
        batches=[{"x": control.x}],
        name=name,
    )
    shapes = {key: jax.ShapeDtypeStruct(one.shape, np.float32) for key, one in control.module().state_dict().items()}
    port = from_functions(
        outputs=lambda params, batch, train: {"output": control.outputs(params, batch["x"])},
        loss=port_loss,
        optimizer=optax.sgd(1e-3),
        params=shapes,
    )
    verdict = judge(reference, port, precision=control.precision, quick=True)
    failing = [(one.stage, one.case, one.quantity, one.ratio) for one in verdict.comparisons if not one.passes]
    assert verdict.agrees, failing[:3]
    assert max(one.ratio for one in verdict.comparisons) > 0.01
