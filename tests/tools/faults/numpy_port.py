"""Any set of formulas as a port of the earlier interface: a right one, or one that makes a known mistake."""

import functools
from types import SimpleNamespace
from typing import Any

from fmnist.experiment import Experiment, StateDict
from tests.tools.faults import formulas
from tests.tools.faults.formulas import RIGHT, Array, Formulas, State


def numpy_port(formulas_: Formulas = RIGHT, **functions: Any) -> Any:
    """The formulas as a port, in the dtype of its tensors: a right one, apart from what is replaced."""

    def start(tensors: StateDict, experiment: Experiment) -> State:
        return formulas.start(tensors, experiment)

    def logits(state: State, images: Array) -> Array:
        return formulas.forward(formulas_, state.tensors, images, state.experiment).outputs

    def loss(state: State, images: Array, labels: Array) -> float:
        return float(formulas.loss(formulas_, state.tensors, images, labels, state.experiment))

    def gradients(state: State, images: Array, labels: Array) -> StateDict:
        return formulas.gradients(formulas_, state.tensors, images, labels, state.experiment)

    right = {
        "init": formulas_.draw,
        "decode": formulas_.decode,
        "start": start,
        "tensors": lambda state: {name: tensor.copy() for name, tensor in state.tensors.items()},
        "logits": logits,
        "loss": loss,
        "gradients": gradients,
        "train_step": functools.partial(step, formulas_),
        "train_epoch": functools.partial(epoch, formulas_),
        "evaluate": functools.partial(formulas.evaluate, formulas_),
    }
    return SimpleNamespace(**{**right, **functions})


def step(formulas_: Formulas, state: State, images: Array, labels: Array) -> tuple[State, float]:
    """`train_step` of a port."""
    state, loss = formulas.train_step(formulas_, state, images, labels)
    return state, float(loss)


def epoch(formulas_: Formulas, state: State, images: Array, labels: Array) -> tuple[State, Array]:
    """`train_epoch` of a port."""
    state, losses = formulas.train_epoch(formulas_, state, images, labels)
    return state, losses.astype(next(iter(state.tensors.values())).dtype)
