"""Planted faults: right ports with one mistake each, and where the suite has to find it."""

import functools
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from types import SimpleNamespace
from typing import Any

import numpy as np

from fmnist.experiment import Experiment, StateDict
from parity import formulas
from parity.formulas import RIGHT, Array, State
from parity.mistakes import (
    coarse_cross_entropy,
    lower,
    lowered_product,
    momentum_step,
    overflowing_cross_entropy,
    overflowing_softmax,
)
from parity.ports.numpy_port import epoch, numpy_port, step


@dataclass(frozen=True)
class Fault:
    """A mistaken port, the stage at which it first goes wrong, and words of its right explanation.

    Without words no explanation is expected; any that is given all the same is a wrong one.
    """

    name: str
    stage: str
    make: Callable[[], Any]
    words: str | None = None


def wrong(**changes: Any) -> Callable[[], Any]:
    """A NumPy port under other formulas."""
    return lambda: numpy_port(replace(RIGHT, **changes))


def only(function: str, **changes: Any) -> Callable[[], Any]:
    """A right NumPy port of which one function obeys other formulas."""

    def make() -> Any:
        other = getattr(numpy_port(replace(RIGHT, **changes)), function)
        return numpy_port(**{function: other})

    return make


def mirror(**functions: Callable[..., Any]) -> Callable[[], Any]:
    """The JAX port with some functions wrapped: each gets the right port first."""

    def make() -> Any:
        from parity.ports import jax_port

        names = ("init", "decode", "start", "tensors", "logits", "loss", "gradients")
        right = {name: getattr(jax_port, name) for name in (*names, "train_step", "train_epoch", "evaluate")}
        wrapped = {name: functools.partial(function, jax_port) for name, function in functions.items()}
        return SimpleNamespace(**{**right, **wrapped})

    return make


def _scaled(by: Callable[[Array], Array]) -> Callable[[Array], Array]:
    return lambda images: by(images.astype(np.float32)).reshape(len(images), -1)


def _cached_by_shape() -> Any:
    known: dict[Any, Array] = {}

    def decode(jax_port: Any, images: Array) -> Array:
        return known.setdefault(images.shape, jax_port.decode(images)).copy()

    return mirror(decode=decode)()


def _redrawn(change: Callable[[str, Array], Array]) -> Callable[[], Any]:
    return mirror(
        init=lambda jax_port, experiment: {
            name: change(name, tensor) for name, tensor in jax_port.init(experiment).items()
        }
    )


def _restored(change: Callable[[Array], Array]) -> Callable[[], Any]:
    return mirror(
        tensors=lambda jax_port, state: {name: change(tensor) for name, tensor in jax_port.tensors(state).items()}
    )


def _in_place() -> Any:
    """A step that writes into the arrays that the port was started from."""

    def start(tensors: StateDict, experiment: Experiment) -> State:
        return State(tensors, {name: np.zeros_like(tensor) for name, tensor in tensors.items()}, experiment)

    def train_step(state: State, images: Array, labels: Array) -> tuple[State, float]:
        after, loss = step(RIGHT, state, images, labels)
        for name, tensor in state.tensors.items():
            tensor[...] = after.tensors[name]
        return state, loss

    return numpy_port(start=start, train_step=train_step)


def _gives_back() -> Any:
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


def _first_start_wins() -> Any:
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


def _narrow(function: str) -> Callable[[], Any]:
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


def _log_of_small_p(outputs: Array, labels: Array) -> Array:
    p = formulas.softmax(outputs)[np.arange(len(labels)), labels]
    return np.asarray(-np.log(p + p.dtype.type(1e-9)))


def _smoothed(outputs: Array, labels: Array) -> Array:
    every = [formulas.cross_entropy(outputs, np.full_like(labels, label)) for label in range(10)]
    return np.asarray(0.9 * formulas.cross_entropy(outputs, labels) + 0.1 * np.mean(every, axis=0))


def _stepping(change: Callable[[StateDict, StateDict, Experiment], StateDict]) -> dict[str, Any]:
    def step(
        tensors: StateDict, gradients: StateDict, velocity: StateDict, experiment: Experiment
    ) -> tuple[StateDict, StateDict]:
        return change(tensors, gradients, experiment), velocity

    return {"step": step}


def _down(tensor: Array, slope: Array, lr: float) -> Array:
    return np.asarray(tensor - tensor.dtype.type(lr) * slope)


def _content() -> Any:
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


def _later(after: int, factor: float = 0.5, is_global: bool = False) -> Callable[[], Any]:
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
            return {name: _down(tensors[name], gradients[name], lr) for name in tensors}, velocity

        late = numpy_port(replace(RIGHT, step=step))
        late.start = start
        return late

    return make


