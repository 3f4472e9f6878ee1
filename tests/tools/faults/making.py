"""How ports with one mistake each are made of right ones."""

from collections.abc import Callable
from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import numpy as np

from fmnist.experiment import Experiment, StateDict
from tests.tools.faults import formulas
from tests.tools.faults.formulas import RIGHT, Array, State
from tests.tools.faults.numpy_port import epoch, numpy_port, step


def wrong(**changes: Any) -> Callable[[], Any]:
    """A NumPy port under other formulas."""
    return lambda: numpy_port(replace(RIGHT, **changes))


def only(function: str, **changes: Any) -> Callable[[], Any]:
    """A right NumPy port of which one function obeys other formulas."""

    def make() -> Any:
        other = getattr(numpy_port(replace(RIGHT, **changes)), function)
        return numpy_port(**{function: other})

    return make


def scaled(by: Callable[[Array], Array]) -> Callable[[Array], Array]:
    return lambda images: by(images.astype(np.float32)).reshape(len(images), -1)


def cached_by_shape() -> Any:
    known: dict[Any, Array] = {}

    def decode(images: Array) -> Array:
        return known.setdefault(images.shape, formulas.decode(images)).copy()

    return numpy_port(decode=decode)


def redrawn(change: Callable[[str, Array], Array]) -> Callable[[], Any]:
    return wrong(draw=lambda experiment: {name: change(name, one) for name, one in RIGHT.draw(experiment).items()})


def restored(change: Callable[[Array], Array]) -> Callable[[], Any]:
    return lambda: numpy_port(
        tensors=lambda state: {name: change(tensor.copy()) for name, tensor in state.tensors.items()}
    )


def in_place() -> Any:
    """A step that writes into the arrays that the port was started from."""

    def start(tensors: StateDict, experiment: Experiment) -> State:
        return State(tensors, {name: np.zeros_like(tensor) for name, tensor in tensors.items()}, experiment)

    def train_step(state: State, images: Array, labels: Array) -> tuple[State, float]:
        after, loss = step(RIGHT, state, images, labels)
        for name, tensor in state.tensors.items():
            tensor[...] = after.tensors[name]
        return state, loss

    return numpy_port(start=start, train_step=train_step)


def gives_back() -> Any:
    def start(tensors: StateDict, experiment: Experiment) -> State:
        return State(tensors, {name: np.zeros_like(tensor) for name, tensor in tensors.items()}, experiment)

    return numpy_port(start=start, tensors=lambda state: dict(state.tensors))


def _boxed(start: Callable[[StateDict, Experiment], SimpleNamespace], **functions: Any) -> Any:
    """A right port whose states are boxes that training changes in place, and a `start` that fills them."""

    def train(function: Callable[..., Any]) -> Callable[..., Any]:
        def trained(box: SimpleNamespace, images: Array, labels: Array) -> tuple[SimpleNamespace, Any]:
            box.state, losses = function(RIGHT, box.state, images, labels)
            return box, losses

        return trained

    right = numpy_port()
    looks: dict[str, Any] = {
        name: lambda box, *batch, name=name: getattr(right, name)(box.state, *batch)
        for name in ("tensors", "logits", "loss", "gradients", "evaluate")
    }
    return numpy_port(**{**looks, "start": start, "train_step": train(step), "train_epoch": train(epoch), **functions})


def first_start_wins() -> Any:
    """A cache of starts that is keyed by the experiment and forgets that its state was trained on."""
    held: dict[Experiment, SimpleNamespace] = {}

    def start(tensors: StateDict, experiment: Experiment) -> SimpleNamespace:
        box = held.setdefault(experiment, SimpleNamespace(state=None, given=None))
        fresh = {name: tensor.copy() for name, tensor in tensors.items()}
        same = box.given is not None and all(
            box.given[name].dtype == tensor.dtype and np.array_equal(box.given[name], tensor)
            for name, tensor in fresh.items()
        )
        if not same:
            box.state, box.given = formulas.start(tensors, experiment), fresh
        return box

    return _boxed(start)


def narrow(function: str) -> Callable[[], Any]:
    """One function computes in float32 whatever it is given."""

    def make() -> Any:
        right = numpy_port()

        def narrowed(state: State, *batch: Array) -> Any:
            dtype = state.tensors["fc1.weight"].dtype
            narrow = State(_cast(state.tensors, np.float32), _cast(state.velocity, np.float32), state.experiment)
            return _widen(getattr(right, function)(narrow, *batch), dtype)

        functions: dict[str, Any] = {function: narrowed}
        return numpy_port(**functions)

    return make


def _cast(tensors: StateDict, dtype: Any) -> StateDict:
    return {name: tensor.astype(dtype) for name, tensor in tensors.items()}


def _widen(value: Any, dtype: Any) -> Any:
    if isinstance(value, State):
        return State(_cast(value.tensors, dtype), _cast(value.velocity, dtype), value.experiment)
    if isinstance(value, dict):
        return _cast(value, dtype)
    if isinstance(value, tuple):
        return tuple(_widen(part, dtype) for part in value)
    return value.astype(dtype) if isinstance(value, np.ndarray) else value


