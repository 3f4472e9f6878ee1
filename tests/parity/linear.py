"""A right port of a linear layer under SGD in NumPy, and a case for each call: what tests of the border break."""

from collections.abc import Iterator
from typing import Any, get_args

import numpy as np

from parity.cases import Array, Batch, Call, Case, Tensors

SOURCE = """
import numpy as np

def load_state_dict(tensors):
    return {name: tensor.copy() for name, tensor in tensors.items()}

def state_dict(state):
    return {name: tensor.copy() for name, tensor in state.items()}

def init(seed):
    return {"fc.weight": np.full((2, 3), seed, np.float32), "fc.bias": np.zeros(2, np.float32)}

def outputs(state, batch, train):
    return {"logits": batch["x"] @ state["fc.weight"].T + state["fc.bias"]}

def value_and_grad(state, batch):
    logits = outputs(state, batch, True)["logits"]
    return (logits * logits).sum() / 2, {"fc.weight": logits.T @ batch["x"], "fc.bias": logits.sum(0)}

def train_step(state, batch):
    loss, grads = value_and_grad(state, batch)
    return {name: state[name] - state[name].dtype.type(0.1) * grads[name] for name in state}, loss

def train_epoch(state, batches):
    losses = []
    for batch in batches:
        state, loss = train_step(state, batch)
        losses.append(loss)
    return state, np.array(losses)

def evaluate(state, batches):
    return {"loss": float(np.mean([value_and_grad(state, batch)[0] for batch in batches]))}
"""

REFERENCE = """
import numpy as np
import torch

from parity import Reference


class Net(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.fc = torch.nn.Linear(3, 2)

    def forward(self, x):
        return {"logits": self.fc(x)}


reference = Reference(
    module=Net,
    loss=lambda module, batch: module(batch["x"])["logits"].square().sum() / 2,
    optimizer=lambda module: torch.optim.SGD(module.parameters(), lr=0.1),
    batches=[{"x": np.random.default_rng(rows).normal(size=(rows, 3)).astype("f4")} for rows in (4, 4, 1)],
    name="reference.py",
)
"""


def state(dtype: Any = np.float32) -> Tensors:
    """Parameters of the layer."""
    rng = np.random.default_rng(0)
    return {"fc.weight": rng.normal(size=(2, 3)).astype(dtype), "fc.bias": np.ones(2, dtype)}


def batches(dtype: Any = np.float32) -> tuple[Batch, ...]:
    """Two batches, the second one short."""
    rng = np.random.default_rng(1)
    return tuple({"x": rng.normal(size=(rows, 3)).astype(dtype)} for rows in (4, 1))


def cases(dtype: Any = np.float32) -> Iterator[Case]:
    """One case for each call."""
    for call in get_args(Call):
        start = {} if call == "init" else state(dtype)
        whole: Any = {"test_batches": batches(dtype), "epochs": 2} if call == "whole_run" else {}
        yield Case("as given", call, start, batches(dtype), seed=3, **whole)


def case(call: Call) -> Case:
    """The case of that call."""
    return next(one for one in cases() if one.call == call)


def same(one: Array, other: Array) -> bool:
    """Equal in shape, dtype and every bit."""
    return one.shape == other.shape and one.dtype == other.dtype and one.tobytes() == other.tobytes()
