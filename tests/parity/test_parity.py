"""The suite: right ports agree, wrong ones are found where they go wrong, broken ones are told so."""

import json
import re
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fmnist.data import Dataset
from fmnist.experiment import Experiment
from fmnist_torch import model
from parity import fixtures, formulas
from parity.checks import CHECKS
from parity.comparison import compare
from parity.diagnosis import explain
from parity.faults import faults
from parity.formulas import RIGHT
from parity.judge import STAGES, Judge, run_check
from parity.mistakes import lower
from parity.port import REQUIRED, Held, PortError, find
from parity.ports import jax_port, oracle_port, torch_port
from parity.reruns import Reruns
from parity.tolerance import SLACK, limits, perturb
from parity.verdict import LADDER, Verdict, climb
from parity.whole_runs import ACCURACY_MARGIN, interval
from tests.conftest import ROOT, assert_one_line, command, here
from tests.parity.ports import plain_port

# What is planted, found and explained here was tried on FashionMNIST only.
pytestmark = pytest.mark.usefixtures("fashion_mnist")

BEFORE_WHOLE_RUNS = [stage for stage in STAGES if stage not in ("trajectory", "trends")]


def draw(experiment: Experiment) -> dict[str, Any]:
    return {name: tensor.numpy() for name, tensor in model.init(experiment).state_dict().items()}


def judge(port: Any, dataset: Dataset, **values: Any) -> Judge:
    return Judge(Held(port, "the port"), Held(torch_port, "the reference"), dataset, Reruns(None, "cpu"), **values)


def verdict(port: Any, dataset: Dataset) -> Verdict:
    return climb(judge(port, dataset), BEFORE_WHOLE_RUNS)


# Right ports


@pytest.mark.parametrize("port", [jax_port, plain_port], ids=["jax", "plain"])
def test_a_right_port_agrees(port: Any, dataset: Dataset) -> None:
    assert verdict(port, dataset).sentence().startswith("agrees")


def test_the_three_witnesses_agree_in_float64(dataset: Dataset) -> None:
    experiment = Experiment(hidden=(16, 16), softmax_output=True)
    tensors = {name: tensor.astype(np.float64) for name, tensor in draw(experiment).items()}
    images, labels = dataset.train.images[:64], dataset.train.labels[:64]
    seen = [
        port.gradients(port.start(tensors, experiment), images, labels) for port in (oracle_port, torch_port, jax_port)
    ]
    for name, oracle in seen[0].items():
        for other in seen[1:]:
            assert np.abs(other[name] - oracle).max() <= 1e-12 * np.abs(oracle).max()


def test_the_command_agrees_and_leaves_a_report(dataset: Dataset, tmp_path: Path) -> None:
    done = command("parity", "--quick", "--output", str(tmp_path / "report"))
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines()[-1].startswith("agrees: ")
    assert {path.name for path in (tmp_path / "report").iterdir()} == {"report.json", "report.md", "trajectory.png"}
    report = json.loads((tmp_path / "report" / "report.json").read_text())
    assert report["agree"] is True
    assert report["first_divergence"] is None
    assert list(dict.fromkeys(check["stage"] for check in report["checks"])) == list(STAGES[:-1])
    for check in report["checks"]:
        assert check.keys() >= {"stage", "check", "tensor", "compared", "worst", "allowed", "passed"}
        assert check["passed"]
        assert check["compared"] > 0
        assert check["worst"] <= check["allowed"]
    refused = command("parity", "--only", "decode", "--output", str(tmp_path / "report"))
    assert refused.returncode == 2
    assert "--overwrite" in refused.stderr


def test_the_readme_s_port_agrees_as_written(dataset: Dataset, tmp_path: Path) -> None:
    (code,) = re.findall(
        r"```python\n(\"\"\"The post's network in plain JAX.*?)```", (ROOT / "README.md").read_text(), re.S
    )
    (tmp_path / "port.py").write_text(code)
    done = command("parity", "--port", str(tmp_path / "port.py"), "--only", *BEFORE_WHOLE_RUNS)
    assert done.returncode == 0, done.stderr + done.stdout
    assert "init: not judged" in done.stdout
    assert "float64: not judged" in done.stdout


# Wrong ports

SUBSET = (
    "pixels * (1/255)", "jnp.maximum for relu", "tail dropped",
)  # fmt: skip


