"""Whole runs: what drift is allowed, when trends are the same, and what is made of a port that does not run."""

import contextlib
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
import torch

from parity import Reference
from parity.cases import Case
from parity.cases_file import Answers, digest
from parity.errors import PortError
from parity.exam import judge
from parity.port.held import Held
from parity.recorded import record, replay
from parity.reference.program import WholeRun
from parity.reference.whole_runs import one_ulp_away
from parity.verdict.comparison import Comparison, Measured
from parity.verdict.pictures import pictures
from parity.verdict.trends import SLACK, Drift, equivalence, interval

EPOCHS, MARGIN, RATE = 4, 0.001, 0.05
RANDOM = np.random.default_rng(0)
BATCHES = [{"x": RANDOM.normal(size=(rows, 3)).astype("f4")} for rows in (8, 8, 3)]


def loss(module: Any, batch: Any) -> Any:
    return (module(batch["x"]) - batch["x"].sum(1, keepdim=True)).square().mean()


def train_epoch(module: Any, optimizer: Any, batches: Any) -> Any:
    losses = []
    for batch in batches:
        optimizer.zero_grad()
        losses.append(loss(module, batch))
        losses[-1].backward()
        optimizer.step()
    return torch.stack(losses).detach()


def evaluate(module: Any, batches: Any) -> dict[str, float]:
    return {"loss": float(np.mean([loss(module, batch).item() for batch in batches]))}


REFERENCE = Reference(
    module=lambda: torch.nn.Linear(3, 1),
    loss=loss,
    optimizer=lambda module: torch.optim.SGD(module.parameters(), lr=RATE),
    batches=BATCHES,
    train_epoch=train_epoch,
    evaluate=evaluate,
    whole_run=WholeRun(BATCHES * 3, BATCHES, EPOCHS, {"loss": MARGIN}),
    name="linear",
)


class Port:
    """The same in NumPy; `rate` is told the step that is made, counted over all runs."""

    def __init__(self, rate: Any = lambda step: RATE) -> None:
        self.rate, self.steps = rate, 0

    def load_state_dict(self, tensors: Any) -> Any:
        return {name: tensor.copy() for name, tensor in tensors.items()}

    def state_dict(self, state: Any) -> Any:
        return {name: tensor.copy() for name, tensor in state.items()}

    def outputs(self, state: Any, batch: Any, train: bool) -> Any:
        return batch["x"] @ state["weight"].T + state["bias"]

    def value_and_grad(self, state: Any, batch: Any) -> Any:
        apart = self.outputs(state, batch, True) - batch["x"].sum(1, keepdims=True)
        slope = 2 * apart / len(apart)
        return (apart * apart).mean(), {"weight": slope.T @ batch["x"], "bias": slope.sum(0)}

    def train_step(self, state: Any, batch: Any) -> Any:
        self.steps += 1
        loss, grads = self.value_and_grad(state, batch)
        rate = state["bias"].dtype.type(self.rate(self.steps))
        return {name: state[name] - rate * grads[name] for name in state}, loss

    def train_epoch(self, state: Any, batches: Any) -> Any:
        losses = []
        for batch in batches:
            state, loss = self.train_step(state, batch)
            losses.append(loss)
        return state, np.array(losses)

    def evaluate(self, state: Any, batches: Any) -> Any:
        return {"loss": np.mean([self.value_and_grad(state, batch)[0] for batch in batches])}


def stages(compared: Any) -> dict[str, bool]:
    """Whether all of a stage passes."""
    return {one.stage: all(each.passes for each in compared if each.stage == one.stage) for one in compared}


def test_a_right_port_agrees_in_whole_runs_and_its_curves_are_kept() -> None:
    verdict = judge(REFERENCE, Port(), seeds=3)
    assert verdict.agrees, [one for one in verdict.comparisons if not one.passes]
    assert {"trajectory", "trends"} <= set(stages(verdict.comparisons))
    assert len(verdict.curves.drift["port"]) == EPOCHS
    assert np.shape(verdict.curves.trends["port"]["loss"]) == (3, EPOCHS)
    drawn = pictures(verdict.curves, {"loss": MARGIN}, "the port")
    assert {name: content[:4] for name, content in drawn.items()} == dict.fromkeys(
        ("trajectory.png", "trends.png"), b"\x89PNG"
    )


@pytest.mark.parametrize("reference", [REFERENCE, None])
def test_an_exam_on_paper_has_no_whole_runs_and_says_so(reference: Reference | None) -> None:
    recording, port = record(REFERENCE, quick=True), Held(Port())
    answers = Answers(port.describe(), {digest(case): port.answer(case) for case, _ in recording.asked})
    verdict = replay(recording, answers, reference)
    assert verdict.agrees, [one for one in verdict.comparisons if not one.passes]
    assert "trajectory, trends: an exam on paper has no whole runs" in verdict.not_judged


def test_quick_leaves_out_trends_and_runs_two_epochs() -> None:
    verdict = judge(REFERENCE, Port(), quick=True)
    assert "trends" not in stages(verdict.comparisons)
    assert len(verdict.curves.drift["port"]) == 2


