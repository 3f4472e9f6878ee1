"""TensorBoard gets the curves of both sides under the same tags."""

import json
import shutil
import struct
from collections.abc import Iterator
from pathlib import Path

import pytest
from tensorboardX.proto.event_pb2 import Event

from tests.conftest import here
from tests.programs.conftest import SIDES, Trained


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


def test_both_sides_write_the_same_curves(trained: dict[str, Trained]) -> None:
    drawn = [curves(trained[side].folder / "tensorboard") for side in SIDES]
    assert drawn[0].keys() == drawn[1].keys()
    for side, of_side in zip(SIDES, drawn, strict=True):
        metrics = [json.loads(line) for line in (trained[side].folder / "metrics.jsonl").read_text().splitlines()]
        for entry in metrics:
            if "loss" in entry:
                at = ("loss/train", (entry["epoch"] - 1) * 938 + entry["step"])
                assert of_side[at] == pytest.approx(entry["loss"], rel=1e-6)
            else:
                assert of_side["accuracy/test", entry["epoch"] * 938] == pytest.approx(entry["accuracy"], rel=1e-6)
                assert of_side["loss/test", entry["epoch"] * 938] == pytest.approx(entry["average_loss"], rel=1e-6)
        assert len(of_side) == 3 * (10 + 2)


def test_a_resumed_run_takes_back_what_was_drawn_beyond_it(trained: dict[str, Trained], tmp_path: Path) -> None:
    folder = shutil.copytree(trained["fmnist_jax"].folder, tmp_path / "run")
    resumed = here("fmnist_jax.train", "--epochs", "4", "--output", str(folder), "--resume", "--tensorboard")
    assert resumed.returncode == 0, resumed.stderr
    starts = [event.step for event in events(folder / "tensorboard") if event.HasField("session_log")]
    assert starts == [3 * 938 + 1]
    assert ("accuracy/test", 4 * 938) in curves(folder / "tensorboard")