@pytest.mark.parametrize("name", SUBSET)
def test_a_planted_fault_is_found_at_its_stage_and_named(name: str, dataset: Dataset) -> None:
    fault = next(fault for fault in faults() if fault.name == name)
    divergence = verdict(fault.make(), dataset).divergence
    assert divergence is not None
    assert divergence.comparison.stage == fault.stage
    assert (fault.words or "none of the mistakes known here") in divergence.sentence()


def test_there_are_faults_for_every_stage() -> None:
    planted = list(faults())
    assert len({fault.name for fault in planted}) == len(planted) >= 40
    assert {fault.stage for fault in planted} == set(STAGES)


def test_the_committed_matrix_has_every_fault_and_every_check() -> None:
    document = (ROOT / "parity" / "FAULTS.md").read_text()
    assert all(f"| {fault.name} | {fault.stage}: " in document for fault in faults())
    assert all(f"| {check.stage}: {check.name} |" in document for check in LADDER)


def test_noise_is_found_and_not_explained(dataset: Dataset) -> None:
    random = np.random.RandomState(0)

    def noisy(state: Any, images: Any) -> Any:
        outputs = jax_port.logits(state, images)
        return outputs + 1e-3 * random.standard_normal(outputs.shape).astype(outputs.dtype)

    port = SimpleNamespace(**{**{name: getattr(jax_port, name) for name in REQUIRED}, "logits": noisy})
    divergence = verdict(port, dataset).divergence
    assert divergence is not None
    assert (divergence.comparison.stage, divergence.explanation) == ("logits", None)


@pytest.mark.parametrize("function", ["logits"])
def test_nan_is_a_divergence(function: str, dataset: Dataset) -> None:
    def broken(*arguments: Any) -> Any:
        answer = getattr(jax_port, function)(*arguments)
        if isinstance(answer, dict):
            return {name: np.full_like(array, np.nan) for name, array in answer.items()}
        if isinstance(answer, tuple):
            return answer[0], float("nan")
        return answer * np.float32("nan")

    port = SimpleNamespace(**{**{name: getattr(jax_port, name) for name in REQUIRED}, function: broken})
    divergence = verdict(port, dataset).divergence
    assert divergence is not None
    assert divergence.comparison.stage == function


def test_a_faulty_port_s_report_says_where_and_exits_1(dataset: Dataset, tmp_path: Path) -> None:
    (tmp_path / "port.py").write_text(
        "from parity.ports.jax_port import *\n"
        "from parity.ports import jax_port\n"
        "def train_step(state, images, labels):\n"
        "    return state, jax_port.loss(state, images, labels)\n"
    )
    arguments = ["--only", "gradients", "update", "--output", str(tmp_path / "report")]
    done = command("parity", "--port", str(tmp_path / "port.py"), *arguments)
    assert done.returncode == 1
    report = json.loads((tmp_path / "report" / "report.json").read_text())
    assert report["agree"] is False
    assert report["first_divergence"]["stage"] == "update"
    assert report["first_divergence"]["tensor"] == "fc1.weight"
    assert "do not change" in report["first_divergence"]["explanation"]
    assert "the first divergence is `update` of `fc1.weight`" in done.stdout


# Broken ports

GOOD = "from parity.ports.jax_port import *\nfrom parity.ports import jax_port\nimport numpy as np\n"


@pytest.mark.parametrize(
    ("code", "words"),
    [
        (None, "no such file"),
        ("def decode(images): return images", "lacks start, tensors, logits"),
        ("import no_such_module_anywhere", "no_such_module_anywhere"),
        ("def (", "cannot be imported: SyntaxError"),
        (GOOD + "def decode(images): return jax_port.decode(images)[:, :-1]", r"float32 \(256, 783\).*\(256, 784\)"),
        (GOOD + "def decode(images): return jax_port.decode(images).astype(float)", "float64.*expected.*float32"),
        (GOOD + "def decode(images): return jax_port.decode(images).tolist()", "list.*expected a NumPy array"),
        (GOOD + "def decode(images): raise RuntimeError('out of cheese')", "decode raised RuntimeError: out of cheese"),
        (GOOD + "def decode(images): raise SystemExit(0)", "decode raised SystemExit"),
        (GOOD + "def tensors(state): return {'w': np.zeros(3)}", "returned w, expected a dict of fc1.weight"),
        (GOOD + "def loss(state, images, labels): return None", "loss returned NoneType"),
        (
            GOOD + "def train_step(state, images, labels): return state",
            "train_step returned Experiment where a number was expected",
        ),
    ],
)
def test_a_port_that_cannot_be_judged_is_told_why(
    code: str | None, words: str, dataset: Dataset, tmp_path: Path
) -> None:
    path = tmp_path / "broken_port.py"
    if code is not None:
        path.write_text(code)
    with pytest.raises(PortError, match=words) as caught:
        climb(judge(find(str(path)), dataset), ["decode", "start", "loss", "update"])
    assert caught.value.exit_code == 2
    assert "\n" not in str(caught.value)


