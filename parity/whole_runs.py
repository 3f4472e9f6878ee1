"""The last two stages of the ladder, which take whole runs: `trajectory` and `trends`."""

from collections.abc import Iterator
from dataclasses import replace

import numpy as np
from scipy import stats

from fmnist.experiment import Experiment, StateDict
from fmnist.runs.lines import progress
from parity import fixtures
from parity.comparison import Comparison, compare
from parity.formulas import Array
from parity.judge import Check, Judge
from parity.quantities import ENVELOPE_SLACK, updates_of
from parity.reruns import WholeRun

PERTURBATIONS = (1, 2)

# Two ports are called equivalent where their mean difference over seeds lies within these. 0.1 point of accuracy is
# 10 of 10,000 test images, and less than a third of what another seed changes; one unit in the third decimal of the
# loss is what a reader of the post's log would call the same number.
ACCURACY_MARGIN = 0.001
LOSS_MARGIN = 0.001
CONFIDENCE = 0.95


def prepare_trajectory(judge: Judge) -> None:
    """Start the runs in the background that `trajectory` will ask for."""
    experiment = judge.experiment()
    for perturbation in (0, *PERTURBATIONS):
        judge.reruns.prepare("reference", experiment, perturbation)
        judge.reruns.prepare("oracle", experiment, perturbation)


def prepare_trends(judge: Judge) -> None:
    """Start the runs in the background that `trends` will ask for."""
    for experiment in paired(judge):
        judge.reruns.prepare("reference", experiment)


def teacher_forced(judge: Judge, stage: str, check: str) -> Iterator[Comparison]:
    """One step from where the reference was after each of its epochs, on images that follow one another."""
    experiment = judge.experiment()
    states = judge.reruns.get("reference", experiment).tensors
    for epoch, tensors in enumerate(states):
        name = f"a step after epoch {epoch}"
        case = fixtures.real(name, experiment, tensors, judge.dataset.train, 64, 64 * epoch)
        yield from updates_of(judge, (stage, check), case, steps=1)


def free_running(judge: Judge, stage: str, check: str) -> Iterator[Comparison]:
    """A whole run, after each of its epochs as near to the oracle's as runs that start one ulp away."""
    experiment = judge.experiment()
    oracle = judge.reruns.get("oracle", experiment)
    reference = judge.reruns.get("reference", experiment)
    others = [reference]
    for perturbation in PERTURBATIONS:
        others += [judge.reruns.get(side, experiment, perturbation) for side in ("reference", "oracle")]
    found = judge.port_run(experiment)
    start = {name: tensor.astype(np.float64) for name, tensor in reference.tensors[0].items()}
    for name in start:
        reached = np.zeros(())
        for epoch in range(1, experiment.epochs + 1):
            expected = oracle.tensors[epoch][name]
            apart = [float(np.abs(other.tensors[epoch][name] - expected).max()) for other in others]
            # Once apart, runs may come together again by chance, but a port need not.
            reached = np.maximum(reached, max(apart))
            yield compare(
                (stage, check, f"epoch {epoch}"),
                name,
                found.tensors[epoch][name] - start[name],
                expected - start[name],
                reached + np.finfo(np.float32).eps * np.abs(expected).max(),
                slack=ENVELOPE_SLACK,
                reference=reference.tensors[epoch][name] - start[name],
            )
    yield from _losses_of(stage, check, found, oracle, reference, others)


def _losses_of(
    stage: str, check: str, found: WholeRun, oracle: WholeRun, reference: WholeRun, others: list[WholeRun]
) -> Iterator[Comparison]:
    reached = np.zeros(())
    for epoch, expected in enumerate(oracle.losses, 1):
        apart = [float(np.abs(other.losses[epoch - 1] - expected).max()) for other in others]
        reached = np.maximum(reached, max(apart))
        yield compare(
            (stage, check, f"epoch {epoch}"),
            "losses",
            found.losses[epoch - 1],
            expected,
            reached + np.finfo(np.float32).eps * np.abs(expected).max(),
            slack=ENVELOPE_SLACK,
            reference=reference.losses[epoch - 1],
        )


