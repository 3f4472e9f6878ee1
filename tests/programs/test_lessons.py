"""`python -m fmnist_jax.lessons`: verdicts that follow the figures."""

import json
from pathlib import Path

import numpy as np
import pytest

from fmnist.data import Dataset, Split
from fmnist.experiment import Experiment
from fmnist_jax.lessons import __main__ as lessons
from fmnist_jax.lessons import claims, latency, report
from fmnist_jax.lessons.claims import CONVERGED, Claim, Observations, Setting, setting
from fmnist_jax.lessons.latency import Timing
from tests.conftest import assert_one_line, here

SEEDS = 20
CPU = [Timing("cpu:0", 16, 64, 0.05), Timing("cpu:0", 1024, 64, 1.6)]

# This process has its devices already.
ONE_DEVICE = {"JAX_NUM_CPU_DEVICES": "1"}


def seeds_around(percent: float, spread: float = 1.0) -> np.ndarray:
    return percent + spread * np.linspace(-1, 1, SEEDS)


def results(timings: list[Timing] = CPU, **after: np.ndarray) -> Observations:
    """What the post would have seen, but for some percents by network and epoch, e.g. `u16_e20`."""
    seen = {"u4_e5": 39, "s4_e5": 19, "u16_e5": 65, "u32_e5": 65.5, "u16_e10": 71, "u16_e20": 79.6, "u16_e40": 81.5}
    percents = (
        {name: seeds_around(percent) for name, percent in seen.items()}
        | {
            "u16x16_e20": seeds_around(78),
            "fast_e20": seeds_around(85),
            "cnn_e20": seeds_around(70),
            "fastcnn_e20": seeds_around(90),
        }
        | after
    )
    networks = {
        "u4": Experiment(hidden=(4,), epochs=5),
        "s4": Experiment(hidden=(4,), epochs=5, softmax_output=True),
        "u16": Experiment(epochs=40),
        "u32": Experiment(hidden=(32,), epochs=5),
        "u16x16": Experiment(hidden=(16, 16), epochs=40),
        "fast": Experiment(lr=CONVERGED),
        "cnn": Experiment(network="cnn"),
        "fastcnn": Experiment(network="cnn", lr=CONVERGED),
    }
    accuracy: dict[Setting, np.ndarray] = {}
    for network, experiment in networks.items():
        accuracy[setting(experiment)] = np.full((SEEDS, experiment.epochs), 10.0)
        for name, values in percents.items():
            if name.startswith(f"{network}_e"):
                accuracy[setting(experiment)][:, int(name.partition("_e")[2]) - 1] = values
    return Observations(list(range(SEEDS)), accuracy, timings, {"784-16-10": 0.05, "conv 8-16": 2.0})


def verdict(number: int, timings: list[Timing] = CPU, **after: np.ndarray) -> str:
    return claims.conclude(results(timings, **after))[number - 1].verdict


def test_the_post_s_own_numbers_hold() -> None:
    for number in (1, 2, 3, 4, 6):
        assert verdict(number) == "holds", number


@pytest.mark.parametrize(
    ("number", "after", "words"),
    [
        (1, {"s4_e5": seeds_around(39)}, "does not hold"),
        (1, {"u4_e5": seeds_around(60)}, "does not hold"),
        (2, {"u16_e5": seeds_around(60)}, "does not hold"),
        (2, {"u32_e5": seeds_around(66.5)}, "does not hold"),
        (2, {"u32_e5": seeds_around(65.9)[::-1]}, "holds in the mean, but"),
        (3, {"u16_e20": seeds_around(77.5)}, "71 % is within the seeds' range; 79.6 % is above all 20 seeds"),
        (3, {"u16_e10": seeds_around(75)}, "71 % is below all 20 seeds; 79.6 % is within the seeds' range"),
        (4, {"u16_e20": seeds_around(77.5)}, "holds, but no seed gets there in the post's 20 epochs"),
        (4, {"u16_e20": seeds_around(77.5), "u16_e40": seeds_around(80)}, "does not hold for every seed"),
        (6, {"u16x16_e20": seeds_around(74)}, "holds; 78 % is above all 20 seeds"),
        (6, {"u16x16_e20": seeds_around(82)}, "does not hold; 78 % is below all 20 seeds"),
    ],
)
def test_other_numbers_get_another_verdict(number: int, after: dict[str, np.ndarray], words: str) -> None:
    assert verdict(number, CPU, **after).startswith(words)


