"""Both trainers through their real command lines: what they print, write and refuse."""

import ast
import contextlib
import hashlib
import json
import os
import pty
import re
import shutil
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.numpy import load_file

from fmnist.data import Dataset
from fmnist.experiment import Experiment
from fmnist_torch import train
from fmnist_torch.model import init
from tests.conftest import assert_one_line, command, here
from tests.programs.conftest import SIDES, Trained, start

STARTED = {"checkpoint.safetensors", "config.json", "environment.json", "metrics.jsonl"}
FILES = STARTED | {"model.safetensors", "curves.png"}

# What PyTorch's quickstart script prints for the post's network after torch.manual_seed(0).
POST_START = """Epoch 1
-------------------------------
loss: 2.344903  [   64/60000]
loss: 2.279977  [ 6464/60000]
"""
POST_TESTS = (
    "Test Error: \n Accuracy: 47.6%, Avg loss: 1.917731 \n\nTest Error: \n Accuracy: 60.1%, Avg loss: 1.519081 \n\n"
)
FIRST_LOSS = r"loss: \d\.\d{6}  \[   64/60000\]"


def assert_same_lines(printed: str, expected: str) -> None:
    """All characters are equal but the last digits of measured numbers, which are the processor's.

    Losses may differ by 2 in their last digit, an accuracy by 1 of its own, as a single image may make it.
    """
    assert re.sub(r"\d+\.\d+", "", printed) == re.sub(r"\d+\.\d+", "", expected)
    for one, other in zip(re.findall(r"\d+\.\d+", printed), re.findall(r"\d+\.\d+", expected), strict=True):
        digits = len(other.partition(".")[2])
        assert len(one) == len(other)
        assert float(one) == pytest.approx(float(other), rel=0, abs=(2.0001 if digits > 1 else 1.0001) * 10**-digits)


def test_the_reference_prints_the_post_s_lines(trained: dict[str, Trained], fashion_mnist: Dataset) -> None:
    lines = trained["fmnist_torch"].stdout.splitlines(keepends=True)
    assert_same_lines("".join(lines[:4]), POST_START)
    assert_same_lines("".join([*lines[12:15], *lines[27:30]]), POST_TESTS)
    assert lines[15] == "Epoch 2\n"
    assert lines[45:] == ["Done!\n"]


def test_the_mirror_prints_the_same_lines(trained: dict[str, Trained], fashion_mnist: Dataset) -> None:
    reference, mirror = ("".join(trained[side].stdout.splitlines(keepends=True)[:30]) for side in SIDES)
    assert_same_lines(mirror, reference)


