"""FashionMNIST as NumPy arrays: found, verified, cached. Imports torchvision only to decode or to download."""

import contextlib
import hashlib
import io
import os
import shutil
import sys
import tempfile
from http.client import HTTPException
from pathlib import Path
from typing import NamedTuple

import numpy as np
import platformdirs
from numpy.typing import NDArray
from safetensors import SafetensorError
from safetensors.numpy import load, save

from fmnist.command import UnavailableError, UsageError
from fmnist.experiment import CLASSES, TEST_IMAGES, TRAINING_IMAGES
from fmnist.files import read_file, write_atomically

# MD5 sums of the original files: torchvision/datasets/mnist.py, FashionMNIST.resources.
MD5 = {
    "train-images-idx3-ubyte.gz": "8d4fb7e6c68d591d4c3dfef9ec88bf0d",
    "train-labels-idx1-ubyte.gz": "25c81989df183df01b3e8a0aad5dffbe",
    "t10k-images-idx3-ubyte.gz": "bef4ecab320f06d8554ea6380940ec79",
    "t10k-labels-idx1-ubyte.gz": "bb300cfdad3c16e7a12a480ee83cd310",
}

# Twice what the arrays take.
MOST_CACHED = 2**27

HOLDING = "that holds FashionMNIST's four .gz files below FashionMNIST/raw, or 'synthetic'"

# `digest` of what torchvision decodes from those files.
SHA256 = "8e6b298955e3c090ec818a394515f221aeed5424dea7ce580094efee9a22f112"


class Split(NamedTuple):
    """Images `uint8 (n, 28, 28)` and their labels `int64 (n,)` in 0..9, in file order."""

    images: NDArray[np.uint8]
    labels: NDArray[np.int64]


class Dataset(NamedTuple):
    """A training set of 60,000 and a test set of 10,000 images, with what tells people which ones."""

    name: str
    source: str
    sha256: str
    train: Split
    test: Split


def load_dataset(place: str | None = None) -> Dataset:
    """The data that `--data` asks for, verified.

    Args:
        place: a folder that holds `FashionMNIST/raw/*.gz`, read and checked itself; `"synthetic"` for the built-in
            stand-in, as where `$FMNIST_DATA` says so; None for the cache or, where that is empty, the first of
            `$FMNIST_DATA`, `./data` and `../shared/datasets` that holds the files, or else a download into `./data`.

    Raises:
        UsageError: a file is missing from `place` or damaged.
        UnavailableError: the data is nowhere and cannot be downloaded.
    """
    if "synthetic" in (place, place is None and os.environ.get("FMNIST_DATA")):
        from fmnist.synthetic import draw

        images, labels = draw()
        train = Split(images[:TRAINING_IMAGES], labels[:TRAINING_IMAGES])
        test = Split(images[TRAINING_IMAGES:], labels[TRAINING_IMAGES:])
        return Dataset("synthetic", "drawn by NumPy", digest(train, test), train, test)
    if place is not None:
        if not os.path.isdir(place):
            wrong = "not a folder" if os.path.exists(place) else "no such folder"
            raise UsageError(f"--data {place}: {wrong}; expected one {HOLDING}")
        return _read_folder(Path(place))
    cached = _read_cache()
    if cached is not None:
        return cached
    dataset = _read_folder(find_folder() or _download())
    _write_cache(dataset)
    return dataset


def digest(train: Split, test: Split) -> str:
    """SHA-256 over the dtypes, shapes and values of all four arrays."""
    sha256 = hashlib.sha256()
    for array in (*train, *test):
        sha256.update(f"{array.dtype.name} {array.shape}\n".encode())
        sha256.update(np.ascontiguousarray(array).data)
    return sha256.hexdigest()


def check(train: Split, test: Split) -> str | None:
    """What is wrong with the shapes, dtypes and labels, in words; None if nothing is."""
    for name, split, count in (("training", train, TRAINING_IMAGES), ("test", test, TEST_IMAGES)):
        images, labels = split
        if images.shape != (count, 28, 28) or images.dtype != np.uint8:
            return f"{name} images are {images.dtype} {images.shape}, expected uint8 {(count, 28, 28)}"
        if labels.shape != (count,) or labels.dtype != np.int64:
            return f"{name} labels are {labels.dtype} {labels.shape}, expected int64 {(count,)}"
        if labels.min() < 0 or labels.max() >= CLASSES:
            return f"{name} labels lie in {labels.min()}..{labels.max()}, expected 0..{CLASSES - 1}"
    return None


def _verify(train: Split, test: Split) -> str | None:
    """What tells these arrays from FashionMNIST, in words; None if nothing does."""
    wrong = check(train, test)
    if wrong is None and digest(train, test) != SHA256:
        wrong = f"the decoded arrays have SHA-256 {digest(train, test)}, expected {SHA256}"
    return wrong


def _raw(folder: Path) -> Path:
    """Where torchvision keeps the files below its `root`."""
    return folder / "FashionMNIST" / "raw"


