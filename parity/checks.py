"""The ladder: every stage from pixel to accuracy trend, each with its checks, in order."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np

from fmnist_torch.data import Dataset
from fmnist_torch.experiment import Experiment
from fmnist_torch.runs import Tensors
from parity import fixtures, formulas
from parity.comparison import MEMORY, Comparison, compare
from parity.fixtures import Case
from parity.formulas import RIGHT, Array, Formulas
from parity.port import Held, Misbehaviour
from parity.reruns import Reruns, Run, run
from parity.tolerance import limits, perturb

STAGES = (
    *("decode", "init", "start", "logits", "loss", "gradients"),
    *("update", "epoch", "evaluate", "trajectory", "trends"),
)

# How many times the largest drift among a few one-ulp-perturbed runs a right port's own drift may be. The largest of
# four draws is exceeded by a fifth one in one case of five; eight times it has not been seen.
ENVELOPE_SLACK = 8.0


@dataclass(frozen=True)
class Judge:
    """What a check needs: the port under judgement, the reference, data, and how much to do.

    `first_seed` moves every seed and every choice of images: other first seeds are other, equally good examinations.
    """

    port: Held
    reference: Held
    dataset: Dataset
    reruns: Reruns
    epochs: int = 20
    seeds: int = 13
    first_seed: int = 0
    port_runs: dict[Experiment, Run] = field(default_factory=dict)

    def port_run(self, experiment: Experiment) -> Run:
        """The port's whole run from torch's draw, done once."""
        if experiment not in self.port_runs:
            start = self.reference.init(experiment)
            self.port_runs[experiment] = run(self.port, start, experiment, self.dataset)
        return self.port_runs[experiment]

    def experiment(self, **values: Any) -> Experiment:
        experiment = Experiment(**{"epochs": self.epochs, **values})
        return replace(experiment, seed=experiment.seed + self.first_seed)

    def real(self, name: str = "real images", rows: int = 64, first: int = 0, **values: Any) -> Case:
        """Training images under torch's draw."""
        experiment = self.experiment(**values)
        tensors = self.reference.init(experiment)
        return fixtures.real(name, experiment, tensors, self.dataset.train, rows, first + 100 * self.first_seed)


@dataclass(frozen=True)
class Check:
    """A claim about a port: its stage, its name, and what it compares."""

    stage: str
    name: str
    compare: Callable[[Judge, str, str], Iterator[Comparison]]
    needs_float64: bool = False


def networks(judge: Judge) -> list[Case]:
    """Other networks than the post's: narrower, wider, deeper."""
    return [
        judge.real(f"784-{'-'.join(map(str, hidden))}-10", hidden=hidden, seed=seed)
        for seed, hidden in enumerate([(4,), (32,), (16, 16), (16, 8, 12)], 1)
    ]


def batches(judge: Judge) -> list[Case]:
    """Batches of sizes that are not the experiment's, and of labels that are not mixed."""
    case = judge.real(rows=100)
    every_class = np.arange(100) % 10
    sizes = [judge.real(f"a batch of {rows}", rows=rows, first=rows) for rows in (1, 7, 32, 100)]
    alike = [fixtures.with_labels(case, f"labels all {label}", np.full(100, label)) for label in (0, 9)]
    return [*sizes, *alike, fixtures.with_labels(case, "every class", every_class)]


def extremes(judge: Judge) -> list[Case]:
    """Logits far from each other, and hidden units that never or always pass."""
    case = judge.real()
    black, white = np.zeros((32, 28, 28), np.uint8), np.full((32, 28, 28), 255, np.uint8)
    flat = Case("black and white", case.experiment, case.tensors, np.concatenate([black, white]), case.labels)
    return [
        fixtures.scaled(case, 20),
        fixtures.scaled(case, 300),
        fixtures.scaled(case, 900),
        fixtures.shifted(case, "dead units", -100),
        fixtures.shifted(case, "units all alive", 100),
        flat,
    ]


def softmax_outputs(judge: Judge) -> list[Case]:
    """Networks that return their softmax."""
    case = judge.real("softmax", softmax_output=True, seed=5)
    deep = judge.real("softmax of 784-16-16-10", softmax_output=True, hidden=(16, 16), seed=6)
    return [case, deep, *(fixtures.scaled(case, largest) for largest in (20, 300))]


