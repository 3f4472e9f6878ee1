"""What tests share: the data, an own cache, and a way to run the real commands."""

import contextlib
import importlib
import io
import os
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import jax
import pytest

from fmnist.command import UnavailableError, run
from fmnist.data import Dataset, load_dataset

MIRROR = "https://github.com/zalandoresearch/fashion-mnist"
ROOT = Path(__file__).parent.parent


NEEDS_DATA = "needs FashionMNIST"


@pytest.fixture(scope="session", autouse=True)
def own_cache(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """Tests neither use nor touch the user's data cache."""
    folder = tmp_path_factory.mktemp("cache")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("XDG_CACHE_HOME", str(folder))
        patch.chdir(ROOT)
        yield folder


@pytest.fixture(scope="session")
def dataset(own_cache: Path) -> Iterator[Dataset]:
    """FashionMNIST, or the synthetic set where it is not to be had; commands then find what tests do."""
    with pytest.MonkeyPatch.context() as patch:
        try:
            found = load_dataset()
        except UnavailableError:
            if os.environ.get("CI", "false") != "false":
                raise
            patch.setenv("FMNIST_DATA", "synthetic")
            found = load_dataset()
        yield found


@pytest.fixture(scope="session")
def fashion_mnist(dataset: Dataset) -> Dataset:
    """FashionMNIST; the tests that ask for it are left out where it is not to be had."""
    if dataset.name != "FashionMNIST":
        pytest.skip(NEEDS_DATA)
    return dataset


def pytest_unconfigure(config: pytest.Config) -> None:
    """Say last which tests were left out for want of FashionMNIST, and how to get it."""
    terminalreporter = config.pluginmanager.get_plugin("terminalreporter")
    if terminalreporter is None:
        return
    skipped = [report for report in terminalreporter.stats.get("skipped", []) if NEEDS_DATA in str(report.longrepr)]
    if skipped:
        names = ", ".join(sorted({report.nodeid.partition("::")[2].partition("[")[0] for report in skipped}))
        terminalreporter.write_line(
            f"left out for want of FashionMNIST: {len(skipped)} tests ({names}); put the four .gz files of {MIRROR} "
            "into data/FashionMNIST/raw, or name the folder above FashionMNIST by $FMNIST_DATA"
        )


@pytest.fixture(scope="session")
def source(fashion_mnist: Dataset) -> Path:
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


def here(module: str, *arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
    """Run `python -m module` in this process, for importing torch or JAX takes another one seconds."""
    path = importlib.import_module(module)
    program = importlib.import_module(f"{module}.__main__") if hasattr(path, "__path__") else path
    out, err = io.StringIO(), io.StringIO()
    with (
        pytest.MonkeyPatch.context() as patch,
        contextlib.redirect_stdout(out),
        contextlib.redirect_stderr(err),
    ):
        patch.setattr("sys.argv", [module, *arguments])
        for name, value in environment.items():
            patch.setenv(name, value)
        code = run(program.main, program.NAME)
    return subprocess.CompletedProcess([module, *arguments], code, out.getvalue(), err.getvalue())


def assert_one_line(done: subprocess.CompletedProcess[str], name: str, code: int, words: str) -> None:
    """A command ended with this exit code, and with nothing but one line that holds these words, a pattern."""
    assert done.returncode == code
    assert done.stdout == ""
    assert re.fullmatch(rf"{re.escape(name)}: .*{words}.*\n", done.stderr)


@pytest.fixture(autouse=True)
def accelerator(request: pytest.FixtureRequest) -> None:
    """Tests marked `accelerator` run wherever JAX finds one, and in a rehearsal."""
    rehearses = "ACCELERATOR_REHEARSAL" in os.environ
    if request.node.get_closest_marker("accelerator") and jax.default_backend() == "cpu" and not rehearses:
        pytest.skip("no accelerator: JAX finds the CPU only")
