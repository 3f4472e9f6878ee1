"""What tests of the programs share: one run of each side that serves many claims."""

import os
import signal
import subprocess
import sys
from functools import partial
from pathlib import Path
from typing import NamedTuple

import pytest

from fmnist.data import Dataset
from tests.conftest import ROOT, command

SIDES = ["fmnist_torch", "fmnist_jax"]


class Trained(NamedTuple):
    """What a run printed, and the folder that it left: to be read, or copied."""

    stdout: str
    folder: Path


@pytest.fixture(scope="session")
def trained(dataset: Dataset, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Trained]:
    """Each side's run of three epochs with the post's values, by its own command and without an interruption."""
    runs = {}
    for side in SIDES:
        folder = tmp_path_factory.mktemp("trained") / side
        done = command(f"{side}.train", "--epochs", "3", "--output", str(folder), "--tensorboard")
        assert done.returncode == 0, done.stderr
        runs[side] = Trained(done.stdout, folder)
    return runs


def start(*arguments: str) -> subprocess.Popen[str]:
    """A command that runs beside the test."""
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    # What a shell runs in the background ignores Ctrl-C, and so would all that it starts.
    return subprocess.Popen(
        [sys.executable, "-m", *arguments],
        cwd=ROOT,
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        preexec_fn=partial(signal.signal, signal.SIGINT, signal.SIG_DFL),
    )
