"""The benchmarks: that they measure every side, and that what they tell follows from what they measured."""

import importlib
import json
import math
import platform
import re
import sys
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn
from torch.utils.data import DataLoader
from torchvision import datasets
from torchvision.transforms import ToTensor

from benchmarks import machine, measure, post, raw, report
from benchmarks.figures import overhead_end, ratios, spread
from benchmarks.peers import data as peers
from benchmarks.picture import draw
from benchmarks.sides import SIDES, Environment
from fmnist.command import Failure
from fmnist.data import Dataset
from fmnist.experiment import Experiment
from fmnist_jax import torch_rng
from fmnist_torch import train
from fmnist_torch.model import init
from tests.conftest import assert_one_line, command, here

NAMES = [side.name for side in SIDES]
PARTS = {"whole": "whole_processes", "steady": "steady_state"}


def seconds_of(entry: dict[str, Any]) -> list[float]:
    """A side's raw seconds, round by round."""
    return [each["seconds"] if isinstance(each, dict) else each for each in entry["rounds"]]


def test_a_quick_run_measures_every_side_and_leaves_its_files(dataset: Dataset, tmp_path: Path) -> None:
    done = command("benchmarks", "--quick", "--output", str(tmp_path))
    assert done.returncode == 0, done.stderr
    (stem,) = {path.stem for path in tmp_path.iterdir()}
    assert {path.suffix for path in tmp_path.iterdir()} == {".json", ".md", ".png"}
    assert (tmp_path / f"{stem}.png").read_bytes().startswith(b"\x89PNG")
    told = json.loads((tmp_path / f"{stem}.json").read_text())
    page = (tmp_path / f"{stem}.md").read_text()
    assert platform.node() not in json.dumps(told).split()
    assert told["data"] == dataset.name
    for name, part in PARTS.items():
        assert list(told[part]) == NAMES
        for side in NAMES:
            entry, base = told[part][side], seconds_of(told[part]["fmnist_jax, CNN" if "CNN" in side else "fmnist_jax"])
            assert min(seconds_of(entry)) > 0
            quotients = [one / entry["models"] / other for one, other in zip(seconds_of(entry), base, strict=True)]
            assert entry["times_fmnist_jax_per_model"]["median"] == pytest.approx(median(quotients))
            (line,) = (line for line in done.stdout.splitlines() if re.match(rf"{name} +{re.escape(side)}  +\d", line))
            assert line.split()[-2] == report.plain(median(quotients))
            assert f"| {side} |" in page
    assert all(run["peak_bytes"] > 2**27 for side in NAMES for run in told["whole_processes"][side]["rounds"])
    assert told["steady_state"]["fmnist_jax"]["compile_seconds"] > 0
    assert told["steady_state"]["torch.compile"]["compile_seconds"] > 0
    assert {axis: set(sides) for axis, sides in told["growth"].items()} == {
        "width": set(NAMES) - {"population", "fmnist_torch, CNN", "fmnist_jax, CNN"},
        "batch_size": set(NAMES) - {"population", "fmnist_torch, CNN", "fmnist_jax, CNN"},
        "members": {"population"},
    }


def test_ratios_are_taken_round_by_round() -> None:
    """A machine that slows down between rounds changes no ratio; the post's missing rounds are not made up."""
    rounds = {side.name: [factor * side.members for factor in (1.0, 2.0, 9.0)] for side in SIDES}
    rounds["post"] = [30.0, 60.0]
    cpu = Environment("cpu", 2, None)
    results = report.Results(
        machine={**machine.describe({"fmnist_jax": cpu}), "cpu": "Abacus"},
        load=0.0,
        data="synthetic",
        quick=False,
        rounds=3,
        epochs=20,
        steady_steps=938,
        whole_processes={side: [measure.Usage(each, each, 2**28) for each in rounds[side]] for side in rounds},
        steady_state={side: measure.Epochs(rounds[side], None, cpu) for side in rounds},
        growth={"width": {side: [measure.Point(size, 9, [1e-4]) for size in (1, 4)] for side in rounds}},
    )
    for part in PARTS.values():
        assert results.ratio(part, "post") == (30, 30, 30)
        assert results.ratio(part, "population") == (1, 1, 1)
    assert json.loads(report.as_json(results))["whole_processes"]["post"]["seconds"]["median"] == 45
    assert draw(results).startswith(b"\x89PNG")
    assert [report.plain(value) for value in (0.02344, 12.34, 1234.5)] == ["0.0234", "12.3", "1,234"]
    assert spread([3, 1, 2]) == (2, 1, 3)
    assert ratios([6, 8], [2, 4, 5]) == [3, 2]


