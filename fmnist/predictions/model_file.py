"""Trained parameters from a file, whoever wrote it."""

import itertools
import re
from pathlib import Path

import ml_dtypes
import numpy as np
from numpy.typing import NDArray
from safetensors import SafetensorError, deserialize

from fmnist.command import UsageError, words_of
from fmnist.experiment import CLASSES, FLOAT32, PIXELS, Experiment, StateDict
from fmnist.files import read_file
from fmnist.runs.checkpoints import MOST_BYTES
from fmnist.runs.folders import CHECKPOINT, MODEL
from fmnist.signatures import kind_of

DTYPES = {"F64": np.float64, "F32": np.float32, "F16": np.float16, "BF16": ml_dtypes.bfloat16}

EXPECTED = "expected a safetensors file of linear layers from 784 to 10, such as a trainer's model.safetensors"


def read_model(path: Path) -> tuple[Experiment, StateDict]:
    """The parameters in a safetensors file, or in that of a run's folder.

    They are `float32` by the names `fc1.weight (out, in)`, `fc1.bias (out,)`, …, whatever they were there.
    Layers may have any names, as in any `state_dict` of linear layers with biases; they stand in the order of the
    numbers in them. The experiment is that of the widths, all else as usual. A trainer's own file carries its SHA-256,
    which has to be right.

    Raises:
        UsageError: it cannot be read, or holds something else.
    """
    if path.is_dir():
        path, folder = path / MODEL, path
        if not path.exists():
            has = f"that run has not come to its end: resume it, or give its {CHECKPOINT}"
            raise UsageError(f"{path}: no such file; {has if (folder / CHECKPOINT).exists() else EXPECTED}")
    try:
        content = read_file(path, MOST_BYTES)
        kind_of(content)
        return _layers({name: _tensor(name, **told) for name, told in sorted(deserialize(content))})  # type: ignore[no-untyped-call]
    except FileNotFoundError:
        raise UsageError(f"{path}: no such file; {EXPECTED}") from None
    except (KeyError, TypeError, ValueError, SafetensorError) as error:
        raise UsageError(f"{path}: {words_of(error)[:200]}; {EXPECTED}") from None


def _tensor(name: str, dtype: str, shape: list[int], data: bytes) -> NDArray[np.float32]:
    """A file's tensor; bfloat16 and float64 as float32."""
    if dtype not in DTYPES:
        raise ValueError(f"{name} is of type {dtype}, which is not read: convert it by model.float() before saving")
    tensor = np.frombuffer(data, DTYPES[dtype]).reshape(shape)
    if not np.isfinite(tensor).all():
        raise ValueError(f"{name} holds values that are not finite")
    with np.errstate(over="ignore"):
        tensor = tensor.astype(np.float32)
    if not np.isfinite(tensor).all():
        raise ValueError(f"{name} holds values beyond float32's {FLOAT32.max:.2g}")
    return tensor


def _layers(state_dict: StateDict) -> tuple[Experiment, StateDict]:
    names = sorted((name.removesuffix(".weight") for name in state_dict if name.endswith(".weight")), key=_by_numbers)
    if {f"{name}.{kind}" for name in names for kind in ("weight", "bias")} != state_dict.keys():
        raise ValueError(f"it holds {', '.join(sorted(state_dict)[:8]) or 'nothing'}")
    found: StateDict = {}
    widths = [PIXELS]
    for layer, name in enumerate(names, 1):
        weight, bias = state_dict[f"{name}.weight"], state_dict[f"{name}.bias"]
        if weight.ndim != 2 or weight.shape[1] != widths[-1] or bias.shape != weight.shape[:1]:
            raise ValueError(f"{name} has weights {weight.shape} and biases {bias.shape} after {widths[-1]} values")
        widths.append(len(weight))
        found[f"fc{layer}.weight"], found[f"fc{layer}.bias"] = weight, bias
    if widths[-1] != CLASSES or len(widths) < 3:
        raise ValueError(f"its layers have widths {'-'.join(map(str, widths))}")
    return Experiment(hidden=tuple(widths[1:-1])), found


def _by_numbers(name: str) -> list[int | str]:
    """`fc10` comes after `fc2`."""
    parts = re.split(r"(\d+)", name)
    return list(itertools.chain(*zip(parts[::2], map(int, [*parts[1::2], 0]), strict=True)))
