"""The data as torchvision keeps it after a download, in a folder that may be written to: where the sides read it."""

import struct
from pathlib import Path

import numpy as np

from fmnist.command import Failure
from fmnist.data import Split, load_dataset

IMAGES, LABELS = 2051, 2049  # magic numbers of the IDX format: unsigned bytes in three dimensions and in one


def write(place: str | None, folder: Path) -> str:
    """Write what `--data` asks for below `folder`; returns the data's name. Fills the trainers' cache on the way.

    Raises:
        Failure: there is no room for it.
    """
    dataset = load_dataset(place)
    files = {}
    for prefix, split in (("train", dataset.train), ("t10k", dataset.test)):
        images, labels = split
        files[f"{prefix}-images-idx3-ubyte"] = struct.pack(">4I", IMAGES, *images.shape) + images.tobytes()
        files[f"{prefix}-labels-idx1-ubyte"] = struct.pack(">2I", LABELS, *labels.shape) + bytes(labels.tolist())
    try:
        _raw(folder).mkdir(parents=True)
        for name, content in files.items():
            (_raw(folder) / name).write_bytes(content)
    except OSError as error:
        needed = sum(map(len, files.values())) / 1e6
        raise Failure(
            f"{folder}: {error.strerror}: the data takes {needed:.0f} MB there; choose another folder by TMPDIR"
        ) from None
    return dataset.name


def read_training(folder: Path) -> Split:
    """The training set that `write` put there."""
    images = np.fromfile(_raw(folder) / "train-images-idx3-ubyte", np.uint8, offset=16).reshape(-1, 28, 28)
    return Split(images, np.fromfile(_raw(folder) / "train-labels-idx1-ubyte", np.uint8, offset=8).astype(np.int64))


def _raw(folder: Path) -> Path:
    return folder / "FashionMNIST" / "raw"
