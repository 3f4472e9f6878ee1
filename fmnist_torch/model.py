"""The networks, as PyTorch modules."""

import itertools

import torch
from torch import Tensor, nn
from torch.nn.functional import max_pool2d

from fmnist.experiment import CLASSES, SIDE, Experiment, StateDict


class ShallowNetwork(nn.Module):
    """Linear layers `fc1`, `fc2`, … with a ReLU between any two.

    Maps `(batch, 784) float32 in [0, 1]` to logits `(batch, 10) float32`; with `softmax_output` to the softmax of them.
    """

    def __init__(self, experiment: Experiment) -> None:
        super().__init__()
        self.softmax_output = experiment.softmax_output
        for layer, (fan_in, fan_out) in enumerate(itertools.pairwise(experiment.widths), 1):
            self.add_module(f"fc{layer}", nn.Linear(fan_in, fan_out))

    def forward(self, images: Tensor) -> Tensor:
        *hidden, last = self.children()
        activations = images
        for layer in hidden:
            activations = torch.relu(layer(activations))
        logits: Tensor = last(activations)
        return logits.softmax(dim=1) if self.softmax_output else logits


class ConvolutionalNetwork(nn.Module):
    """3x3 convolutions `conv1`, `conv2`, … that are each followed by a ReLU and a 2x2 max pool; a linear layer `fc`.

    Maps `(batch, 784) float32 in [0, 1]` to logits `(batch, 10) float32`; with `softmax_output` to the softmax of them.
    """

    def __init__(self, experiment: Experiment) -> None:
        super().__init__()
        self.softmax_output = experiment.softmax_output
        for layer, (before, after) in enumerate(itertools.pairwise((1, *experiment.channels)), 1):
            self.add_module(f"conv{layer}", nn.Conv2d(before, after, kernel_size=3, padding=1))
        _, features = experiment.shapes["fc.weight"]
        self.fc = nn.Linear(features, CLASSES)

    def forward(self, images: Tensor) -> Tensor:
        *convolutions, last = self.children()
        activations = images.unflatten(1, (1, SIDE, SIDE))
        for convolution in convolutions:
            activations = max_pool2d(torch.relu(convolution(activations)), 2)
        logits: Tensor = last(activations.flatten(1))
        return logits.softmax(dim=1) if self.softmax_output else logits


def network(experiment: Experiment) -> nn.Module:
    """The experiment's network, with the parameters that its layers draw."""
    return (ConvolutionalNetwork if experiment.network == "cnn" else ShallowNetwork)(experiment)


def init(experiment: Experiment) -> nn.Module:
    """The network on the CPU, with the parameters that its layers draw after `torch.manual_seed(seed)`."""
    torch.manual_seed(experiment.seed)
    return network(experiment)


def from_numpy(state_dict: StateDict) -> dict[str, Tensor]:
    """A `state_dict` from NumPy arrays, which it shares no memory with."""
    return {name: torch.tensor(tensor) for name, tensor in state_dict.items()}


def to_numpy(model: nn.Module) -> StateDict:
    """A model's `state_dict` as NumPy arrays, which share the model's memory where that is a CPU's."""
    return {name: tensor.numpy(force=True) for name, tensor in model.state_dict().items()}
