"""The two programs as parity sees them: the mirror agrees, planted faults are found, ports of old are still judged."""

import json
import re
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch

from fmnist.data import Dataset
from fmnist.judged import JUDGED
from fmnist_jax import port as mirror
from fmnist_jax.earlier import FUNCTIONS, adapted
from fmnist_torch import train
from fmnist_torch.reference import reference
from parity.cases import Case
from parity.exam import judge
from parity.port.held import Held
from parity.reference.asked import Sitting
from parity.variations import cases
from parity.verdict.comparison import Verdict, compare
from tests.conftest import ROOT, command
from tests.tools.faults.planted import Fault, faults
from tests.tools.faults.trial import OFFERS, RIGHT, bench

FIRST = next(iter(JUDGED))


@pytest.fixture(scope="module")
def sitting(dataset: Dataset) -> Sitting:
    return Sitting.of(reference()[FIRST], OFFERS, "float32")


def test_the_command_agrees_and_leaves_a_report(dataset: Dataset, tmp_path: Path) -> None:
    done = command("parity", "--quick", "--output", str(tmp_path / "report"))
    assert done.returncode == 0, done.stderr + done.stdout
    assert re.match(r"agrees: .* 5 of 5 programs", done.stdout.splitlines()[-1])
    report = json.loads((tmp_path / "report" / "report.json").read_text())
    assert report["agrees"] is True
    assert list(report["programs"]) == list(JUDGED)
    for name, program in report["programs"].items():
        stages = {one["stage"] for one in program["comparisons"]}
        assert {"load", "init", "outputs", "loss", "gradients", "step", "steps", "epoch", "evaluate"} <= stages
        assert ("trajectory" in stages) == (name == list(JUDGED)[-1])
        assert all(one["values"] > 0 for one in program["comparisons"])
    assert (tmp_path / "report" / "trajectory.png").read_bytes()[:4] == b"\x89PNG"
    refused = command("parity", "--only", "load", "--output", str(tmp_path / "report"))
    assert refused.returncode == 2
    assert "--overwrite" in refused.stderr


def test_a_port_of_the_earlier_interface_agrees(dataset: Dataset, tmp_path: Path) -> None:
    (tmp_path / "port.py").write_text((ROOT / "tests" / "programs" / "earlier_port.py").read_text())
    stages = ("--only", "init", "outputs", "step")
    done = command("parity", "--port", str(tmp_path / "port.py"), "--quick", "--data", "synthetic", *stages)
    assert done.returncode == 0, done.stderr + done.stdout
    assert "not judged: init: the port offers no init" in done.stdout
    assert "not judged: float64: the port computes in float32 only" in done.stdout


def test_a_module_of_neither_interface_is_told_what_it_lacks(tmp_path: Path) -> None:
    (tmp_path / "port.py").write_text("def decode(images): return images\n")
    done = command("parity", "--port", str(tmp_path / "port.py"))
    assert done.returncode == 2
    assert "lacks load_state_dict, and of the earlier interface start, tensors" in done.stderr
    assert "Traceback" not in done.stderr


def test_programs_that_the_port_has_not_are_named(tmp_path: Path) -> None:
    (tmp_path / "port.py").write_text(
        f"from fmnist_jax.port import port as all_of_them\nport = {{{FIRST!r}: all_of_them[{FIRST!r}]}}\n"
    )
    done = command("parity", "fmnist_torch/reference.py", str(tmp_path / "port.py"))
    assert done.returncode == 2
    assert f"has {FIRST}, fmnist_torch/reference.py has {', '.join(JUDGED)}" in done.stderr


@pytest.mark.parametrize("name", list(RIGHT)[1:])
def test_a_right_port_agrees_in_quick(name: str, dataset: Dataset) -> None:
    first = replace(bench(0), sittings={FIRST: bench(0).sittings[FIRST]})
    compared = list(first.trial(RIGHT[name], whole=False, quick=True))
    assert compared
    assert [one for one in compared if not one.passes] == []


# One a stage and kind; `make faults` plants them all.
SUBSET = (
    "pixels * (1/255)", "steps write into the start", "leaky ReLU", "TF32 in fc1", "divided by batch_size",
    "jnp.maximum for relu", "kernel gradients in bfloat16", "momentum", "lr in float32", "tail dropped",
    "mean over images", "trains on the tests",
)  # fmt: skip


@pytest.mark.parametrize("fault", [one for one in faults() if one.name in SUBSET], ids=lambda fault: fault.name)
def test_a_planted_fault_is_found_at_its_stage(fault: Fault, dataset: Dataset) -> None:
    failing = [one for one in bench(0).trial(lambda: adapted(fault.make()), whole=False) if not one.passes]
    assert {one.stage for one in failing} == {fault.stage}


def test_there_are_faults_for_every_stage_that_the_programs_have() -> None:
    planted = list(faults())
    assert len({fault.name for fault in planted}) == len(planted) == 78
    stages = {"load", "init", "outputs", "loss", "gradients", "step", "steps", "epoch", "evaluate"}
    assert {fault.stage for fault in planted} == stages | {"trajectory", "trends"}


def test_equality_is_asked_of_pixels_draws_and_exact_integers(sitting: Sitting) -> None:
    asked = [
        case
        for case in cases(sitting.program)
        if case.name in ("exact integers", "every grey", "seed 42") and case.call != "train_steps"
    ]
    assert {case.call for case in asked} == {"init", "outputs", "value_and_grad"}
    for case in asked:
        question = sitting.ask(case)
        assert question is not None
        for quantity, allowed in question.tolerances().items():
            if case.name != "every grey" or quantity == "outputs/pixels":
                assert not np.any(allowed), (case.name, quantity)
        assert question.own is not None
        assert all(one.ratio == 0 for one in compare(question, question.own) if one.quantity != "outputs/logits")
        if case.call == "value_and_grad":
            assert all(np.any(values) for values in question.expected.values())


def test_pixels_are_those_of_the_program_in_float64_too(sitting: Sitting, dataset: Dataset) -> None:
    batch: dict[str, Any] = {"images": dataset.train.images[:3], "labels": dataset.train.labels[:3]}
    state = {name: tensor.astype(np.float64) for name, tensor in sitting.program.state.items()}
    pixels = sitting.answer(Case("", "outputs", state, (batch,)))["outputs/pixels"]
    assert np.array_equal(pixels, train.decode(batch["images"], torch.device("cpu")).numpy())


def verdict(port: Any, *stages: str) -> Verdict:
    return judge(reference()[FIRST], Held(port), stages=stages, quick=True)


def test_noise_is_found(dataset: Dataset) -> None:
    random = np.random.RandomState(0)

    class Noisy(mirror.Mirror):
        def outputs(self, state: Any, batch: Any, train: bool) -> Any:
            found = super().outputs(state, batch, train)
            logits = np.asarray(found["logits"])
            return {**found, "logits": logits + 1e-4 * random.standard_normal(logits.shape).astype(logits.dtype)}

    assert not verdict(Noisy(JUDGED[FIRST]), "outputs").agrees


@pytest.mark.parametrize("missing", FUNCTIONS)
def test_an_earlier_port_without_a_function_is_refused(missing: str) -> None:
    module = SimpleNamespace(**{name: print for name in FUNCTIONS if name != missing})
    with pytest.raises(TypeError, match=f"earlier interface {missing}$"):
        adapted(module)
