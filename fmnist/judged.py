"""The experiments that parity judges: the post's, and others that a port of the programs has to do as well."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any, Generic, TypeVar

import numpy as np
from numpy.typing import NDArray

from fmnist.data import Split
from fmnist.experiment import Experiment

Batch = Mapping[str, NDArray[Any]]
"""`{"images": (n, 28, 28) uint8, "labels": (n,) int64}`"""
Made = TypeVar("Made")

JUDGED = {
    "784-4-10": Experiment(hidden=(4,), lr=0.05, batch_size=50),
    "784-16-16-10": Experiment(hidden=(16, 16), lr=1.0, batch_size=7),
    "784-64-32-16-10": Experiment(hidden=(64, 32, 16), lr=0.1, batch_size=100),
    "784-16-10 softmax": Experiment(softmax_output=True, lr=0.5),
    "784-16-10": Experiment(),
}
"""By name. The post's comes last, for its whole runs are what takes time."""

CONVOLUTIONAL = {
    "conv 3-4-5": Experiment(network="cnn", channels=(3, 4, 5), lr=0.1, batch_size=50),
    "conv 8-16": Experiment(network="cnn", lr=0.05),
}
"""CNNs by name; the first one's last pool meets an odd size. At this rate short whole runs get somewhere."""

ACCURACY_MARGIN = 0.001
"""Ten of 10,000 test images: less than a third of what another seed changes."""
LOSS_MARGIN = 0.001
"""What a reader of the post's log would call the same number."""


def joined(batches: Sequence[Mapping[str, Any]]) -> Split:
    """The images and labels of batches, one after the other."""
    images, labels = (np.concatenate([np.asarray(batch[name]) for batch in batches]) for name in ("images", "labels"))
    return Split(images, labels)


class Once(Generic[Made]):
    """What is made of batches, made once for all epochs that are given the very same ones."""

    def __init__(self, make: Callable[[Split], Made]) -> None:
        self.make = make
        self.last: tuple[Sequence[Mapping[str, Any]], Made] | None = None

    def __call__(self, batches: Sequence[Mapping[str, Any]]) -> Made:
        if self.last is None or self.last[0] is not batches:
            self.last = None  # the old ones need not be in memory beside the new ones
            self.last = batches, self.make(joined(batches))
        return self.last[1]
