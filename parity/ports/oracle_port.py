"""The oracle: the formulas in NumPy float64, whatever dtype the tensors have."""

from typing import Any

import numpy as np

from fmnist.experiment import Experiment, StateDict
from parity import formulas
from parity.formulas import RIGHT, Array, State


def decode(images: Array) -> Array:
    return RIGHT.decode(images)


def start(tensors: StateDict, experiment: Experiment) -> State:
    return formulas.start({name: tensor.astype(np.float64) for name, tensor in tensors.items()}, experiment)


def tensors(state: State) -> StateDict:
    return {name: tensor.copy() for name, tensor in state.tensors.items()}


def logits(state: State, images: Array) -> Array:
    return formulas.forward(RIGHT, state.tensors, images, state.experiment).outputs


def loss(state: State, images: Array, labels: Array) -> float:
    return float(formulas.loss(RIGHT, state.tensors, images, labels, state.experiment))


def gradients(state: State, images: Array, labels: Array) -> StateDict:
    return formulas.gradients(RIGHT, state.tensors, images, labels, state.experiment)


def train_step(state: State, images: Array, labels: Array) -> tuple[State, Any]:
    return formulas.train_step(RIGHT, state, images, labels)


def train_epoch(state: State, images: Array, labels: Array) -> tuple[State, Array]:
    return formulas.train_epoch(RIGHT, state, images, labels)


def evaluate(state: State, images: Array, labels: Array) -> tuple[float, float]:
    return formulas.evaluate(RIGHT, state, images, labels)
