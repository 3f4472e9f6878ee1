"""A run's curves as TensorBoard shows them, under the same tags on both sides."""

import contextlib
import shutil
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from fmnist.command import UnavailableError

FOLDER = "tensorboard"


def start(output: Path, done: int) -> Any:
    """A writer into a run's folder that continues after `done` updates; what was written of later ones is dropped.

    Raises:
        UnavailableError: tensorboardX is not installed.
    """
    try:
        with _unseen("torch"):
            from tensorboardX import SummaryWriter
    except ImportError:
        raise UnavailableError(
            "--tensorboard: tensorboardX is not installed; add it by pip install 'fmnist-parity[tensorboard]'"
        ) from None
    if not done:
        shutil.rmtree(output / FOLDER, ignore_errors=True)
    return SummaryWriter(str(output / FOLDER), purge_step=done + 1 if done else None)


@contextlib.contextmanager
def _unseen(module: str) -> Iterator[None]:
    """Let imports within not find a module that was not imported yet.

    tensorboardX imports torch wherever it is installed, for tensors that it gets none of here: 3 s of a JAX process.
    """
    hidden = module not in sys.modules
    if hidden:
        sys.modules[module] = None  # type: ignore[assignment]
    try:
        yield
    finally:
        if hidden:
            del sys.modules[module]


def record(board: Any, entries: list[dict[str, Any]], steps: int) -> None:
    """Add entries of `metrics.jsonl`, at the number of updates that were made before or with them.

    Args:
        steps: updates of an epoch.
    """
    for entry in entries:
        if "loss" in entry:
            board.add_scalar("loss/train", entry["loss"], (entry["epoch"] - 1) * steps + entry["step"])
        else:
            board.add_scalar("loss/test", entry["average_loss"], entry["epoch"] * steps)
            board.add_scalar("accuracy/test", entry["accuracy"], entry["epoch"] * steps)
    board.flush()
