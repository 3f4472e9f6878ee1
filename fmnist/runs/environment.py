"""Where a run takes place: all that its results may depend on besides the experiment."""

import contextlib
import json
import platform
from dataclasses import asdict, dataclass
from importlib.metadata import PackageNotFoundError, version
from typing import Any

from fmnist.data import Dataset

PACKAGES = ("numpy", "jax", "jaxlib", "flax", "optax", "torch", "torchvision", "safetensors")


@dataclass(frozen=True)
class Environment:
    """Where a run takes place, in its framework's words."""

    framework: str
    device: str
    precision: str
    threads: int


def installed() -> dict[str, str]:
    """The versions of those packages that are installed: neither side needs the other's framework."""
    versions = {}
    for name in PACKAGES:
        with contextlib.suppress(PackageNotFoundError):
            versions[name] = version(name)
    return versions


def describe_environment(environment: Environment, dataset: Dataset) -> dict[str, Any]:
    """All that results may depend on besides the experiment, for `environment.json`."""
    return {
        **asdict(environment),
        "python": platform.python_version(),
        "packages": installed(),
        "platform": platform.platform(),
        "data": {"name": dataset.name, "source": dataset.source, "sha256": dataset.sha256},
    }


def differences(before: dict[str, Any], now: dict[str, Any]) -> list[str]:
    """What differs between two environments and may change a run's bits, in words."""
    different = []
    for name in ("framework", "device", "precision", "threads", "python", "packages", "platform"):
        if before.get(name) != now[name]:
            different.append(f"{name} {json.dumps(now[name])} was {json.dumps(before.get(name))}")
    return different
