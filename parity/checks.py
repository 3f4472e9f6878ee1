"""The ladder up to whole runs: every stage from pixel to evaluation, each with its checks, in order."""

from collections.abc import Callable, Iterator
from typing import Any

import numpy as np

from parity import fixtures, formulas
from parity.comparison import Comparison, compare
from parity.fixtures import Case
from parity.formulas import RIGHT, Array
from parity.judge import Check, Judge
from parity.quantities import (
    Once,
    Quantity,
    along,
    epoch_of,
    evaluation_of,
    gradients_of,
    logits_of,
    loss_of,
    updates_of,
)
from parity.tolerance import perturb


def networks(judge: Judge) -> list[Case]:
    """Other networks than the post's: narrower, wider, deeper."""
    return [
        judge.real(f"784-{'-'.join(map(str, hidden))}-10", hidden=hidden, seed=seed)
        for seed, hidden in enumerate([(4,), (32,), (16, 16), (16, 8, 12), (10, 10, 10)], 1)
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
    return [fixtures.exact(judge.experiment(hidden=hidden, batch_size=8)) for hidden in ((16,), (4,), (16, 16))]


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


def torch_draw(judge: Judge, stage: str, check: str) -> Iterator[Comparison]:
    for hidden in ((16,), (4,), (16, 16), (33,), (300,), (16, 8, 12)):
        for seed in (0, 1, 2**31, 2**40 + 5):
            experiment = judge.experiment(hidden=hidden, seed=seed)
            found, expected = judge.port.init(experiment), judge.reference.init(experiment)
            of = Once(lambda formulas_, experiment=experiment: formulas_.draw(experiment))  # type: ignore[misc]
            place = (stage, check, f"hidden {hidden}, seed {seed}")
            for name in expected:
                yield compare(place, name, found[name], expected[name], recompute=of(name))
            again = judge.port.init(experiment)
            for name in expected:
                yield compare(place, name, again[name], expected[name], recompute=of(name))


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
    for name, expected in port.tensors(state).items():
        yield compare((stage, check, "a second look"), name, expected, before[name])
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
    alone = judge.real("the first image", rows=1)
    return [judge.real(), alone, judge.real("the last images", first=59_000), judge.real("many images", rows=3000)]


def loss_at_extremes(judge: Judge, stage: str, check: str) -> Iterator[Comparison]:
    for case in extremes(judge):
        yield from loss_of(judge, (stage, check), case)
    for case in exact(judge):
        yield from loss_of(judge, (stage, check), case, demand_equality=True)


def one_step(judge: Judge, stage: str, check: str) -> Iterator[Comparison]:
    yield from updates_of(judge, (stage, check), judge.real(), steps=1)


def other_rates(judge: Judge, stage: str, check: str) -> Iterator[Comparison]:
    for lr in (1e-4, 0.05, 1.0):
        yield from updates_of(judge, (stage, check), judge.real(f"lr {lr:g}", lr=lr), steps=1)
    far = fixtures.scaled(judge.real(lr=0.1), 300)
    for case in [far, *networks(judge), *softmax_outputs(judge)[:2]]:
        yield from updates_of(judge, (stage, check), case, steps=1)


def short_steps(judge: Judge, stage: str, check: str) -> Iterator[Comparison]:
    for rows in (1, 7, 32):
        yield from updates_of(judge, (stage, check), judge.real(f"a batch of {rows}", rows=rows, lr=0.1), steps=1)


def two_steps(judge: Judge, stage: str, check: str) -> Iterator[Comparison]:
    yield from updates_of(judge, (stage, check), judge.real("two steps", rows=128, lr=0.05), steps=2)


def double_steps(judge: Judge, stage: str, check: str) -> Iterator[Comparison]:
    yield from updates_of(judge, (stage, check), judge.real().cast(np.float64), steps=1)


def order_and_tail(judge: Judge, stage: str, check: str) -> Iterator[Comparison]:
    yield from epoch_of(judge, (stage, check), judge.real("4 batches and a half one", rows=4 * 64 + 32, lr=0.05))
    yield from epoch_of(judge, (stage, check), judge.real("3 whole batches", rows=3 * 64))
    halves = judge.real("two epochs on other images", rows=2 * 160, lr=0.05)
    yield from along(judge, (stage, check), halves, _two_epochs, is_explained=False)


def _two_epochs(port: Any, state: Any, case: Case) -> dict[str, Any]:
    seen: dict[str, Any] = {}
    for at in range(2):
        state, seen[f"losses of epoch {at + 1}"] = port.train_epoch(state, case.images[at::2], case.labels[at::2])
    return {**port.tensors(state), **seen}


def batch_sizes(judge: Judge, stage: str, check: str) -> Iterator[Comparison]:
    for size, rows in ((50, 120), (7, 45), (1, 5), (64, 20), (1000, 1000)):
        case = judge.real(f"batches of {size} from {rows}", rows=rows, batch_size=size, lr=0.05)
        yield from epoch_of(judge, (stage, check), case)
    for hidden in ((16,), (16, 16)):
        name = f"hidden {hidden} with a softmax"
        case = judge.real(name, rows=150, hidden=hidden, softmax_output=True, lr=0.5, seed=3)
        yield from epoch_of(judge, (stage, check), case)
    long = judge.real("300 steps", rows=900, batch_size=3)
    yield from epoch_of(judge, (stage, check), long)


def double_epoch(judge: Judge, stage: str, check: str) -> Iterator[Comparison]:
    yield from epoch_of(judge, (stage, check), judge.real(rows=160).cast(np.float64))


def test_images(judge: Judge, stage: str, check: str) -> Iterator[Comparison]:
    for rows in (1040, 10_000 - 10 * judge.first_seed):
        yield from evaluation_of(judge, (stage, check), _test_case(judge, f"{rows:,} test images", rows))


def test_batch_sizes(judge: Judge, stage: str, check: str) -> Iterator[Comparison]:
    for size, rows in ((50, 120), (7, 45), (1000, 300), (1, 3)):
        name = f"batches of {size} from {rows}"
        yield from evaluation_of(judge, (stage, check), _test_case(judge, name, rows, batch_size=size))
    case = fixtures.scaled(_test_case(judge, "all of them right", 9000, batch_size=1000), 20)
    outputs = formulas.forward(RIGHT, case.tensors, case.images, case.experiment).outputs
    yield from evaluation_of(judge, (stage, check), fixtures.with_labels(case, case.name, outputs.argmax(axis=1)))


def test_softmax(judge: Judge, stage: str, check: str) -> Iterator[Comparison]:
    case = _test_case(judge, "softmax", 300, softmax_output=True, seed=2)
    yield from evaluation_of(judge, (stage, check), fixtures.scaled(case, 20))


def test_networks(judge: Judge, stage: str, check: str) -> Iterator[Comparison]:
    for hidden in ((4,), (32,), (16, 16), (10, 10, 10)):
        case = _test_case(judge, f"hidden {hidden}", 300, hidden=hidden, seed=4)
        yield from evaluation_of(judge, (stage, check), fixtures.scaled(case, 20))


def test_ties(judge: Judge, stage: str, check: str) -> Iterator[Comparison]:
    """All outputs equal: the first class counts."""
    case = _test_case(judge, "all outputs equal", 300)
    zeros = {name: np.zeros_like(tensor) for name, tensor in case.tensors.items()}
    yield from evaluation_of(judge, (stage, check), Case(case.name, case.experiment, zeros, case.images, case.labels))


def test_doubles(judge: Judge, stage: str, check: str) -> Iterator[Comparison]:
    yield from evaluation_of(judge, (stage, check), _test_case(judge, "300 images", 300).cast(np.float64))


def as_a_trainer_does(judge: Judge, stage: str, check: str) -> Iterator[Comparison]:
    """Training and looking by turns, on data that changes while its shapes do not."""
    case = judge.real("by turns", rows=4 * 80, batch_size=16, lr=0.05, seed=7)
    yield from along(judge, (stage, check), case, _by_turns, is_explained=False)


def _by_turns(port: Any, state: Any, case: Case) -> dict[str, Any]:
    first, second, third, fourth = ((case.images[at::4], case.labels[at::4]) for at in range(4))
    seen: dict[str, Any] = {}
    port.evaluate(state, *third)
    for turn, batch in enumerate((first, second, first)):
        state, seen[f"losses of turn {turn + 1}"] = port.train_epoch(state, *batch)
        port.tensors(state)
        for name, part in (("third", third), ("fourth", fourth)):
            seen[f"average loss on the {name} part, turn {turn + 1}"] = port.evaluate(state, *part)[1]
            port.gradients(state, *part)
            gradients = port.gradients(state, *part)
            seen[f"gradient of fc2.weight on the {name} part, turn {turn + 1}"] = gradients["fc2.weight"]
            seen[f"outputs on the {name} part, turn {turn + 1}"] = port.logits(state, part[0])
        state, seen[f"loss of a step, turn {turn + 1}"] = port.train_step(state, *fourth)
    return {**port.tensors(state), **seen}


def state_untouched(judge: Judge, stage: str, check: str) -> Iterator[Comparison]:
    """Looking at a state does not change it."""
    case, port = _test_case(judge, "after a look", 200, lr=1.0), judge.port
    state = port.start(case.tensors, case.experiment)
    port.tensors(state)
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


CHECKS = (
    Check("decode", "every grey", every_grey),
    Check("decode", "pixel order", pixel_order),
    Check("decode", "real images", real_pixels),
    Check("init", "torch's draw", torch_draw),
    Check("start", "round trip", round_trip),
    Check("start", "own memory", own_memory),
    Check("logits", "exact integers", over(equal(logits_of), lambda judge: exact(judge)[:2])),
    Check("logits", "images", over(logits_of, lambda judge: [*images(judge), *extremes(judge)])),
    Check("logits", "other networks", over(logits_of, networks)),
    Check("logits", "softmax output", over(logits_of, softmax_outputs)),
    Check("logits", "float64", over(logits_of, doubles), needs_float64=True),
    Check("loss", "images", over(loss_of, lambda judge: [*[judge.real(), images(judge)[2]], *networks(judge)])),
    Check("loss", "extremes", loss_at_extremes),
    Check("loss", "batches", over(loss_of, batches)),
    Check("loss", "softmax output", over(loss_of, softmax_outputs)),
    Check("loss", "float64", over(loss_of, doubles), needs_float64=True),
    Check("gradients", "images", over(gradients_of, lambda judge: [judge.real(), images(judge)[2]])),
    Check("gradients", "extremes", over(gradients_of, extremes)),
    Check("gradients", "other networks", over(gradients_of, networks)),
    Check("gradients", "exact integers", over(equal(gradients_of), exact)),
    Check("gradients", "batches", over(gradients_of, batches)),
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
    Check("evaluate", "other networks", test_networks),
    Check("evaluate", "ties", test_ties),
    Check("evaluate", "float64", test_doubles, needs_float64=True),
    Check("evaluate", "state untouched", state_untouched),
    Check("evaluate", "in training", as_a_trainer_does),
)