def doubles(judge: Judge) -> list[Case]:
    """The same in float64."""
    cases = [judge.real(), judge.real("softmax", softmax_output=True), *networks(judge)[2:3]]
    return [case.cast(np.float64) for case in cases]


def exact(judge: Judge) -> list[Case]:
    """Small integers, of which rounding takes nothing."""
    return [fixtures.exact(judge.experiment(hidden=hidden, batch_size=8)) for hidden in ((16,), (4,))]


# decode


def every_grey(judge: Judge, stage: str, check: str) -> Iterator[Comparison]:
    yield from _decoded(judge, (stage, check, "256 greys"), fixtures.greys())


def pixel_order(judge: Judge, stage: str, check: str) -> Iterator[Comparison]:
    yield from _decoded(judge, (stage, check, "pixels that hold their place"), fixtures.positions())


def real_pixels(judge: Judge, stage: str, check: str) -> Iterator[Comparison]:
    images = judge.dataset.train.images
    for rows, first in ((1, 0), (1, 1), (1000, 0), (1000, 1000), (1000, 59_000)):
        case = f"{rows} images from image {first} on"
        yield from _decoded(judge, (stage, check, case), images[first : first + rows])


def _decoded(judge: Judge, place: tuple[str, str, str], images: Array) -> Iterator[Comparison]:
    yield compare(
        place,
        "pixels",
        judge.port.decode(images),
        RIGHT.decode(images),
        reference=judge.reference.decode(images),
        recompute=lambda formulas: formulas.decode(images).astype(np.float32),
    )


# init


def torch_draw(judge: Judge, stage: str, check: str) -> Iterator[Comparison]:
    for hidden in ((16,), (4,), (16, 16), (33,), (16, 8, 12)):
        for seed in (0, 1, 2**31, 2**40 + 5):
            experiment = judge.experiment(hidden=hidden, seed=seed)
            found, expected = judge.port.init(experiment), judge.reference.init(experiment)
            of = Once(lambda formulas_, experiment=experiment: formulas_.draw(experiment))  # type: ignore[misc]
            place = (stage, check, f"hidden {hidden}, seed {seed}")
            for name in expected:
                yield compare(place, name, found[name], expected[name], recompute=of(name))


# start


def round_trip(judge: Judge, stage: str, check: str) -> Iterator[Comparison]:
    cases = [judge.real(), *networks(judge)]
    if judge.port.float64:
        # Values that float32 cannot hold.
        wide = cases[0].cast(np.float64)
        third = {name: tensor / 3 for name, tensor in wide.tensors.items()}
        cases.append(Case("float64", wide.experiment, third, wide.images, wide.labels))
    for case in cases:
        found = judge.port.tensors(judge.port.start(case.tensors, case.experiment))
        for name, expected in case.tensors.items():
            yield compare((stage, check, case.name), name, found[name], expected)


def own_memory(judge: Judge, stage: str, check: str) -> Iterator[Comparison]:
    """Use every function; `Held` raises Misbehaviour where one touches memory that is not the port's."""
    case = judge.real(lr=1.0)
    port = judge.port
    state = port.start(case.tensors, case.experiment)
    before = port.tensors(state)
    port.decode(case.images)
    port.logits(state, case.images)
    port.loss(state, case.images, case.labels)
    port.gradients(state, case.images, case.labels)
    port.evaluate(state, case.images, case.labels)
    state, _ = port.train_step(state, case.images, case.labels)
    state, _ = port.train_epoch(state, case.images, case.labels)
    again = port.start(case.tensors, case.experiment)
    moved = port.start(perturb(case.tensors, 1), case.experiment)
    port.train_step(moved, case.images, case.labels)
    found = port.tensors(again)
    for name, expected in before.items():
        yield compare((stage, check, "a second start, beside a third"), name, found[name], expected)


# logits, loss, gradients


def _upcast(case: Case) -> Tensors:
    return {name: tensor.astype(np.float64) for name, tensor in case.tensors.items()}


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
    found = judge.port.gradients(judge.port.start(case.tensors, case.experiment), *batch)
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


