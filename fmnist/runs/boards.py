"""A run's curves as TensorBoard shows them, under the same tags on both sides.

TensorBoard names a run by its folder's place below `--logdir`: `jax` and `torch` here, so that it is never just `.`.
"""

import contextlib
import shlex
import shutil
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from fmnist.command import UnavailableError, interpreter

FOLDER = "tensorboard"


def start(output: Path, framework: str, done: int) -> Any:
    """A writer into a run's folder that continues after `done` updates; what was written of later ones is dropped.

    Args:
        framework: whose curves they are. A run that the other side goes on with has curves of both.

    Raises:
        UnavailableError: tensorboardX is not installed.
    """
    try:
        with _unseen("torch"):
            from tensorboardX import SummaryWriter
    except ImportError:
        raise UnavailableError(
            f"--tensorboard: tensorboardX is not installed; add it by {interpreter()} -m pip install tensorboardX"
        ) from None
    folder = output / FOLDER
    if not done:
        shutil.rmtree(folder, ignore_errors=True)
        return SummaryWriter(str(folder / framework))

    def go_on(curves: Path) -> Any:
        # tensorboardX names a file by its second, and empties one of that name: the curves of a run just ended.
        files = len(list(curves.glob("*")))
        return SummaryWriter(str(curves), purge_step=done + 1, filename_suffix=f".{files:06d}")

    for other in folder.glob("*/"):
        if other.name != framework:
            go_on(other).close()
    return go_on(folder / framework)


def command(output: Path) -> str:
    """The command that shows a run; given the folder above those of several runs, it lays them over each other."""
    return f"{interpreter()} -m tensorboard.main --logdir {shlex.quote(str(output))}"


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
