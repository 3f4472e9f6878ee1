"""torch's optimizers beside optax's of the same name: what is equal agrees, and each difference is named."""

from collections.abc import Callable, Iterable

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
import torch
from torch import Tensor, nn, optim

import parity
from parity.cases import Batch
from parity.verdict.comparison import Verdict

Made = Callable[[Iterable[Tensor]], optim.Optimizer]

EQUAL: dict[str, tuple[Made, optax.GradientTransformation]] = {
    "RAdam": (lambda params: optim.RAdam(params, 1e-2), optax.radam(1e-2)),
    "RMSprop with momentum": (
        lambda params: optim.RMSprop(params, 1e-2, momentum=0.9),
        optax.rmsprop(1e-2, decay=0.99, eps_in_sqrt=False, momentum=0.9),
    ),
}

DIFFERENT: dict[str, tuple[Made, optax.GradientTransformation, list[str]]] = {
    "SGD, dampening": (
        lambda params: optim.SGD(params, 0.1, momentum=0.9, dampening=0.1),
        optax.sgd(0.1, 0.9),
        ["O058"],
    ),
    "AMSGrad": (lambda params: optim.Adam(params, 1e-2, amsgrad=True), optax.amsgrad(1e-2), ["O057"]),
    "NAdam": (lambda params: optim.NAdam(params, 1e-2), optax.nadam(1e-2), ["O059"]),
    "Rprop": (lambda params: optim.Rprop(params, 1e-2), optax.rprop(1e-2), ["O060"]),
    "RMSprop, defaults": (lambda params: optim.RMSprop(params, 1e-2), optax.rmsprop(1e-2), ["O024", "O025"]),
    "Adagrad, defaults": (lambda params: optim.Adagrad(params, 0.1), optax.adagrad(0.1), ["O014", "O029", "O030"]),
    "a step late": (
        lambda params: optim.SGD(params, 0.1),
        optax.chain(
            optax.sgd(0.1),
            optax.GradientTransformation(
                lambda params: jax.tree.map(jnp.zeros_like, params),
                lambda updates, before, params=None: (before, updates),
            ),
        ),
        ["O060"],
    ),
}


class Net(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = nn.Linear(8, 12), nn.Linear(12, 4)

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.b(torch.tanh(self.a(x)))
        return out


def outputs(params: optax.Params, batch: Batch, train: bool) -> jax.Array:
    hidden = jnp.tanh(batch["x"] @ params["a"]["kernel"] + params["a"]["bias"])
    logits: jax.Array = hidden @ params["b"]["kernel"] + params["b"]["bias"]
    return logits


def verdict(made: Made, optimizer: optax.GradientTransformation) -> Verdict:
    draw = np.random.default_rng(0)
    batches: list[Batch] = [
        {"x": draw.normal(size=(16, 8)).astype(np.float32), "y": draw.integers(0, 4, 16)} for _ in range(3)
    ]
    reference = parity.Reference(
        module=Net,
        loss=lambda module, batch: nn.functional.cross_entropy(module(batch["x"]), batch["y"]),
        optimizer=lambda module: made(module.parameters()),
        batches=batches,
    )
    port = parity.port.from_functions(
        outputs=outputs,
        loss=lambda params, batch: optax.softmax_cross_entropy_with_integer_labels(
            outputs(params, batch, True), batch["y"]
        ).mean(),
        optimizer=optimizer,
        params={
            "a": {"kernel": jnp.zeros((8, 12)), "bias": jnp.zeros(12)},
            "b": {"kernel": jnp.zeros((12, 4)), "bias": jnp.zeros(4)},
        },
    )
    return parity.judge(reference, port, stages=["step", "steps"], quick=True)


@pytest.mark.parametrize(("made", "optimizer"), EQUAL.values(), ids=EQUAL)
def test_equal_optimizers_agree(made: Made, optimizer: optax.GradientTransformation) -> None:
    assert verdict(made, optimizer).agrees


@pytest.mark.parametrize(("made", "optimizer", "codes"), DIFFERENT.values(), ids=DIFFERENT)
def test_what_differs_is_named(made: Made, optimizer: optax.GradientTransformation, codes: list[str]) -> None:
    found = verdict(made, optimizer)
    assert sorted(ways[0].code for ways in found.explanations) == codes
