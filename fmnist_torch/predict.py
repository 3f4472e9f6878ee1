"""Ask a trained model what is in images: `python -m fmnist_torch.predict`."""

import sys

import numpy as np
import torch
from numpy.typing import NDArray

from fmnist import command
from fmnist.experiment import Experiment, StateDict
from fmnist.predictions import report
from fmnist_torch.model import from_numpy, network
from fmnist_torch.train import decode, find_device

NAME = "fmnist_torch.predict"


def prepare(device_name: str) -> report.Predict:
    """The network on a device, as a function of its parameters and images."""
    device = find_device(device_name)

    @torch.no_grad()
    def probabilities(experiment: Experiment, state_dict: StateDict, images: NDArray[np.uint8]) -> report.Probabilities:
        model = network(experiment)
        model.load_state_dict(from_numpy(state_dict))
        logits = model.to(device).eval()(decode(images, device))
        found: report.Probabilities = logits.softmax(dim=1).numpy(force=True)
        return found

    return probabilities


def main() -> None:
    report.run(sys.argv[1:], NAME, prepare)


if __name__ == "__main__":
    sys.exit(command.run(main, NAME))