def test_a_rate_that_changes_in_the_last_epoch_shows_in_the_trajectory_only() -> None:
    one = Port()
    judge(REFERENCE, one, stages=["load", "outputs", "loss", "gradients", "step", "steps", "epoch", "evaluate"])
    late = one.steps + 3 * (EPOCHS + 1) + 9 * (EPOCHS - 1)  # after the teacher-forced steps, in the last epoch
    verdict = judge(REFERENCE, Port(lambda step: RATE if step <= late else RATE / 2), seeds=3)
    found = stages(verdict.comparisons)
    assert not found["trajectory"]
    assert all(passes for stage, passes in found.items() if stage != "trajectory" and stage != "trends")


def test_a_rate_that_changes_in_a_later_run_shows_in_the_trends() -> None:
    one = Port()
    judge(REFERENCE, one, stages=["trajectory"])
    later = Port(lambda step: RATE if step <= one.steps else RATE / 4)
    verdict = judge(REFERENCE, later, stages=["trajectory", "trends"], seeds=4)
    assert stages(verdict.comparisons) == {"trajectory": True, "trends": False}


def test_a_port_that_raises_in_a_whole_run_is_told_so() -> None:
    def gives_up(step: int) -> float:
        if step > 30:
            raise RuntimeError("out of steps")
        return RATE

    verdict = judge(REFERENCE, Port(gives_up), stages=["trajectory", "trends"])
    assert not verdict.agrees
    assert "out of steps" in str([one.wrong for one in verdict.comparisons if one.stage == "trends"])


def test_without_a_whole_run_the_stages_are_named_as_not_judged() -> None:
    from dataclasses import replace

    verdict = judge(replace(REFERENCE, whole_run=None), Port())
    assert "trajectory: the reference has no whole_run" in verdict.not_judged
    assert verdict.agrees


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_one_ulp_away_moves_every_entry_by_one_ulp_up_and_down(dtype: type) -> None:
    state = {"w": RANDOM.normal(size=200).astype(dtype), "count": np.array(3)}
    moved = one_ulp_away(state, 1)
    assert moved["w"].dtype == dtype
    up, down = (np.nextafter(state["w"], dtype(side)) for side in (np.inf, -np.inf))
    assert np.all((moved["w"] == up) | (moved["w"] == down))
    assert np.any(moved["w"] == up)
    assert np.any(moved["w"] == down)
    assert moved["count"] == 3


def test_allowed_drift_is_measured_never_shrinks_and_grows_with_further_runs() -> None:
    case = Case("", "whole_run", {"w": np.ones(2, np.float32)}, epochs=2)

    def run(first: float, second: float) -> Measured:
        return {"update/1/w": np.full(2, first, np.float64), "update/2/w": np.full(2, second, np.float64)}

    further = iter([[run(0, 4e-3)], []])
    drift = Drift(case, run(0, 0), run(1e-3, 0), [run(1e-3, 1e-5), run(-5e-4, 0)], lambda: next(further))

    def allowed() -> list[float]:
        return [float(tolerance.max()) for tolerance in drift.tolerances().values()]

    assert allowed() == pytest.approx([SLACK * 1e-3] * 2, rel=2e-3)
    assert drift.more()
    assert allowed() == pytest.approx([SLACK * 1e-3, SLACK * 4e-3], rel=2e-3)
    assert not drift.more()


def test_equivalence_needs_both_bounds_within_the_margin() -> None:
    quiet = 1e-4 * RANDOM.normal(size=(13, 20))
    assert np.abs(interval(quiet)).max() < MARGIN
    for shift in (1.0, -1.0):
        assert np.abs(interval(quiet + shift * MARGIN)).max() > MARGIN
    loud = 5e-3 * RANDOM.normal(size=(13, 20))
    assert np.abs(interval(loud)).max() > MARGIN  # no difference seen is not equivalence


def test_the_interval_covers_the_true_mean_as_often_as_it_says() -> None:
    bounds = interval(np.random.default_rng(1).normal(size=(13, 20_000)))
    assert np.mean(bounds[0] > 0) == pytest.approx(0.05, abs=0.006)
    assert np.mean(bounds[1] < 0) == pytest.approx(0.05, abs=0.006)


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_what_is_not_finite_is_no_equivalence(value: float) -> None:
    def compared(port: Any) -> Iterator[Comparison]:
        with np.errstate(invalid="ignore"):
            yield from equivalence({"loss": np.ones((3, 2))}, {"loss": port}, {"loss": MARGIN})

    assert all(one.passes for one in compared(np.ones((3, 2))))
    assert not any(one.passes for one in compared(np.full((3, 2), value)))
    assert [one.wrong for one in equivalence({"loss": np.ones((3, 2))}, {}, {"loss": MARGIN})] == [
        "is missing: the port reports no loss"
    ]


def test_an_evaluation_that_trains_is_told_so() -> None:
    class Trains(Port):
        def evaluate(self, state: Any, batches: Any) -> Any:
            said = super().evaluate(state, batches)
            state["bias"] += 1
            return said

    with contextlib.suppress(PortError):
        verdict = judge(REFERENCE, Trains(), stages=["evaluate"])
    (found,) = {one.wrong for one in verdict.comparisons if one.wrong}
    assert "the port changed its state, which an evaluation has to leave alone: look at bias" in found
