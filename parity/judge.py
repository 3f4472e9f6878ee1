"""Judge: what a check needs; Check: a claim about a port."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from typing import Any

from fmnist.data import Dataset
from fmnist.experiment import Experiment
from parity import fixtures
from parity.comparison import MEMORY, Comparison, compare
from parity.fixtures import Case
from parity.port import Held, Misbehaviour
from parity.reruns import Reruns, WholeRun, run

STAGES = (
    *("decode", "init", "start", "logits", "loss", "gradients"),
    *("update", "epoch", "evaluate", "trajectory", "trends"),
)


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
    port_runs: dict[Experiment, WholeRun] = field(default_factory=dict)

    def port_run(self, experiment: Experiment) -> WholeRun:
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
        images = self.dataset.train
        first = (first + 100 * self.first_seed) % (len(images.labels) - rows + 1)
        return fixtures.real(name, experiment, tensors, images, rows, first)


@dataclass(frozen=True)
class Check:
    """A claim about a port: its stage, its name, and what it compares."""

    stage: str
    name: str
    compare: Callable[[Judge, str, str], Iterator[Comparison]]
    needs_float64: bool = False


def run_check(judge: Judge, check: Check, done: list[Comparison] | None = None) -> list[Comparison]:
    """A check's comparisons, in `done` as they come; misbehaviour in memory is one that fails."""
    done = [] if done is None else done
    try:
        for comparison in check.compare(judge, check.stage, check.name):
            done.append(comparison)
    except Misbehaviour as misbehaviour:
        done.append(compare((check.stage, check.name, str(misbehaviour)), MEMORY, 1.0, 0.0))
    return done
