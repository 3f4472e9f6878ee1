"""The reference itself as a port of the earlier interface."""

from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from fmnist import metrics
from fmnist.experiment import Experiment, StateDict
from fmnist_torch import model, train
from tests.tools.faults.formulas import Array


@dataclass
class State:
    network: nn.Module
    optimizer: torch.optim.Optimizer
    experiment: Experiment


def init(experiment: Experiment) -> StateDict:
    with torch.device("cpu"):
        return _numpy(model.init(experiment).state_dict())


def decode(images: Array) -> Array:
    with torch.device("cpu"):  # as the trainer does it: a GPU multiplies by the reciprocal, 1 ulp off
        pixels: Array = train.decode(images, torch.device("cpu")).numpy()
    return pixels


def start(tensors: StateDict, experiment: Experiment) -> State:
    parameters = {name: torch.tensor(tensor) for name, tensor in tensors.items()}
    network = model.network(experiment).to(next(iter(parameters.values())).dtype)
    network.load_state_dict(parameters)
    return State(network, torch.optim.SGD(network.parameters(), lr=experiment.lr), experiment)


def tensors(state: State) -> StateDict:
    return _numpy(state.network.state_dict())


@torch.no_grad()
def logits(state: State, images: Array) -> Array:
    returned: Array = state.network(_pixels(state, images)).numpy(force=True)
    return returned


@torch.no_grad()
def loss(state: State, images: Array, labels: Array) -> float:
    return cross_entropy(state.network(_pixels(state, images)), torch.tensor(labels)).item()


def gradients(state: State, images: Array, labels: Array) -> StateDict:
    loss = cross_entropy(state.network(_pixels(state, images)), torch.tensor(labels))
    slopes = torch.autograd.grad(loss, list(state.network.parameters()))
    return _numpy(dict(zip(state.network.state_dict(), slopes, strict=True)))


def train_step(state: State, images: Array, labels: Array) -> tuple[State, float]:
    loss = train.train_step(state.network, state.optimizer, _pixels(state, images), torch.tensor(labels))
    return state, loss.item()


def train_epoch(state: State, images: Array, labels: Array) -> tuple[State, Array]:
    batch = _pixels(state, images), torch.tensor(labels)
    losses = train.train_epoch(state.network, state.optimizer, *batch, state.experiment.batch_size)
    return state, losses.numpy(force=True)


def evaluate(state: State, images: Array, labels: Array) -> tuple[float, float]:
    batch = _pixels(state, images), torch.tensor(labels)
    correct, losses = train.evaluate(state.network, *batch, state.experiment.batch_size)
    return float(metrics.accuracy(correct.cpu(), len(labels))), float(metrics.average_loss(losses.cpu()))


def _pixels(state: State, images: Array) -> Tensor:
    dtype = next(state.network.parameters()).dtype
    return torch.tensor(decode(images), dtype=dtype)


def _numpy(named: dict[str, Tensor]) -> StateDict:
    return {name: tensor.numpy(force=True).copy() for name, tensor in named.items()}
