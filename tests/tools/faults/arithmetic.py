"""Wrong arithmetic: formats of fewer bits, exponentials that overflow, and an optimizer with a memory."""

from collections.abc import Callable

import numpy as np

from fmnist.experiment import Experiment, StateDict
from tests.tools.faults import formulas
from tests.tools.faults.formulas import Array


def lower(values: Array, kind: str) -> Array:
    """The values rounded to a format of fewer bits, as accelerators round the factors of a product."""
    if kind == "float16":
        with np.errstate(over="ignore"):
            return values.astype(np.float16).astype(values.dtype)
    bits = 16 if kind == "bfloat16" else 13  # of float32's 23, those that the format does without
    words = np.ascontiguousarray(values, np.float32).view(np.uint32)
    half = np.uint32((1 << (bits - 1)) - 1) + ((words >> np.uint32(bits)) & np.uint32(1))
    mask = np.uint32(0xFFFFFFFF << bits & 0xFFFFFFFF)
    return ((words + half) & mask).view(np.float32).astype(values.dtype)


def lowered_product(kind: str, applies: Callable[[str], bool]) -> Callable[[Array, Array, str], Array]:
    """A product that takes its factors in a format of fewer bits, where it applies."""

    def product(a: Array, b: Array, role: str) -> Array:
        return formulas.product(lower(a, kind), lower(b, kind), role) if applies(role) else a @ b

    return product


def overflowing_softmax(values: Array) -> Array:
    """exp(x) / sum(exp(x)) in float32, without the shift that keeps exp finite."""
    with np.errstate(all="ignore"):
        exponentials = np.exp(values.astype(np.float32))
        return np.asarray(exponentials / exponentials.sum(axis=1, keepdims=True)).astype(values.dtype)


def overflowing_cross_entropy(outputs: Array, labels: Array) -> Array:
    """log(sum(exp(x))) - x[label] in float32, likewise."""
    with np.errstate(all="ignore"):
        log_sum = np.log(np.exp(outputs.astype(np.float32)).sum(axis=1))
        return np.asarray(log_sum - _of_label(outputs, labels)).astype(outputs.dtype)


def coarse_cross_entropy(outputs: Array, labels: Array, kind: str) -> Array:
    """Log-sum-exp whose sum passes through a format of fewer bits."""
    shifted = outputs - outputs.max(axis=1, keepdims=True)
    return np.asarray(np.log(lower(np.exp(shifted).sum(axis=1), kind)) - _of_label(shifted, labels))


def _of_label(values: Array, labels: Array) -> Array:
    return np.asarray(values[np.arange(len(labels)), labels])


def momentum_step(momentum: float, nesterov: bool) -> Callable[..., tuple[StateDict, StateDict]]:
    """SGD with a memory of earlier gradients."""

    def step(
        tensors: StateDict, gradients: StateDict, velocity: StateDict, experiment: Experiment
    ) -> tuple[StateDict, StateDict]:
        velocity = {name: momentum * velocity[name] + gradients[name] for name in tensors}
        ahead = {name: gradients[name] + momentum * velocity[name] for name in tensors} if nesterov else velocity
        rate = tensors["fc1.weight"].dtype.type(experiment.lr)
        return {name: tensors[name] - rate * ahead[name] for name in tensors}, velocity

    return step
