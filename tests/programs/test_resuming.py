"""A run can be killed, interrupted, damaged and short of disk, and goes on to the bits it would have come to."""

import contextlib
import errno
import hashlib
import json
import os
import random
import re
import shlex
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import save

from fmnist import files
from fmnist.command import UsageError, interpreter
from fmnist.data import Dataset
from fmnist.experiment import Experiment
from fmnist.runs import checkpoints, resuming
from fmnist.runs.checkpoints import Checkpoint
from fmnist.signatures import save_signed
from fmnist_jax import torch_rng
from tests.conftest import ROOT, assert_one_line, here
from tests.programs.conftest import SIDES, Trained, start
from tests.tools import crash


def digests(folder: Path) -> dict[str, str]:
    files = (path for path in sorted(folder.iterdir()) if path.is_file())
    return {path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in files}


def checkpoint_of(hidden: tuple[int, ...] = (16,), epoch: int = 1) -> Checkpoint:
    experiment = Experiment(hidden=hidden)
    empty = hashlib.sha256(b"").hexdigest()
    data = {"name": "FashionMNIST", "sha256": "0" * 64}
    return Checkpoint(experiment, epoch, 938 * epoch, torch_rng.init(experiment), data, [{"from_epoch": 1}], 0, empty)


@pytest.mark.parametrize("side", SIDES)
def test_killed_runs_end_at_the_bits_of_an_uninterrupted_one(side: str, dataset: Dataset) -> None:
    assert crash.chains(side, kills=4, epochs=3, seed=1, say=lambda line: None) == 1


@pytest.mark.parametrize("side", SIDES)
def test_more_epochs_extend_a_run_to_the_same_bits(side: str, trained: dict[str, Trained], tmp_path: Path) -> None:
    first = here(f"{side}.train", "--epochs", "1", "--output", str(tmp_path))
    assert first.returncode == 0, first.stderr
    # As if it had been killed while it wrote of the second epoch.
    with open(tmp_path / "metrics.jsonl", "a") as file:
        file.write('{"epoch": 2, "step": 1, "loss": 2.0}\n{"epoch": 2, "st')
    (tmp_path / ".model.safetensors-abc").write_bytes(b"half")
    second = here(f"{side}.train", "--epochs", "3", "--output", str(tmp_path), "--resume")
    assert second.returncode == 0, second.stderr
    assert second.stdout.startswith("Epoch 2\n")
    assert crash.state(tmp_path) == crash.state(trained[side].folder)
    expected = {name for name in digests(trained[side].folder) if name != "environment.json"}
    assert {name: digests(tmp_path)[name] for name in expected - {"checkpoint.safetensors"}} == {
        name: digests(trained[side].folder)[name] for name in expected - {"checkpoint.safetensors"}
    }
    assert digests(tmp_path).keys() == digests(trained[side].folder).keys()


def test_either_side_resumes_the_other_s_run(trained: dict[str, Trained], tmp_path: Path) -> None:
    for epochs, side in enumerate(("fmnist_jax", "fmnist_torch", "fmnist_jax"), 1):
        done = here(f"{side}.train", "--epochs", str(epochs), "--output", str(tmp_path), "--resume")
        assert done.returncode == 0, done.stderr
        environment = json.loads((tmp_path / "environment.json").read_text())
        assert side.endswith(environment["framework"])
        if epochs > 1:
            assert 'resumed in another environment, which may change the bits: framework "' in done.stderr
    assert [earlier["framework"] for earlier in environment["earlier"]] == ["jax", "torch"]
    ended, expected = (
        checkpoints.read(folder / "checkpoint.safetensors").state_dict
        for folder in (tmp_path, trained["fmnist_torch"].folder)
    )
    for name, tensor in ended.items():
        np.testing.assert_allclose(tensor, expected[name], rtol=0, atol=1e-4)


