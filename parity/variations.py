"""Which cases are worth asking: states and batches that leave a mistake nothing to hide behind. NumPy only."""

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace

import numpy as np

from parity.cases import CALLS, Array, Batch, Call, Case, Tensors

STEPS = 3
SCALES: dict[str, Callable[[Array], Array]] = {
    "small": lambda x: x * x.dtype.type(1e-3),
    "large": lambda x: x * x.dtype.type(30),
    "zero": np.zeros_like,
    "constant": lambda x: np.full_like(x, x.flat[0] if x.size else 0),
}
"""What is done to a batch's real-valued inputs."""


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
    frozen: frozenset[str] = frozenset()
    """Parameters that are never trained: they keep their values, for they may be tables that a port computes."""
    clips: bool = False
    """Whether it clips gradients."""
    has_init: bool = False
    has_epoch: bool = False
    has_evaluate: bool = False

    @property
    def trained(self) -> frozenset[str]:
        return self.parameters - self.frozen


def cases(program: Program, seed: int = 0, quick: bool = False, float64: bool = True) -> list[Case]:
    """All cases, call by call; those that the reference itself cannot answer are for the exam to drop."""
    further = [case for case in program.further if not quick and (float64 or case.dtype != np.float64)]
    order = list(CALLS)
    return sorted([*_cases(program, seed, quick, float64), *further], key=lambda case: order.index(case.call))


def _cases(program: Program, seed: int, quick: bool, float64: bool) -> Iterator[Case]:
    given, shaken = program.state, shake(program, np.random.default_rng(seed))
    trained = program.trained
    small = {
        name: array * np.float32(0.05) if array.ndim > 1 and name in trained else array
        for name, array in shaken.items()
    }
    first, last = program.batches[0], program.batches[-1]
    batches = tuple(program.batches[index % len(program.batches)] for index in range(STEPS))
    scaled = {name: change for name, change in SCALES.items() if not quick and any(map(is_input, first.values()))}

    def in_float64(case: Case) -> Iterator[Case]:
        if float64:
            yield as_float64(case)

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
        half = size(first) // 2 + 1
        asked.append(("shaken, batch of one", shaken, examples(first, slice(0, 1))))
        asked.append(("shaken, half a batch", shaken, examples(first, slice(0, half))))
    asked += [(f"shaken, {name} inputs", shaken, inputs(first, change)) for name, change in scaled.items()]
    # Whole numbers tie, and at a tie a gradient is a choice: only outputs are asked for.
    whole = "integers", integers(program, shaken), inputs(first, _whole)
    for train, mode in ((False, "evaluation mode"), (True, "training mode")):
        for name, state, batch in (*asked, whole):
            if not (quick and train) or name == "shaken":
                yield Case(f"{name}, {mode}", "outputs", state, (batch,), train)
        yield from in_float64(Case(f"float64, {mode}", "outputs", shaken, (first,), train))
    for name, state, batch in asked:
        yield Case(name, "value_and_grad", state, (batch,))
    yield from in_float64(Case("float64", "value_and_grad", shaken, (first,)))
    yield from in_float64(Case("float64, small parameters", "value_and_grad", small, (last,)))

    yield Case("as given", "train_steps", given, batches)
    yield Case("shaken", "train_steps", shaken, batches)
    if "large" in scaled:
        large = tuple(inputs(batch, scaled["large"]) for batch in batches)
        yield Case("shaken, large inputs", "train_steps", shaken, large)
    yield from in_float64(Case("float64", "train_steps", shaken, batches))
    if program.clips:
        # Gradients that no limit is reached by.
        tiny = {name: array * np.float32(0.02) if name in trained else array for name, array in shaken.items()}
        yield Case("tiny parameters", "train_steps", tiny, batches)
    both: tuple[tuple[Call, bool], ...] = (("train_epoch", program.has_epoch), ("evaluate", program.has_evaluate))
    for call in (call for call, offered in both if offered):
        yield Case("all batches", call, shaken, program.batches)
        yield from in_float64(Case("float64, all batches", call, shaken, program.batches))


def _kind(program: Program, name: str, array: Array) -> str:
    """What a tensor of the state is changed as: `parameter`, `statistic`, `positive` statistic; "" where it is left."""
    changes = name in program.trained or name in program.running
    if array.dtype.kind != "f" or not changes:
        return ""
    if name not in program.running:
        return "parameter"
    return "positive" if (array >= 0).all() and array.any() else "statistic"


def shake(program: Program, random: np.random.Generator) -> Tensors:
    """The state moved away from the special values of fresh programs: zero biases, unit scales, running variance 1."""
    shaken = dict(program.state)
    for name, array in program.state.items():
        kind = _kind(program, name, array)
        if kind and name in program.tied:
            shaken[name] = shaken[program.tied[name]]
        elif kind:
            noise = random.standard_normal(array.shape)
            if kind == "positive":
                moved = array * np.exp(0.5 * noise)
            else:
                scale = min(_rms(array.astype(np.float64)), 1.0) or 1.0
                moved = array * (1 + 0.1 * noise) + 0.1 * scale * random.standard_normal(array.shape)
            shaken[name] = np.asarray(moved, array.dtype)
    return shaken


def integers(program: Program, state: Tensors) -> Tensors:
    """A state of small whole numbers, on which most of float32's arithmetic is exact."""
    change: dict[str, Callable[[Array], Array]]
    change = {"": lambda x: x, "parameter": _whole, "positive": np.ones_like, "statistic": np.zeros_like}
    return {name: change[_kind(program, name, array)](array) for name, array in state.items()}


def _whole(array: Array) -> Array:
    return np.asarray(np.clip(np.rint(array / array.dtype.type(_rms(array) or 1)), -2, 2), array.dtype)


def _rms(array: Array) -> float:
    return float(np.sqrt(np.mean(np.square(array)))) if array.size else 0.0


def is_input(array: Array) -> bool:
    """Whether a batch's array may be scaled: real numbers that are no 0/1 mask."""
    return bool(array.dtype.kind == "f" and array.ndim > 1 and not np.isin(array, (0, 1)).all())


def inputs(batch: Batch, change: Callable[[Array], Array]) -> Batch:
    """The batch with its real-valued arrays changed."""
    return {name: change(array) if is_input(array) else array for name, array in batch.items()}


def size(batch: Batch) -> int:
    """How many examples a batch has."""
    return max((len(array) for array in batch.values() if array.ndim), default=0)


def examples(batch: Batch, chosen: slice) -> Batch:
    """Some examples of a batch; all of one that has fewer."""
    length = size(batch)
    kept = chosen if chosen.stop <= length else slice(0, length)
    return {name: array[kept] if array.ndim and len(array) == length else array for name, array in batch.items()}


def as_float64(case: Case) -> Case:
    """The same question with every real number in float64."""
    return replace(case, state=_float64(case.state), batches=tuple(_float64(batch) for batch in case.batches))


def _float64(arrays: Mapping[str, Array]) -> Tensors:
    return {name: array.astype(np.float64) if array.dtype == np.float32 else array for name, array in arrays.items()}
