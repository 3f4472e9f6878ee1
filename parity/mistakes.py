"""The mistakes that port authors make, as formulas: the hypotheses of the diagnosis."""

import functools
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from fmnist.experiment import Experiment, StateDict
from parity import formulas
from parity.formulas import RIGHT, Array, Formulas


@dataclass(frozen=True)
class Explanation:
    """A mistake in words, and what it computes."""

    text: str
    formulas: Formulas
    is_of_precision: bool = False


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


def explanations(names: Sequence[str], stage: str) -> Iterator[Explanation]:
    """All mistakes known, those first that are looked for first in the stage."""
    groups = [_drawing(), _decoding(), _activations(), _layouts(), _outputs(), _losses(stage), _backward(names)]
    training = [_updates(), _batching(stage)]
    first = {"update": training, "epoch": training[::-1], "evaluate": training[::-1], "trajectory": training}
    for group in [*first.get(stage, []), *groups, *([] if stage in first else training)]:
        for text, changes in group:
            yield Explanation(text, replace(RIGHT, **changes))
    for text, changes in _precisions():
        yield Explanation(text, replace(RIGHT, **changes), is_of_precision=True)


Mistakes = Iterator[tuple[str, dict[str, Any]]]


def _drawing() -> Mistakes:
    def drawn(change: Callable[[str, Array, Experiment], Array]) -> dict[str, Any]:
        return {
            "draw": lambda experiment: {
                name: change(name, tensor, experiment) for name, tensor in RIGHT.draw(experiment).items()
            }
        }

    def glorot(name: str, tensor: Array, experiment: Experiment) -> Array:
        return tensor if tensor.ndim < 2 else tensor * np.sqrt(6 * tensor.shape[1] / sum(tensor.shape))

    for shift in (1, -1):
        yield (
            f"the seed is off by {shift:+d}",
            {"draw": lambda e, shift=shift: RIGHT.draw(replace(e, seed=(e.seed + shift) % 2**64))},
        )
    yield (
        "weights are drawn within Kaiming's bound for ReLU, which is sqrt(6) times that of `nn.Linear`",
        drawn(lambda name, tensor, experiment: tensor * np.sqrt(6) if tensor.ndim == 2 else tensor),
    )
    yield "weights are drawn within Glorot's bound", drawn(glorot)
    yield "biases are zero", drawn(lambda name, tensor, experiment: tensor if tensor.ndim == 2 else 0 * tensor)


def _decoding() -> Mistakes:
    def scaled(by: Callable[[Array], Array]) -> dict[str, Any]:
        return {"decode": lambda images: by(images.astype(np.float32)).reshape(len(images), -1)}

    yield "pixels are multiplied by 1/255 instead of divided by 255", scaled(lambda x: x * np.float32(1 / 255))
    yield "pixels are divided by 256 instead of 255", scaled(lambda x: x / np.float32(256))
    yield "pixels are not scaled to 0..1", scaled(lambda x: x)
    yield "pixels are scaled to -1..1", scaled(lambda x: (x / np.float32(255) - np.float32(0.5)) / np.float32(0.5))
    yield (
        "pixels are standardised by mean 0.2860 and deviation 0.3530",
        scaled(lambda x: (x / np.float32(255) - np.float32(0.2860)) / np.float32(0.3530)),
    )
    yield "pixels are inverted, 1 - x", scaled(lambda x: 1 - x / np.float32(255))
    yield (
        "images are flattened column by column",
        {"decode": lambda images: formulas.decode(np.ascontiguousarray(images.transpose(0, 2, 1)))},
    )
    yield "images are mirrored", {"decode": lambda images: formulas.decode(images[:, :, ::-1])}
    yield "images stand on their heads", {"decode": lambda images: formulas.decode(images[:, ::-1])}
    for kind in ("bfloat16", "float16"):
        yield f"pixels pass through {kind}", {"decode": lambda images, kind=kind: lower(formulas.decode(images), kind)}


def _sigmoid(values: Array) -> Array:
    return np.asarray(1 / (1 + np.exp(-values)))


def _leaky(values: Array, leak: float) -> Array:
    return np.where(values > 0, values, leak * values)


def _leaky_slope(values: Array, leak: float) -> Array:
    return np.where(values > 0, 1.0, leak)


