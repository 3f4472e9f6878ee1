"""What common practice checks, as a yardstick: each as it is found in the wild, on the post's network.

Ports are modules of the earlier interface.
"""

from collections.abc import Callable
from functools import cache
from typing import Any

import numpy as np
import torch

from fmnist.data import Dataset, load_dataset
from fmnist.experiment import Experiment, StateDict
from tests.tools.faults import torch_port
from tests.tools.faults.formulas import Array

STEPS = 10
POST = Experiment()

dataset: Callable[[], Dataset] = cache(load_dataset)


def logits_loosely(port: Any) -> bool:
    """Logits of one batch at an absolute tolerance of 4e-2."""
    return bool(np.allclose(_logits(port), _logits(torch_port), rtol=0, atol=4e-2))


def logits_closely(port: Any) -> bool:
    """The same at the defaults of `torch.testing.assert_close`."""
    return _close(_logits(port), _logits(torch_port))


def ten_losses(port: Any) -> bool:
    """The losses of ten steps within 1e-3."""
    return bool(np.allclose(_ten_steps(port)[0], _ten_steps(torch_port)[0], rtol=0, atol=1e-3))


def everything_closely(port: Any) -> bool:
    """Logits, loss and gradients of one batch, ten losses and the parameters after them, at the same defaults."""
    if not logits_closely(port):
        return False
    batch = _batch(64)
    losses = [np.float32(side.loss(_start(side), *batch)) for side in (port, torch_port)]
    gradients = [side.gradients(_start(side), *batch) for side in (port, torch_port)]
    (port_losses, moved), (reference_losses, reference) = (_ten_steps(side) for side in (port, torch_port))
    return (
        _close(*losses)
        and all(_close(gradients[0][name], gradients[1][name]) for name in gradients[0])
        and _close(port_losses, reference_losses)
        and all(_close(moved[name], reference[name]) for name in moved)
    )


def final_accuracy(port: Any) -> bool:
    """The accuracy after 20 epochs within a point."""
    return abs(_accuracy(port) - _reference_accuracy()) <= 0.01


PRACTICE: dict[str, Callable[[Any], bool]] = {
    "logits of one batch within 4e-2": logits_loosely,
    "logits of one batch at `assert_close`'s defaults": logits_closely,
    "ten losses within 1e-3": ten_losses,
    "logits, loss, gradients, ten steps and parameters at `assert_close`'s defaults": everything_closely,
    "accuracy after 20 epochs within a point": final_accuracy,
}


def noticed(make: Callable[[], Any]) -> dict[str, bool]:
    """Which practices notice a mistaken port. Each starts with a port of its own."""
    found = {}
    for name, passes in PRACTICE.items():
        try:
            with np.errstate(all="ignore"):
                found[name] = not passes(make())
        except Exception:  # whatever a broken port raises, it is noticed
            found[name] = True
    return found


def _start(side: Any) -> Any:
    return side.start({name: tensor.copy() for name, tensor in torch_port.init(POST).items()}, POST)


def _batch(rows: int) -> tuple[Array, Array]:
    train = dataset().train
    return train.images[:rows].copy(), train.labels[:rows].copy()


def _logits(side: Any) -> Any:
    return side.logits(_start(side), _batch(64)[0])


def _ten_steps(side: Any) -> tuple[Any, StateDict]:
    images, labels = _batch(64 * STEPS)
    state, losses = _start(side), []
    for step in range(STEPS):
        batch = slice(64 * step, 64 * (step + 1))
        state, loss = side.train_step(state, images[batch], labels[batch])
        losses.append(loss)
    return np.array(losses, np.float32), side.tensors(state)


def _accuracy(side: Any) -> float:
    state, accuracy = _start(side), 0.0
    for _ in range(POST.epochs):
        state, _ = side.train_epoch(state, *dataset().train)
        accuracy, _ = side.evaluate(state, *dataset().test)
    return float(accuracy)


@cache
def _reference_accuracy() -> float:
    return _accuracy(torch_port)


def _close(found: Any, expected: Any) -> bool:
    try:
        torch.testing.assert_close(torch.tensor(found), torch.tensor(expected))
    except AssertionError:
        return False
    return True
