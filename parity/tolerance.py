"""What rounding allows: running error bounds for every quantity, from the values that are added up.

A sum of products A B that is computed in floating point, in any order, errs by at most a small multiple of
eps (|A| |B|), component by component (Higham, Accuracy and Stability of Numerical Algorithms, chapter 3; LAPACK's tests
judge by such ratios). Here that unit is carried through the network: each product adds its own, and hands on those of
its factors to first order. No bound grows with the number of terms: errors of blocked or random-like sums do not.
"""

from dataclasses import dataclass
from typing import Any

import numpy as np

from fmnist.experiment import Experiment, StateDict
from parity import formulas
from parity.formulas import RIGHT, Array

# How many units a right port may err by. Ports that differ only in the order of their sums were seen to use at most
# about a third of this: `python -m tests.tools.false_alarms` prints the shares.
SLACK = 4.0


@dataclass(frozen=True)
class Limits:
    """One unit of rounding error for each quantity, in float64, of the quantity's shape."""

    logits: Array
    loss: Array
    losses: Array
    gradients: StateDict
    update: StateDict


def limits(tensors: StateDict, images: Array, labels: Array, experiment: Experiment) -> Limits:
    """The units of a computation in the dtype of the tensors."""
    info = np.finfo(next(iter(tensors.values())).dtype)
    eps, tiny = float(info.eps), float(info.tiny)
    exact = {name: tensor.astype(np.float64) for name, tensor in tensors.items()}
    done = formulas.forward(RIGHT, exact, images, experiment)
    names = formulas.layers(exact)

    # Forward: the error of every layer's input, and of what the network returns.
    input_errors, activation_errors = [np.zeros_like(done.inputs[0])], []
    for name, inputs, values in zip(names, done.inputs, done.pre_activations, strict=True):
        weight, bias = np.abs(exact[f"{name}.weight"]), np.abs(exact[f"{name}.bias"])
        error = input_errors[-1] @ weight.T + eps * (np.abs(inputs) @ weight.T + bias)
        activation_errors.append(error)
        input_errors.append(np.where(values > -SLACK * error, error, 0))
    output_error = activation_errors[-1]
    if experiment.softmax_output:
        output_error = _softmax_error(done.pre_activations[-1], output_error, eps)
    output_error = output_error + tiny

    # The loss of every row, and their mean.
    outputs, rows = done.outputs, np.arange(len(labels))
    probabilities, losses = formulas.softmax(outputs), formulas.cross_entropy(outputs, labels)
    largest, of_label = outputs.max(axis=1), outputs[rows, labels]
    log_sum = losses + of_label - largest
    loss_errors = output_error[rows, labels] + (probabilities * output_error).sum(axis=1)
    loss_errors = loss_errors + eps * (np.abs(of_label) + np.abs(largest) + np.abs(losses) + np.abs(log_sum) + 1)
    loss_error = loss_errors.mean() + eps * np.abs(losses).mean()

    # Backward: the cotangent of every layer's output, from the last to the first.
    cotangent = formulas.cross_entropy_slope(outputs, labels) / len(labels)
    error = (_softmax_error(outputs, output_error, eps) + eps * np.eye(10)[labels]) / len(labels)
    error = error + eps * np.abs(cotangent)
    if experiment.softmax_output:
        error = _pullback_error(outputs, output_error, cotangent, error, eps)
        cotangent = formulas.softmax_pullback(outputs, cotangent)
    gradients = {}
    for index in reversed(range(len(names))):
        name, inputs, values = names[index], np.abs(done.inputs[index]), done.pre_activations[index]
        if index < len(names) - 1:
            # A pre-activation within rounding of 0 may fall on either side, and pass the cotangent or not.
            unsure = (np.abs(values) <= SLACK * activation_errors[index]) & (activation_errors[index] > 0)
            error = np.where(unsure, np.abs(cotangent) / SLACK + error, error * (values > 0))
            cotangent = cotangent * formulas.relu_slope(values, name)
        size = np.abs(cotangent)
        gradients[f"{name}.weight"] = error.T @ inputs + size.T @ input_errors[index] + eps * (size.T @ inputs) + tiny
        gradients[f"{name}.bias"] = error.sum(axis=0) + eps * size.sum(axis=0) + tiny
        weight = np.abs(exact[f"{name}.weight"])
        cotangent, error = cotangent @ exact[f"{name}.weight"], error @ weight + eps * (size @ weight)

    slopes = formulas.gradients(RIGHT, exact, images, labels, experiment)
    update = {
        name: experiment.lr * gradients[name] + eps * (np.abs(tensor) + experiment.lr * np.abs(slopes[name]))
        for name, tensor in exact.items()
    }
    return Limits(output_error, np.asarray(loss_error), loss_errors, gradients, update)


def _softmax_error(values: Array, error: Array, eps: float) -> Array:
    """The error of softmax(values): its derivative by the values' errors, and the rounding of exp, sum and division."""
    probabilities = formulas.softmax(values)
    spread = values.max(axis=1, keepdims=True) - values
    handed_on = error + (probabilities * error).sum(axis=1, keepdims=True)
    return np.asarray(probabilities * (handed_on + eps * (spread + 3)))


def _pullback_error(probabilities: Array, errors: Array, cotangent: Array, cotangent_error: Array, eps: float) -> Array:
    """The error of p (c - sum(p c))."""

    def total(values: Array) -> Any:
        return values.sum(axis=1, keepdims=True)

    size = np.abs(cotangent)
    by_probabilities = errors * (size + total(probabilities * size)) + probabilities * total(errors * size)
    by_cotangent = probabilities * (cotangent_error + total(probabilities * cotangent_error))
    return np.asarray(by_probabilities + by_cotangent + eps * probabilities * (size + 2 * total(probabilities * size)))


def perturb(tensors: StateDict, seed: int) -> StateDict:
    """The tensors with every entry moved by one ulp, up or down at random."""
    random = np.random.RandomState(seed)
    moved = {}
    for name, tensor in tensors.items():
        # In the tensor's own dtype: a float64 infinity would make the step one of float64, lost in the cast.
        towards = np.where(random.randint(0, 2, tensor.shape) == 1, np.inf, -np.inf).astype(tensor.dtype)
        moved[name] = np.nextafter(tensor, towards)
    return moved