def _gelu_slope(values: Array) -> Array:
    inner = np.sqrt(2 / np.pi) * (values + 0.044715 * values**3)
    tanh = np.tanh(inner)
    slope = 0.5 * values * (1 - tanh**2) * np.sqrt(2 / np.pi) * (1 + 3 * 0.044715 * values**2)
    return np.asarray(0.5 * (1 + tanh) + slope)


def _exact_gelu(values: Array) -> tuple[Array, Array]:
    from scipy.special import erf

    normal = 0.5 * (1 + erf(values / np.sqrt(2)))
    return values * normal, normal + values * np.exp(-(values**2) / 2) / np.sqrt(2 * np.pi)


def _activations() -> Mistakes:
    def activation(value: Callable[[Array], Array], slope: Callable[[Array], Array]) -> dict[str, Any]:
        return {"activation": lambda values, layer: value(values), "slope": lambda values, layer: slope(values)}

    yield (
        "the gradient at pre-activations that are exactly 0 is half of what it is above: `jnp.maximum` for `relu`?",
        {"slope": lambda values, layer: np.heaviside(values, 0.5)},
    )
    yield (
        "the gradient passes pre-activations that are exactly 0: `>=` for `>` in ReLU's derivative?",
        {"slope": lambda values, layer: np.heaviside(values, 1.0)},
    )
    yield "there is no activation between the layers", activation(formulas.same, np.ones_like)
    for leak in (0.01, 0.1, 0.2):
        yield (
            f"leaky ReLU of slope {leak} instead of ReLU",
            activation(functools.partial(_leaky, leak=leak), functools.partial(_leaky_slope, leak=leak)),
        )
    yield "ReLU6 instead of ReLU", activation(lambda x: np.clip(x, 0, 6), lambda x: ((x > 0) & (x < 6)) * 1.0)
    yield "tanh instead of ReLU", activation(np.tanh, lambda x: 1 - np.tanh(x) ** 2)
    yield "sigmoid instead of ReLU", activation(_sigmoid, lambda x: _sigmoid(x) * (1 - _sigmoid(x)))
    yield "softplus instead of ReLU", activation(lambda x: np.logaddexp(x, 0), _sigmoid)
    yield (
        "SiLU instead of ReLU",
        activation(lambda x: x * _sigmoid(x), lambda x: _sigmoid(x) * (1 + x * (1 - _sigmoid(x)))),
    )
    yield (
        "ELU instead of ReLU",
        activation(lambda x: np.where(x > 0, x, np.expm1(x)), lambda x: np.where(x > 0, 1.0, np.exp(x))),
    )
    yield (
        "GELU (tanh) instead of ReLU",
        activation(
            lambda x: 0.5 * x * (1 + np.tanh(np.sqrt(2 / np.pi) * (x + 0.044715 * x**3))),
            _gelu_slope,
        ),
    )
    yield "GELU instead of ReLU", activation(lambda x: _exact_gelu(x)[0], lambda x: _exact_gelu(x)[1])
    yield "the absolute value instead of ReLU", activation(np.abs, np.sign)
    for layer in ("fc1", "fc2", "fc3"):
        yield (
            f"ReLU is missing after `{layer}`",
            {
                "activation": lambda x, at, layer=layer: x if at == layer else formulas.relu(x, at),
                "slope": lambda x, at, layer=layer: np.ones_like(x) if at == layer else formulas.relu_slope(x, at),
            },
        )


def _layouts() -> Mistakes:
    def parameter(change: Callable[[Array], Array], *which: str) -> dict[str, Any]:
        return {"parameter": lambda value, name: change(value) if name.endswith(which) else value}

    yield "all biases are missing", parameter(np.zeros_like, ".bias")
    for layer in ("fc1", "fc2", "fc3", "fc4"):
        yield f"the bias of `{layer}` is missing", parameter(np.zeros_like, f"{layer}.bias")
        yield f"the bias of `{layer}` is subtracted", parameter(np.negative, f"{layer}.bias")
        yield f"the bias of `{layer}` is added twice", parameter(lambda values: 2 * values, f"{layer}.bias")
    yield "weights are reshaped to (in, out) where they have to be transposed", parameter(_reshaped_kernel, ".weight")
    for layer in ("fc1", "fc2", "fc3"):
        yield (
            f"`{layer}.weight` is reshaped to (in, out) where it has to be transposed",
            parameter(_reshaped_kernel, f"{layer}.weight"),
        )
        yield f"`{layer}.weight` runs through its rows backwards", parameter(lambda x: x[::-1], f"{layer}.weight")
        yield (
            f"`{layer}.weight`, which is square, is not transposed",
            parameter(lambda x: x.T if x.shape[0] == x.shape[1] else x, f"{layer}.weight"),
        )