def _trains_on_tests() -> Any:
    def evaluate(box: SimpleNamespace, images: Array, labels: Array) -> tuple[float, float]:
        result = formulas.evaluate(RIGHT, box.state, images, labels)
        box.state, _ = formulas.train_step(RIGHT, box.state, images, labels)
        return result

    def start(tensors: StateDict, experiment: Experiment) -> SimpleNamespace:
        return SimpleNamespace(state=formulas.start(tensors, experiment))

    return _boxed(start, evaluate=evaluate)


def _only_from(other: Callable[[], Any], function: str) -> Callable[[], Any]:
    """A right NumPy port with one function of another port."""

    def make() -> Any:
        functions: dict[str, Any] = {function: getattr(other(), function)}
        return numpy_port(**functions)

    return make


def _last_of_ties() -> Any:
    def evaluate(state: State, images: Array, labels: Array) -> tuple[float, float]:
        _, loss = formulas.evaluate(RIGHT, state, images, labels)
        outputs = formulas.forward(RIGHT, state.tensors, images, state.experiment).outputs
        return float(np.mean(9 - outputs[:, ::-1].argmax(axis=1) == labels)), loss

    return numpy_port(evaluate=evaluate)


def _tests_cached() -> Any:
    """Test images kept on the device since a call with as many others."""
    kept: dict[int, tuple[Array, Array]] = {}

    def evaluate(state: State, images: Array, labels: Array) -> tuple[float, float]:
        key = (len(labels), state.experiment)
        return formulas.evaluate(RIGHT, state, *kept.setdefault(hash(key), (images.copy(), labels.copy())))

    return numpy_port(evaluate=evaluate)


def _whole(rows: int, size: int) -> list[slice]:
    return formulas.batches(rows - rows % size, size)


def _of_batch_size(rows: int, experiment: Experiment) -> float:
    return 1 / experiment.batch_size


def _gradient(change: Callable[[Array], Array], *names: str) -> dict[str, Any]:
    return {"gradient": lambda value, name: change(value) if not names or name in names else value}


def _leaky(values: Array, layer: str) -> Array:
    return np.where(values > 0, values, values.dtype.type(0.01) * values)


def _frozen_middle(value: Array, name: str) -> Array:
    return np.zeros_like(value) if name.startswith("fc2") and len(value) != 10 else value


def _in_percent(jax_port: Any, state: Any, images: Array, labels: Array) -> tuple[float, float]:
    accuracy, loss = jax_port.evaluate(state, images, labels)
    return 100 * accuracy, loss


