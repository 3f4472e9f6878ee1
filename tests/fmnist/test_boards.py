"""TensorBoard gets the curves of both sides under the same tags."""

import json
import struct
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from tensorboardX.proto.event_pb2 import Event

from fmnist.command import UnavailableError
from fmnist.data import Dataset
from fmnist.runs import boards
from tests.conftest import ROOT, command

SIDES = ["fmnist_torch", "fmnist_jax"]


def events(folder: Path) -> Iterator[Event]:
    """What a folder's event files hold: records of a length, its checksum, an Event, and its checksum."""
    for path in sorted(folder.iterdir(), key=lambda path: path.name):
        content = path.read_bytes()
        while content:
            (length,) = struct.unpack("<Q", content[:8])
            yield Event.FromString(content[12 : 12 + length])
            content = content[16 + length :]


def curves(folder: Path) -> dict[tuple[str, int], float]:
    return {(value.tag, event.step): value.simple_value for event in events(folder) for value in event.summary.value}


def test_both_sides_write_the_same_curves(dataset: Dataset, tmp_path: Path) -> None:
    drawn = []
    for side in SIDES:
        folder = tmp_path / side
        done = command(f"{side}.train", "--epochs", "2", "--output", str(folder), "--tensorboard")
        assert done.returncode == 0, done.stderr
        drawn.append(curves(folder / "tensorboard"))
        metrics = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
        for entry in metrics:
            if "loss" in entry:
                at = ("loss/train", (entry["epoch"] - 1) * 938 + entry["step"])
                assert drawn[-1][at] == pytest.approx(entry["loss"], rel=1e-6)
            else:
                assert drawn[-1]["accuracy/test", entry["epoch"] * 938] == pytest.approx(entry["accuracy"], rel=1e-6)
                assert drawn[-1]["loss/test", entry["epoch"] * 938] == pytest.approx(entry["average_loss"], rel=1e-6)
        assert len(drawn[-1]) == 2 * (10 + 2)
    assert drawn[0].keys() == drawn[1].keys()
    # What goes on after the second epoch takes back what was drawn beyond it.
    resumed = command("fmnist_jax.train", "--epochs", "3", "--output", str(folder), "--resume", "--tensorboard")
    assert resumed.returncode == 0, resumed.stderr
    starts = [event.step for event in events(folder / "tensorboard") if event.HasField("session_log")]
    assert starts == [2 * 938 + 1]
    assert ("accuracy/test", 3 * 938) in curves(folder / "tensorboard")


def test_the_jax_side_needs_no_torch_for_it(dataset: Dataset, tmp_path: Path) -> None:
    code = f"""
import sys
from fmnist.runs import boards
boards.start(__import__("pathlib").Path({str(tmp_path)!r}), 0).close()
print("torch" in sys.modules)
"""
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    assert done.stdout == "False\n"


def test_without_tensorboardx_one_line_says_what_to_install(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setitem(sys.modules, "tensorboardX", None)
    with pytest.raises(UnavailableError, match="pip install"):
        boards.start(tmp_path, 0)
    done = command("fmnist_jax.train", "--tensorboard")
    assert done.returncode == 2
    assert "--tensorboard without --output" in done.stderr
