"""A run's state after an epoch, as one file that is either whole and undamaged or refused."""

import json
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any

import numpy as np
from safetensors import SafetensorError
from safetensors.numpy import load

from fmnist.command import UsageError, words_of
from fmnist.experiment import MOST_PARAMETERS, Experiment, StateDict
from fmnist.files import read_file, write_atomically
from fmnist.signatures import kind_of, save_signed

KIND = "checkpoint 1"
MOST_BYTES = 4 * MOST_PARAMETERS + 2**24


@dataclass(frozen=True)
class Checkpoint:
    """All that a resumed run needs to end at the bits of an uninterrupted one."""

    experiment: Experiment
    epoch: int
    """Epochs that are done."""
    step: int
    """Updates that were made: all there is to the state of an SGD without momentum."""
    state_dict: StateDict
    data: dict[str, str]
    """Name and SHA-256 of the data."""
    environments: list[dict[str, Any]]
    """Where the run took place, and from which epoch on."""
    metrics_size: int
    """Bytes of `metrics.jsonl` that tell of those epochs."""
    metrics_sha256: str


def write(path: Path, checkpoint: Checkpoint) -> None:
    """Replace the checkpoint at `path`; the last one stays until the new one is safe.

    Raises:
        OSError: it could not be written; the last one is untouched.
    """
    described = {
        field.name: getattr(checkpoint, field.name) for field in fields(checkpoint) if field.name != "state_dict"
    }
    described["experiment"] = asdict(checkpoint.experiment)
    write_atomically(path, save_signed(checkpoint.state_dict, KIND, run=json.dumps(described)))


def read(path: Path) -> Checkpoint:
    """The checkpoint at `path`.

    Raises:
        FileNotFoundError: there is none.
        UsageError: it cannot be read, is damaged, or is something else.
    """
    content = read_file(path, MOST_BYTES)
    try:
        return _decoded(content)
    except (UsageError, AttributeError, KeyError, TypeError, ValueError, RecursionError, SafetensorError) as error:
        raise UsageError(f"{path}: {words_of(error)[:200]}; restore it, or start over with --overwrite") from None


def _decoded(content: bytes) -> Checkpoint:
    kind = kind_of(content)
    if kind != KIND:
        raise ValueError(f"it is {f'a {kind}' if kind else 'something else'}, expected a {KIND}")
    state_dict = load(content)
    metadata = json.loads(content[8 : 8 + int.from_bytes(content[:8], "little")])["__metadata__"]
    described = json.loads(metadata["run"])
    experiment = described["experiment"]
    # Before there was a choice of networks, it went without saying.
    experiment |= {name: tuple(experiment[name]) for name in ("hidden", "channels") if name in experiment}
    checkpoint = Checkpoint(**described | {"experiment": Experiment(**experiment), "state_dict": state_dict})
    wrong = _wrong_values(checkpoint) or _wrong_tensors(state_dict, checkpoint.experiment)
    if wrong is not None:
        raise ValueError(wrong)
    return checkpoint


def _wrong_values(checkpoint: Checkpoint) -> str | None:
    """What no run would have written, in words."""
    usual = Experiment()
    for field in fields(Experiment):
        value = getattr(checkpoint.experiment, field.name)
        if type(value) is not type(getattr(usual, field.name)):
            return f"{field.name} is {value!r}"
    experiment = checkpoint.experiment
    counts = (*experiment.hidden, *experiment.channels, checkpoint.epoch, checkpoint.step, checkpoint.metrics_size)
    if any(type(count) is not int or count < 0 for count in counts) or checkpoint.epoch > experiment.epochs:
        return f"its counts are {counts}"
    if {*map(type, checkpoint.environments)} != {dict} or checkpoint.data.keys() != {"name", "sha256"}:
        return "it does not say where it was written"
    return None


def _wrong_tensors(state_dict: StateDict, experiment: Experiment) -> str | None:
    """What tells these from an experiment's parameters, in words; None if nothing does."""
    expected = experiment.shapes
    if state_dict.keys() != expected.keys():
        return f"it holds {', '.join(sorted(state_dict)) or 'nothing'}, expected {', '.join(expected)}"
    for name, tensor in state_dict.items():
        if tensor.shape != expected[name] or tensor.dtype != np.float32:
            return f"{name} is {tensor.dtype} {tensor.shape}, expected float32 {expected[name]}"
        if not np.isfinite(tensor).all():
            return f"{name} holds values that are not finite"
    return None