def faults() -> Iterator[Fault]:
    """All faults, by stage."""
    f = Fault
    yield f("pixels / 256", "decode", wrong(decode=_scaled(lambda x: x / np.float32(256))), "divided by 256")
    yield f("pixels * (1/255)", "decode", wrong(decode=_scaled(lambda x: x * np.float32(1 / 255))), "by 1/255")
    yield f("pixels unscaled", "decode", wrong(decode=_scaled(lambda x: x)), "not scaled")
    standard = _scaled(lambda x: (x / np.float32(255) - np.float32(0.2860)) / np.float32(0.3530))
    yield f("pixels standardised", "decode", wrong(decode=standard), "standardised")
    columns = wrong(decode=lambda images: formulas.decode(np.ascontiguousarray(images.transpose(0, 2, 1))))
    yield f("columns first", "decode", columns, "column by column")
    yield f("mirrored images", "decode", wrong(decode=lambda images: formulas.decode(images[:, :, ::-1])), "mirrored")
    coarse = wrong(decode=lambda images: lower(formulas.decode(images), "bfloat16"))
    yield f("pixels in bfloat16", "decode", coarse, "bfloat16")
    yield f("pixels cached by shape", "decode", _cached_by_shape)

    zero_bias = _redrawn(lambda name, tensor: np.zeros_like(tensor) if "bias" in name else tensor)
    yield f("biases start at 0", "init", zero_bias, "zero")
    by_columns = _redrawn(lambda name, tensor: np.reshape(tensor, tensor.shape[::-1]).T.copy())
    yield f("drawn as (in, out)", "init", by_columns, "column by column")
    next_seed = mirror(init=lambda port, experiment: port.init(replace(experiment, seed=experiment.seed + 1)))
    yield f("the next seed", "init", next_seed, "seed is off by +1")
    wide = _redrawn(lambda name, tensor: tensor * np.float32(np.sqrt(6)) if "weight" in name else tensor)
    yield f("Kaiming's bound", "init", wide, "Kaiming's bound for ReLU")
    off = _redrawn(lambda name, tensor: np.nextafter(tensor, np.float32(0)))
    yield f("a draw one ulp off", "init", off)

    reshaped = _restored(lambda tensor: np.reshape(tensor.T, tensor.shape) if tensor.ndim == 2 else tensor)
    yield f("given back reshaped", "start", reshaped, "reshaped")
    yield f("kept in float16", "start", _restored(lambda tensor: lower(tensor, "float16")), "float16")
    narrow = _restored(lambda tensor: tensor.astype(np.float32).astype(tensor.dtype))
    yield f("float64 kept in float32", "start", narrow, "float32")
    yield f("steps write into the start", "start", _in_place, "wrote into")
    yield f("the start's memory given back", "start", _gives_back, "returned the memory")
    yield f("a start that was trained on", "start", _first_start_wins)

    linear = wrong(activation=lambda x, layer: x, slope=lambda x, layer: np.ones_like(x))
    yield f("no activation", "logits", linear, "no activation")
    leaky_slope = {"slope": lambda x, layer: np.where(x > 0, 1, x.dtype.type(0.01)).astype(x.dtype)}
    yield f("leaky ReLU", "logits", wrong(activation=_leaky, **leaky_slope), "leaky ReLU of slope 0.01")
    capped = wrong(
        activation=lambda x, layer: np.clip(x, 0, 6), slope=lambda x, layer: ((x > 0) & (x < 6)) * x.dtype.type(1)
    )
    yield f("ReLU6", "logits", capped, "ReLU6")
    unbiased = wrong(parameter=lambda value, name: value * 0 if name == "fc1.bias" else value)
    yield f("no bias in fc1", "logits", unbiased, "the bias of `fc1` is missing")
    kernel = wrong(parameter=lambda v, n: v.reshape(v.shape[::-1]).T if n == "fc1.weight" else v)
    yield f("kernel reshaped", "logits", kernel, "`fc1.weight` is reshaped")
    second = wrong(
        activation=lambda x, layer: x if layer == "fc2" else formulas.relu(x, layer),
        slope=lambda x, layer: np.ones_like(x) if layer == "fc2" else formulas.relu_slope(x, layer),
    )
    yield f("no second activation", "logits", second, "ReLU is missing after `fc2`")
    tf32 = wrong(product=lowered_product("TF32", lambda role: role == "fc1 forward"))
    yield f("TF32 in fc1", "logits", tf32, "TF32")
    bfloat16 = wrong(product=lowered_product("bfloat16", lambda role: role == "fc2 forward"))
    yield f("bfloat16 in fc2", "logits", bfloat16, "bfloat16")
    yield f("softmax_output ignored", "logits", wrong(applies_softmax=lambda experiment: False), "is ignored")
    over_batch = wrong(softmax=lambda values: formulas.softmax(values.T).T)
    yield f("softmax over the batch", "logits", over_batch, "over the batch")
    yield f("softmax that overflows", "logits", wrong(softmax=overflowing_softmax), "exp overflows")
    yield f("float64 logits in float32", "logits", _narrow("logits"), "float32 where float64")

    total = wrong(weigh_loss=lambda rows, e: 1.0, weigh_gradient=lambda rows, e: 1.0)
    yield f("sum for mean", "loss", total, "summed over the batch")
    by_size = wrong(weigh_loss=_of_batch_size, weigh_gradient=_of_batch_size)
    yield f("divided by batch_size", "loss", by_size, "the experiment's batch size")
    yield f("labels off by one", "loss", wrong(labels=lambda labels: (labels + 1) % 10), "labels are off by +1")
    yield f("labels smoothed", "loss", wrong(cross_entropy=_smoothed), "smoothed by 0.1")
    yield f("log(p + 1e-9)", "loss", wrong(cross_entropy=_log_of_small_p), "-log(p + 1e-9)")
    yield f("log-sum-exp that overflows", "loss", wrong(cross_entropy=overflowing_cross_entropy), "exp overflows")
    coarse_sum = wrong(cross_entropy=functools.partial(coarse_cross_entropy, kind="bfloat16"))
    yield f("log-sum-exp in bfloat16", "loss", coarse_sum, "log-sum-exp passes through bfloat16")
    mended = only("loss", applies_softmax=lambda experiment: False)
    yield f("loss ignores softmax_output", "loss", mended, "is ignored")
    yield f("float64 loss in float32", "loss", _narrow("loss"), "float32 where float64")

    half = wrong(slope=lambda x, layer: np.heaviside(x, x.dtype.type(0.5)))
    yield f("jnp.maximum for relu", "gradients", half, "exactly 0 is half")
    yield f("gradient's sign", "gradients", wrong(**_gradient(np.negative)), "wrong sign")
    yield f("fc1.weight frozen", "gradients", wrong(**_gradient(np.zeros_like, "fc1.weight")), "`fc1.weight` is zero")
    backward = wrong(product=lowered_product("bfloat16", lambda role: role.endswith("weight")))
    yield f("kernel gradients in bfloat16", "gradients", backward, "kernels' gradients")
    sized = wrong(weigh_gradient=_of_batch_size)
    yield f("gradient by batch_size", "gradients", sized, "the experiment's batch size")
    through = wrong(softmax_pullback=lambda probabilities, cotangent: cotangent)
    yield f("gradient past the softmax", "gradients", through, "as if it were not there")
    clipped = wrong(**_gradient(lambda values: np.clip(values, -10, 10)))
    yield f("gradient clipped at 10", "gradients", clipped, "clipped to ±10")
    yield f("middle layer frozen", "gradients", wrong(gradient=_frozen_middle), "zero")
    yield f("float64 gradients in float32", "gradients", _narrow("gradients"), "float32 where float64")

    yield f("no update", "update", wrong(**_stepping(lambda t, g, e: t)), "do not change")
    climbs = wrong(**_stepping(lambda t, g, e: {n: _down(t[n], g[n], -e.lr) for n in t}))
    yield f("ascent", "update", climbs, "climbs")
    fixed = wrong(**_stepping(lambda t, g, e: {n: _down(t[n], g[n], 1e-3) for n in t}))
    yield f("lr always 1e-3", "update", fixed, "the rate is always 0.001")
    yield f("momentum", "update", wrong(step=momentum_step(0.9, nesterov=False)), "a momentum of 0.9")
    decay = wrong(**_stepping(lambda t, g, e: {n: _down(t[n], g[n] + t[n].dtype.type(1e-3) * t[n], e.lr) for n in t}))
    yield f("weight decay", "update", decay, "decay by 0.001")
    yield f("loss after the update", "update", wrong(loss_is_from_before=False), "after the update")
    rounded = wrong(**_stepping(lambda t, g, e: {n: _down(t[n], g[n], float(np.float32(e.lr))) for n in t}))
    yield f("lr in float32", "update", rounded, "passes through float32")
    short = only("train_step", weigh_gradient=_of_batch_size)
    yield f("step by batch_size", "update", short, "the experiment's batch size")
    top = wrong(**_stepping(lambda t, g, e: {n: t[n] if "fc1" in n else _down(t[n], g[n], e.lr) for n in t}))
    yield f("fc1 never updated", "update", top, "`fc1`")

    yield f("tail dropped", "epoch", wrong(training_batches=_whole), "last batch is dropped")
    backwards = wrong(training_batches=lambda rows, size: formulas.batches(rows, size)[::-1])
    yield f("batches backwards", "epoch", backwards, "reverse order")
    always = wrong(training_batches=lambda rows, size: formulas.batches(rows, 64))
    yield f("batches always of 64", "epoch", always, "batches are of 64")
    filled = wrong(
        training_batches=lambda rows, size: [
            *_whole(rows, size),
            *([slice(max(rows - size, 0), rows)] * (rows % size > 0)),
        ]
    )
    yield f("tail filled up", "epoch", filled, "filled up")
    yield f(
        "epoch ignores lr",
        "epoch",
        only("train_epoch", **_stepping(lambda t, g, e: {n: _down(t[n], g[n], 1e-3) for n in t})),
        "the rate is always 0.001",
    )
    yield f("float64 epoch in float32", "epoch", _narrow("train_epoch"), "float32 where float64")

    yield f(
        "test tail dropped",
        "evaluate",
        wrong(test_batches=lambda rows, size: _whole(rows, size) or [slice(0, rows)]),
        "last batch is dropped",
    )
    flat = wrong(test_batches=lambda rows, size: [slice(0, rows)])
    yield f("mean over images", "evaluate", flat, "over images instead of batches")
    tests = wrong(test_batches=lambda rows, size: formulas.batches(rows, 64))
    yield f("tests always in 64", "evaluate", tests, "batches are of 64")
    yield f("accuracy in percent", "evaluate", mirror(evaluate=_in_percent), "100 times")
    plain = only("evaluate", applies_softmax=lambda experiment: False)
    yield f("tests ignore softmax_output", "evaluate", plain, "is ignored")
    yield f("trains on the tests", "evaluate", _trains_on_tests)

    deep = wrong(
        activation=lambda x, layer: x if layer == "fc2" else formulas.relu(x, layer),
    )
    yield f("tests skip the second ReLU", "evaluate", _only_from(deep, "evaluate"), "missing after `fc2`")
    yield f("ties go to the last class", "evaluate", _last_of_ties)
    yield f("float64 tests in float32", "evaluate", _narrow("evaluate"), "float32")
    yield f("tests cached by shape", "evaluate", _tests_cached)

    yield f("no update below a loss of 0.8", "trajectory", _content, "does not change")
    yield f("rate halved after 5,000 steps", "trajectory", _later(5000))
    yield f("updates stop after 15,000 steps", "trajectory", _later(15_000, factor=0.0))
    yield f("rate halved in a later run", "trends", _later(40_000, is_global=True))
