"""The contract: what an experiment is, its flags and their checks."""

import itertools
import math
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fmnist.command import complaint, option

PIXELS = 784
CLASSES = 10
TRAINING_IMAGES = 60_000
TEST_IMAGES = 10_000

StateDict = dict[str, NDArray[Any]]
"""Parameters by torch's `state_dict` names and layouts: `fc1.weight (16, 784)`, `fc1.bias (16,)`, …"""

FLOAT32 = np.finfo(np.float32)

# A gigabyte of float32: far above any width that means something here, far below what kills a machine.
MOST_PARAMETERS = 2**28


@dataclass(frozen=True)
class Experiment:
    """What is trained and how: the same for every port.

    Raises:
        UsageError: a value outside what its flag allows.
    """

    hidden: tuple[int, ...] = option(
        (16,),
        "Widths of the hidden layers, from the images to the classes.",
        metavar="WIDTH",
        expected=f"one or more widths of at least 1, and at most {MOST_PARAMETERS:,} parameters in all, "
        "e.g. --hidden 16",
    )
    softmax_output: bool = option(
        False, "Make the classic mistake: the network returns its softmax to a cross-entropy that expects logits."
    )
    batch_size: int = option(
        64,
        "Images in a batch; the last one of an epoch is as short as it comes out.",
        expected=f"a whole number from 1 to {TRAINING_IMAGES}, e.g. --batch-size 64",
    )
    lr: float = option(
        1e-3, "Learning rate of SGD.", expected="a positive number that float32 can hold, e.g. --lr 0.001"
    )
    epochs: int = option(
        20,
        "Passes over the 60,000 training images, each followed by a test pass.",
        expected="a whole number of at least 1, e.g. --epochs 20",
    )
    seed: int = option(
        0,
        "Seed of torch's CPU generator, which draws the initial parameters.",
        expected="a whole number from 0 to 2**64 - 1, e.g. --seed 0",
    )

    def __post_init__(self) -> None:
        valid = {
            "hidden": bool(self.hidden) and min(self.hidden) >= 1 and self.parameters <= MOST_PARAMETERS,
            "batch_size": 1 <= self.batch_size <= TRAINING_IMAGES,
            "lr": float(FLOAT32.tiny) <= self.lr <= float(FLOAT32.max),
            "epochs": self.epochs >= 1,
            "seed": 0 <= self.seed < 2**64,
        }
        for name, is_valid in valid.items():
            if not is_valid:
                raise complaint(self, name, getattr(self, name))

    @property
    def widths(self) -> tuple[int, ...]:
        """Width of every layer, from the 784 pixels to the 10 classes."""
        return (PIXELS, *self.hidden, CLASSES)

    @property
    def parameters(self) -> int:
        """How many weights and biases the network has."""
        return sum(fan_out * (fan_in + 1) for fan_in, fan_out in itertools.pairwise(self.widths))

    def batches(self, images: int) -> int:
        """How many batches `images` images make, the short last one included."""
        return math.ceil(images / self.batch_size)
