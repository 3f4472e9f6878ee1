"""What is asked: a state, batches and a call; and what an answer to it is. NumPy only."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

Array = NDArray[Any]
Tensors = dict[str, Array]
"""Parameters and buffers by torch's `state_dict` names and layouts: `conv.weight (out, in, 3, 3) float32`, …"""
Batch = Mapping[str, Array]
"""What a training program is fed at once, by the names that its author gives: `images (64, 784) float32`, …"""
Answer = dict[str, Array]
"""What somebody says to a case: quantity → array, in the order in which they are computed; see `CALLS`."""

Call = Literal["load", "init", "outputs", "value_and_grad", "train_steps", "train_epoch", "evaluate", "whole_run"]

OPTIONAL = ("init", "train_epoch", "evaluate")
"""Calls that are functions of a program, of those that it need not have."""

CALLS: dict[Call, str] = {
    "load": "state/NAME: every tensor of the state after `load_state_dict`, and no other",
    "init": "state/NAME: every tensor of a fresh state drawn from `seed`",
    "outputs": "outputs/NAME: what the network returns for batches[0], in `train` or evaluation mode",
    "value_and_grad": "loss ()  and gradients/NAME of batches[0], in training mode, of every parameter",
    "train_steps": "for t = 1, 2, … one train_step a batch: loss/t () from before the update, state/t/NAME after it; "
    "then outputs/NAME of batches[0] in evaluation mode after all of them",
    "train_epoch": "losses (steps,) and state/NAME after all batches in order",
    "evaluate": "every number that the program reports over all batches, by name: evaluate/NAME",
    "whole_run": "for e = 1, 2, … `epochs` one train_epoch over all batches, and an evaluate over test_batches: "
    "losses/e (steps,), state/e/NAME, evaluate/e/NAME",
}


@dataclass(frozen=True)
class Case:
    """One question, the same for everybody: the reference, the noisy reference, a mistaken reference and the port."""

    name: str
    """What is special about it, in words: "shaken, small inputs"."""
    call: Call
    state: Tensors
    """What everybody starts from; empty for `init`. Its floating dtype is that of all that is computed."""
    batches: tuple[Batch, ...] = ()
    train: bool = False
    """`outputs` only: in training mode."""
    seed: int = 0
    """`init` only."""
    test_batches: tuple[Batch, ...] = ()
    """`whole_run` only, as is the next."""
    epochs: int = 0

    @property
    def dtype(self) -> np.dtype[Any]:
        """The floating dtype of all that is computed."""
        floating = [tensor.dtype for tensor in self.state.values() if tensor.dtype.kind == "f"]
        return floating[0] if floating else np.dtype(np.float32)


def put(case: Case, to: Any) -> Answer:
    """What somebody says to a case.

    Args:
        to: has the functions of `parity.port.Port`, which here return arrays that stay as they are; and `given`, which
            makes of a case's batches what those functions take.
    """
    batches, test_batches = to.given(case.batches, "batch"), to.given(case.test_batches, "test batch")
    state = to.init(case.seed) if case.call == "init" else to.load_state_dict(case.state)
    said: Answer = {}
    match case.call:
        case "load" | "init":
            return _named("state", to.state_dict(state))
        case "outputs":
            return _named("outputs", to.outputs(state, batches[0], case.train))
        case "value_and_grad":
            loss, gradients = to.value_and_grad(state, batches[0])
            return {"loss": loss, **_named("gradients", gradients)}
        case "train_steps":
            for step, batch in enumerate(batches, 1):
                state, said[f"loss/{step}"] = to.train_step(state, batch)
                said |= _named(f"state/{step}", to.state_dict(state))
            return said | _named("outputs", to.outputs(state, batches[0], False))
        case "train_epoch":
            state, said["losses"] = to.train_epoch(state, batches)
            return said | _named("state", to.state_dict(state))
        case "evaluate":
            return _named("evaluate", to.evaluate(state, batches))
        case "whole_run":
            for epoch in range(1, case.epochs + 1):
                state, said[f"losses/{epoch}"] = to.train_epoch(state, batches)
                said |= _named(f"state/{epoch}", to.state_dict(state))
                said |= _named(f"evaluate/{epoch}", to.evaluate(state, test_batches))
            return said


def _named(kind: str, arrays: Mapping[str, Array]) -> Answer:
    return {f"{kind}/{name}": array for name, array in arrays.items()}
