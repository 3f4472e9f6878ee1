"""What machine the figures are from: its parts, never its name in a network."""

import os
import platform
import re
from pathlib import Path
from typing import Any

from benchmarks.sides import Environment
from fmnist.runs.environment import installed


def describe(environments: dict[str, Environment]) -> dict[str, Any]:
    """Processor, memory, accelerators, system and versions.

    Args:
        environments: where each side ran.
    """
    return {
        "cpu": _processor(),
        "cores": len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1,
        "memory_bytes": os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES"),
        "accelerators": sorted({each.device for each in environments.values()} - {"cpu"}),
        "system": f"{platform.system()} {platform.release()}",
        "python": platform.python_version(),
        "packages": installed(),
    }


def sentence(machine: dict[str, Any]) -> str:
    """The machine in a line."""
    accelerators = "".join(f"{name}, " for name in machine["accelerators"])
    packages = ", ".join(f"{name} {machine['packages'][name]}" for name in ("torch", "jax"))
    return (
        f"{accelerators}{machine['cpu']}, {machine['cores']} cores, {machine['memory_bytes'] / 2**30:.0f} GiB; "
        f"{machine['system'].partition('-')[0]}, Python {machine['python']}, {packages}"
    )


def file_name(machine: dict[str, Any]) -> str:
    """A name for the machine's files, without a suffix: its accelerators, or else its processor and cores."""
    parts = machine["accelerators"] or [f"{machine['cpu']} {machine['cores']} cores"]
    return re.sub(r"[^a-z0-9]+", "-", " ".join(parts).lower()).strip("-")


def _processor() -> str:
    """The processor's model, without what its maker adds for the courts and what is told apart by `cores`."""
    information = Path("/proc/cpuinfo")
    found = re.search(r"^model name\s*: (.+)$", information.read_text(), re.M) if information.exists() else None
    name = found[1] if found else platform.processor() or platform.machine()
    name = re.sub(r"\((R|TM)\)|\b(CPU|Processor|\d+-Core)\b|@.*", " ", name, flags=re.I)
    return " ".join(name.split())