class Once:
    """Tensors under some formulas, computed once for all their names."""

    def __init__(self, compute: Callable[[Formulas], Tensors]) -> None:
        self.compute, self.last = compute, (None, {})  # type: tuple[Any, Any]

    def __call__(self, name: str) -> Callable[[Formulas], Array]:
        def of(formulas_: Formulas) -> Array:
            if self.last[0] is not formulas_:
                self.last = (formulas_, self.compute(formulas_))
            array: Array = self.last[1][name]
            return array

        return of


def _limits(case: Case) -> Any:
    return limits(case.tensors, case.images, case.labels, case.experiment)


Quantity = Callable[[Judge, tuple[str, str], Case], Iterator[Comparison]]


def over(quantity: Quantity, cases: Callable[[Judge], list[Case]]) -> Callable[[Judge, str, str], Iterator[Comparison]]:
    """The check that compares a quantity in every one of the cases."""

    def check(judge: Judge, stage: str, name: str) -> Iterator[Comparison]:
        for case in cases(judge):
            yield from quantity(judge, (stage, name), case)

    return check


def equal(quantity: Callable[..., Iterator[Comparison]]) -> Quantity:
    """The quantity, bit for bit."""
    return lambda judge, place, case: quantity(judge, place, case, demand_equality=True)


def images(judge: Judge) -> list[Case]:
    return [judge.real(), judge.real("the first image", rows=1), judge.real("the last images", first=59_000)]


def loss_at_extremes(judge: Judge, stage: str, check: str) -> Iterator[Comparison]:
    for case in extremes(judge):
        yield from loss_of(judge, (stage, check), case)
    for case in exact(judge):
        yield from loss_of(judge, (stage, check), case, demand_equality=True)


# update


def one_step(judge: Judge, stage: str, check: str) -> Iterator[Comparison]:
    yield from updates_of(judge, (stage, check), judge.real(), steps=1)


def other_rates(judge: Judge, stage: str, check: str) -> Iterator[Comparison]:
    for lr in (1e-4, 0.05, 1.0):
        yield from updates_of(judge, (stage, check), judge.real(f"lr {lr:g}", lr=lr), steps=1)
    for case in networks(judge):
        yield from updates_of(judge, (stage, check), case, steps=1)


def short_steps(judge: Judge, stage: str, check: str) -> Iterator[Comparison]:
    for rows in (1, 7, 32):
        yield from updates_of(judge, (stage, check), judge.real(f"a batch of {rows}", rows=rows, lr=0.1), steps=1)


def two_steps(judge: Judge, stage: str, check: str) -> Iterator[Comparison]:
    yield from updates_of(judge, (stage, check), judge.real("two steps", rows=128, lr=0.05), steps=2)


def double_steps(judge: Judge, stage: str, check: str) -> Iterator[Comparison]:
    yield from updates_of(judge, (stage, check), judge.real().cast(np.float64), steps=1)


def updates_of(judge: Judge, place: tuple[str, str], case: Case, steps: int) -> Iterator[Comparison]:
    """What steps change, and the loss that each reports; and that one step is -lr times the port's own gradient."""
    rows = len(case.labels) // steps
    parts = [slice(step * rows, (step + 1) * rows) for step in range(steps)]
    place3 = (*place, case.name)

    def walk(port: Any, state: Any) -> tuple[Tensors, list[float]]:
        losses = []
        for part in parts:
            state, loss = port.train_step(state, case.images[part], case.labels[part])
            losses.append(float(loss))
        return port.tensors(state), losses

    def oracle(formulas_: Formulas) -> Tensors:
        state, losses = formulas.start(_upcast(case), case.experiment), []
        for part in parts:
            state, loss = formulas.train_step(formulas_, state, case.images[part], case.labels[part])
            losses.append(loss)
        return {**state.tensors, "loss": np.array(losses)}

    found, losses = walk(judge.port, judge.port.start(case.tensors, case.experiment))
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
        own = judge.port.gradients(judge.port.start(case.tensors, case.experiment), case.images, case.labels)
        for name, gradient in own.items():
            change = case.experiment.lr * gradient.astype(np.float64)
            yield compare(
                (*place, f"{case.name}: -lr times its own gradient"),
                name,
                found[name] - start[name],
                np.nan_to_num(-change),
                case.eps * (np.abs(start[name]) + np.nan_to_num(np.abs(change))) + units[0].gradients[name] * 1e-3,
            )


