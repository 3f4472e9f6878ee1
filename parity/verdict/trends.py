"""Whole runs beside each other: how far they drift apart, and whether their trends are the same. NumPy only."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from parity.cases import Answer, Array, Case, Tensors
from parity.verdict.comparison import Comparison, Measured

LAST = ("trajectory", "trends")
"""The last two stages, which take whole runs."""
MOVED, MOST_MOVED = 4, 16
"""Runs that start one ulp away: how far rounding drives a program apart is seen from them. More where they say "too
far"."""
SLACK = 8.0
"""How many times their largest drift a right port's own may be. The largest of four draws is exceeded by a fifth one in
one case of five; eight times it has not been seen."""
CONFIDENCE = 0.95
SEEDS = 13
"""They show equivalence with a power of 90 % where paired differences have the margin as their standard deviation."""
FORCED_STEPS = 3

Metrics = dict[str, Array]
"""What was reported at every epoch, `(seeds, epochs)`, by name."""


@dataclass
class Drift:
    """A whole run that the reference has answered from where it starts, and from one ulp away."""

    case: Case
    expected: Measured
    own: Measured | None
    """One of the moved ones: what the reference itself drifts by."""
    moved: list[Measured]
    further: Callable[[], list[Measured]] = list
    """More moved runs, none once there are enough: a few may all have been spared what others meet with by chance."""

    def tolerances(self) -> Tensors:
        """`SLACK` times the largest drift that was reached until then: runs may come together again by chance."""
        allowed, reached = {}, dict[str, Array | float]()
        for quantity, expected in self.expected.items():
            if expected.dtype.kind != "f":
                allowed[quantity] = np.zeros(expected.shape)
                continue
            kind, _, name = quantity.partition("/")
            name = name.partition("/")[2]
            apart = max(float(np.abs(other[quantity] - expected).max(initial=0)) for other in self.moved)
            reached[kind + name] = max(reached.get(kind + name, 0.0), apart)
            size = np.abs(expected + self.case.state[name] if kind == "update" else expected).max(initial=0)
            eps = float(np.finfo(self.case.dtype).eps)
            allowed[quantity] = np.full(expected.shape, SLACK * (reached[kind + name] + eps * float(size)))
        return allowed

    def more(self) -> bool:
        """Start from further states that are one ulp away; whether there are any."""
        found = self.further()
        self.moved += found
        return bool(found)


def forced(case: Case, run: Answer) -> Iterator[Case]:
    """A few steps from where the reference was after each of its epochs, on batches that follow one another."""
    for epoch in range(case.epochs + 1):
        state = {name: run[f"state/{epoch}/{name}"] for name in case.state} if epoch else case.state
        first = FORCED_STEPS * epoch % max(len(case.batches) - FORCED_STEPS + 1, 1)
        batches = case.batches[first : first + FORCED_STEPS]
        yield Case(f"from the reference after epoch {epoch}", "train_epoch", state, batches)


def metrics(runs: Sequence[Answer], epochs: int) -> Metrics:
    """What runs reported, a run a row."""
    names = [key.removeprefix("evaluate/1/") for key in runs[0] if key.startswith("evaluate/1/")]
    return {
        name: np.array([[float(run[f"evaluate/{epoch}/{name}"]) for epoch in range(1, epochs + 1)] for run in runs])
        for name in names
    }


def equivalence(reference: Metrics, port: Metrics, margins: Mapping[str, float]) -> Iterator[Comparison]:
    """Two one-sided tests at every epoch: the confidence interval of the mean paired difference lies in the margin."""
    for name, margin in margins.items():
        if name not in reference or name not in port:
            wrong = f"is missing: the {'port' if name in reference else 'reference'} reports no {name}"
            yield Comparison("trends", "all epochs", f"evaluate/{name}", 0, np.inf, None, wrong=wrong)
            continue
        differences = port[name] - reference[name]
        for epoch, bounds in enumerate(interval(differences).T, 1):
            bound = float(bounds[np.abs(bounds).argmax()])
            ratio = abs(bound) / margin if np.isfinite(bound) else np.inf
            case, of = f"epoch {epoch}, {len(differences)} seeds", f"evaluate/{name}"
            values = (), 0.0, bound, margin, int(ratio > 1)
            yield Comparison("trends", case, of, len(differences), ratio, None, *values)


def interval(differences: Array) -> Array:
    """Bounds `(2, epochs)` of the mean difference, of which each holds with 95 % confidence.

    Both within the margin is the two one-sided tests' rejection of a difference that is larger: Schuirmann, 1987. At
    every epoch, hence without a correction for their number: Berger's intersection-union test, 1982.
    """
    from scipy import stats

    seeds = len(differences)
    half = stats.t.ppf(CONFIDENCE, seeds - 1) * differences.std(axis=0, ddof=1) / np.sqrt(seeds)
    mean = differences.mean(axis=0)
    return np.stack([mean - half, mean + half])


def distances(case: Case, runs: dict[str, Answer]) -> dict[str, Array]:
    """For the picture: every run's distance from the first at each epoch, relative to what training changed by then.

    In the Euclidean norm over all real tensors.
    """
    names = [name for name, tensor in case.state.items() if tensor.dtype.kind == "f"]

    def flat(tensors: Tensors, prefix: str = "") -> Array:
        return np.concatenate([tensors[f"{prefix}{name}"].ravel().astype(np.float64) for name in names])

    def path(run: Answer) -> Array:
        return np.array([flat(run, f"state/{epoch}/") for epoch in range(1, case.epochs + 1)])

    first, *others = runs
    center = path(runs[first])
    moved = np.maximum(np.linalg.norm(center - flat(case.state), axis=1), 1e-300)
    return {name: np.linalg.norm(path(runs[name]) - center, axis=1) / moved for name in others}
