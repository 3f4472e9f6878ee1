"""The contract: what an experiment is, its flags and their checks."""

import itertools
import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Literal, get_args

import numpy as np
from numpy.typing import NDArray

from fmnist.command import UsageError, complaint, option

SIDE = 28
PIXELS = SIDE * SIDE
CLASSES = 10
TRAINING_IMAGES = 60_000
TEST_IMAGES = 10_000

StateDict = dict[str, NDArray[Any]]
"""Parameters by torch's `state_dict` names and layouts: `fc1.weight (16, 784)`, `fc1.bias (16,)`, …, or
`conv1.weight (8, 1, 3, 3)`, `conv1.bias (8,)`, …, `fc.weight (10, 784)`, `fc.bias (10,)`."""

FLOAT32 = np.finfo(np.float32)

MOST_POOLS = 4
"""After as many halvings of 28 pixels one is left."""

# A gigabyte of float32: far above any width that means something here, far below what kills a machine.
MOST_PARAMETERS = 2**28


@dataclass(frozen=True, kw_only=True)
class Experiment:
    """What is trained and how: the same for every port.

    Raises:
        UsageError: a value outside what its flag allows.
    """

    network: Literal["mlp", "cnn"] = option(
        "mlp",
        "Linear layers, or 3x3 convolutions that are each followed by a 2x2 max pool, and a linear layer.",
        expected="mlp or cnn, e.g. --network cnn",
    )
    hidden: tuple[int, ...] = option(
        (16,),
        "Widths of the MLP's hidden layers, from the images to the classes.",
        metavar="WIDTH",
        expected=f"one or more widths of at least 1, and at most {MOST_PARAMETERS:,} parameters in all, "
        "e.g. --hidden 16",
    )
    channels: tuple[int, ...] = option(
        (8, 16),
        "Channels of the CNN's convolutions, from the images to the classes.",
        metavar="CHANNELS",
        expected=f"one to four numbers of channels of at least 1, and at most {MOST_PARAMETERS:,} parameters in all, "
        "e.g. --channels 8 16",
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
        is_cnn, usual = self.network == "cnn", type(self)
        check_network(self.network, *(getattr(self, name) != getattr(usual, name) for name in ("hidden", "channels")))
        valid = {
            "network": self.network in get_args(type(self).__annotations__["network"]),
            "hidden": bool(self.hidden) and min(self.hidden) >= 1 and (is_cnn or self.parameters <= MOST_PARAMETERS),
            "channels": 1 <= len(self.channels) <= MOST_POOLS
            and min(self.channels) >= 1
            and (not is_cnn or self.parameters <= MOST_PARAMETERS),
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
        """Width of every layer of the MLP, from the 784 pixels to the 10 classes."""
        return (PIXELS, *self.hidden, CLASSES)

    @property
    def shapes(self) -> dict[str, tuple[int, ...]]:
        """Of every tensor of the network's `state_dict`, in its order."""
        layers: dict[str, tuple[int, ...]] = {}
        if self.network == "cnn":
            for layer, (before, after) in enumerate(itertools.pairwise((1, *self.channels)), 1):
                layers[f"conv{layer}"] = (after, before, 3, 3)
            layers["fc"] = (CLASSES, self.channels[-1] * (SIDE >> len(self.channels)) ** 2)
        else:
            for layer, (fan_in, fan_out) in enumerate(itertools.pairwise(self.widths), 1):
                layers[f"fc{layer}"] = (fan_out, fan_in)
        return {
            f"{layer}.{kind}": of_kind
            for layer, shape in layers.items()
            for kind, of_kind in (("weight", shape), ("bias", shape[:1]))
        }

    @property
    def structure(self) -> str:
        """The network in a word: `784-16-10`, or `conv 8-16` for a CNN of two convolutions."""
        widths = self.channels if self.network == "cnn" else self.widths
        return ("conv " if self.network == "cnn" else "") + "-".join(map(str, widths))

    @property
    def parameters(self) -> int:
        """How many weights and biases the network has."""
        return sum(map(math.prod, self.shapes.values()))

    @property
    def activations(self) -> int:
        """How many values the layers make of an image, those before a pool counted."""
        return sum(shape[0] * places for shape, places in self._weights)

    @property
    def multiplications(self) -> int:
        """Of an image's way through the network."""
        return sum(math.prod(shape) * places for shape, places in self._weights)

    @property
    def _weights(self) -> Iterator[tuple[tuple[int, ...], int]]:
        """Every layer's weight, and at how many places it is applied: a convolution's at each pixel."""
        weights = [shape for name, shape in self.shapes.items() if name.endswith(".weight")]
        return ((shape, (SIDE >> layer) ** 2 if len(shape) == 4 else 1) for layer, shape in enumerate(weights))

    def batches(self, images: int) -> int:
        """How many batches `images` images make, the short last one included."""
        return math.ceil(images / self.batch_size)


def check_network(network: str, has_hidden: bool, has_channels: bool) -> None:
    """Refuse what says nothing of a network.

    Raises:
        UsageError: widths are given for a CNN, or channels for an MLP.
    """
    if network == "cnn" and has_hidden:
        raise UsageError("--hidden: a CNN has channels; give --channels, or --network mlp")
    if network != "cnn" and has_channels:
        raise UsageError("--channels: an MLP has widths; give --hidden, or --network cnn")
