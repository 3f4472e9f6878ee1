"""The experiment's mathematics in NumPy, with gradients derived by hand; every formula can be replaced by another.

As they stand they are a right port; with one of them replaced, what a mistaken port computes.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fmnist.experiment import Experiment, StateDict
from fmnist_jax import torch_rng

Array = NDArray[Any]


def decode(images: Array) -> Array:
    """`ToTensor`, flattened row by row: x / 255 in float32, rounded once."""
    return (images.astype(np.float32) / np.float32(255)).reshape(len(images), -1)


def product(a: Array, b: Array, role: str) -> Array:
    """a @ b; the role says which of the network's products this is: `fc1 forward`, `fc1 weight` or `fc2 input`."""
    return np.asarray(a @ b)


def relu(values: Array, layer: str) -> Array:
    return np.asarray(np.maximum(values, 0))


def relu_slope(values: Array, layer: str) -> Array:
    """The derivative of ReLU, 0 at 0 as in torch (aten/native/cpu/Activation.cpp, threshold_backward)."""
    return np.asarray((values > 0).astype(values.dtype))


def softmax(values: Array) -> Array:
    exponentials = np.exp(values - values.max(axis=1, keepdims=True))
    return np.asarray(exponentials / exponentials.sum(axis=1, keepdims=True))


def softmax_pullback(probabilities: Array, cotangent: Array) -> Array:
    """The cotangent of a softmax's input: p (c - sum(p c))."""
    return np.asarray(probabilities * (cotangent - (probabilities * cotangent).sum(axis=1, keepdims=True)))


def cross_entropy(outputs: Array, labels: Array) -> Array:
    """-log(softmax(outputs)[label]) of every row, by log-sum-exp."""
    shifted = outputs - outputs.max(axis=1, keepdims=True)
    return np.asarray(np.log(np.exp(shifted).sum(axis=1)) - shifted[np.arange(len(labels)), labels])


def cross_entropy_slope(outputs: Array, labels: Array) -> Array:
    """The derivative of `cross_entropy` by outputs: softmax - one-hot."""
    return np.asarray(softmax(outputs) - np.eye(outputs.shape[1], dtype=outputs.dtype)[labels])


def weigh(rows: int, experiment: Experiment) -> float:
    """What a row's loss counts for in the loss of a batch of so many rows: the mean."""
    return 1 / rows


def step(
    tensors: StateDict, gradients: StateDict, velocity: StateDict, experiment: Experiment
) -> tuple[StateDict, StateDict]:
    """SGD: parameter - lr * gradient. The second value is the optimizer's memory, of which this one makes no use."""
    updated = {name: tensor - tensor.dtype.type(experiment.lr) * gradients[name] for name, tensor in tensors.items()}
    return updated, velocity


def batches(rows: int, batch_size: int) -> list[slice]:
    """The batches of an epoch in order, the short last one too."""
    return [slice(start, min(start + batch_size, rows)) for start in range(0, rows, batch_size)]


def same(value: Any, name: str = "") -> Any:
    return value


@dataclass(frozen=True)
class Formulas:
    """One set of formulas."""

    draw: Callable[[Experiment], StateDict] = torch_rng.init
    decode: Callable[[Array], Array] = decode
    product: Callable[[Array, Array, str], Array] = product
    parameter: Callable[[Array, str], Array] = same
    activation: Callable[[Array, str], Array] = relu
    slope: Callable[[Array, str], Array] = relu_slope
    softmax: Callable[[Array], Array] = softmax
    softmax_pullback: Callable[[Array, Array], Array] = softmax_pullback
    applies_softmax: Callable[[Experiment], bool] = lambda experiment: experiment.softmax_output
    labels: Callable[[Array], Array] = same
    cross_entropy: Callable[[Array, Array], Array] = cross_entropy
    cross_entropy_slope: Callable[[Array, Array], Array] = cross_entropy_slope
    weigh_loss: Callable[[int, Experiment], float] = weigh
    weigh_gradient: Callable[[int, Experiment], float] = weigh
    gradient: Callable[[Array, str], Array] = same
    step: Callable[[StateDict, StateDict, StateDict, Experiment], tuple[StateDict, StateDict]] = step
    loss_is_from_before: bool = True
    training_batches: Callable[[int, int], list[slice]] = batches
    test_batches: Callable[[int, int], list[slice]] = batches


RIGHT = Formulas()


@dataclass(frozen=True)
class Pass:
    """What a forward pass computed: every layer's input and pre-activation, and what the network returns."""

    inputs: list[Array]
    pre_activations: list[Array]
    outputs: Array


def layers(tensors: StateDict) -> list[str]:
    """Names of the layers in order."""
    return [name.removesuffix(".weight") for name in tensors if name.endswith(".weight")]