def drift(judge: Judge) -> dict[str, Array]:
    """For the picture: every epoch's distance from the oracle, relative to what training changed by then.

    One curve `(epochs,)` for the reference, each perturbed run and the port.
    """
    experiment = judge.experiment()
    oracle, reference = (judge.reruns.get(side, experiment) for side in ("oracle", "reference"))
    runs = {"torch": reference, "port": judge.port_run(experiment)}
    for perturbation in PERTURBATIONS:
        runs[f"torch, moved {perturbation}"] = judge.reruns.get("reference", experiment, perturbation)
        runs[f"float64, moved {perturbation}"] = judge.reruns.get("oracle", experiment, perturbation)
    return {
        name: np.array(
            [_distance(mine, exact, oracle.tensors[0]) for mine, exact in zip(one.tensors, oracle.tensors, strict=True)]
        )[1:]
        for name, one in runs.items()
    }


def _distance(mine: StateDict, exact: StateDict, start: StateDict) -> float:
    """|mine - exact| / |exact - start| over all tensors, in the Euclidean norm."""
    apart = np.concatenate([(mine[name].astype(np.float64) - exact[name]).ravel() for name in exact])
    moved = np.concatenate([(exact[name].astype(np.float64) - start[name]).ravel() for name in exact])
    return float(np.linalg.norm(apart) / max(float(np.linalg.norm(moved)), 1e-300))


def paired(judge: Judge) -> list[Experiment]:
    """The experiments of the paired seeds."""
    first = judge.experiment()
    return [replace(first, seed=first.seed + seed) for seed in range(judge.seeds)]


def trends_of(judge: Judge) -> tuple[dict[str, Array], dict[str, Array]]:
    """Accuracy and average loss of each seed and epoch, `(seeds, epochs)`, of the reference and of the port."""
    sides: list[dict[str, list[list[float]]]] = [{"accuracy": [], "average loss": []} for _ in range(2)]
    experiments = paired(judge)
    for index in progress(range(len(experiments)), "trends"):
        reference = judge.reruns.get("reference", experiments[index])
        port = judge.port_run(experiments[index])
        for side, one in zip(sides, (reference, port), strict=True):
            side["accuracy"].append(one.accuracy)
            side["average loss"].append(one.average_loss)
    return tuple({name: np.array(values) for name, values in side.items()} for side in sides)  # type: ignore[return-value]


def equivalence(judge: Judge, stage: str, check: str) -> Iterator[Comparison]:
    """Two one-sided tests at every epoch: the confidence interval of the mean paired difference lies in the margin."""
    reference, port = trends_of(judge)
    for name, margin in (("accuracy", ACCURACY_MARGIN), ("average loss", LOSS_MARGIN)):
        differences = port[name] - reference[name]
        bounds = interval(differences)
        for epoch in range(differences.shape[1]):
            yield compare(
                (stage, check, f"epoch {epoch + 1}, {judge.seeds} seeds"),
                name,
                bounds[np.abs(bounds[:, epoch]).argmax(), epoch],
                0.0,
                margin,
                slack=1.0,
            )


def interval(differences: Array) -> Array:
    """Bounds `(2, epochs)` of the mean difference, of which each holds with 95 % confidence.

    Both within the margin is the two one-sided tests' rejection of a difference that is larger: Schuirmann, 1987. At
    every epoch, hence without a correction for their number: Berger's intersection-union test, 1982.
    """
    seeds = len(differences)
    half = stats.t.ppf(CONFIDENCE, seeds - 1) * differences.std(axis=0, ddof=1) / np.sqrt(seeds)
    mean = differences.mean(axis=0)
    return np.stack([mean - half, mean + half])


WHOLE_RUNS = (
    Check("trajectory", "teacher-forced", teacher_forced),
    Check("trajectory", "free-running", free_running),
    Check("trends", "equivalence", equivalence),
)
