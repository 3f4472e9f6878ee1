"""Who may import whom: the arrows between the rooms of this repository, wherever an import stands."""

import ast
from collections.abc import Iterable, Iterator
from pathlib import Path

import pytest

from tests.conftest import ROOT

OURS = ("benchmarks", "fmnist", "fmnist_jax", "fmnist_torch", "parity", "tests")
FRAMEWORKS = ("flax", "jax", "jaxlib", "optax", "torch", "torchvision")

# For every place, which of our own packages and of the frameworks it may import, besides what lies in its own room.
# The longest place that a module lies in counts.
ALLOWED = {
    "fmnist": {"fmnist"},
    "fmnist.data": {"fmnist", "torchvision"},  # where files are first decoded; a rule below keeps it in functions
    "fmnist_torch": {"fmnist", "torch"},
    "fmnist_torch.reference": {"fmnist", "parity", "torch"},
    "fmnist_jax": {"fmnist", "flax", "jax", "optax"},
    "fmnist_jax.earlier": {"fmnist", "parity", "flax", "jax", "optax"},
    "parity": {"torch", "jax", "optax"},
    "parity.port.adapters": {"flax", "jax", "optax"},
    "fmnist_jax.port": {"fmnist", "parity", "flax", "jax", "optax"},
    "benchmarks": {"fmnist", "fmnist_jax", "fmnist_torch", "flax", "jax", "torch", "torchvision"},
    "benchmarks.peers.ways": {"flax", "jax", "optax", "torch"},
}
# Imports that have to wait until a function is called.
LATE = {("fmnist.data", "torchvision")}
# And what is closed to a place whatever else it may import. A port's process has NumPy and what the port needs.
FORBIDDEN = {("parity.port", "torch"), ("parity.cases", "torch"), ("parity.reference", "parity.port")}


def imports(source: str) -> Iterator[tuple[str, bool]]:
    """Every module that a source imports, and whether it does so as it is itself imported.

    `from a import b` counts as `a.b`: `b` may be a module.
    """
    tree = ast.parse(source)
    inner = {
        id(node)
        for function in ast.walk(tree)
        if isinstance(function, ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda)
        for node in ast.walk(function)
    }
    for node in ast.walk(tree):
        at_once = id(node) not in inner
        if isinstance(node, ast.Import):
            yield from ((alias.name, at_once) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, "relative imports hide where they lead"
            yield from ((f"{node.module}.{alias.name}", at_once) for alias in node.names)
        elif isinstance(node, ast.Call) and getattr(node.func, "id", getattr(node.func, "attr", "")) in (
            "__import__",
            "import_module",
        ):
            argument = node.args[0]
            if isinstance(argument, ast.Constant):
                yield str(argument.value), at_once


def lies_in(module: str, place: str) -> bool:
    return f"{module}.".startswith(f"{place}.")


def trespasses(module: str, source: str) -> Iterator[str]:
    """What a module imports and may not, in words."""
    place = max((place for place in ALLOWED if lies_in(module, place)), key=len, default="")
    for imported, at_once in imports(source):
        package = imported.partition(".")[0]
        if any(lies_in(module, here) and lies_in(imported, closed) for here, closed in FORBIDDEN):
            yield f"{module} imports {imported}"
        if not place or package not in (*OURS, *FRAMEWORKS) or package == module.partition(".")[0]:
            continue
        if package not in ALLOWED[place]:
            yield f"{module} imports {imported}"
        elif at_once and (place, package) in LATE:
            yield f"{module} imports {package} before it is needed"


def modules(packages: Iterable[str]) -> Iterator[tuple[str, Path]]:
    """Every module of some packages, with its file."""
    for package in packages:
        for path in sorted((ROOT / package).rglob("*.py")):
            name = ".".join(path.relative_to(ROOT).with_suffix("").parts)
            yield name.removesuffix(".__init__"), path


def test_every_arrow_is_allowed() -> None:
    assert [words for name, path in modules(OURS) for words in trespasses(name, path.read_text())] == []


@pytest.mark.parametrize(
    ("module", "source"),
    [
        ("fmnist.runs.run", "import torch"),
        ("fmnist.files", "from jax import numpy"),
        ("fmnist.data", "from torchvision.datasets import FashionMNIST"),
        ("fmnist.data", "import torch"),
        ("fmnist", "def later():\n    import parity.verdict"),
        ("fmnist_torch.train", "from fmnist_jax import model"),
        ("fmnist_torch.train", "import jax.numpy as jnp"),
        ("fmnist_jax.train", "async def later():\n    from fmnist_torch.model import init"),
        ("fmnist_jax.sweep.devices", "class A:\n    def b(self):\n        import torch.nn as nn"),
        ("fmnist_jax.predict", "later = lambda: __import__('torch')"),
        ("fmnist_jax.predict", "from importlib import import_module\nimport_module('torch')"),
        ("fmnist_jax.train", "import parity"),
        (
            "fmnist_jax.train",
            "if True:\n    try:\n        import tests.conftest\n    except ImportError:\n        pass",
        ),
        ("benchmarks.measure", "import parity"),
        ("parity.port.process", "def later():\n    import torch"),
        ("parity.cases", "from torch import nn"),
        ("parity.reference.program", "from parity import port"),
    ],
)
def test_a_forbidden_arrow_is_seen(module: str, source: str) -> None:
    assert len(list(trespasses(module, source))) == 1


@pytest.mark.parametrize(
    ("module", "source"),
    [
        ("fmnist.data", "def decode():\n    from torchvision.datasets import FashionMNIST"),
        ("fmnist_jax.train", "import jax, numpy\nfrom fmnist.runs import run\nfrom fmnist_jax import model"),
        ("fmnist_torch.train", "from torch import nn\nfrom fmnist.data import Split"),
        ("fmnist_jax.port", "from parity.port import Port"),
        ("fmnist_torch.reference", "from parity import Reference"),
        ("fmnist_jax.train", "from fmnist_torchless import a"),
    ],
)
def test_an_allowed_arrow_is_no_trespass(module: str, source: str) -> None:
    assert list(trespasses(module, source)) == []


def test_every_module_of_ours_lies_somewhere() -> None:
    """A new package without a rule would be free to import anything."""
    folders = {path.parent.name for path in ROOT.glob("*/__init__.py")}
    assert folders == set(OURS)
