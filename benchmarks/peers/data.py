"""What every peer is given, so that all of them train the same network on the same batches."""

from collections.abc import Callable
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from fmnist.data import load_dataset
from fmnist.experiment import PIXELS, Experiment, StateDict
from fmnist_jax import torch_rng

Done = Callable[[float], None]
LR, BATCH_SIZE = Experiment.lr, Experiment.batch_size


class Data(NamedTuple):
    """Pixels `(n, 784) float32 in [0, 1]` and labels `(n,) int64` of both splits, and the parameters to start from."""

    images: NDArray[np.float32]
    labels: NDArray[np.int64]
    test_images: NDArray[np.float32]
    test_labels: NDArray[np.int64]
    start: StateDict


def load(place: str | None) -> Data:
    """What `--data` asks for; the parameters are those that torch draws from seed 0."""
    dataset = load_dataset(place)
    train, test = dataset.train, dataset.test
    images, test_images = (
        np.divide(each.reshape(-1, PIXELS), 255, dtype=np.float32) for each in (train.images, test.images)
    )
    return Data(images, train.labels, test_images, test.labels, torch_rng.init(Experiment()))
