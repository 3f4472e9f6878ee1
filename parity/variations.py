"""Which cases are worth asking: states and batches that leave a mistake nothing to hide behind. NumPy only."""

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace

import numpy as np

from parity.cases import CALLS, Array, Batch, Call, Case, Tensors

STEPS = 3


@dataclass(frozen=True)
class Program:
    """What is known of a reference before anything is asked."""

    state: Tensors
    """A fresh state, float32."""
    parameters: frozenset[str]
    """Names of what the optimizer may move; the others are buffers."""
    running: frozenset[str]
    """Buffers that a training step changes."""
    tied: Mapping[str, str]
    """Further names of a parameter that has several → its first one."""
    batches: tuple[Batch, ...]
    further: tuple[Case, ...] = ()
    """Cases of the program's own."""
    has_init: bool = False
    has_epoch: bool = False
    has_evaluate: bool = False


def cases(program: Program, seed: int = 0, quick: bool = False, float64: bool = True) -> list[Case]:
    """All cases, call by call; those that the reference itself cannot answer are for the exam to drop."""
    further = [case for case in program.further if not quick and (float64 or case.dtype != np.float64)]
    order = list(CALLS)
    return sorted([*_cases(program, seed, quick, float64), *further], key=lambda case: order.index(case.call))


def _cases(program: Program, seed: int, quick: bool, float64: bool) -> Iterator[Case]:
    random = np.random.default_rng(seed)
    given, shaken = program.state, shake(program, random)
    small = {name: array * np.float32(0.05) if array.ndim > 1 else array for name, array in shaken.items()}
    first, last = program.batches[0], program.batches[-1]
    batches = tuple(program.batches[index % len(program.batches)] for index in range(STEPS))

    yield Case("as given", "load", given)
    yield Case("shaken", "load", shaken)
    if float64:
        # Values that float32 cannot hold.
        thirds = {name: array / 3 if array.dtype.kind == "f" else array for name, array in _float64(shaken).items()}
        yield Case("float64", "load", thirds)
    if program.has_init:
        for seed in (0, 1) if quick else (0, 1, 42, 2**31 + 5):
            yield Case(f"seed {seed}", "init", {}, seed=seed)

    asked: list[tuple[str, Tensors, Batch]] = [
        ("as given", given, first),
        ("shaken", shaken, first),
        ("shaken, last batch", shaken, last),
        ("small parameters", small, first),
    ]
    if not quick:
        asked += [("shaken, batch of one", shaken, part(first, 1)), ("shaken, half a batch", shaken, part(first, 0))]
        if any(is_input(array) for array in first.values()):
            asked += [
                (f"shaken, {name} inputs", shaken, inputs(first, change))
                for name, change in (
                    ("small", lambda x: x * x.dtype.type(1e-3)),
                    ("large", lambda x: x * x.dtype.type(30)),
                    ("zero", np.zeros_like),
                    ("constant", lambda x: np.full_like(x, x.flat[0] if x.size else 0)),
                )
            ]
    for train in (False, True):
        # Whole numbers tie, and at a tie a gradient is a choice: only outputs are asked for.
        for name, state, batch in [*asked, ("integers", integers(program, shaken), rounded(first))]:
            if quick and train and name != "shaken":
                continue
            yield Case(f"{name}, {'training' if train else 'evaluation'} mode", "outputs", state, (batch,), train)
        if float64:
            yield as_float64(
                Case(f"float64, {'training' if train else 'evaluation'} mode", "outputs", shaken, (first,), train)
            )
    for name, state, batch in asked:
        yield Case(name, "value_and_grad", state, (batch,))
    if float64:
        yield as_float64(Case("float64", "value_and_grad", shaken, (first,)))
        yield as_float64(Case("float64, small parameters", "value_and_grad", small, (last,)))

    yield Case("as given", "train_steps", given, batches)
    yield Case("shaken", "train_steps", shaken, batches)
    if not quick and any(is_input(array) for array in first.values()):
        large = tuple(inputs(batch, lambda x: x * x.dtype.type(30)) for batch in batches)
        yield Case("shaken, large inputs", "train_steps", shaken, large)
    if float64:
        yield as_float64(Case("float64", "train_steps", shaken, batches))
    both: tuple[tuple[Call, bool], ...] = (("train_epoch", program.has_epoch), ("evaluate", program.has_evaluate))
    for call, offered in both:
        if offered:
            yield Case("all batches", call, shaken, program.batches)
            if float64:
                yield as_float64(Case("float64, all batches", call, shaken, program.batches))


def shake(program: Program, random: np.random.Generator) -> Tensors:
    """The state moved away from the special values of fresh programs: zero biases, unit scales, running variance 1."""
    shaken = dict(program.state)
    for name, array in program.state.items():
        if array.dtype.kind != "f" or not (name in program.parameters or name in program.running):
            continue
        if name in program.tied:
            shaken[name] = shaken[program.tied[name]]
            continue
        noise = random.standard_normal(array.shape)
        if name in program.running and (array >= 0).all() and array.any():
            moved = array * np.exp(0.5 * noise)
        else:
            size = float(np.sqrt(np.mean(np.square(array, dtype=np.float64)))) if array.size else 0.0
            moved = array * (1 + 0.1 * noise) + 0.1 * (min(size, 1.0) or 1.0) * random.standard_normal(array.shape)
        shaken[name] = np.asarray(moved, array.dtype)
    return shaken


def integers(program: Program, state: Tensors) -> Tensors:
    """A state of small whole numbers, on which most of float32's arithmetic is exact."""
    whole = {}
    for name, array in state.items():
        if array.dtype.kind != "f" or not (name in program.parameters or name in program.running):
            whole[name] = array
        elif name in program.running:
            whole[name] = np.ones_like(array) if (array >= 0).all() and array.any() else np.zeros_like(array)
        else:
            whole[name] = _whole(array)
    return whole


def rounded(batch: Batch) -> Batch:
    """A batch whose inputs are small whole numbers."""
    return inputs(batch, _whole)


def _whole(array: Array) -> Array:
    size = np.sqrt(np.mean(np.square(array))) if array.size else array.dtype.type(1)
    return np.asarray(np.clip(np.rint(array / (size or array.dtype.type(1))), -2, 2), array.dtype)


def is_input(array: Array) -> bool:
    """Whether a batch's array may be scaled: real numbers that are no 0/1 mask."""
    return bool(array.dtype.kind == "f" and array.ndim > 1 and not np.isin(array, (0, 1)).all())


def inputs(batch: Batch, change: Callable[[Array], Array]) -> Batch:
    """The batch with its real-valued arrays changed."""
    return {name: change(array) if is_input(array) else array for name, array in batch.items()}


def part(batch: Batch, size: int) -> Batch:
    """The first `size` examples of a batch; half of them, and one more, for 0."""
    length = max(len(array) for array in batch.values() if array.ndim)
    size = size or length // 2 + 1
    return {name: array[:size] if array.ndim and len(array) == length else array for name, array in batch.items()}


def as_float64(case: Case) -> Case:
    """The same question with every real number in float64."""
    return replace(case, state=_float64(case.state), batches=tuple(_float64(batch) for batch in case.batches))


def _float64(arrays: Mapping[str, Array]) -> Tensors:
    return {name: array.astype(np.float64) if array.dtype == np.float32 else array for name, array in arrays.items()}