def _reshaped_kernel(weight: Array) -> Array:
    return weight.reshape(weight.shape[::-1]).T


def _outputs() -> Mistakes:
    yield "`softmax_output` is ignored: no softmax is applied", {"applies_softmax": lambda experiment: False}
    yield "a softmax is applied that was not asked for", {"applies_softmax": lambda experiment: True}
    yield (
        "the softmax runs over the batch instead of the classes",
        {"softmax": lambda values: formulas.softmax(values.T).T},
    )
    yield (
        "exp overflows in the softmax: the largest value of a row has to be subtracted first",
        {"softmax": overflowing_softmax},
    )
    yield "the log of the softmax is returned", {"softmax": lambda values: np.log(formulas.softmax(values))}
    yield (
        "the gradient passes the softmax as if it were not there",
        {"softmax_pullback": lambda probabilities, cotangent: cotangent},
    )
    yield (
        "the gradient of the softmax keeps its diagonal only",
        {"softmax_pullback": lambda probabilities, cotangent: probabilities * (1 - probabilities) * cotangent},
    )


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


def _losses(stage: str) -> Mistakes:
    def by_rows(rows: int, experiment: Experiment) -> float:
        return 1 / experiment.batch_size

    sums: list[tuple[str, Callable[[int, Experiment], float]]] = [
        ("summed over the batch instead of averaged", lambda rows, experiment: 1.0),
        ("divided by the experiment's batch size instead of the rows of the batch", by_rows),
        ("averaged over classes, too: 1/10 of what it should be", lambda rows, experiment: 0.1 / rows),
        ("divided by one row too few", lambda rows, experiment: 1 / max(rows - 1, 1)),
        ("half of the mean", lambda rows, experiment: 0.5 / rows),
    ]
    for text, weigh in sums:
        if stage in ("loss", "evaluate"):
            yield f"the loss is {text}", {"weigh_loss": weigh}
        else:
            yield f"the gradient is {text}", {"weigh_gradient": weigh}
            yield f"the loss and its gradient are {text}", {"weigh_loss": weigh, "weigh_gradient": weigh}
    for shift in (1, -1):
        yield f"labels are off by {shift:+d}", {"labels": lambda labels, shift=shift: (labels + shift) % 10}
    yield "labels belong to the next image", {"labels": lambda labels: np.roll(labels, -1)}
    yield "labels belong to the image before", {"labels": lambda labels: np.roll(labels, 1)}
    yield (
        "the loss takes what the network returns for probabilities: -log p instead of softmax cross-entropy",
        {
            "cross_entropy": lambda outputs, labels: -np.log(_of_label(outputs, labels)),
            "cross_entropy_slope": lambda outputs, labels: -np.eye(10)[labels] / outputs,
        },
    )
    yield (
        "the loss is -p instead of -log p",
        {"cross_entropy": lambda outputs, labels: -_of_label(formulas.softmax(outputs), labels)},
    )
    yield (
        "the loss is in bits instead of nats",
        {
            "cross_entropy": lambda outputs, labels: formulas.cross_entropy(outputs, labels) / np.log(2),
            "cross_entropy_slope": lambda outputs, labels: formulas.cross_entropy_slope(outputs, labels) / np.log(2),
        },
    )
    yield (
        "exp overflows in the loss: the largest value of a row has to be subtracted first",
        {"cross_entropy": overflowing_cross_entropy},
    )
    for smoothing in (0.1, 0.05, 0.2):
        yield (
            f"labels are smoothed by {smoothing}",
            {
                "cross_entropy": lambda outputs, labels, s=smoothing: (
                    (1 - s) * formulas.cross_entropy(outputs, labels)
                    + s * np.mean([formulas.cross_entropy(outputs, np.full_like(labels, c)) for c in range(10)], axis=0)
                ),
                "cross_entropy_slope": lambda outputs, labels, s=smoothing: (
                    formulas.softmax(outputs) - (1 - s) * np.eye(10)[labels] - s / 10
                ),
            },
        )
    for power in range(5, 17):
        small = 10.0**-power
        yield (
            f"the loss is -log(p + 1e-{power})",
            {"cross_entropy": lambda o, labels, e=small: -np.log(_of_label(formulas.softmax(o), labels) + e)},
        )
        yield (
            f"probabilities are clipped at 1e-{power} in the loss",
            {
                "cross_entropy": lambda o, labels, e=small: (
                    -np.log(np.maximum(_of_label(formulas.softmax(o), labels), e))
                )
            },
        )
    for bound in (10.0, 20.0, 30.0, 50.0, 80.0, 88.0, 100.0):
        yield (
            f"logits are clipped to ±{bound:g} in the loss",
            {"cross_entropy": lambda o, labels, b=bound: formulas.cross_entropy(np.clip(o, -b, b), labels)},
        )


