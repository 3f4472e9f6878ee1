"""Ports made of modules: a network in flax.linen, nnx and Equinox agrees with torch's, a wrong one does not."""

from collections.abc import Callable
from typing import Any

import equinox as eqx
import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
import torch
from flax import nnx

import parity
from parity.cases import Batch
from parity.port import from_equinox, from_linen, from_nnx, median_key
from parity.port.held import Held
from parity.verdict.report import report

RANDOM = np.random.default_rng(0)
BATCHES: list[Batch] = [
    {"x": RANDOM.normal(size=(4, 3, 6, 6)).astype(np.float32), "y": RANDOM.integers(0, 5, size=4)} for _ in range(2)
]


class TorchNet(torch.nn.Module):
    """What real networks have: statistics, dropout, a constant, and an output that is nested and partly None."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = torch.nn.Conv2d(3, 8, 3, padding=1)
        self.norm = torch.nn.BatchNorm2d(8)
        self.head = torch.nn.Linear(8, 5)
        self.register_buffer("scale", torch.tensor([0.5, 2.0, 1.0, 1.0, 3.0]), persistent=False)

    def forward(self, x: torch.Tensor) -> dict[str, Any]:
        hidden = torch.relu(self.norm(self.conv(x))).mean((2, 3))
        hidden = torch.nn.functional.dropout(hidden, 0.3, self.training)
        return {"logits": self.head(hidden) * self.scale, "hidden": (hidden, None)}


def torch_loss(module: Any, batch: Any) -> torch.Tensor:
    return torch.nn.functional.cross_entropy(module(batch["x"])["logits"], batch["y"])


REFERENCE = parity.Reference(
    module=TorchNet,
    loss=torch_loss,
    optimizer=lambda module: torch.optim.SGD(module.parameters(), lr=0.1, momentum=0.9),
    batches=BATCHES,
)
OPTIMIZER = optax.sgd(0.1, momentum=0.9)
SCALE = np.array([0.5, 2.0, 1.0, 1.0, 3.0], np.float32)


def loss(outputs: Any, batch: Any) -> Any:
    return optax.softmax_cross_entropy_with_integer_labels(outputs["logits"], batch["y"]).mean()


def running(variance: Any, count: int) -> Any:
    """Flax and Equinox remember the biased variance; torch does not."""
    return variance * count / (count - 1)


class LinenNorm(nn.Module):
    """Batch norm as torch has it, of two collections."""

    @nn.compact
    def __call__(self, x: Any, train: bool) -> Any:
        size = x.shape[-1]
        scale = self.param("scale", nn.initializers.ones, (size,))
        bias = self.param("bias", nn.initializers.zeros, (size,))
        mean = self.variable("batch_stats", "mean", jnp.zeros, (size,))
        var = self.variable("batch_stats", "var", jnp.ones, (size,))
        seen = self.variable("counts", "seen", jnp.zeros, (), jnp.int32)
        now, spread = (x.mean((0, 1, 2)), x.var((0, 1, 2))) if train else (mean.value, var.value)
        if train and not self.is_initializing():
            mean.value = 0.9 * mean.value + 0.1 * now
            var.value = 0.9 * var.value + 0.1 * running(spread, x.size // size)
            seen.value += 1
        return (x - now) * jax.lax.rsqrt(spread + 1e-5) * scale + bias


class LinenNet(nn.Module):
    rate: float = 0.3

    @nn.compact
    def __call__(self, x: Any, train: bool) -> dict[str, Any]:
        x = LinenNorm(name="norm")(nn.Conv(8, (3, 3), name="conv")(jnp.moveaxis(x, 1, -1)), train)
        hidden = nn.Dropout(self.rate, deterministic=not train)(nn.relu(x).mean((1, 2)))
        return {"logits": nn.Dense(5, name="head")(hidden) * SCALE, "hidden": (hidden, None)}


def linen(rate: float = 0.3) -> Any:
    net = LinenNet(rate)
    variables = net.init(jax.random.key(0), BATCHES[0]["x"], False)
    return from_linen(net, variables, OPTIMIZER, call=lambda net, batch, train: net(batch["x"], train), loss=loss)


class NnxNet(nnx.Module):
    def __init__(self, rate: float, fast: bool, rngs: nnx.Rngs) -> None:
        self.conv = nnx.Conv(3, 8, (3, 3), rngs=rngs)
        self.norm = nnx.BatchNorm(8, momentum=0.9, use_fast_variance=fast, rngs=rngs)
        self.dropout = nnx.Dropout(rate, rngs=rngs)
        self.head = nnx.Linear(8, 5, rngs=rngs)
        self.scale = nnx.Variable(jnp.asarray(SCALE))

    def __call__(self, x: Any) -> dict[str, Any]:
        old = self.norm.var[...]
        x = self.conv(jnp.moveaxis(x, 1, -1))
        count = x.size // x.shape[-1]
        x = self.norm(x)
        new = (self.norm.var[...] - 0.9 * old) / 0.1
        if not self.norm.use_running_average:
            self.norm.var[...] = 0.9 * old + 0.1 * running(new, count)
        hidden = self.dropout(nnx.relu(x).mean((1, 2)))
        return {"logits": self.head(hidden) * self.scale[...], "hidden": (hidden, None)}


def of_nnx(rate: float = 0.3, fast: bool = False) -> Any:
    net = NnxNet(rate, fast, nnx.Rngs(0))
    return from_nnx(net, OPTIMIZER, call=lambda net, batch: net(batch["x"]), loss=loss)


class EquinoxNet(eqx.Module):
    conv: eqx.nn.Conv2d
    norm: eqx.nn.BatchNorm
    dropout: eqx.nn.Dropout
    head: eqx.nn.Linear

    def __init__(self, rate: float) -> None:
        first, second = jax.random.split(jax.random.key(0))
        self.conv = eqx.nn.Conv2d(3, 8, 3, padding=1, key=first)
        self.norm = eqx.nn.BatchNorm(8, "batch", momentum=0.9, mode="batch")
        self.dropout = eqx.nn.Dropout(rate)
        self.head = eqx.nn.Linear(8, 5, key=second)

    def __call__(self, x: Any, state: Any, key: Any) -> Any:
        x, state = self.norm(self.conv(x), state)
        hidden = self.dropout(jax.nn.relu(x).mean((1, 2)), key=key)
        return {"logits": self.head(hidden) * SCALE, "hidden": (hidden, None)}, state


def equinox(rate: float = 0.3) -> Any:
    net, state = eqx.nn.make_with_state(EquinoxNet)(rate)

    def call(net: Any, state: Any, batch: Any, key: Any) -> Any:
        return jax.vmap(net, axis_name="batch", in_axes=(0, None, None), out_axes=(0, None))(batch["x"], state, key)

    return from_equinox(net, OPTIMIZER, call=call, loss=loss, state=state)


STAGES = ["load", "outputs", "gradients", "state"]


@pytest.mark.parametrize("port", [linen, of_nnx])
def test_a_right_port_agrees_with_dropout_left_in(port: Callable[..., Any]) -> None:
    verdict = parity.judge(REFERENCE, Held(port()), quick=True, stages=STAGES)
    assert verdict.agrees, report(verdict)
    assert "every random number is drawn as its median" in verdict.notes[0]
    compared = {one.quantity for one in verdict.comparisons}
    assert {"outputs/logits", "outputs/hidden.0", "buffer/1/norm.running_var", "gradients/conv.weight"} <= compared


def test_equinox_remembers_the_biased_variance_and_corrects_for_a_start_at_zero() -> None:
    verdict = parity.judge(REFERENCE, Held(equinox()), quick=True, stages=["state"])
    assert {one.stage for one in verdict.comparisons if not one.passes} == {"state"}
    assert [[one.code for one in group] for group in verdict.explanations] == [["T003"], ["T021"]]


def test_a_variance_by_difference_loses_digits_and_is_named_though_it_is_equal_in_exact_arithmetic() -> None:
    verdict = parity.judge(REFERENCE, Held(of_nnx(fast=True)), quick=True, stages=["gradients"])
    assert not verdict.agrees
    assert [[one.code for one in group] for group in verdict.explanations] == [["F124"]]


@pytest.mark.parametrize("port", [linen, of_nnx, equinox])
@pytest.mark.parametrize("rate", [0.2, 0.5])
def test_dropout_keeps_and_scales_in_training_without_a_change_to_the_port(port: Any, rate: float) -> None:
    made, still = port(rate=rate), port(rate=0.0)
    tensors = {name: tensor.numpy() for name, tensor in TorchNet().state_dict().items()}
    kept = made.outputs(made.load_state_dict(tensors), BATCHES[0], True)["hidden.0"]
    whole = still.outputs(still.load_state_dict(tensors), BATCHES[0], True)["hidden.0"]
    np.testing.assert_allclose(kept * (1 - rate), whole, rtol=1e-6)


def test_what_is_drawn_with_the_median_key_is_the_median() -> None:
    key = jax.random.fold_in(jax.random.split(median_key())[1], 7)
    for wide in (False, True):
        with jax.enable_x64(wide):
            drawn = jax.random.uniform(key, (3,))
            assert ((drawn < 0.5) & (drawn > 0.4999998)).all()
            assert (abs(jax.random.normal(key, (3,))) < 3e-7).all()
            assert jax.random.bernoulli(key, 0.5, (3,)).all()
            assert not jax.random.bernoulli(key, 0.4, (3,)).any()


def test_a_reference_draws_what_the_median_key_draws() -> None:
    class Noisy(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.linear = torch.nn.Linear(3, 2)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            x = self.linear(x)
            kept = torch.floor(0.8 + torch.rand(x.shape[0], 1)) / 0.8
            return torch.nn.functional.dropout(x * kept + torch.randn_like(x), 0.6, True)

    class Net(nn.Module):
        @nn.compact
        def __call__(self, x: Any) -> Any:
            x = nn.Dense(2, name="linear")(x)
            kept = jnp.floor(0.8 + jax.random.uniform(self.make_rng("drop"), (x.shape[0], 1))) / 0.8
            noise = jax.random.normal(self.make_rng("dropout"), x.shape)
            return nn.Dropout(0.6, deterministic=False)(x * kept + noise)

    batch = {"x": RANDOM.normal(size=(4, 3)).astype(np.float32)}
    reference = parity.Reference(
        module=Noisy,
        loss=lambda module, batch: (module(batch["x"]) ** 2).mean() + module.linear.weight.sum(),
        optimizer=lambda module: torch.optim.SGD(module.parameters(), lr=0.1),
        batches=[batch],
    )
    variables = Net().init({"params": jax.random.key(0), "dropout": jax.random.key(1)}, batch["x"])
    port = from_linen(
        Net(), variables, optax.sgd(0.1), call=lambda net, batch, train: net(batch["x"]), loss=lambda y, batch: y.sum()
    )
    assert parity.judge(reference, Held(port), quick=True, stages=["outputs"]).agrees
