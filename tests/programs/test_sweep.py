"""`python -m fmnist_jax.sweep`: its numbers however it is cut up, what it writes, and what it refuses."""

import json
import math
import re
import socket
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from fmnist.command import run
from fmnist.data import Dataset
from fmnist.experiment import Experiment
from fmnist_jax.sweep import __main__ as sweep
from fmnist_jax.sweep import report, training
from fmnist_jax.sweep.report import Member
from tests.conftest import command, here

SWEEP = ["fmnist_jax.sweep", "--seeds", "0-5", "--lr", "0.001", "0.002", "--epochs", "1"]


def rows_of(folder: Path) -> list[dict[str, Any]]:
    rows: list[dict[str, Any]] = json.loads((folder / "sweep.json").read_text())["rows"]
    return rows


def assert_same(rows: list[dict[str, Any]], others: list[dict[str, Any]]) -> None:
    for row, other in zip(rows, others, strict=True):
        assert row.keys() == other.keys()
        for name, values in row.items():
            atol = {"losses": 1e-5, "average_loss": 1e-5, "accuracy": 2.01e-4}.get(name, 0)
            if isinstance(values, str):
                assert values == other[name]
                continue
            np.testing.assert_allclose(values, other[name], rtol=0, atol=atol, err_msg=name)


@pytest.fixture(scope="module")
def swept(dataset: Dataset, tmp_path_factory: pytest.TempPathFactory) -> tuple[str, Path]:
    """Standard output and folder of a sweep as it comes: on one device for every core."""
    folder = tmp_path_factory.mktemp("sweep")
    done = command(*SWEEP, "--output", str(folder))
    assert done.returncode == 0, done.stderr
    return done.stdout, folder


def test_a_row_has_what_its_single_run_reports(swept: tuple[str, Path], tmp_path: Path) -> None:
    rows = rows_of(swept[1])
    assert [(row["lr"], row["seed"]) for row in rows] == [(lr, seed) for lr in (0.001, 0.002) for seed in range(6)]
    for index, (lr, seed) in ((0, ("0.001", "0")), (4, ("0.001", "4")), (11, ("0.002", "5"))):
        folder = tmp_path / f"{lr}-{seed}"
        flags = ["--lr", lr, "--seed", seed, "--epochs", "1", "--output", str(folder)]
        assert here("fmnist_jax.train", *flags).returncode == 0
        metrics = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
        losses = [entry["loss"] for entry in metrics if "loss" in entry]
        np.testing.assert_allclose(rows[index]["losses"][0], losses, rtol=0, atol=1e-5)
        assert rows[index]["accuracy"][0] == pytest.approx(metrics[-1]["accuracy"], abs=2.01e-4)
        assert rows[index]["average_loss"][0] == pytest.approx(metrics[-1]["average_loss"], abs=1e-5)


def test_the_table_and_the_settings_are_the_rows_means(swept: tuple[str, Path]) -> None:
    out, folder = swept
    settings = json.loads((folder / "sweep.json").read_text())["settings"]
    for setting, line in zip(settings, out.splitlines()[1:], strict=True):
        accuracies = [row["accuracy"][0] for row in rows_of(folder) if row["lr"] == setting["lr"]]
        mean, deviation = np.mean(accuracies), np.std(accuracies, ddof=1)
        assert setting["accuracy"] == {"mean": [pytest.approx(mean)], "standard_deviation": [pytest.approx(deviation)]}
        assert f"{100 * mean:.2f} ± {100 * deviation:5.2f}" in line
        assert line.split()[:5] == ["784-16-10", f"{setting['lr']:g}", "no", "1", "6/6"]
    assert (folder / "sweep.png").read_bytes().startswith(b"\x89PNG")


def test_eight_devices_give_the_same_numbers(swept: tuple[str, Path], tmp_path: Path) -> None:
    done = command(*SWEEP, "--output", str(tmp_path), XLA_FLAGS="--xla_force_host_platform_device_count=8")
    assert done.returncode == 0, done.stderr
    assert "device: 8 x cpu" in done.stderr
    assert_same(rows_of(tmp_path), rows_of(swept[1]))


def test_chunks_give_the_same_numbers(swept: tuple[str, Path], tmp_path: Path) -> None:
    # Room for the eight members that two devices have at least; twelve make two chunks.
    memory = training.bytes_of(Experiment()) / 2**30
    done = command(*SWEEP, "--output", str(tmp_path), "--memory", str(memory))
    assert done.returncode == 0, done.stderr
    assert_same(rows_of(tmp_path), rows_of(swept[1]))


def free_port() -> int:
    with socket.create_server(("", 0)) as server:
        port: int = server.getsockname()[1]
    return port


def start_together(*flags: list[str], wait: int = 60) -> list[subprocess.CompletedProcess[str]]:
    """A process for each list of flags, all at one coordinator, at the same time."""
    shared = ["--coordinator", f"127.0.0.1:{free_port()}", "--wait", str(wait)]
    with ThreadPoolExecutor() as pool:
        return list(pool.map(lambda own: command(*SWEEP, *shared, *own), flags))


def test_two_processes_give_the_same_numbers(swept: tuple[str, Path], tmp_path: Path) -> None:
    first, second = start_together(
        ["--processes", "2", "--output", str(tmp_path)], ["--processes", "2", "--process", "1"]
    )
    assert first.returncode == second.returncode == 0, first.stderr + second.stderr
    assert "2 processes" in first.stderr
    assert second.stdout == ""
    assert [line.split()[:4] for line in first.stdout.splitlines()] == [
        line.split()[:4] for line in swept[0].splitlines()
    ]
    assert_same(rows_of(tmp_path), rows_of(swept[1]))