def log_of_small_p(outputs: Array, labels: Array) -> Array:
    p = formulas.softmax(outputs)[np.arange(len(labels)), labels]
    return np.asarray(-np.log(p + p.dtype.type(1e-9)))


def smoothed(outputs: Array, labels: Array) -> Array:
    every = [formulas.cross_entropy(outputs, np.full_like(labels, label)) for label in range(10)]
    return np.asarray(0.9 * formulas.cross_entropy(outputs, labels) + 0.1 * np.mean(every, axis=0))


def stepping(change: Callable[[StateDict, StateDict, Experiment], StateDict]) -> dict[str, Any]:
    def step(
        tensors: StateDict, gradients: StateDict, velocity: StateDict, experiment: Experiment
    ) -> tuple[StateDict, StateDict]:
        return change(tensors, gradients, experiment), velocity

    return {"step": step}


def down(tensor: Array, slope: Array, lr: float) -> Array:
    return np.asarray(tensor - tensor.dtype.type(lr) * slope)


def content() -> Any:
    """Early stopping that looks at single batches: no update where the loss is small."""

    def train_step(state: State, images: Array, labels: Array) -> tuple[State, float]:
        after, loss = step(RIGHT, state, images, labels)
        return (state if loss < 0.8 else after), loss

    def train_epoch(state: State, images: Array, labels: Array) -> tuple[State, Array]:
        losses = []
        for batch in formulas.batches(len(labels), state.experiment.batch_size):
            state, loss = train_step(state, images[batch], labels[batch])
            losses.append(loss)
        return state, np.array(losses, state.tensors["fc1.weight"].dtype)

    return numpy_port(train_step=train_step, train_epoch=train_epoch)


def later(after: int, factor: float = 0.5, is_global: bool = False) -> Callable[[], Any]:
    """A rate that changes by a factor after so many steps, of a run or, kept in a global, of the process."""

    def make() -> Any:
        count = SimpleNamespace(steps=0)

        def start(tensors: StateDict, experiment: Experiment) -> State:
            if not is_global:
                count.steps = 0
            return formulas.start(tensors, experiment)

        def step(
            tensors: StateDict, gradients: StateDict, velocity: StateDict, experiment: Experiment
        ) -> tuple[StateDict, StateDict]:
            count.steps += 1
            lr = experiment.lr * (factor if count.steps > after else 1)
            return {name: down(tensors[name], gradients[name], lr) for name in tensors}, velocity

        late = numpy_port(replace(RIGHT, step=step))
        late.start = start
        return late

    return make


def trains_on_tests() -> Any:
    def evaluate(box: SimpleNamespace, images: Array, labels: Array) -> tuple[float, float]:
        result = formulas.evaluate(RIGHT, box.state, images, labels)
        box.state, _ = formulas.train_step(RIGHT, box.state, images, labels)
        return result

    def start(tensors: StateDict, experiment: Experiment) -> SimpleNamespace:
        return SimpleNamespace(state=formulas.start(tensors, experiment))

    return _boxed(start, evaluate=evaluate)


def only_from(other: Callable[[], Any], function: str) -> Callable[[], Any]:
    """A right NumPy port with one function of another port."""

    def make() -> Any:
        functions: dict[str, Any] = {function: getattr(other(), function)}
        return numpy_port(**functions)

    return make


def last_of_ties() -> Any:
    def evaluate(state: State, images: Array, labels: Array) -> tuple[float, float]:
        _, loss = formulas.evaluate(RIGHT, state, images, labels)
        outputs = formulas.forward(RIGHT, state.tensors, images, state.experiment).outputs
        return float(np.mean(9 - outputs[:, ::-1].argmax(axis=1) == labels)), loss

    return numpy_port(evaluate=evaluate)


def tests_cached() -> Any:
    """Test images kept on the device since a call with as many others."""
    kept: dict[int, tuple[Array, Array]] = {}

    def evaluate(state: State, images: Array, labels: Array) -> tuple[float, float]:
        key = (len(labels), state.experiment)
        return formulas.evaluate(RIGHT, state, *kept.setdefault(hash(key), (images.copy(), labels.copy())))

    return numpy_port(evaluate=evaluate)


def whole(rows: int, size: int) -> list[slice]:
    return formulas.batches(rows - rows % size, size)


def of_batch_size(rows: int, experiment: Experiment) -> float:
    return 1 / experiment.batch_size


def gradient(change: Callable[[Array], Array], *names: str) -> dict[str, Any]:
    return {"gradient": lambda value, name: change(value) if not names or name in names else value}


def leaky(values: Array, layer: str) -> Array:
    return np.where(values > 0, values, values.dtype.type(0.01) * values)


def frozen_middle(value: Array, name: str) -> Array:
    return np.zeros_like(value) if name.startswith("fc2") and len(value) != 10 else value


def in_percent(state: State, images: Array, labels: Array) -> tuple[float, float]:
    accuracy, loss = formulas.evaluate(RIGHT, state, images, labels)
    return 100 * accuracy, loss