def forward(formulas: Formulas, tensors: StateDict, images: Array, experiment: Experiment) -> Pass:
    """The network over images `uint8 (n, 28, 28)`, in the dtype of the tensors."""
    dtype = next(iter(tensors.values())).dtype
    values, inputs, pre_activations = formulas.decode(images).astype(dtype), [], []
    names = layers(tensors)
    for name in names:
        weight = formulas.parameter(tensors[f"{name}.weight"], f"{name}.weight")
        bias = formulas.parameter(tensors[f"{name}.bias"], f"{name}.bias")
        inputs.append(values)
        pre_activations.append(formulas.product(values, weight.T, f"{name} forward") + bias)
        values = pre_activations[-1] if name == names[-1] else formulas.activation(pre_activations[-1], name)
    return Pass(inputs, pre_activations, formulas.softmax(values) if formulas.applies_softmax(experiment) else values)


def loss(formulas: Formulas, tensors: StateDict, images: Array, labels: Array, experiment: Experiment) -> Any:
    """The batch's loss, a scalar of the dtype of the tensors."""
    outputs = forward(formulas, tensors, images, experiment).outputs
    return _total(formulas, outputs, labels, experiment)


def _total(formulas: Formulas, outputs: Array, labels: Array, experiment: Experiment) -> Any:
    losses = formulas.cross_entropy(outputs, formulas.labels(labels))
    return losses.dtype.type(losses.sum() * losses.dtype.type(formulas.weigh_loss(len(labels), experiment)))


def gradients(
    formulas: Formulas, tensors: StateDict, images: Array, labels: Array, experiment: Experiment
) -> StateDict:
    """The gradient of `loss` by every tensor."""
    return _backward(formulas, tensors, forward(formulas, tensors, images, experiment), labels, experiment)


def _backward(formulas: Formulas, tensors: StateDict, done: Pass, labels: Array, experiment: Experiment) -> StateDict:
    dtype = done.outputs.dtype
    cotangent = formulas.cross_entropy_slope(done.outputs, formulas.labels(labels))
    cotangent = cotangent * dtype.type(formulas.weigh_gradient(len(labels), experiment))
    if formulas.applies_softmax(experiment):
        cotangent = formulas.softmax_pullback(done.outputs, cotangent)
    names, result = layers(tensors), {}
    for index in reversed(range(len(names))):
        name = names[index]
        if index < len(names) - 1:
            cotangent = cotangent * formulas.slope(done.pre_activations[index], name)
        result[f"{name}.weight"] = formulas.product(cotangent.T, done.inputs[index], f"{name} weight")
        result[f"{name}.bias"] = cotangent.sum(axis=0)
        if index:
            weight = formulas.parameter(tensors[f"{name}.weight"], f"{name}.weight")
            cotangent = formulas.product(cotangent, weight, f"{name} input")
    return {name: formulas.gradient(result[name], name) for name in tensors}


@dataclass(frozen=True)
class State:
    """Parameters, and the optimizer's memory."""

    tensors: StateDict
    velocity: StateDict
    experiment: Experiment


def start(tensors: StateDict, experiment: Experiment) -> State:
    return State(
        {name: tensor.copy() for name, tensor in tensors.items()},
        {name: np.zeros_like(tensor) for name, tensor in tensors.items()},
        experiment,
    )


def train_step(formulas: Formulas, state: State, images: Array, labels: Array) -> tuple[State, Any]:
    """The state after one update, and the loss from before it."""
    experiment = state.experiment
    done = forward(formulas, state.tensors, images, experiment)
    before = _total(formulas, done.outputs, labels, experiment)
    slopes = _backward(formulas, state.tensors, done, labels, experiment)
    after = State(*formulas.step(state.tensors, slopes, state.velocity, experiment), experiment)
    if formulas.loss_is_from_before:
        return after, before
    return after, loss(formulas, after.tensors, images, labels, experiment)


def train_epoch(formulas: Formulas, state: State, images: Array, labels: Array) -> tuple[State, Array]:
    """The state after an epoch's updates, and their losses, `(steps,)`."""
    losses = []
    for batch in formulas.training_batches(len(labels), state.experiment.batch_size):
        state, before = train_step(formulas, state, images[batch], labels[batch])
        losses.append(before)
    return state, np.array(losses)


def evaluate(formulas: Formulas, state: State, images: Array, labels: Array) -> tuple[float, float]:
    """The accuracy, and the mean of the batch means of the loss."""
    outputs = forward(formulas, state.tensors, images, state.experiment).outputs
    used = formulas.test_batches(len(labels), state.experiment.batch_size)
    losses = [float(_total(formulas, outputs[batch], labels[batch], state.experiment)) for batch in used]
    correct = sum(int((outputs[batch].argmax(axis=1) == labels[batch]).sum()) for batch in used)
    seen = sum(len(labels[batch]) for batch in used)
    return correct / seen, sum(losses) / len(losses)
