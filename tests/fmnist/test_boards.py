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
boards.start(__import__("pathlib").Path({str(tmp_path)!r}), 0).close()
print("torch" in sys.modules)
"""
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    assert done.stdout == "False\n"


def test_without_tensorboardx_one_line_says_what_to_install(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setitem(sys.modules, "tensorboardX", None)
    with pytest.raises(UnavailableError, match="pip install"):
        boards.start(tmp_path, 0)