def test_an_accelerator_is_judged_where_there_is_one() -> None:
    assert verdict(5) == "not tried: no accelerator here"
    assert verdict(5, [*CPU, Timing("cuda:0", 16, 64, 0.06)]) == "holds"
    assert verdict(5, [*CPU, Timing("cuda:0", 16, 64, 0.01)]) == "does not hold"


def test_a_claim_counts_who_reaches_it() -> None:
    claim = Claim("", 3, np.array([1.0, 2.0, 3.0, 4.0]))
    assert claim.reached == 2
    assert claim.place == "within the seeds' range"
    assert Claim("", 4.5, claim.ours).place == "above all 4 seeds"
    assert Claim("", 0.5, claim.ours).place == "below all 4 seeds"


def test_the_table_has_every_number_and_verdict() -> None:
    lines = report.table(claims.conclude(results(u16_e20=seeds_around(77.5))))
    assert (
        "3       16 units, 20 epochs                 79.6  77.50 ±  0.62   76.50–78.50      0/20              -"
        in lines
    )
    assert sum(line.startswith("lesson ") for line in lines) == 1 + 7


def test_the_epochs_are_told_after_which_the_seeds_span_a_number() -> None:
    """The post's 79.6 % and 78 % after 20 epochs, as if 30 had been trained."""
    later = {
        f"{name}_e{epoch}": seeds_around(percent)
        for name, percent in (("u16", 79.8), ("u16x16", 78.2))
        for epoch in (30, 31)
    }
    lessons = claims.conclude(results(CPU, u16_e20=seeds_around(77.5), u16x16_e20=seeds_around(74), **later))
    assert lessons[2].claims[1].epochs == lessons[5].claims[0].epochs == [30, 31]
    assert "79.6 % after 30 to 31 epochs" in lessons[2].reasons
    assert lessons[5].reasons.endswith("and it beside the 79.6 % of 16 units after 30 to 31 epochs")


def test_the_cnn_is_compared_at_both_rates() -> None:
    lesson = claims.conclude(results())[6]
    assert lesson.verdict == "a CNN does worse under the post's recipe, and better at a rate of 0.1"
    assert "9,098 parameters against 12,730, 2.00 s an epoch against 0.05 s" in lesson.reasons
    worse = claims.conclude(results(fastcnn_e20=seeds_around(84)))[6]
    assert worse.verdict.endswith("and worse at a rate of 0.1")


def test_three_seeds_end_to_end(dataset: Dataset, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """On a few images, and timed on few sizes, for speed: what the numbers are is told by `make lessons`."""
    train, test = (Split(each.images[:500], each.labels[:500]) for each in (dataset.train, dataset.test))
    few = Dataset("few images", "a test", "0" * 64, train, test)
    monkeypatch.setattr(lessons, "load_dataset", lambda place: few)
    for sizes in ("BATCH_SIZES", "WIDTHS"):
        monkeypatch.setattr(latency, sizes, (16, 64))
    monkeypatch.setattr(latency, "SECONDS", 0.01)
    done = here("fmnist_jax.lessons", "--seeds", "0-1", "7", "--output", str(tmp_path), **ONE_DEVICE)
    assert done.returncode == 0, done.stderr
    found = json.loads((tmp_path / "lessons.json").read_text())
    assert [lesson["lesson"] for lesson in found["lessons"]] == [1, 2, 3, 4, 5, 6, 7]
    assert all(len(claim["ours"]) == 3 for lesson in found["lessons"] for claim in lesson["claims"])
    assert found["environment"]["data"]["name"] == "few images"
    timed = {(timing["width"], timing["batch_size"]) for timing in found["timings"]}
    assert timed == {(16, 16), (16, 64), (64, 64)}
    assert (tmp_path / "lessons.png").read_bytes().startswith(b"\x89PNG")
    for lesson in found["lessons"]:
        assert f"lesson {lesson['lesson']}: " in done.stdout
        assert lesson["verdict"] in done.stdout


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ("--seeds", "--seeds without a value"),
        ("--seeds 1 2", "--seeds 1 2: expected at least 3 whole numbers"),
        ("--seeds 1 2 1", "--seeds 1: given 2 times"),
        ("--seeds x", "--seeds x: expected"),
        ("--output pyproject.toml", "pyproject.toml: not a folder"),
    ],
)
def test_bad_input_ends_in_one_line(arguments: str, words: str, dataset: Dataset) -> None:
    assert_one_line(here("fmnist_jax.lessons", *arguments.split(), **ONE_DEVICE), "fmnist_jax.lessons", 2, words)
