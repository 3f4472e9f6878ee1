"""Quantities: what a port computes for a case, beside the oracle and the reference, within what is allowed."""

from collections.abc import Callable, Iterator
from typing import Any

import numpy as np

from fmnist.experiment import StateDict
from parity import formulas
from parity.comparison import Comparison, compare
from parity.fixtures import Case
from parity.formulas import RIGHT, Array, Formulas
from parity.judge import Judge
from parity.ports.numpy_port import numpy_port
from parity.tolerance import limits, perturb

# How many times the largest drift among a few one-ulp-perturbed runs a right port's own drift may be. The largest of
# four draws is exceeded by a fifth one in one case of five; eight times it has not been seen.
ENVELOPE_SLACK = 8.0


Quantity = Callable[[Judge, tuple[str, str], Case], Iterator[Comparison]]


def logits_of(judge: Judge, place: tuple[str, str], case: Case, demand_equality: bool = False) -> Iterator[Comparison]:
    def of(formulas_: Formulas) -> Array:
        return formulas.forward(formulas_, _upcast(case), case.images, case.experiment).outputs

    yield compare(
        (*place, case.name),
        "outputs",
        judge.port.logits(judge.port.start(case.tensors, case.experiment), case.images),
        of(RIGHT),
        0 if demand_equality else _limits(case).logits,
        reference=judge.reference.logits(judge.reference.start(case.tensors, case.experiment), case.images),
        eps=case.eps,
        recompute=of,
    )


def loss_of(judge: Judge, place: tuple[str, str], case: Case, demand_equality: bool = False) -> Iterator[Comparison]:
    def of(formulas_: Formulas) -> Array:
        return np.asarray(formulas.loss(formulas_, _upcast(case), case.images, case.labels, case.experiment))

    state = judge.reference.start(case.tensors, case.experiment)
    yield compare(
        (*place, case.name),
        "loss",
        judge.port.loss(judge.port.start(case.tensors, case.experiment), case.images, case.labels),
        of(RIGHT),
        0 if demand_equality else _limits(case).loss,
        reference=judge.reference.loss(state, case.images, case.labels),
        eps=case.eps,
        recompute=of,
    )


def gradients_of(
    judge: Judge, place: tuple[str, str], case: Case, demand_equality: bool = False
) -> Iterator[Comparison]:
    batch = case.images, case.labels
    state = judge.port.start(case.tensors, case.experiment)
    judge.port.gradients(state, *batch)  # of which nothing may be left in the next ones
    found = judge.port.gradients(state, *batch)
    reference = judge.reference.gradients(judge.reference.start(case.tensors, case.experiment), *batch)
    of = Once(lambda formulas_: formulas.gradients(formulas_, _upcast(case), *batch, case.experiment))
    unit = _limits(case).gradients
    for name in case.tensors:
        yield compare(
            (*place, case.name),
            name,
            found[name],
            of(name)(RIGHT),
            0 if demand_equality else unit[name],
            reference=reference[name],
            eps=case.eps,
            recompute=of(name),
        )


def updates_of(judge: Judge, place: tuple[str, str], case: Case, steps: int) -> Iterator[Comparison]:
    """What steps change, and the loss that each reports; and that one step is -lr times the port's own gradient."""
    rows = len(case.labels) // steps
    parts = [slice(step * rows, (step + 1) * rows) for step in range(steps)]
    place3 = (*place, case.name)

    def walk(port: Any, state: Any) -> tuple[StateDict, list[float]]:
        losses = []
        for part in parts:
            state, loss = port.train_step(state, case.images[part], case.labels[part])
            losses.append(float(loss))
        return port.tensors(state), losses

    def oracle(formulas_: Formulas) -> StateDict:
        state, losses = formulas.start(_upcast(case), case.experiment), []
        for part in parts:
            state, loss = formulas.train_step(formulas_, state, case.images[part], case.labels[part])
            losses.append(loss)
        return {**state.tensors, "loss": np.array(losses)}

    state = judge.port.start(case.tensors, case.experiment)
    own = judge.port.gradients(state, case.images, case.labels)
    found, losses = walk(judge.port, state)
    reference, reference_losses = walk(judge.reference, judge.reference.start(case.tensors, case.experiment))
    of, start = Once(oracle), _upcast(case)
    units = [limits(case.tensors, case.images[part], case.labels[part], case.experiment) for part in parts]
    yield compare(
        place3,
        "loss",
        losses,
        of("loss")(RIGHT),
        sum(unit.loss for unit in units),
        reference=reference_losses,
        eps=case.eps,
        recompute=of("loss"),
    )
    for name in case.tensors:
        yield compare(
            place3,
            name,
            found[name] - start[name],
            of(name)(RIGHT) - start[name],
            sum(unit.update[name] for unit in units),
            reference=reference[name] - start[name],
            eps=case.eps,
            recompute=_minus(of(name), start[name]),
        )
    if steps == 1:
        for name, gradient in own.items():
            change = case.experiment.lr * gradient.astype(np.float64)
            yield compare(
                (*place, f"{case.name}: -lr times its own gradient"),
                name,
                found[name] - start[name],
                np.nan_to_num(-change),
                case.eps * (np.abs(start[name]) + np.nan_to_num(np.abs(change))) + units[0].gradients[name] * 1e-3,
            )