@pytest.mark.parametrize("side", SIDES)
def test_contradictions_are_named_and_nothing_is_touched(
    side: str, trained: dict[str, Trained], fashion_mnist: Dataset
) -> None:
    before = digests(trained[side].folder)
    flags = "--resume --hidden 32 8 --lr 0.01 --seed 3 --epochs 2 --softmax-output --batch-size 60"
    done = here(f"{side}.train", "--output", str(trained[side].folder), *flags.split())
    assert done.returncode == 2
    for words in (
        "--hidden 32 8 was 16",
        "--lr 0.01 was 0.001",
        "--seed 3 was 0",
        "--epochs 2 was 3",
        "--batch-size 60",
    ):
        assert words in done.stderr
    assert "--softmax-output True was False" in done.stderr
    other_data = here(f"{side}.train", "--output", str(trained[side].folder), "--resume", "--data", "synthetic")
    assert other_data.returncode == 2
    assert re.fullmatch(
        rf"{side}.train: --data: this is synthetic .*was trained on FashionMNIST.*\n", other_data.stderr
    )
    assert digests(trained[side].folder) == before


def test_a_finished_run_says_so(trained: dict[str, Trained], tmp_path: Path) -> None:
    folder = shutil.copytree(trained["fmnist_jax"].folder, tmp_path / "run")
    before = digests(folder)
    done = here("fmnist_jax.train", "--output", str(folder), "--resume")
    assert done.returncode == 0
    assert "all 3 epochs are done" in done.stderr
    assert done.stdout == "Done!\n"
    assert digests(folder) == before


def test_what_the_flags_leave_open_is_as_it_was(dataset: Dataset, tmp_path: Path) -> None:
    flags = ["--hidden", "5", "--lr", "0.02", "--softmax-output", "--data", "synthetic"]
    assert here("fmnist_jax.train", "--epochs", "1", *flags, "--output", str(tmp_path)).returncode == 0
    done = here("fmnist_jax.train", "--epochs", "2", "--output", str(tmp_path), "--resume")
    assert done.returncode == 0, done.stderr
    config = json.loads((tmp_path / "config.json").read_text())
    assert config | {"hidden": [5], "lr": 0.02, "softmax_output": True, "data": "synthetic", "epochs": 2} == config


def test_an_empty_folder_is_started_in(dataset: Dataset, tmp_path: Path) -> None:
    done = here("fmnist_jax.train", "--epochs", "1", "--output", str(tmp_path / "new"), "--resume")
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith("Epoch 1\n")


def test_checkpoints_come_as_often_as_asked_for(dataset: Dataset, tmp_path: Path) -> None:
    run = start("fmnist_jax.train", "--epochs", "2000", "--checkpoint-every", "1000", "--output", str(tmp_path))
    wait_for(lambda: b'"epoch": 4' in (tmp_path / "metrics.jsonl").read_bytes())
    run.kill()
    run.wait()
    assert checkpoints.read(tmp_path / "checkpoint.safetensors").epoch == 0