def test_a_broken_port_ends_in_its_traceback_and_our_line(dataset: Dataset, tmp_path: Path) -> None:
    code = GOOD + "print('junk')\ndef decode(images):\n    print('more junk')\n    raise SystemExit(0)"
    (tmp_path / "port.py").write_text(code)
    done = command("parity", "--port", str(tmp_path / "port.py"), "--only", "decode")
    assert done.returncode == 2
    assert "Traceback" in done.stderr
    assert done.stderr.splitlines()[-1].endswith("decode raised SystemExit: 0")
    assert "junk" not in done.stdout


def test_a_port_s_own_traceback_is_shown(dataset: Dataset, capsys: pytest.CaptureFixture[str]) -> None:
    def raising(images: Any) -> Any:
        raise KeyError("mine")

    with pytest.raises(PortError):
        Held(SimpleNamespace(decode=raising), "p").decode(dataset.test.images[:2])
    assert "in raising" in capsys.readouterr().err


@pytest.mark.parametrize("name", ["no_such_module", "parity.ports.no_such", "parity.ports:no_such", "no/such.py"])
def test_a_port_that_is_not_there_is_named(name: str) -> None:
    with pytest.raises(PortError, match=re.escape(name)):
        find(name)


def test_a_port_can_be_an_attribute() -> None:
    assert find("tests.parity.ports:plain_port") is plain_port


def test_writing_into_images_is_told(dataset: Dataset) -> None:
    def decode(images: Any) -> Any:
        pixels = jax_port.decode(images)
        images[:] = 0
        return pixels

    port = SimpleNamespace(**{**{name: getattr(jax_port, name) for name in REQUIRED}, "decode": decode})
    divergence = climb(judge(port, dataset), ["decode"]).divergence
    assert divergence is not None
    assert "decode wrote into the images" in divergence.sentence()


@pytest.mark.parametrize(
    "arguments",
    [
        "--only nonsense",
        "--only",
        "--seeds 2",
        "--seeds x",
        "--bogus",
        "--quick --only trends",
        "--reference-device tpu",
    ],
)
def test_bad_flags_end_in_one_line(arguments: str) -> None:
    code = 3 if "device" in arguments else 2
    assert_one_line(here("parity", *arguments.split()), "parity", code, arguments.split()[-1])


class Wrong(SimpleNamespace):
    """A right port of whose functions one gives something else."""

    def __init__(self, function: str, change: Any) -> None:
        def changed(*arguments: Any) -> Any:
            return change(getattr(jax_port, function)(*arguments))

        super().__init__(**{**{name: getattr(jax_port, name) for name in REQUIRED}, function: changed})


@pytest.fixture(scope="module")
def reruns() -> Reruns:
    return Reruns(None, "cpu", workers=0)


@pytest.mark.parametrize(
    ("function", "change", "stage"),
    [
        ("train_epoch", lambda answer: (answer[0], answer[1][:-1]), "trajectory"),
        ("train_epoch", lambda answer: (answer[0], np.append(answer[1], answer[1])), "trajectory"),
        ("train_epoch", lambda answer: (answer[0], answer[1][:0]), "epoch"),
        ("train_epoch", lambda answer: (answer[0], answer[1] * np.float32("nan")), "trajectory"),
        ("evaluate", lambda answer: (2.0, answer[1]), "evaluate"),
        ("evaluate", lambda answer: (answer[0], float("inf")), "evaluate"),
        ("gradients", lambda answer: {name: each * np.float32(3e38) for name, each in answer.items()}, "gradients"),
    ],
)
def test_no_answer_ends_the_judge(function: str, change: Any, stage: str, dataset: Dataset, reruns: Reruns) -> None:
    one = Judge(Held(Wrong(function, change), "it"), Held(torch_port, "the reference"), dataset, reruns, epochs=1)
    with np.errstate(all="ignore"):
        divergence = climb(one, [stage]).divergence
    assert divergence is not None
    assert divergence.comparison.stage == stage
    assert divergence.sentence()


