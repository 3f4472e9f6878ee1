"""What common practice checks, as a yardstick for the suite: each as it is found in the wild, on the post's network."""

from collections.abc import Callable
from typing import Any

import numpy as np
import torch

from fmnist.experiment import StateDict
from parity.fixtures import Case
from parity.judge import Judge
from parity.port import Held

STEPS = 10


def logits_loosely(judge: Judge) -> bool:
    """Logits of one batch at an absolute tolerance of 4e-2."""
    port, reference = (_logits(side, judge.real()) for side in (judge.port, judge.reference))
    return bool(np.allclose(port, reference, rtol=0, atol=4e-2))


def logits_closely(judge: Judge) -> bool:
    """The same at the defaults of `torch.testing.assert_close`."""
    return _close(*(_logits(side, judge.real()) for side in (judge.port, judge.reference)))


def ten_losses(judge: Judge) -> bool:
    """The losses of ten steps within 1e-3."""
    port, reference = (_ten_steps(side, judge)[0] for side in (judge.port, judge.reference))
    return bool(np.allclose(port, reference, rtol=0, atol=1e-3))


def everything_closely(judge: Judge) -> bool:
    """Logits, loss and gradients of one batch, ten losses and the parameters after them, at the same defaults."""
    case = judge.real()
    if not logits_closely(judge):
        return False
    sides = (judge.port, judge.reference)
    losses = [side.loss(side.start(case.tensors, case.experiment), case.images, case.labels) for side in sides]
    gradients = [side.gradients(side.start(case.tensors, case.experiment), case.images, case.labels) for side in sides]
    (port_losses, port), (reference_losses, reference) = (_ten_steps(side, judge) for side in sides)
    return (
        _close(*(np.array(loss, np.float32) for loss in losses))
        and all(_close(gradients[0][name], gradients[1][name]) for name in gradients[0])
        and _close(port_losses, reference_losses)
        and all(_close(port[name], reference[name]) for name in port)
    )


def final_accuracy(judge: Judge) -> bool:
    """The accuracy after 20 epochs within a point."""
    experiment = judge.experiment()
    found = judge.port_run(experiment).accuracy[-1]
    return abs(found - judge.reruns.get("reference", experiment).accuracy[-1]) <= 0.01


PRACTICE: dict[str, Callable[[Judge], bool]] = {
    "logits of one batch within 4e-2": logits_loosely,
    "logits of one batch at `assert_close`'s defaults": logits_closely,
    "ten losses within 1e-3": ten_losses,
    "logits, loss, gradients, ten steps and parameters at `assert_close`'s defaults": everything_closely,
    "accuracy after 20 epochs within a point": final_accuracy,
}


def _logits(side: Held, case: Case) -> Any:
    return side.logits(side.start(case.tensors, case.experiment), case.images)


def _ten_steps(side: Held, judge: Judge) -> tuple[Any, StateDict]:
    case = judge.real(rows=64 * STEPS)
    state, losses = side.start(case.tensors, case.experiment), []
    for step in range(STEPS):
        batch = slice(64 * step, 64 * (step + 1))
        state, loss = side.train_step(state, case.images[batch], case.labels[batch])
        losses.append(loss)
    return np.array(losses, np.float32), side.tensors(state)


def _close(found: Any, expected: Any) -> bool:
    try:
        torch.testing.assert_close(torch.tensor(found), torch.tensor(expected))
    except AssertionError:
        return False
    return True