def wait_for(condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 60
    while time.monotonic() < deadline:
        try:
            if condition():
                return
        except FileNotFoundError:
            pass
        time.sleep(0.02)
    raise AssertionError("it did not come to this within a minute")


@pytest.mark.parametrize(
    ("side", "number", "code"), [("fmnist_jax", signal.SIGINT, 130), ("fmnist_torch", signal.SIGTERM, 143)]
)
def test_a_signal_ends_a_run_soon_and_says_how_to_go_on(
    side: str, number: int, code: int, dataset: Dataset, tmp_path: Path
) -> None:
    folder = tmp_path / "my run"
    run = start(f"{side}.train", "--epochs", "1000", "--output", str(folder))
    wait_for(lambda: b'"accuracy"' in (folder / "metrics.jsonl").read_bytes())
    began = time.monotonic()
    run.send_signal(number)
    _, said = run.communicate(timeout=30)
    assert time.monotonic() - began < 2  # a second, and what a busy machine adds
    assert run.returncode == code
    advice = said.splitlines()[-1]
    assert advice.startswith(f"{side}.train: interrupted; resume by: {interpreter()} -m {side}.train --output ")
    epoch = checkpoints.read(folder / "checkpoint.safetensors").epoch
    assert epoch >= 1
    # The advice works as it stands.
    arguments = shlex.split(advice.partition("python -m ")[2])
    again = start(*arguments)
    wait_for(lambda: f'"epoch": {epoch + 1}, "accuracy"'.encode() in (folder / "metrics.jsonl").read_bytes())
    again.kill()
    again.wait()


def test_a_long_epoch_does_not_delay_the_end(dataset: Dataset, tmp_path: Path) -> None:
    run = start("fmnist_jax.train", "--hidden", "4096", "--output", str(tmp_path))
    wait_for((tmp_path / "checkpoint.safetensors").exists)
    time.sleep(1)
    began = time.monotonic()
    run.send_signal(signal.SIGINT)
    _, said = run.communicate(timeout=30)
    assert time.monotonic() - began < 2
    assert run.returncode == 130
    assert "resume by" in said
    assert checkpoints.read(tmp_path / "checkpoint.safetensors").epoch == 0


def test_a_second_signal_ends_at_once(dataset: Dataset, tmp_path: Path) -> None:
    run = start("fmnist_jax.train", "--hidden", "4096", "--output", str(tmp_path))
    wait_for((tmp_path / "checkpoint.safetensors").exists)
    began = time.monotonic()
    run.send_signal(signal.SIGINT)
    time.sleep(0.1)
    run.send_signal(signal.SIGINT)
    run.communicate(timeout=30)
    assert time.monotonic() - began < 0.7
    assert run.returncode == 130


def test_a_second_run_is_refused_while_the_first_lives(dataset: Dataset, tmp_path: Path) -> None:
    first = start("fmnist_jax.train", "--epochs", "1000", "--output", str(tmp_path))
    wait_for((tmp_path / "checkpoint.safetensors").exists)
    for flag in ("--resume", "--overwrite"):
        second = here("fmnist_jax.train", "--output", str(tmp_path), flag)
        assert second.returncode == 2
        assert f"process {first.pid} is at work there" in second.stderr
    first.kill()
    first.wait()
    assert (tmp_path / ".lock").exists()
    done = here("fmnist_jax.train", "--epochs", "1", "--output", str(tmp_path), "--overwrite")
    assert done.returncode == 0, done.stderr
    assert not (tmp_path / ".lock").exists()


def refusal(path: Path) -> str:
    """What is said of a checkpoint that must not be believed."""
    with pytest.raises(UsageError) as refused:
        checkpoints.read(path)
    assert str(refused.value).startswith(f"{path}: ")
    return str(refused.value)


def test_no_flipped_bit_and_no_missing_byte_of_a_checkpoint_is_believed(tmp_path: Path) -> None:
    path, choose = tmp_path / "checkpoint.safetensors", random.Random(0)
    checkpoints.write(path, checkpoint_of((2,)))
    content = path.read_bytes()
    header = 8 + int.from_bytes(content[:8], "little")
    places = [*range(header), *(choose.randrange(header, len(content)) for _ in range(400))]
    for place in places:
        path.write_bytes(content[:place] + bytes([content[place] ^ 1 << choose.randrange(8)]) + content[place + 1 :])
        refusal(path)
    for length in [0, 1, 7, 8, 9, header, len(content) - 1, *(choose.randrange(len(content)) for _ in range(400))]:
        path.write_bytes(content[:length])
        refusal(path)
    path.write_bytes(content)
    assert checkpoints.read(path).epoch == 1


def test_what_is_no_checkpoint_is_refused(tmp_path: Path) -> None:
    path, good = tmp_path / "checkpoint.safetensors", torch_rng.init(Experiment())
    checkpoints.write(path, checkpoint_of())
    header = json.loads(path.read_bytes()[8:].split(b"\n")[0][: int.from_bytes(path.read_bytes()[:8], "little")])
    told = json.loads(header["__metadata__"]["run"])

    def crafted(state_dict: dict[str, np.ndarray], version: str = checkpoints.KIND, **changed: Any) -> bytes:
        """A file with a right signature, whatever else it says."""
        return save_signed(state_dict, version, run=json.dumps(told | changed))

    experiment = told["experiment"]
    hostile = {
        "a plain model": save(good),
        "a signed model": save_signed(good, "model 1"),
        "another version": crafted(good, "checkpoint 9"),
        "another network": crafted(torch_rng.init(Experiment(hidden=(17,)))),
        "a name with path parts": crafted(good | {"../../fc1.weight": good["fc1.weight"]}),
        "NaN": crafted(good | {"fc1.bias": np.full(16, np.nan, np.float32)}),
        "infinity": crafted(good | {"fc1.bias": np.full(16, np.inf, np.float32)}),
        "float64": crafted(good | {"fc1.bias": np.zeros(16)}),
        "an impossible epoch": crafted(good, epoch=21),
        "a negative epoch": crafted(good, epoch=-1),
        "half an epoch": crafted(good, epoch=0.5),
        "a width in words": crafted(good, experiment=experiment | {"hidden": ["16"]}),
        "a rate in words": crafted(good, experiment=experiment | {"lr": "0.001"}),
        "an unknown setting": crafted(good, experiment=experiment | {"momentum": 0.9}),
        "no environment": crafted(good, environments=[]),
        "JSON nested a million deep": save_signed(good, checkpoints.KIND, run="[" * 10**6),
        "a header of terabytes": (2**43).to_bytes(8, "little") + path.read_bytes()[8:],
        "text": b"not a checkpoint\n",
        "nothing": b"",
    }
    for what, content in hostile.items():
        path.write_bytes(content)
        assert len(refusal(path)) < 600, what


def test_what_is_no_file_is_refused(tmp_path: Path) -> None:
    loop, folder, pipe = tmp_path / "loop", tmp_path / "folder", tmp_path / "pipe"
    loop.symlink_to(loop)
    folder.mkdir()
    os.mkfifo(pipe)
    huge = tmp_path / "huge"
    with open(huge, "wb") as file:
        file.truncate(2**43)
    assert "symbolic link" in refusal(loop)
    assert "not a regular file" in refusal(folder)
    assert "not a regular file" in refusal(pipe)
    assert "not a regular file" in refusal(Path("/dev/zero"))
    assert "at most" in refusal(huge)


def test_damaged_metrics_are_refused_and_what_came_later_is_not_read(tmp_path: Path) -> None:
    lines = b'{"epoch": 1, "step": 1, "loss": 2.3}\n{"epoch": 1, "accuracy": 0.5, "average_loss": 1.5}\n'
    known = replace(checkpoint_of(), metrics_size=len(lines), metrics_sha256=hashlib.sha256(lines).hexdigest())
    path = tmp_path / "metrics.jsonl"
    path.write_bytes(lines + b'{"epoch": 2, "half a li\xff')
    assert resuming.read_metrics(tmp_path, known) == lines
    for place in range(len(lines)):
        path.write_bytes(lines[:place] + bytes([lines[place] ^ 4]) + lines[place + 1 :])
        with pytest.raises(UsageError, match="damaged"):
            resuming.read_metrics(tmp_path, known)
        path.write_bytes(lines[:place])
        with pytest.raises(UsageError, match="damaged"):
            resuming.read_metrics(tmp_path, known)
    path.unlink()
    with pytest.raises(UsageError, match="no such file"):
        resuming.read_metrics(tmp_path, known)
    for hostile in (b"[" * 10**6 + b"\n", b"null\n", b'{"epoch": 1}\n', b'{"epoch": "x", "step": 1, "loss": 2}\n'):
        path.write_bytes(hostile)
        known = replace(known, metrics_size=len(hostile), metrics_sha256=hashlib.sha256(hostile).hexdigest())
        with pytest.raises(UsageError, match="not the metrics of a run"):
            resuming.read_metrics(tmp_path, known)


CALLS = ("open", "write", "fsync", "replace", "close", "lseek", "ftruncate", "unlink")


def with_fault(number: int, action: Callable[[], None]) -> bool:
    """Run an action in which the system call of this number fails for want of space; whether it came to that."""
    made = 0

    def failing(call: Callable[..., Any]) -> Callable[..., Any]:
        def instead(*arguments: Any, **named: Any) -> Any:
            nonlocal made
            made += 1
            if made == number:
                if call.__name__ == "close":
                    call(*arguments)
                if call.__name__ == "write":  # some of it may be written before
                    call(arguments[0], arguments[1][: len(arguments[1]) // 2])
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
            return call(*arguments, **named)

        return instead

    with pytest.MonkeyPatch.context() as patch:
        for name in CALLS:
            patch.setattr(os, name, failing(getattr(os, name)))
        with contextlib.suppress(OSError):
            action()
    return made >= number


@pytest.mark.parametrize("kind", ["write_atomically", "append", "checkpoint"])
def test_a_failing_system_call_leaves_the_old_or_the_new(kind: str, tmp_path: Path) -> None:
    path = tmp_path / "file"
    new = checkpoint_of(epoch=2)
    checkpoints.write(tmp_path / "new", new)
    actions: dict[str, tuple[Callable[[], None], bytes]] = {
        "write_atomically": (lambda: files.write_atomically(path, b"new" * 1000), b"new" * 1000),
        "append": (lambda: files.append(path, b"new" * 1000), b"old" + b"new" * 1000),
        "checkpoint": (lambda: checkpoints.write(path, new), b""),
    }
    action, after = actions[kind]
    number = 0
    while True:
        number += 1
        path.write_bytes(b"old")
        failed = with_fault(number, action)
        if not failed:
            break
        content = path.read_bytes()
        if kind == "checkpoint" and content != b"old":
            assert checkpoints.read(path).epoch == 2
        else:
            assert content in (b"old", after), number
        assert {each.name for each in tmp_path.iterdir()} == {"file", "new"}, number
    assert number > 4
    assert path.read_bytes() != b"old"


def test_a_full_disk_ends_a_run_that_is_resumed_later(trained: dict[str, Trained], tmp_path: Path) -> None:
    side, folder = "fmnist_jax", tmp_path / "run"
    assert here(f"{side}.train", "--epochs", "1", "--output", str(folder)).returncode == 0
    before = crash.state(folder)
    # No file may grow beyond 40 KiB; a checkpoint has 50.
    line = f"ulimit -f 40; exec {sys.executable} -m {side}.train --epochs 3 --resume --output {folder}"
    done = subprocess.run(["bash", "-c", line], cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 1
    last = done.stderr.splitlines()[-1]
    assert re.fullmatch(rf"{side}.train: .*/checkpoint.safetensors: cannot be written: File too large", last)
    assert "Traceback" not in done.stderr
    assert crash.state(folder)["epoch"] == before["epoch"]
    assert here(f"{side}.train", "--output", str(folder), "--epochs", "3", "--resume").returncode == 0
    assert crash.state(folder) == crash.state(trained[side].folder)


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ("--resume", "--resume without --output"),
        ("--resume --overwrite --output x", "--resume and --overwrite"),
        ("--tensorboard", "--tensorboard without --output"),
        ("--checkpoint-every 0", "--checkpoint-every 0: expected"),
        ("--checkpoint-every x", "--checkpoint-every x: expected"),
    ],
)
def test_bad_flags_end_in_one_line(arguments: str, words: str) -> None:
    assert_one_line(here("fmnist_jax.train", *arguments.split()), "fmnist_jax.train", 2, words)
