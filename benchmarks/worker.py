"""A side in a process of its own, for the thread pools of two frameworks in one would get into each other's way."""

import functools
import logging
import os
import pkgutil
import sys
import time
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path
from types import TracebackType

from benchmarks.sides import Environment, Prepared, Setting, Side

# JAX would take most of a GPU's memory at its first use, and leave none to the other workers.
SHARING = {"XLA_PYTHON_CLIENT_PREALLOCATE": "false"}


class Worker:
    """Takes turns when asked, and uses no core in between."""

    def __init__(self, side: Side, folder: Path, cold: bool) -> None:
        """Start the process.

        Args:
            cold: compile everything anew rather than take it from the frameworks' caches on this machine.
        """
        self._side, self._folder = side, folder
        programs = {"JAX_ENABLE_COMPILATION_CACHE": "false", "TORCHINDUCTOR_CACHE_DIR": str(folder / "programs")}
        environment = {**SHARING, **(programs if cold else {})}
        self._pool = ProcessPoolExecutor(1, get_context("spawn"), _start, (environment,))
        self._started = self._pool.submit(_import, side.turns)

    def wait(self) -> None:
        """Return when the process has imported what it needs."""
        self._started.result()

    def prepare(self, setting: Setting) -> float | None:
        """Make ready for a setting, unless it is so already; returns the seconds that compiling took."""
        return self._pool.submit(_compile_seconds, self._side.turns, self._folder, setting).result()

    def turn(self, setting: Setting) -> float:
        """Seconds that one turn takes."""
        return self._pool.submit(_turn, self._side.turns, self._folder, setting).result()

    def environment(self) -> Environment:
        """Where the side runs."""
        return self._pool.submit(_environment, self._side.turns).result()

    def __enter__(self) -> "Worker":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._pool.shutdown(cancel_futures=True)


def _start(environment: dict[str, str]) -> None:
    os.environ.update(environment)
    # torch.compile warns of a CUDA that is not there.
    logging.disable(logging.WARNING)
    # The post's loop prints its losses.
    sys.stdout = open(os.devnull, "w")  # noqa: SIM115


def _import(turns: str) -> None:
    pkgutil.resolve_name(turns)


@functools.lru_cache(maxsize=1)
def _prepared(turns: str, folder: Path, setting: Setting) -> Prepared:
    prepared: Prepared = pkgutil.resolve_name(turns)(folder, setting)
    return prepared


def _compile_seconds(turns: str, folder: Path, setting: Setting) -> float | None:
    return _prepared(turns, folder, setting).compile_seconds


def _turn(turns: str, folder: Path, setting: Setting) -> float:
    turn = _prepared(turns, folder, setting).turn
    start = time.perf_counter()
    turn()
    return time.perf_counter() - start


def _environment(turns: str) -> Environment:
    module, _, side = turns.partition(":")
    environment: Environment = pkgutil.resolve_name(f"{module}:environment")(side)
    return environment