@pytest.mark.parametrize("function", ["loss", "evaluate", "train_epoch"])
@pytest.mark.parametrize("answer", [[[1], [1, 2]], (), (1, [[1], [1, 2]]), np.zeros((0, 3)), "no", 1j, None])
def test_what_is_no_answer_is_named(function: str, answer: Any, dataset: Dataset) -> None:
    port = Held(Wrong(function, lambda _: answer), "it")
    state = port.start(draw(Experiment()), Experiment())
    with pytest.raises(PortError, match=rf"it: {function} returned "):
        getattr(port, function)(state, dataset.train.images[:64], dataset.train.labels[:64])


def test_a_port_that_raises_later_keeps_the_verdict_on_what_was_seen(dataset: Dataset) -> None:
    port = Wrong("logits", lambda answer: -answer)
    port.loss = lambda *_: 1 / 0
    found = climb(judge(port, dataset), ["logits", "loss"])
    assert found.divergence is not None
    assert found.divergence.comparison.stage == "logits"
    assert found.notes == ["stopped in loss: images: the port: loss raised ZeroDivisionError: division by zero"]


# The means of judgement


@given(
    hidden=st.lists(st.integers(1, 40), min_size=1, max_size=3).map(tuple),
    rows=st.integers(1, 80),
    seed=st.integers(0, 1000),
    softmax_output=st.booleans(),
    largest=st.sampled_from([None, 5.0, 100.0, 900.0]),
)
@settings(max_examples=40, deadline=None)
def test_float32_stays_within_the_units_and_never_far_below(
    dataset: Dataset, hidden: tuple[int, ...], rows: int, seed: int, softmax_output: bool, largest: float | None
) -> None:
    experiment = Experiment(hidden=hidden, softmax_output=softmax_output, seed=seed)
    case = fixtures.real("", experiment, draw(experiment), dataset.train, rows, seed)
    case = case if largest is None else fixtures.scaled(case, largest)
    exact = {name: tensor.astype(np.float64) for name, tensor in case.tensors.items()}
    unit = limits(case.tensors, case.images, case.labels, experiment)
    single, double = (formulas.forward(RIGHT, t, case.images, experiment).outputs for t in (case.tensors, exact))
    assert np.all(np.abs(single - double) <= SLACK * unit.logits)
    batch = case.images, case.labels, experiment
    slopes, exact_slopes = (formulas.gradients(RIGHT, t, *batch) for t in (case.tensors, exact))
    for name, slope in slopes.items():
        assert np.all(np.abs(slope - exact_slopes[name]) <= SLACK * unit.gradients[name])


def test_the_units_would_notice_a_product_in_tf32(dataset: Dataset) -> None:
    experiment = Experiment()
    tensors, images, labels = draw(experiment), dataset.train.images[:64], dataset.train.labels[:64]
    exact = {name: tensor.astype(np.float64) for name, tensor in tensors.items()}
    coarse = {**exact, "fc1.weight": lower(tensors["fc1.weight"], "TF32").astype(np.float64)}
    outputs, lowered = (formulas.forward(RIGHT, t, images, experiment).outputs for t in (exact, coarse))
    unit = limits(tensors, images, labels, experiment)
    assert np.max(np.abs(outputs - lowered) / unit.logits) > 10 * SLACK


def test_gradients_by_hand_are_those_of_finite_differences(dataset: Dataset) -> None:
    experiment = Experiment(hidden=(7, 5), softmax_output=True)
    tensors = {name: 3 * tensor.astype(np.float64) for name, tensor in draw(experiment).items()}
    batch = dataset.train.images[:9], dataset.train.labels[:9], experiment
    slopes, random = formulas.gradients(RIGHT, tensors, *batch), np.random.RandomState(0)
    for name, slope in slopes.items():
        direction = random.standard_normal(slope.shape)
        ahead, behind = (
            formulas.loss(RIGHT, {**tensors, name: tensors[name] + side * 1e-6 * direction}, *batch) for side in (1, -1)
        )
        assert (ahead - behind) / 2e-6 == pytest.approx(float((slope * direction).sum()), rel=1e-5, abs=1e-9)