def test_overhead_ends_where_half_of_a_step_grows() -> None:
    grid = [4**power for power in range(8)]
    for end in (10.0, 64.0, 1000.0):
        assert overhead_end(grid, [1e-4 * (1 + size / end) for size in grid]) == pytest.approx(end, rel=0.02)
    assert overhead_end(grid, [1e-4] * len(grid)) == math.inf
    assert overhead_end(grid, [1e-4 * size for size in grid]) == 2, "no grid tells what is before its first midpoint"


def test_the_post_s_losses_are_the_reference_s(
    dataset: Dataset, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """On the data as the benchmarks lay it out for torchvision."""
    assert raw.write(None, tmp_path) == dataset.name
    training_data = datasets.FashionMNIST(root=tmp_path, train=True, transform=ToTensor())
    training_data.data = training_data.data[:6464]
    torch.manual_seed(0)
    model = post.NeuralNetwork().to(post.device)
    optimizer = torch.optim.SGD(model.parameters(), lr=1e-3)
    post.train(DataLoader(training_data, batch_size=64), model, nn.CrossEntropyLoss(), optimizer)
    lines = r"loss: (\d\.\d{6})  \[   64/ 6464\]\nloss: (\d\.\d{6})  \[ 6464/ 6464\]\n"
    seen = re.fullmatch(lines, capsys.readouterr().out)
    assert seen is not None
    reference = init(Experiment())
    optimizer = torch.optim.SGD(reference.parameters(), lr=1e-3)
    pixels = train.decode(dataset.train.images[:6464], torch.device("cpu"))
    losses = train.train_epoch(reference, optimizer, pixels, torch.tensor(dataset.train.labels[:6464]), 64)
    assert [float(loss) for loss in seen.groups()] == pytest.approx([losses[0].item(), losses[100].item()], abs=2e-6)
    images, labels = raw.read_training(tmp_path)
    assert (images == dataset.train.images).all()
    assert (labels == dataset.train.labels).all()


@pytest.mark.parametrize(
    ("arguments", "complaint"),
    [
        (["--rounds", "0"], "--rounds 0: expected a whole number of at least 1, e.g. --rounds 5"),
        (["--rounds", "few"], "--rounds few: expected a whole number of at least 1, e.g. --rounds 5"),
        (["--data", "nowhere"], "--data nowhere: no such folder"),
        (["--output", "LICENSE"], "--output LICENSE: not a folder"),
    ],
)
def test_wrong_use_is_one_line(arguments: list[str], complaint: str) -> None:
    assert_one_line(here("benchmarks", *arguments), "benchmarks", 2, complaint)


def test_a_whole_run_that_fails_says_why() -> None:
    with pytest.raises(Failure, match="exit code 1, and it said: no memory left"):
        measure.run([sys.executable, "-c", "import sys; sys.exit('no memory left')"])


def test_files_are_named_after_the_hardware() -> None:
    cpu = {"cpu": "AMD EPYC", "cores": 2, "accelerators": []}
    assert machine.file_name(cpu) == "amd-epyc-2-cores"
    assert machine.file_name({**cpu, "accelerators": ["NVIDIA H100 80GB HBM3"]}) == "nvidia-h100-80gb-hbm3"


@pytest.mark.parametrize("way", ["flax_loop", "nnx_loop", "equinox_loop", "torch_compiled"])
def test_a_peer_ends_where_torch_s_loop_does(way: str, dataset: Dataset, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch, "compile", lambda function, mode: function)
    train, test = dataset.train, dataset.test
    images, test_images = (
        np.divide(each.reshape(-1, 784), 255, dtype=np.float32) for each in (train.images[:640], test.images[:500])
    )
    data = peers.Data(images, train.labels[:640], test_images, test.labels[:500], torch_rng.init(Experiment()))
    told: dict[str, list[float]] = {"torch_loop": [], way: []}
    for name, accuracies in told.items():
        importlib.import_module(f"benchmarks.peers.ways.{name}").fit(data, 3, accuracies.append)
    assert len(told[way]) == 3
    np.testing.assert_allclose(told[way], told["torch_loop"], atol=1 / 500 + 1e-6)