Walk = Callable[[Any, Any, Case], dict[str, Any]]
"""What a port, from a state of its own, computes along the way: by any names, and its tensors by theirs."""


def an_epoch(port: Any, state: Any, case: Case) -> dict[str, Any]:
    state, losses = port.train_epoch(state, case.images, case.labels)
    return {**port.tensors(state), "losses": losses}


def epoch_of(judge: Judge, place: tuple[str, str], case: Case) -> Iterator[Comparison]:
    """What an epoch changes and reports."""
    yield from along(judge, place, case, an_epoch)


def along(
    judge: Judge, place: tuple[str, str], case: Case, walk: Walk, is_explained: bool = True
) -> Iterator[Comparison]:
    """What many steps change and report, within the drift of walks that start one ulp away.

    Walks that do several things are not `is_explained`: a mistake in one of them is none in the others.
    """

    def oracle(formulas_: Formulas, tensors: StateDict | None = None) -> StateDict:
        port = numpy_port(formulas_)
        return walk(port, port.start(tensors or _upcast(case), case.experiment), case)

    def walked(port: Any, tensors: StateDict) -> StateDict:
        return walk(port, port.start(tensors, case.experiment), case)

    of = Once(oracle)
    expected = {name: np.asarray(value) for name, value in oracle(RIGHT).items()}
    reference = walked(judge.reference, case.tensors)
    moved = [perturb(case.tensors, seed) for seed in (1, 2)]
    others = [reference, *(walked(judge.reference, start) for start in moved)]
    others.append(oracle(RIGHT, {name: tensor.astype(np.float64) for name, tensor in moved[0].items()}))
    found = walked(judge.port, case.tensors)
    for name, values in expected.items():
        if values.ndim == 1 and name not in case.tensors:
            yield compare(
                (*place, case.name),
                "steps",
                float(len(found[name])),
                float(len(values)),
                recompute=_length(of(name)) if is_explained else None,
            )
            if len(found[name]) != len(values):
                continue
        drift = max(float(np.abs(np.asarray(other[name]) - values).max()) for other in others)
        start = case.tensors[name].astype(np.float64) if name in case.tensors else np.zeros_like(values)
        yield compare(
            (*place, case.name),
            name,
            found[name] - start,
            values - start,
            drift + case.eps * float(np.abs(values).max()),
            slack=ENVELOPE_SLACK,
            reference=np.asarray(reference[name]) - start,
            eps=case.eps,
            recompute=_minus(of(name), start) if is_explained else None,
        )


def _length(of: Callable[[Formulas], Array]) -> Callable[[Formulas], float]:
    return lambda formulas_: float(len(of(formulas_)))


def evaluation_of(judge: Judge, place: tuple[str, str], case: Case) -> Iterator[Comparison]:
    batch = case.images, case.labels

    def of(index: int) -> Callable[[Formulas], Array]:
        start = formulas.start(_upcast(case), case.experiment)
        return lambda formulas_: np.asarray(formulas.evaluate(formulas_, start, *batch)[index])

    found = judge.port.evaluate(judge.port.start(case.tensors, case.experiment), *batch)
    reference = judge.reference.evaluate(judge.reference.start(case.tensors, case.experiment), *batch)
    unit = _limits(case)
    outputs = formulas.forward(RIGHT, _upcast(case), case.images, case.experiment).outputs
    best = np.sort(outputs, axis=1)
    undecided = int(np.sum(best[:, -1] - best[:, -2] <= 2 * 4 * unit.logits.max(axis=1)))
    # An accuracy is a count: float32 may round it, and only images within rounding of a tie may go either way. Where
    # outputs are equal without rounding, the first class counts, as in torch.argmax.
    if not np.any(outputs - outputs[:, :1]):
        undecided = 0
    accuracy_unit = undecided / len(case.labels) + float(np.finfo(np.float32).eps)
    parts = formulas.batches(len(case.labels), case.experiment.batch_size)
    # Rows err nearly independently of each other, so that their mean errs by less than they do: the root of the sum of
    # squares, and twice that, since they share the parameters.
    weights = np.concatenate([np.full(len(case.labels[part]), 1 / len(case.labels[part])) for part in parts])
    loss_unit = 2 * float(np.linalg.norm(weights * unit.losses)) / len(parts) + case.eps
    for index, (name, size) in enumerate((("accuracy", accuracy_unit), ("average loss", loss_unit))):
        yield compare(
            (*place, case.name),
            name,
            found[index],
            of(index)(RIGHT),
            size,
            reference=reference[index],
            recompute=of(index),
        )


class Once:
    """StateDict under some formulas, computed once for all their names."""

    def __init__(self, compute: Callable[[Formulas], StateDict]) -> None:
        self.compute, self.last = compute, (None, {})  # type: tuple[Any, Any]

    def __call__(self, name: str) -> Callable[[Formulas], Array]:
        def of(formulas_: Formulas) -> Array:
            if self.last[0] is not formulas_:
                self.last = (formulas_, self.compute(formulas_))
            array: Array = self.last[1][name]
            return array

        return of


def _upcast(case: Case) -> StateDict:
    return {name: tensor.astype(np.float64) for name, tensor in case.tensors.items()}


def _limits(case: Case) -> Any:
    return limits(case.tensors, case.images, case.labels, case.experiment)


def _minus(of: Callable[[Formulas], Array], start: Array) -> Callable[[Formulas], Array]:
    return lambda formulas_: of(formulas_) - start