def _minus(of: Callable[[Formulas], Array], start: Array) -> Callable[[Formulas], Array]:
    return lambda formulas_: of(formulas_) - start


# epoch


def order_and_tail(judge: Judge, stage: str, check: str) -> Iterator[Comparison]:
    yield from epoch_of(judge, (stage, check), judge.real("4 batches and a half one", rows=4 * 64 + 32, lr=0.05))
    yield from epoch_of(judge, (stage, check), judge.real("3 whole batches", rows=3 * 64))


def batch_sizes(judge: Judge, stage: str, check: str) -> Iterator[Comparison]:
    for size, rows in ((50, 120), (7, 45), (1, 5), (64, 20), (1000, 1000)):
        case = judge.real(f"batches of {size} from {rows}", rows=rows, batch_size=size, lr=0.05)
        yield from epoch_of(judge, (stage, check), case)
    deep = judge.real("784-16-16-10 with a softmax", rows=150, hidden=(16, 16), softmax_output=True, lr=0.5, seed=3)
    yield from epoch_of(judge, (stage, check), deep)


def double_epoch(judge: Judge, stage: str, check: str) -> Iterator[Comparison]:
    yield from epoch_of(judge, (stage, check), judge.real(rows=160).cast(np.float64))


def epoch_of(judge: Judge, place: tuple[str, str], case: Case) -> Iterator[Comparison]:
    """What an epoch changes and reports, within the drift of runs that start one ulp away."""

    def oracle(formulas_: Formulas, tensors: Tensors | None = None) -> Tensors:
        start = formulas.start(tensors or _upcast(case), case.experiment)
        state, losses = formulas.train_epoch(formulas_, start, case.images, case.labels)
        return {**state.tensors, "losses": losses}

    def walk(port: Any, tensors: Tensors) -> Tensors:
        state, losses = port.train_epoch(port.start(tensors, case.experiment), case.images, case.labels)
        return {**port.tensors(state), "losses": losses}

    of = Once(oracle)
    expected = {name: of(name)(RIGHT) for name in (*case.tensors, "losses")}
    reference = walk(judge.reference, case.tensors)
    moved = [perturb(case.tensors, seed) for seed in (1, 2)]
    others = [reference, *(walk(judge.reference, start) for start in moved)]
    others.append(oracle(RIGHT, {name: tensor.astype(np.float64) for name, tensor in moved[0].items()}))
    found = walk(judge.port, case.tensors)
    steps = len(expected["losses"])
    yield compare(
        (*place, case.name),
        "steps",
        float(len(found["losses"])),
        float(steps),
        recompute=lambda formulas_: float(len(of("losses")(formulas_))),
    )
    if len(found["losses"]) != steps:
        del expected["losses"]
    for name, values in expected.items():
        drift = max(float(np.abs(other[name] - values).max()) for other in others)
        start = case.tensors[name].astype(np.float64) if name != "losses" else np.zeros_like(values)
        yield compare(
            (*place, case.name),
            name,
            found[name] - start,
            values - start,
            drift + case.eps * float(np.abs(values).max()),
            slack=ENVELOPE_SLACK,
            reference=reference[name] - start,
            eps=case.eps,
            recompute=_minus(of(name), start),
        )


# evaluate


def test_images(judge: Judge, stage: str, check: str) -> Iterator[Comparison]:
    for rows in (1040, 10_000 - 10 * judge.first_seed):
        yield from evaluation_of(judge, (stage, check), _test_case(judge, f"{rows:,} test images", rows))


def test_batch_sizes(judge: Judge, stage: str, check: str) -> Iterator[Comparison]:
    for size, rows in ((50, 120), (7, 45), (1000, 300), (1, 3)):
        name = f"batches of {size} from {rows}"
        yield from evaluation_of(judge, (stage, check), _test_case(judge, name, rows, batch_size=size))