def test_processes_that_do_not_come_are_named_before_jax_gives_them_up(dataset: Dataset) -> None:
    (done,) = start_together(["--processes", "2"], wait=1)
    assert done.returncode != 0
    assert done.stdout == ""
    first = done.stderr.splitlines()[0]
    assert re.fullmatch(r"fmnist_jax.sweep: process 0 of 2 meets the others at 127.0.0.1:\d+; .* in 1 s", first)


def test_processes_that_disagree_are_told_so(dataset: Dataset) -> None:
    both = start_together(["--processes", "2"], ["--processes", "2", "--process", "1", "--seeds", "7"])
    for done in both:
        assert done.returncode == 2
        assert "the processes were given different flags" in done.stderr
        assert done.stdout == ""


def test_without_a_cluster_distributed_ends_in_one_line(dataset: Dataset) -> None:
    done = command(*SWEEP, "--distributed", "--wait", "1")
    assert done.returncode == 3
    assert "the processes cannot join" in done.stderr.splitlines()[-1]
    assert "Traceback" not in done.stderr


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ("--seeds", "--seeds without a value: expected whole numbers"),
        ("--seeds 3 1 3", "--seeds 3: given 2 times"),
        ("--seeds 0-5 4", "--seeds 4: given 2 times"),
        ("--seeds 5-3", "--seeds 5-3: expected"),
        ("--seeds -1", "--seeds -1: expected"),
        (f"--seeds {2**64}", f"--seeds {2**64}: expected"),
        ("--seeds 0-99999999999", "more than 100,000 members"),
        ("--hidden", "--hidden without a value: expected networks"),
        ("--hidden 16 016", "--hidden 16: given 2 times"),
        ("--hidden 16,16", "--hidden 16,16: expected networks"),
        ("--hidden 0", "--hidden 0: expected"),
        ("--lr", "--lr without a value: expected"),
        ("--lr 0.1 0.10", "--lr 0.1: given 2 times"),
        ("--lr nan", "--lr nan: expected"),
        ("--softmax-output maybe", "--softmax-output maybe: expected off, on or both"),
        ("--batch-size 0", "--batch-size 0: expected"),
        ("--epochs 0", "--epochs 0: expected"),
        ("--memory 0", "--memory 0.0: expected"),
        ("--processes 2 --distributed", "--distributed and --processes"),
        ("--processes 0", "--processes 0: expected"),
        ("--process 1", "--process 1: expected"),
        ("--coordinator nowhere --processes 2", "--coordinator nowhere: expected HOST:PORT"),
        ("--wait 0", "--wait 0: expected"),
        ("--output pyproject.toml", "pyproject.toml: not a folder"),
    ],
)
def test_bad_input_ends_in_one_line(arguments: str, words: str, capfd: pytest.CaptureFixture[str]) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys, "argv", ["sweep", *arguments.split()])
        assert run(sweep.main, sweep.NAME) == 2
    out, err = capfd.readouterr()
    assert out == ""
    assert re.fullmatch(rf"fmnist_jax\.sweep: .*{words}.*\n", err)


def test_a_sweep_is_replaced_only_when_told_so(swept: tuple[str, Path]) -> None:
    before = (swept[1] / "sweep.json").read_bytes()
    refused = command(*SWEEP, "--output", str(swept[1]))
    assert refused.returncode == 2
    assert "--overwrite" in refused.stderr
    absent = command(*SWEEP, "--output", str(swept[1]), "--overwrite", "--device", "tpu")
    assert absent.returncode == 3
    assert (swept[1] / "sweep.json").read_bytes() == before


def test_a_loss_that_is_not_finite_is_counted_out() -> None:
    experiment = Experiment(epochs=2)
    losses, accuracy = np.zeros((2, 3), np.float32), np.array([0.25, 0.5])
    members = [
        Member(experiment, losses, accuracy, np.array([1.0, 2.0])),
        Member(experiment, losses, accuracy + 0.25, np.array([3.0, math.inf])),
        Member(experiment, losses + np.nan, accuracy, np.array([math.nan, math.nan])),
    ]
    (summary,) = report.summarise(members)
    assert summary.finite.tolist() == [2, 1]
    assert summary.average_loss.tolist() == [2.0, 2.0]
    assert summary.average_loss_deviation.tolist() == [pytest.approx(math.sqrt(2)), 0.0]
    assert summary.accuracy.tolist() == [pytest.approx(1 / 3), pytest.approx(1.75 / 3)]
    rows = json.loads(report.as_json(members, [summary], {}))["rows"]
    assert rows[1]["average_loss"] == [3.0, None]
    assert rows[2]["losses"] == [[None], [None]]


def test_many_settings_are_told_apart(monkeypatch: pytest.MonkeyPatch) -> None:
    """A panel for each network, a colour for each rate, a line style for each switch: no two lines are alike."""
    figures: list[Any] = []
    monkeypatch.setattr("fmnist.runs.curves.finished", lambda *drawn: figures.append(drawn))
    settings = [
        Experiment(hidden=hidden, softmax_output=switch, lr=lr, epochs=2)
        for hidden in ((4,), (16,), (16, 16), (32,), (64,))
        for switch in (False, True)
        for lr in (1e-3, 1e-2)
    ]
    values, losses = np.array([0.25, 0.5]), np.zeros((2, 3), np.float32)
    report.draw(report.summarise([Member(setting, losses, values, values) for setting in settings]), "few")
    ((figure, panels),) = figures
    assert len(panels) == len(figure.axes) == 2 * 5
    for axes in panels:
        looks = {(line.get_color(), line.get_linestyle()) for line in axes.get_lines()}
        assert len(looks) == len(axes.get_lines()) == 4
    assert len(figure.legends[0].get_texts()) == 4
