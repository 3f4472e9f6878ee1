"""The network, as a PyTorch module."""

import itertools

import torch
from torch import Tensor, nn

from fmnist.experiment import Experiment, StateDict


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


def init(experiment: Experiment) -> ShallowNetwork:
    """The network on the CPU, with the parameters that `nn.Linear` draws after `torch.manual_seed(seed)`."""
    torch.manual_seed(experiment.seed)
    return ShallowNetwork(experiment)


def from_numpy(state_dict: StateDict) -> dict[str, Tensor]:
    """A `state_dict` from NumPy arrays, which it shares no memory with."""
    return {name: torch.tensor(tensor) for name, tensor in state_dict.items()}


def to_numpy(model: ShallowNetwork) -> StateDict:
    """A model's `state_dict` as NumPy arrays, which share the model's memory where that is a CPU's."""
    return {name: tensor.numpy(force=True) for name, tensor in model.state_dict().items()}