def test_both_sides_write_the_same_files(trained: dict[str, Trained], dataset: Dataset) -> None:
    reference, mirror = (trained[side].folder for side in SIDES)
    for folder in (reference, mirror):
        assert {path.name for path in folder.iterdir()} == FILES | {"tensorboard"}
    assert (reference / "config.json").read_bytes() == (mirror / "config.json").read_bytes()
    config = json.loads((mirror / "config.json").read_text())
    assert config == {
        "network": "mlp",
        "hidden": [16],
        "channels": [8, 16],
        "softmax_output": False,
        "batch_size": 64,
        "lr": 0.001,
        "epochs": 3,
        "seed": 0,
        "data": dataset.name,
    }
    environments = [json.loads((folder / "environment.json").read_text()) for folder in (reference, mirror)]
    assert environments[0].keys() == environments[1].keys()
    assert environments[0]["data"]["sha256"] == dataset.sha256
    metrics = [
        [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
        for folder in (reference, mirror)
    ]
    assert [entry.keys() for entry in metrics[0]] == [entry.keys() for entry in metrics[1]]
    assert [entry["step"] for entry in metrics[0] if "step" in entry] == 3 * list(range(1, 938, 100))
    assert [entry["accuracy"] for entry in metrics[0] if "accuracy" in entry] == [
        pytest.approx(entry["accuracy"], abs=2.01e-4) for entry in metrics[1] if "accuracy" in entry
    ]
    for folder in (reference, mirror):
        assert (folder / "curves.png").read_bytes().startswith(b"\x89PNG")


def test_both_sides_end_at_the_same_parameters(trained: dict[str, Trained], fashion_mnist: Dataset) -> None:
    reference, mirror = (load_file(trained[side].folder / "model.safetensors") for side in SIDES)
    assert {name: tensor.shape for name, tensor in mirror.items()} == {
        "fc1.weight": (16, 784),
        "fc1.bias": (16,),
        "fc2.weight": (10, 16),
        "fc2.bias": (10,),
    }
    for name, tensor in reference.items():
        assert abs(mirror[name] - tensor).max() < 1e-5


def test_both_sides_obey_every_flag(dataset: Dataset, tmp_path: Path) -> None:
    flags = "--hidden 16 8 --batch-size 597 --lr 0.05 --epochs 1 --seed 7 --softmax-output"
    runs = [here(f"{side}.train", *flags.split(), "--output", str(tmp_path / side)) for side in SIDES]
    metrics = [[json.loads(line) for line in (tmp_path / side / "metrics.jsonl").open()] for side in SIDES]
    lines = [re.findall(r"loss: (\S+)  \[ *(\d+)/60000\]", run.stdout) for run in runs]
    # 101 batches; the last one has 300 images, and is counted as the post counts it.
    assert [seen for _, seen in lines[0]] == [seen for _, seen in lines[1]] == ["597", str(101 * 300)]
    changed = Experiment(hidden=(16, 8), softmax_output=True, batch_size=597, lr=0.05, epochs=1, seed=7)
    expected = _by_functions(changed, dataset)
    for side, said, recorded in zip(SIDES, lines, metrics, strict=True):
        losses = [entry["loss"] for entry in recorded if "loss" in entry]
        assert [f"{loss:>7f}" for loss in losses] == [loss for loss, _ in said]
        assert losses == pytest.approx(expected["losses"], abs=1e-5)
        assert [entry["epoch"] for entry in recorded] == [1, 1, 1]
        assert [entry["step"] for entry in recorded[:2]] == [1, 101]
        assert recorded[2]["accuracy"] == pytest.approx(expected["accuracy"], abs=2.01e-4)
        assert recorded[2]["average_loss"] == pytest.approx(expected["average_loss"], abs=1e-5)
        assert load_file(tmp_path / side / "model.safetensors")["fc2.weight"].shape == (8, 16)


def _by_functions(experiment: Experiment, dataset: Dataset) -> dict[str, Any]:
    """What the reference's functions, which are tested against the post's script, make of an experiment."""
    model = init(experiment)
    optimizer = torch.optim.SGD(model.parameters(), lr=experiment.lr)
    images, test_images = (train.decode(part.images, torch.device("cpu")) for part in (dataset.train, dataset.test))
    losses = train.train_epoch(model, optimizer, images, torch.tensor(dataset.train.labels), experiment.batch_size)
    test_labels = torch.tensor(dataset.test.labels)
    correct, test_losses = train.evaluate(model, test_images, test_labels, experiment.batch_size)
    return {
        "losses": losses[::100].tolist(),
        "accuracy": correct.item() / len(test_labels),
        "average_loss": test_losses.double().mean().item(),
    }


def test_an_overwritten_run_leaves_nothing_of_the_old_one(dataset: Dataset, tmp_path: Path) -> None:
    for name in FILES:
        (tmp_path / name).write_text("old")
    done = here("fmnist_jax.train", "--lr", "1e10", "--output", str(tmp_path), "--overwrite")
    assert done.returncode == 1
    assert {path.name for path in tmp_path.iterdir()} == STARTED
    assert all(path.read_bytes() != b"old" for path in tmp_path.iterdir())


def test_a_folder_in_a_file_s_place_is_refused_before_anything_is_deleted(dataset: Dataset, tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text("old")
    (tmp_path / "metrics.jsonl").mkdir()
    done = here("fmnist_jax.train", "--output", str(tmp_path), "--overwrite")
    assert done.returncode == 2
    assert "metrics.jsonl is a folder" in done.stderr
    assert (tmp_path / "config.json").read_text() == "old"


def test_an_interrupted_run_ends_with_130_and_one_line(dataset: Dataset) -> None:
    with start("fmnist_jax.train", "--epochs", "100000") as run:
        assert run.stdout is not None
        assert run.stderr is not None
        assert run.stdout.readline() == "Epoch 1\n"  # not held back, though this is no terminal
        run.send_signal(signal.SIGINT)
        said = run.stderr.read()
    assert run.returncode == 130
    assert said.splitlines()[-1] == "fmnist_jax.train: interrupted"
    assert "Traceback" not in said


def test_a_disk_that_is_full_ends_in_one_line(dataset: Dataset, tmp_path: Path) -> None:
    run = f"ulimit -f 8; {sys.executable} -m fmnist_jax.train --epochs 1 --output {tmp_path / 'run'}"
    done = subprocess.run(["bash", "-c", run], capture_output=True, text=True, check=False)
    assert done.returncode == 1
    assert done.stderr.splitlines()[-1].endswith("checkpoint.safetensors: cannot be written: File too large")
    assert "Done!" not in done.stdout
    full = f"{sys.executable} -m fmnist_jax.train --epochs 1 >/dev/full"
    done = subprocess.run(["bash", "-c", full], capture_output=True, text=True, check=False)
    assert done.returncode == 1
    assert "Traceback" not in done.stderr
    assert "No space left on device" in done.stderr.splitlines()[-1]


def test_a_header_never_lands_on_standard_output(dataset: Dataset) -> None:
    run = f"{sys.executable} -m fmnist_jax.train --epochs 1 2>&-"
    done = subprocess.run(["bash", "-c", run], capture_output=True, text=True, check=False)
    assert done.returncode == 0
    assert done.stdout.startswith("Epoch 1\n")


def test_a_folder_that_holds_a_run_is_refused_until_told_to_overwrite(
    trained: dict[str, Trained], tmp_path: Path
) -> None:
    folder = tmp_path / "run"
    shutil.copytree(trained["fmnist_jax"].folder, folder, ignore=shutil.ignore_patterns("tensorboard"))
    before = {path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in folder.iterdir()}
    refused = here("fmnist_jax.train", "--epochs", "1", "--output", str(folder))
    assert refused.returncode == 2
    assert "--overwrite" in refused.stderr
    assert before == {path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in folder.iterdir()}
    (folder / "notes.txt").write_text("mine")
    done = here("fmnist_jax.train", "--epochs", "1", "--seed", "1", "--output", str(folder), "--overwrite")
    assert done.returncode == 0, done.stderr
    assert json.loads((folder / "config.json").read_text())["seed"] == 1
    assert (folder / "notes.txt").read_text() == "mine"


def test_a_jax_run_needs_no_torch_and_compiles_once(dataset: Dataset, tmp_path: Path) -> None:
    arguments = ["--epochs", "3", "--lr", "0.01", "--output", str(tmp_path)]
    done = command("tests.programs.observed_run", "fmnist_jax.train", *arguments)
    assert done.returncode == 0, done.stderr
    modules, compiled = ast.literal_eval(done.stdout.splitlines()[-1])
    assert "jax" in modules
    assert not modules & {"torch", "torchvision"}
    packages = json.loads((tmp_path / "environment.json").read_text())["packages"]
    assert packages["jax"]
    assert "torch" not in packages
    asked = command("tests.programs.observed_run", "fmnist_jax.predict", str(tmp_path / "model.safetensors"))
    assert asked.returncode == 0, asked.stderr
    assert "are correctly classified" in asked.stdout
    assert compiled.count("train_epoch") == compiled.count("evaluate") == 1
    assert "train_step" not in compiled


@pytest.mark.parametrize("side", SIDES)
def test_a_loss_that_is_not_finite_ends_the_run(side: str, dataset: Dataset, tmp_path: Path) -> None:
    done = here(f"{side}.train", "--lr", "1e10", "--output", str(tmp_path / "run"))
    assert done.returncode == 1
    assert re.fullmatch(rf"Epoch 1\n-{{31}}\n{FIRST_LOSS}\n", done.stdout)
    last = done.stderr.splitlines()[-1]
    assert "epoch 1, step 3 of 938, is no longer finite" in last
    assert "Traceback" not in done.stderr
    assert len((tmp_path / "run" / "metrics.jsonl").read_text().splitlines()) == 1


@pytest.mark.parametrize("side", SIDES)
def test_a_test_loss_that_is_not_finite_ends_the_run(side: str, dataset: Dataset) -> None:
    done = here(f"{side}.train", "--batch-size", "60000", "--lr", "1e20")
    assert done.returncode == 1
    assert "the test loss after epoch 1, step 1, in batch 1 of 1, is no longer finite" in done.stderr
    assert "Test Error" not in done.stdout


@pytest.mark.parametrize("side", SIDES)
def test_the_stand_in_is_named_wherever_its_numbers_go(side: str, tmp_path: Path) -> None:
    done = here(f"{side}.train", "--data", "synthetic", "--epochs", "1", "--output", str(tmp_path / "run"))
    assert done.returncode == 0, done.stderr
    assert "data: synthetic" in done.stderr
    for name in ("config.json", "environment.json"):
        assert '"synthetic"' in (tmp_path / "run" / name).read_text()


def test_the_reference_learns_the_stand_in_neither_badly_nor_fully() -> None:
    done = here("fmnist_jax.train", "--data", "synthetic")
    accuracy = float(re.findall(r"Accuracy: (\S+)%", done.stdout)[-1])
    assert 60 <= accuracy <= 95


@pytest.mark.parametrize("side", SIDES)
@pytest.mark.parametrize(
    ("arguments", "code", "words"),
    [
        ("--epochs 0", 2, "--epochs 0: expected"),
        ("--lr nan", 2, "--lr nan: expected"),
        ("--hidden", 2, "--hidden without a value: expected"),
        ("--bogus 3", 2, "--bogus"),
        ("--device tpu", 3, "--device tpu: not here; expected .*cpu"),
        ("--data does-not-exist", 2, "does-not-exist"),
        ("--data pyproject.toml", 2, "pyproject.toml"),
        ("--data tests", 2, "tests/FashionMNIST/raw/train-images-idx3-ubyte.gz"),
        ("--output pyproject.toml", 2, "pyproject.toml: not a folder"),
        ("--output pyproject.toml/below", 2, "not a folder"),
        ("--batch_size abc", 2, "--batch-size abc: expected"),
        ("--output=", 2, "--output without a value"),
        ("--output /proc/run", 2, "/proc/run: cannot be written"),
    ],
)
def test_bad_input_ends_in_one_line(side: str, arguments: str, code: int, words: str, dataset: Dataset) -> None:
    assert_one_line(here(f"{side}.train", *arguments.split()), f"{side}.train", code, words)


@pytest.mark.parametrize("side", SIDES)
def test_a_process_ends_with_that_line_and_its_exit_code(side: str) -> None:
    assert_one_line(command(f"{side}.train", "--epochs", "0"), f"{side}.train", 2, "--epochs 0: expected")


def test_a_reader_that_goes_away_is_no_error_of_ours(dataset: Dataset) -> None:
    pipeline = f"{sys.executable} -m fmnist_jax.train --epochs 2 | head -1; echo ${{PIPESTATUS[0]}}"
    done = subprocess.run(["bash", "-c", pipeline], capture_output=True, text=True, check=False)
    assert done.stdout == "Epoch 1\n141\n"
    assert "Traceback" not in done.stderr


def said_to_a_terminal(arguments: list[str], **files: int) -> str:
    """What a command writes to its standard streams where they are a terminal."""
    leader, follower = pty.openpty()
    streams = {"stdin": subprocess.DEVNULL, "stdout": follower, "stderr": follower, **files}
    with subprocess.Popen([sys.executable, "-m", *arguments], **streams):  # type: ignore[call-overload]
        os.close(follower)
        said = b""
        with contextlib.suppress(OSError):  # how Linux tells that the other end was closed
            while part := os.read(leader, 4096):
                said += part
    os.close(leader)
    return said.decode()


def test_on_a_terminal_a_bar_shows_progress_and_the_lines_stay_whole(dataset: Dataset, tmp_path: Path) -> None:
    run = ["fmnist_jax.train", "--epochs", "2"]
    said = said_to_a_terminal(run)
    assert "epochs" in said
    assert re.search(FIRST_LOSS, said)
    with open(tmp_path / "out", "w") as file:
        said = said_to_a_terminal(run, stdout=file.fileno())
    assert "epochs" in said
    assert not re.search(FIRST_LOSS, said)
    assert re.match(rf"Epoch 1\n-{{31}}\n{FIRST_LOSS}\n", (tmp_path / "out").read_text())
