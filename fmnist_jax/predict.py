"""Ask a trained model what is in images: `python -m fmnist_jax.predict`."""

import sys

import jax
import numpy as np
from numpy.typing import NDArray

from fmnist import command
from fmnist.experiment import Experiment, StateDict
from fmnist.predictions import report
from fmnist_jax.model import from_torch, network
from fmnist_jax.train import decode, find_device

NAME = "fmnist_jax.predict"


def prepare(device_name: str) -> report.Predict:
    """The network on a device, as a function of its parameters and images."""
    device = find_device(device_name)

    def probabilities(experiment: Experiment, state_dict: StateDict, images: NDArray[np.uint8]) -> report.Probabilities:
        params = jax.device_put(from_torch(state_dict), device)
        logits = jax.jit(network(experiment))({"params": params}, decode(jax.device_put(images, device)))
        return np.asarray(jax.nn.softmax(logits))

    return probabilities


def main() -> None:
    report.run(sys.argv[1:], NAME, prepare)


if __name__ == "__main__":
    sys.exit(command.run(main, NAME))
