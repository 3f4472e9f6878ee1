"""Going on with a run: what it was, and what must not differ."""

import hashlib
import json
from dataclasses import asdict
from pathlib import Path
from typing import Any

from fmnist_torch import checkpoints
from fmnist_torch.checkpoints import Checkpoint
from fmnist_torch.data import Dataset
from fmnist_torch.errors import UsageError
from fmnist_torch.experiment import EXPECTED, Options, flag, parse
from fmnist_torch.files import read_file

CHECKPOINT = "checkpoint.safetensors"
METRICS = "metrics.jsonl"
MOST_METRICS = 2**30


def parse_options(arguments: list[str], name: str, description: str) -> Options:
    """What a trainer's command line asks for; with `--resume`, what it leaves open is as it was.

    Raises:
        UsageError: it cannot be done, or contradicts the run that it resumes.
    """
    options = parse(Options, arguments, name, description, EXPECTED)
    if not options.resume:
        return options
    assert options.output is not None
    try:
        checkpoint = checkpoints.read(options.output / CHECKPOINT)
    except FileNotFoundError:
        return options
    was = Options(checkpoint.experiment, data="synthetic" if checkpoint.data["name"] == "synthetic" else None)
    options = parse(Options, arguments, name, description, EXPECTED, default=was)
    asked, before = asdict(options.experiment), asdict(checkpoint.experiment)
    if asked["epochs"] > before["epochs"]:
        before["epochs"] = asked["epochs"]
    different = [
        f"{flag(field)} {_words(asked[field])} was {_words(before[field])}"
        for field in before
        if asked[field] != before[field]
    ]
    if different:
        raise UsageError(
            f"--resume: {'; '.join(different)}; leave these flags out, or start another run in another folder"
        )
    return options


def restore(folder: Path, options: Options, dataset: Dataset) -> Checkpoint | None:
    """The checkpoint that the run in a folder goes on from; None where there is none, and nothing to lose.

    Raises:
        UsageError: a file of the run is damaged or missing, or the data is not what it was.
    """
    try:
        checkpoint = checkpoints.read(folder / CHECKPOINT)
    except FileNotFoundError:
        left = [name for name in (METRICS, "model.safetensors") if _size(folder / name)]
        if left:
            raise UsageError(
                f"--resume: {folder} holds {left[0]} but no {CHECKPOINT}; restore it, or start anew with --overwrite"
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
        raise UsageError(f"{path}: no such file; restore it, or start anew with --overwrite") from None
    if hashlib.sha256(lines).hexdigest() != checkpoint.metrics_sha256:
        raise UsageError(
            f"{path}: it is damaged: its first {checkpoint.metrics_size:,} bytes are not those that the checkpoint "
            "knows; restore it, or start anew with --overwrite"
        )
    try:
        valid = all(_is_entry(json.loads(line)) for line in lines.splitlines())
    except (ValueError, RecursionError):
        valid = False
    if not valid:
        raise UsageError(f"{path}: not the metrics of a run; restore it, or start anew with --overwrite")
    return lines


def _is_entry(entry: Any) -> bool:
    """Whether this is what a run records of a batch or of a test pass."""
    if not isinstance(entry, dict) or not all(isinstance(value, int | float) for value in entry.values()):
        return False
    return entry.keys() in ({"epoch", "step", "loss"}, {"epoch", "accuracy", "average_loss"})


def differences(before: dict[str, Any], now: dict[str, Any]) -> list[str]:
    """What differs between two environments and may change a run's bits, in words."""
    different = []
    for name in ("framework", "device", "precision", "threads", "python", "packages", "platform"):
        if before.get(name) != now[name]:
            different.append(f"{name} {json.dumps(now[name])} was {json.dumps(before.get(name))}")
    return different


def _size(path: Path) -> int:
    return path.stat().st_size if path.exists() else 0


def _words(value: Any) -> str:
    return " ".join(map(str, value)) if isinstance(value, tuple) else str(value)
