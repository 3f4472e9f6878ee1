"""What tests share: the data, an own cache, and a way to run the real commands."""

import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import jax
import pytest

from fmnist.data import Dataset, load_dataset

ROOT = Path(__file__).parent.parent


@pytest.fixture(scope="session", autouse=True)
def own_cache(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """Tests neither use nor touch the user's data cache."""
    folder = tmp_path_factory.mktemp("cache")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("XDG_CACHE_HOME", str(folder))
        patch.chdir(ROOT)
        yield folder


@pytest.fixture(scope="session")
def dataset(own_cache: Path) -> Dataset:
    """FashionMNIST. Where it cannot be found, the tests that need it end in an error that says where was looked."""
    return load_dataset()


@pytest.fixture(scope="session")
def source(dataset: Dataset) -> Path:
    """The folder that FashionMNIST was found in, below it `FashionMNIST/raw/*.gz`."""
    from fmnist.data import find_folder

    folder = find_folder()
    assert folder is not None
    return folder.resolve()


def command(module: str, *arguments: str, cwd: Path = ROOT, **environment: str) -> subprocess.CompletedProcess[str]:
    """Run `python -m module` as a user does."""
    return subprocess.run(
        [sys.executable, "-m", module, *arguments],
        cwd=cwd,
        env={**os.environ, "PYTHONPATH": str(ROOT), **environment},
        capture_output=True,
        text=True,
        check=False,
        timeout=300,
    )


@pytest.fixture(autouse=True)
def accelerator(request: pytest.FixtureRequest) -> None:
    """Tests marked `accelerator` run wherever JAX finds one."""
    if request.node.get_closest_marker("accelerator") and jax.default_backend() == "cpu":
        pytest.skip("no accelerator: JAX finds the CPU only")