def _precisions() -> Mistakes:
    parts: list[tuple[str, Callable[[str], bool]]] = [
        ("the matrix products of the forward pass", lambda role: role.endswith("forward")),
        ("the matrix products of the backward pass", lambda role: not role.endswith("forward")),
        ("the matrix products of the kernels' gradients", lambda role: role.endswith("weight")),
        ("the matrix products that hand the gradient back", lambda role: role.endswith("input")),
        *(
            (f"the backward matrix products of `{layer}`", lambda r, at=layer: r in (f"{at} weight", f"{at} input"))
            for layer in ("fc1", "fc2", "fc3")
        ),
        *(
            (f"the forward matrix product of `{layer}`", lambda role, layer=layer: role == f"{layer} forward")
            for layer in ("fc1", "fc2", "fc3")
        ),
    ]
    for kind in ("TF32", "bfloat16", "float16"):
        coarse = functools.partial(coarse_cross_entropy, kind=kind)
        yield f"the sum of the loss's log-sum-exp passes through {kind}", {"cross_entropy": coarse}
        for text, applies in parts:
            yield f"{text}: factors are rounded to {kind}", {"product": lowered_product(kind, applies)}


def lowered_product(kind: str, applies: Callable[[str], bool]) -> Callable[[Array, Array, str], Array]:
    """A product that takes its factors in a format of fewer bits, where it applies."""

    def product(a: Array, b: Array, role: str) -> Array:
        return formulas.product(lower(a, kind), lower(b, kind), role) if applies(role) else a @ b

    return product


def _backward(names: Sequence[str]) -> Mistakes:
    def gradient(change: Callable[[Array], Array], applies: Callable[[str], bool]) -> dict[str, Any]:
        return {"gradient": lambda value, name: change(value) if applies(name) else value}

    yield "the gradient has the wrong sign", gradient(np.negative, lambda name: True)
    for name in names:
        yield f"the gradient of `{name}` is zero: a frozen tensor?", gradient(np.zeros_like, name.__eq__)
        yield f"the gradient of `{name}` has the wrong sign", gradient(np.negative, name.__eq__)
    for kind in ("weight", "bias"):
        yield f"the gradients of every {kind} are zero", gradient(np.zeros_like, _ending(kind))
    for layer in ("fc1", "fc2", "fc3"):
        yield f"the gradients of `{layer}` are zero: a frozen layer?", gradient(np.zeros_like, _of(layer))
    for bound in (0.1, 0.5, 1.0, 5.0, 10.0):
        yield (
            f"gradients are clipped to ±{bound:g}, value by value",
            gradient(functools.partial(np.clip, a_min=-bound, a_max=bound), lambda name: True),
        )


def _ending(kind: str) -> Callable[[str], bool]:
    return lambda name: name.endswith(kind)


def _of(layer: str) -> Callable[[str], bool]:
    return lambda name: name.startswith(f"{layer}.")