@pytest.mark.parametrize("hidden", [(16,), (4,), (32,)])
def test_the_exact_fixture_is_exact_even_in_tf32(hidden: tuple[int, ...]) -> None:
    case = fixtures.exact(Experiment(hidden=hidden, batch_size=8))
    exact = {name: tensor.astype(np.float64) for name, tensor in case.tensors.items()}
    batch = case.images, case.labels, case.experiment
    done = formulas.forward(RIGHT, case.tensors, case.images, case.experiment)
    assert np.array_equal(done.outputs, formulas.forward(RIGHT, exact, case.images, case.experiment).outputs)
    assert np.any(done.pre_activations[0] == 0)
    for values in (*done.inputs, *case.tensors.values()):
        assert np.array_equal(lower(values, "TF32"), values)
    slopes, exact_slopes = (formulas.gradients(RIGHT, t, *batch) for t in (case.tensors, exact))
    for name, slope in slopes.items():
        assert np.array_equal(slope, exact_slopes[name])
        assert np.any(slope)


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_a_perturbation_moves_every_entry_by_one_ulp(dtype: type) -> None:
    tensors = {name: tensor.astype(dtype) for name, tensor in draw(Experiment()).items()}
    for name, moved in perturb(tensors, 1).items():
        assert moved.dtype == dtype
        up, down = (np.nextafter(tensors[name], dtype(side)) for side in (np.inf, -np.inf))
        assert np.all((moved == up) | (moved == down))
        assert np.any(moved == up)
        assert np.any(moved == down)


def test_equivalence_needs_both_bounds_within_the_margin() -> None:
    random = np.random.RandomState(0)
    quiet = 1e-4 * random.standard_normal((13, 20))
    assert np.abs(interval(quiet)).max() < ACCURACY_MARGIN
    for shift in (1.0, -1.0):
        assert np.abs(interval(quiet + shift * ACCURACY_MARGIN)).max() > ACCURACY_MARGIN
    loud = 5e-3 * random.standard_normal((13, 20))
    assert np.abs(interval(loud)).max() > ACCURACY_MARGIN  # no difference seen is not equivalence


def test_the_interval_covers_the_true_mean_as_often_as_it_says() -> None:
    bounds = interval(np.random.RandomState(1).standard_normal((13, 20_000)))
    assert np.mean(bounds[0] > 0) == pytest.approx(0.05, abs=0.006)
    assert np.mean(bounds[1] < 0) == pytest.approx(0.05, abs=0.006)


def test_a_comparison_of_nothing_or_with_nan_is_refused() -> None:
    for found, expected in ((np.zeros(0), np.zeros(0)), (np.zeros(4), np.zeros((2, 2))), (0.0, np.nan)):
        with pytest.raises(ValueError, match="stage"):
            compare(("stage", "check", "case"), "tensor", found, expected)


def test_every_check_compares_something_and_is_not_vacuous(dataset: Dataset) -> None:
    one = judge(jax_port, dataset)
    for check in CHECKS:
        comparisons = run_check(one, check)
        assert sum(comparison.found.size for comparison in comparisons) > 0
        if check.stage == "gradients" and check.name != "extremes":
            assert all(np.any(comparison.expected) for comparison in comparisons)


def test_what_agrees_with_nothing_else_is_explained_by_nothing() -> None:
    wrong = compare(("loss", "check", "case"), "loss", 3.14159, 2.0, 1e-7)
    assert explain([[wrong]]) is None
    half = compare(("loss", "check", "case"), "loss", 1.0, 2.0, 1e-7)
    assert explain([[half]]) == "`loss` is 1/2 times what it should be"


# Accelerators


@pytest.mark.accelerator
@pytest.mark.parametrize("port_device", ["cpu", "gpu"])
@pytest.mark.parametrize("reference_device", ["cpu", "auto"])
def test_the_mirror_agrees_on_any_pair_of_devices(port_device: str, reference_device: str, dataset: Dataset) -> None:
    done = command("parity", "--quick", "--port-device", port_device, "--reference-device", reference_device)
    assert done.returncode == 0, done.stdout + done.stderr