def _read_folder(folder: Path) -> Dataset:
    """Decode a folder's four files by torchvision, in a copy, for it writes beside what it reads."""
    for name in MD5:
        _check_file(folder, name)
    from torchvision.datasets import FashionMNIST

    with tempfile.TemporaryDirectory(prefix="fmnist-") as root:
        copies = _raw(Path(root))
        copies.mkdir(parents=True)
        for name in MD5:
            shutil.copyfile(_raw(folder) / name, copies / name)
        train, test = (
            Split(part.data.numpy(), part.targets.numpy())
            for part in (FashionMNIST(root, train=is_train, download=True) for is_train in (True, False))
        )
    wrong = _verify(train, test)
    if wrong is not None:
        raise UsageError(f"{_raw(folder)}: {wrong}; the installed torchvision decodes the files differently")
    return Dataset("FashionMNIST", str(folder), SHA256, train, test)


def _check_file(folder: Path, name: str) -> None:
    """Raise a UsageError that says what is wrong with one of the four files, if anything is."""
    path = _raw(folder) / name
    try:
        if os.path.exists(path) and not os.path.isfile(path):
            raise UsageError(f"{path}: not a file; expected a folder {HOLDING}")
        md5 = hashlib.md5(path.read_bytes()).hexdigest()
    except OSError as error:
        raise UsageError(f"{path}: {error.strerror}; expected a folder {HOLDING}") from None
    if md5 != MD5[name]:
        other = next((other for other, known in MD5.items() if known == md5), None)
        mistake = f"it is {other} under a wrong name" if other else "it is damaged or something else"
        raise UsageError(
            f"{path}: {mistake}: MD5 {md5}, expected {MD5[name]}; put the original file there, or delete it and let "
            "a run without --data find or download the data"
        )


def _places() -> list[Path]:
    """Where data is looked for, in this order."""
    given = os.environ.get("FMNIST_DATA")
    return [*([Path(given)] if given else []), Path("data"), Path("..", "shared", "datasets")]


def find_folder() -> Path | None:
    """The first place that holds all four files."""
    return next((place for place in _places() if all(os.path.exists(_raw(place) / name) for name in MD5)), None)


def _download() -> Path:
    """Let torchvision download the files into ./data; a broken download leaves nothing there."""
    from torchvision.datasets import FashionMNIST

    data = Path("data")
    made = [folder for folder in (_raw(data), _raw(data).parent, data) if not folder.exists()]
    try:
        _raw(data).mkdir(parents=True, exist_ok=True)
        # torchvision prints, and shows a bar on whatever standard error is.
        bar = contextlib.nullcontext() if sys.stderr.isatty() else contextlib.redirect_stderr(io.StringIO())
        print(f"FashionMNIST: downloading into {data}", file=sys.stderr)
        with (
            tempfile.TemporaryDirectory(dir=data, prefix=".download-") as root,
            contextlib.redirect_stdout(sys.stderr),
            bar,
        ):
            FashionMNIST(root, download=True)
            for name in MD5:
                os.replace(_raw(Path(root)) / name, _raw(data) / name)
    except (OSError, RuntimeError, HTTPException) as error:
        said = str(error).splitlines() or [type(error).__name__]
        looked = ", ".join(str(place) for place in _places())
        raise UnavailableError(
            f"FashionMNIST is not here and cannot be downloaded ({said[-1]}): looked for "
            f"FashionMNIST/raw/*.gz in {looked}; fetch {', '.join(MD5)} from {FashionMNIST.mirrors[0]} into "
            f"{_raw(data)}, or name their folder by --data or $FMNIST_DATA, or try --data synthetic"
        ) from None
    finally:
        for folder in made:
            with contextlib.suppress(OSError):  # not empty: the download succeeded
                folder.rmdir()
    return data


def _cache_file() -> Path:
    return Path(platformdirs.user_cache_dir("fmnist-parity")) / "FashionMNIST.safetensors"


def _read_cache() -> Dataset | None:
    """The cached arrays; None, with a line that says so if they are damaged, where they have to be rebuilt."""
    path = _cache_file()
    try:
        arrays = load(read_file(path, MOST_CACHED))
        train = Split(arrays["train_images"], arrays["train_labels"])
        test = Split(arrays["test_images"], arrays["test_labels"])
        wrong = _verify(train, test)
    except FileNotFoundError:
        return None
    except KeyError as error:
        wrong = f"lacks {error}"
    except (SafetensorError, UsageError, ValueError) as error:
        wrong = str(error)
    if wrong is not None:
        print(
            f"{path}: the data cache is damaged or unreadable ({wrong}); rebuilding it from the source",
            file=sys.stderr,
        )
        return None
    return Dataset("FashionMNIST", str(path), SHA256, train, test)


def _write_cache(dataset: Dataset) -> None:
    """Keep the arrays for the next run; a cache that cannot be written costs time, not the run."""
    path = _cache_file()
    arrays = {
        f"{name}_{field}": array
        for name, split in (("train", dataset.train), ("test", dataset.test))
        for field, array in split._asdict().items()
    }
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        write_atomically(path, save({name: np.ascontiguousarray(array) for name, array in arrays.items()}))
    except OSError as error:
        print(f"{path}: the data cache cannot be written ({error.strerror}); continuing without", file=sys.stderr)