def _updates() -> Mistakes:
    def stepping(change: Callable[..., StateDict]) -> dict[str, Any]:
        def step(
            tensors: StateDict, gradients: StateDict, velocity: StateDict, experiment: Experiment
        ) -> tuple[StateDict, StateDict]:
            return change(tensors, gradients, experiment), velocity

        return {"step": step}

    def at_rate(rate: Callable[[Experiment], float]) -> dict[str, Any]:
        return stepping(lambda t, g, e: {name: t[name] - rate(e) * g[name] for name in t})

    yield "the parameters do not change: the update is thrown away?", stepping(lambda t, g, e: t)
    yield "the update climbs: +lr times the gradient", at_rate(lambda e: -e.lr)
    for rate in (1e-3, 1e-2, 0.1, 1.0):
        yield f"`lr` is ignored: the rate is always {rate:g}", at_rate(_constantly(rate))
    for factor in (10, 0.1, 2, 0.5):
        yield f"the rate is {factor:g} times `lr`", at_rate(_times(factor))
    yield "`lr` passes through float32 where all else is float64", at_rate(lambda e: float(np.float32(e.lr)))
    yield "`lr` is divided by the batch size", at_rate(lambda e: e.lr / e.batch_size)
    yield "the reported loss is that after the update", {"loss_is_from_before": False}
    for decay in (1e-4, 5e-4, 1e-3, 1e-2, 0.1):
        yield (
            f"weights decay by {decay:g}",
            stepping(lambda t, g, e, d=decay: {name: t[name] - e.lr * (g[name] + d * t[name]) for name in t}),
        )
        yield (
            f"weights, but not biases, decay by {decay:g}",
            stepping(
                lambda t, g, e, d=decay: {
                    name: t[name] - e.lr * (g[name] + d * t[name] * ("weight" in name)) for name in t
                }
            ),
        )
    for momentum in (0.9, 0.5, 0.99):
        yield f"the optimizer has a momentum of {momentum:g}", {"step": momentum_step(momentum, nesterov=False)}
        yield f"the optimizer has Nesterov's momentum of {momentum:g}", {"step": momentum_step(momentum, nesterov=True)}
    yield (
        "only the sign of the gradient is used",
        stepping(lambda t, g, e: {name: t[name] - e.lr * np.sign(g[name]) for name in t}),
    )
    for part in ("weight", "bias", "fc1", "fc2", "fc3"):
        yield (
            f"only what is not `{part}` is updated",
            stepping(lambda t, g, e, p=part: {n: t[n] if p in n else t[n] - e.lr * g[n] for n in t}),
        )
    for norm in (0.1, 0.5, 1.0, 5.0):
        yield (
            f"gradients are clipped to a norm of {norm:g}",
            stepping(lambda t, g, e, norm=norm: {name: t[name] - e.lr * _clip(g, norm) * g[name] for name in t}),
        )
    for bound in (0.1, 0.25, 0.5, 1.0):
        yield (
            f"parameters are clipped to ±{bound:g}",
            stepping(lambda t, g, e, b=bound: {name: np.clip(t[name] - e.lr * g[name], -b, b) for name in t}),
        )
    for kind in ("bfloat16", "float16", "TF32"):
        yield (
            f"updated parameters pass through {kind}",
            stepping(lambda t, g, e, kind=kind: {name: lower(t[name] - e.lr * g[name], kind) for name in t}),
        )


def _constantly(rate: float) -> Callable[[Experiment], float]:
    return lambda experiment: rate


def _times(factor: float) -> Callable[[Experiment], float]:
    return lambda experiment: factor * experiment.lr


def _clip(gradients: StateDict, norm: float) -> float:
    size = np.sqrt(sum(float(np.sum(gradient**2)) for gradient in gradients.values()))
    return float(min(1.0, norm / max(size, 1e-300)))


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


def _always(fixed: int) -> Callable[[int, int], list[slice]]:
    return lambda rows, size: formulas.batches(rows, fixed)


def _batching(stage: str) -> Mistakes:
    def batched(change: Callable[[int, int], list[slice]]) -> dict[str, Any]:
        return {"test_batches" if stage == "evaluate" else "training_batches": change}

    def whole(rows: int, size: int) -> list[slice]:
        return formulas.batches(rows - rows % size, size)

    yield "the average is over images instead of batches", {"test_batches": lambda rows, size: [slice(0, rows)]}
    yield "the short last batch is dropped", batched(whole)
    yield (
        "the short last batch is filled up with the images before it",
        batched(lambda rows, size: [*whole(rows, size), *([slice(max(rows - size, 0), rows)] if rows % size else [])]),
    )
    yield (
        "the short last batch starts the epoch",
        batched(
            lambda rows, size: [slice(max(start, 0), start + size) for start in range(-(-rows % size), rows, size)]
        ),
    )
    yield "batches come in reverse order", batched(lambda rows, size: formulas.batches(rows, size)[::-1])
    for fixed in (64, 32, 100, 128):
        yield (
            f"`batch_size` is ignored: batches are of {fixed}",
            batched(_always(fixed)),
        )
    yield "the whole set is one batch", batched(lambda rows, size: [slice(0, rows)])
    yield "the first batch is left out", batched(lambda rows, size: formulas.batches(rows, size)[1:])
    yield "the last batch is left out", batched(lambda rows, size: formulas.batches(rows, size)[:-1])
    yield "the first batch is used twice", batched(lambda rows, size: [slice(0, size), *formulas.batches(rows, size)])
