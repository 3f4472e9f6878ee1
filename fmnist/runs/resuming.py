"""Resuming a run: what it was, and what must not differ."""

import hashlib
import json
from pathlib import Path
from typing import Any

from fmnist.command import UsageError
from fmnist.data import Dataset
from fmnist.files import read_file
from fmnist.runs import checkpoints
from fmnist.runs.checkpoints import Checkpoint
from fmnist.runs.folders import CHECKPOINT, METRICS, MODEL
from fmnist.runs.options import TrainOptions

MOST_METRICS = 2**30


def restore(folder: Path, options: TrainOptions, dataset: Dataset) -> Checkpoint | None:
    """The checkpoint to resume the run in a folder from; None where there is none, and nothing to lose.

    Raises:
        UsageError: a file of the run is damaged or missing, or the data is not what it was.
    """
    try:
        checkpoint = checkpoints.read(folder / CHECKPOINT)
    except FileNotFoundError:
        left = [name for name in (METRICS, MODEL) if _size(folder / name)]
        if left:
            raise UsageError(
                f"--resume: {folder} holds {left[0]} but no {CHECKPOINT}; restore it, or start over with --overwrite"
            ) from None
        return None
    data = {"name": dataset.name, "sha256": dataset.sha256}
    if checkpoint.data != data:
        given, was = (f"{each['name']} ({each['sha256'][:16]}…)" for each in (data, checkpoint.data))
        raise UsageError(f"--data: this is {given}, the run in {folder} was trained on {was}; give it the same data")
    read_metrics(folder, checkpoint)
    return checkpoint


def read_metrics(folder: Path, checkpoint: Checkpoint) -> bytes:
    """The metrics from before the checkpoint.

    Raises:
        UsageError: they are missing or damaged.
    """
    path = folder / METRICS
    try:
        lines = read_file(path, MOST_METRICS)[: checkpoint.metrics_size]
    except FileNotFoundError:
        raise UsageError(f"{path}: no such file; restore it, or start over with --overwrite") from None
    if hashlib.sha256(lines).hexdigest() != checkpoint.metrics_sha256:
        raise UsageError(
            f"{path}: it is damaged: its first {checkpoint.metrics_size:,} bytes are not those that the checkpoint "
            "knows; restore it, or start over with --overwrite"
        )
    try:
        valid = all(_is_entry(json.loads(line)) for line in lines.splitlines())
    except (ValueError, RecursionError):
        valid = False
    if not valid:
        raise UsageError(f"{path}: not the metrics of a run; restore it, or start over with --overwrite")
    return lines


def _is_entry(entry: Any) -> bool:
    """Whether this is what a run records of a batch or of a test pass."""
    if not isinstance(entry, dict) or not all(isinstance(value, int | float) for value in entry.values()):
        return False
    return entry.keys() in ({"epoch", "step", "loss"}, {"epoch", "accuracy", "average_loss"})


def _size(path: Path) -> int:
    return path.stat().st_size if path.exists() else 0
