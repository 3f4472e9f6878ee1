"""Trained parameters from a file, whoever wrote it."""

import itertools
import re
from pathlib import Path

import ml_dtypes
import numpy as np
from numpy.typing import NDArray
from safetensors import SafetensorError, deserialize

from fmnist.command import UsageError, words_of
from fmnist.experiment import FLOAT32, Experiment, StateDict
from fmnist.files import read_file
from fmnist.runs.checkpoints import MOST_BYTES
from fmnist.runs.folders import CHECKPOINT, MODEL
from fmnist.signatures import kind_of

DTYPES = {"F64": np.float64, "F32": np.float32, "F16": np.float16, "BF16": ml_dtypes.bfloat16}

EXPECTED = (
    "expected a safetensors file of linear layers from 784 to 10, or of 3x3 convolutions before one, such as a "
    "trainer's model.safetensors"
)


def read_model(path: Path) -> tuple[Experiment, StateDict]:
    """The parameters in a safetensors file, or in that of a run's folder.

    They are `float32` by the experiment's names, `fc1.weight (out, in)`, `fc1.bias (out,)`, …, whatever they were
    there. Layers may have any names, as in any `state_dict` of linear layers, or convolutions, with biases; they stand
    in the order of the numbers in them. The experiment is that of the widths or channels, all else as usual.
    A trainer's own file carries its SHA-256, which has to be right.

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
    weights = [state_dict[f"{name}.weight"] for name in names]
    channels = tuple(len(weight) for weight in weights if weight.ndim == 4)
    widths = tuple(map(len, weights[len(channels) : -1]))
    try:
        is_cnn = bool(channels)
        experiment = Experiment(network="cnn", channels=channels) if is_cnn else Experiment(hidden=widths)
    except UsageError:
        raise ValueError(f"its weights are {', '.join(str(weight.shape) for weight in weights)}") from None
    found: StateDict = {}
    given = (f"{name}.{kind}" for name in names for kind in ("weight", "bias"))
    for (name, shape), its in itertools.zip_longest(experiment.shapes.items(), given, fillvalue=("nothing", ())):
        if its not in state_dict or state_dict[its].shape != shape:
            has = f"{its} {state_dict[its].shape}" if its in state_dict else "nothing"
            raise ValueError(f"it holds {has} where {experiment.structure} has {name} {shape}")
        found[name] = state_dict[its]
    return experiment, found


def _by_numbers(name: str) -> list[int | str]:
    """`fc10` comes after `fc2`."""
    parts = re.split(r"(\d+)", name)
    return list(itertools.chain(*zip(parts[::2], map(int, [*parts[1::2], 0]), strict=True)))