def test_softmax(judge: Judge, stage: str, check: str) -> Iterator[Comparison]:
    case = _test_case(judge, "softmax", 300, softmax_output=True, seed=2)
    yield from evaluation_of(judge, (stage, check), fixtures.scaled(case, 20))


def state_untouched(judge: Judge, stage: str, check: str) -> Iterator[Comparison]:
    """Looking at a state does not change it."""
    case, port = _test_case(judge, "after a look", 200, lr=1.0), judge.port
    state = port.start(case.tensors, case.experiment)
    port.logits(state, case.images)
    port.loss(state, case.images, case.labels)
    port.gradients(state, case.images, case.labels)
    port.evaluate(state, case.images, case.labels)
    found = port.tensors(state)
    for name, expected in case.tensors.items():
        yield compare((stage, check, case.name), name, found[name], expected)


def _test_case(judge: Judge, name: str, rows: int, **values: Any) -> Case:
    case = judge.real(name, **values)
    first = 10 * judge.first_seed
    return fixtures.real(name, case.experiment, case.tensors, judge.dataset.test, rows, first)


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
    # An accuracy is a count: float32 may round it, and only images at a tie may go either way.
    accuracy_unit = undecided / len(case.labels) + float(np.finfo(np.float32).eps)
    parts = formulas.batches(len(case.labels), case.experiment.batch_size)
    # Rows err independently of each other, so that their mean errs by less than they do.
    weights = np.concatenate([np.full(len(case.labels[part]), 1 / len(case.labels[part])) for part in parts])
    loss_unit = float(np.linalg.norm(weights * unit.losses)) / len(parts) + float(np.finfo(np.float32).eps)
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


CHECKS = (
    Check("decode", "every grey", every_grey),
    Check("decode", "pixel order", pixel_order),
    Check("decode", "real images", real_pixels),
    Check("init", "torch's draw", torch_draw),
    Check("start", "round trip", round_trip),
    Check("start", "own memory", own_memory),
    Check("logits", "exact integers", over(equal(logits_of), exact)),
    Check("logits", "images", over(logits_of, lambda judge: [*images(judge), *extremes(judge)])),
    Check("logits", "other networks", over(logits_of, networks)),
    Check("logits", "softmax output", over(logits_of, softmax_outputs)),
    Check("logits", "float64", over(logits_of, doubles), needs_float64=True),
    Check("loss", "images", over(loss_of, lambda judge: [*images(judge)[::2], *networks(judge)])),
    Check("loss", "extremes", loss_at_extremes),
    Check("loss", "batches", over(loss_of, batches)),
    Check("loss", "softmax output", over(loss_of, softmax_outputs)),
    Check("loss", "float64", over(loss_of, doubles), needs_float64=True),
    Check("gradients", "images", over(gradients_of, lambda judge: images(judge)[::2])),
    Check("gradients", "extremes", over(gradients_of, extremes)),
    Check("gradients", "exact integers", over(equal(gradients_of), exact)),
    Check("gradients", "batches", over(gradients_of, batches)),
    Check("gradients", "other networks", over(gradients_of, networks)),
    Check("gradients", "softmax output", over(gradients_of, softmax_outputs)),
    Check("gradients", "float64", over(gradients_of, doubles), needs_float64=True),
    Check("update", "one step", one_step),
    Check("update", "other rates", other_rates),
    Check("update", "short batches", short_steps),
    Check("update", "two steps", two_steps),
    Check("update", "float64", double_steps, needs_float64=True),
    Check("epoch", "order and tail", order_and_tail),
    Check("epoch", "batch sizes", batch_sizes),
    Check("epoch", "float64", double_epoch, needs_float64=True),
    Check("evaluate", "test images", test_images),
    Check("evaluate", "batch sizes", test_batch_sizes),
    Check("evaluate", "softmax output", test_softmax),
    Check("evaluate", "state untouched", state_untouched),
)


def run_check(judge: Judge, check: Check) -> list[Comparison]:
    """A check's comparisons; misbehaviour in memory is one that fails."""
    done: list[Comparison] = []
    try:
        for comparison in check.compare(judge, check.stage, check.name):
            done.append(comparison)
    except Misbehaviour as misbehaviour:
        done.append(compare((check.stage, check.name, str(misbehaviour)), MEMORY, 1.0, 0.0))
    return done
