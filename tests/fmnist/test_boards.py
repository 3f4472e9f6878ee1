"""TensorBoard gets the curves of both sides under the same tags."""

import subprocess
import sys
from pathlib import Path

import pytest

from fmnist.command import UnavailableError
from fmnist.data import Dataset
from fmnist.runs import boards
from tests.conftest import ROOT


def test_the_jax_side_needs_no_torch_for_it(dataset: Dataset, tmp_path: Path) -> None:
    code = f"""
import sys
from fmnist.runs import boards
boards.start(__import__("pathlib").Path({str(tmp_path)!r}), "jax", 0).close()
print("torch" in sys.modules)
"""
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    assert done.stdout == "False\n"


def test_without_tensorboardx_one_line_says_what_to_install(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setitem(sys.modules, "tensorboardX", None)
    with pytest.raises(UnavailableError, match="pip install"):
        boards.start(tmp_path, "jax", 0)


def test_a_run_that_goes_on_within_the_same_second_keeps_the_curves_drawn_before(tmp_path: Path) -> None:
    for done in range(4):
        board = boards.start(tmp_path, "jax", done)
        board.add_scalar("loss/train", 1.0, done + 1)
        board.close()
    boards.start(tmp_path, "torch", 4).close()
    assert len(list((tmp_path / boards.FOLDER / "jax").iterdir())) == 5
