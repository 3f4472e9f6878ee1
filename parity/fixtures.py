"""Cases: parameters and batches that ports are tried on."""

from dataclasses import dataclass

import numpy as np

from fmnist.data import Split
from fmnist.experiment import CLASSES, Experiment, StateDict
from parity import formulas
from parity.formulas import RIGHT, Array
from parity.port import shapes

# A power of two times small integers: far enough apart for exp to give 0 and 1 exactly, in float64 too.
GAP = 1024


@dataclass(frozen=True)
class Case:
    """Parameters and a batch."""

    name: str
    experiment: Experiment
    tensors: StateDict
    images: Array
    labels: Array

    @property
    def eps(self) -> float:
        """The precision of the parameters' dtype."""
        return float(np.finfo(next(iter(self.tensors.values())).dtype).eps)

    def cast(self, dtype: type) -> "Case":
        tensors: StateDict = {name: tensor.astype(dtype) for name, tensor in self.tensors.items()}
        return Case(f"{self.name}, {np.dtype(dtype).name}", self.experiment, tensors, self.images, self.labels)


def real(name: str, experiment: Experiment, tensors: StateDict, split: Split, rows: int, first: int = 0) -> Case:
    """Images of the data set, with the labels that belong to them."""
    return Case(name, experiment, tensors, split.images[first : first + rows], split.labels[first : first + rows])


def exact(experiment: Experiment, rows: int = 8) -> Case:
    """Small integers in black and white: all products, ReLUs, softmaxes, losses and gradients are exact in float32.

    The first layer's inputs are 0 and 1; hidden weights are -1, 0 and 1; the last layer's are multiples of 1024, so
    that logits differ by so much that exp underflows to 0, and every probability is 0 or 1. All numbers stay below
    2**24, a mean over 8 rows only shifts their point, and factors of products have at most 11 significant bits, so
    that even TF32 loses none. The first unit's pre-activation is 0 for every image, the second unit is dead, the third
    always alive.
    """
    for attempt in range(1000):
        case = _try_exact(experiment, rows, np.random.RandomState(attempt))
        outputs = formulas.forward(RIGHT, case.cast(np.float64).tensors, case.images, experiment).pre_activations[-1]
        best = np.sort(outputs, axis=1)[:, -2:]
        if np.all(best[:, 1] - best[:, 0] >= GAP) and len(set(outputs.argmax(axis=1))) > 2:
            return case
    raise ValueError(f"no exact fixture without ties for {experiment}")


def _try_exact(experiment: Experiment, rows: int, random: np.random.RandomState) -> Case:
    tensors: StateDict = {}
    names = list(shapes(experiment).items())
    for name, shape in names:
        is_last = name in (names[-2][0], names[-1][0])
        sparse = random.randint(-1, 2, shape) * (random.random_sample(shape) < (1 if len(names) < 6 else 0.4))
        tensors[name] = (random.randint(-3, 4, shape) * GAP if is_last else sparse).astype(np.float32)
    tensors["fc1.weight"][:2], tensors["fc1.bias"][:2] = 0, (0, -2)
    if len(tensors["fc1.bias"]) > 2:
        tensors["fc1.weight"][2] = np.abs(tensors["fc1.weight"][2])
        tensors["fc1.bias"][2] = 1
    images = (random.random_sample((rows, 28, 28)) < random.random_sample((rows, 1, 1)) / 8) * np.uint8(255)
    images[0], images[1, 3:20, 4] = 0, 255
    images[2, :] = 255
    labels = random.permutation(np.arange(rows) % CLASSES).astype(np.int64)
    return Case("exact integers", experiment, tensors, images.astype(np.uint8), labels)


def scaled(case: Case, largest: float) -> Case:
    """The case with a last layer so scaled that the largest logit is about so far from 0."""
    last = formulas.layers(case.tensors)[-1]
    outputs = formulas.forward(RIGHT, case.tensors, case.images, case.experiment).pre_activations[-1]
    factor = np.float32(largest / np.abs(outputs).max())
    tensors = {name: tensor * factor if name.startswith(last) else tensor for name, tensor in case.tensors.items()}
    return Case(f"logits up to {largest:g}", case.experiment, tensors, case.images, case.labels)


def shifted(case: Case, name: str, bias: float) -> Case:
    """The case with a first layer that is dead (bias far below 0) or fully alive (far above)."""
    tensors = {**case.tensors, "fc1.bias": np.full_like(case.tensors["fc1.bias"], bias)}
    return Case(name, case.experiment, tensors, case.images, case.labels)


def with_labels(case: Case, name: str, labels: Array) -> Case:
    return Case(name, case.experiment, case.tensors, case.images, labels.astype(np.int64))


def positions() -> Array:
    """Two images that hold each pixel's place: its row by row index, in base 28."""
    index = np.arange(784).reshape(28, 28)
    return np.stack([index // 28, index % 28]).astype(np.uint8)


def greys() -> Array:
    """256 images, each of one value."""
    return np.broadcast_to(np.arange(256, dtype=np.uint8)[:, None, None], (256, 28, 28)).copy()
