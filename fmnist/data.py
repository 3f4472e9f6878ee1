"""FashionMNIST as NumPy arrays: found, verified, cached. Imports torchvision only to download."""

import contextlib
import gzip
import hashlib
import io
import os
import sys
import tempfile
from http.client import HTTPException
from pathlib import Path
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from fmnist.command import UnavailableError, UsageError, words_of
from fmnist.experiment import CLASSES, PIXELS, SIDE, TEST_IMAGES, TRAINING_IMAGES
from fmnist.files import cache_folder, map_file, read_file, write_atomically

# MD5 sums of the original files: torchvision/datasets/mnist.py, FashionMNIST.resources.
MD5 = {
    "train-images-idx3-ubyte.gz": "8d4fb7e6c68d591d4c3dfef9ec88bf0d",
    "train-labels-idx1-ubyte.gz": "25c81989df183df01b3e8a0aad5dffbe",
    "t10k-images-idx3-ubyte.gz": "bef4ecab320f06d8554ea6380940ec79",
    "t10k-labels-idx1-ubyte.gz": "bb300cfdad3c16e7a12a480ee83cd310",
}

# Twice what the arrays take.
MOST_CACHED = 2**27

# Those of what they hold: torchvision unpacks them side by side, and some keep only these.
UNPACKED_MD5 = {
    "train-images-idx3-ubyte": "f4a8712d7a061bf5bd6d2ca38dc4d50a",
    "train-labels-idx1-ubyte": "9018921c3c673c538a1fc5bad174d6f9",
    "t10k-images-idx3-ubyte": "8181f5470baa50b63fa0f6fddb340f0a",
    "t10k-labels-idx1-ubyte": "15d484375f8d13e6eb1aabb0c3f46965",
}

HOLDING = "that holds FashionMNIST's four files, .gz or unpacked, below FashionMNIST/raw, or 'synthetic'"

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
        place: a folder that holds `FashionMNIST/raw/*.gz`, or these unpacked, read and checked itself; `"synthetic"`
            for the built-in stand-in, as where `$FMNIST_DATA` says so; None for the cache or, where that is empty, the
            first of `$FMNIST_DATA`, `./data` and `../shared/datasets` that holds the files, or else a download into
            `./data`.

    Raises:
        UsageError: a file is missing from `place` or damaged.
        UnavailableError: the data is nowhere and cannot be downloaded.
    """
    if "synthetic" in (place, place is None and os.environ.get("FMNIST_DATA")):
        from fmnist.synthetic import draw

        train, test = _splits(*draw())
        return Dataset("synthetic", "drawn by NumPy", digest(train, test), train, test)
    if place is not None:
        if not os.path.isdir(place):
            wrong = "not a folder" if os.path.exists(place) else "no such folder"
            raise UsageError(f"--data {place}: {wrong}; expected one {HOLDING}")
        if not os.path.isdir(_raw(Path(place))):
            _check_place(f"--data {place}", Path(place))
        return _read_folder(Path(place))
    cached = _read_cache()
    if cached is not None:
        return cached
    dataset = _read_folder(find_folder() or _download())
    _write_cache(dataset)
    return dataset


def _splits(images: NDArray[np.uint8], labels: NDArray[np.int64]) -> tuple[Split, Split]:
    """The training set and, after it, the test set."""
    return (
        Split(images[:TRAINING_IMAGES], labels[:TRAINING_IMAGES]),
        Split(images[TRAINING_IMAGES:], labels[TRAINING_IMAGES:]),
    )


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


def _file(raw: Path, name: str) -> Path:
    """One of the four files, packed if it is there, or else unpacked."""
    packed, unpacked = raw / name, raw / name.removesuffix(".gz")
    return unpacked if os.path.exists(unpacked) and not os.path.exists(packed) else packed


def _check_place(said: str, folder: Path) -> None:
    """Raise a UsageError where the files do not lie below FashionMNIST/raw, but in the folder or in its raw."""
    for place in (folder, folder / "raw"):
        if any(os.path.exists(_file(place, name)) for name in MD5):
            whole = place if ".." not in place.parts and len(place.parts) > 2 else place.resolve()
            if whole.parts[-2:] == ("FashionMNIST", "raw"):
                raise UsageError(f"{said}: the files lie in {place}; name the folder above both: {whole.parents[1]}")
            raise UsageError(f"{said}: the files lie in {place}; move them into {_raw(folder)}")


def _read_folder(folder: Path) -> Dataset:
    """Decode a folder's four files, each checked by its MD5 sum."""
    arrays = [_read_idx(_file(_raw(folder), name)) for name in MD5]
    train, test = (Split(images, labels.astype(np.int64)) for images, labels in (arrays[:2], arrays[2:]))
    wrong = _verify(train, test)
    if wrong is not None:
        raise UsageError(f"{_raw(folder)}: {wrong}")
    return Dataset("FashionMNIST", str(folder), SHA256, train, test)


def _read_idx(path: Path) -> NDArray[np.uint8]:
    """The array in a file of the IDX format: a word with its number of dimensions, their lengths, its bytes.

    Raises:
        UsageError: it is not the original file.
    """
    sums = MD5 | UNPACKED_MD5
    try:
        content = read_file(path, MOST_CACHED)
    except FileNotFoundError:
        raise UsageError(f"{path}: no such file; expected a folder {HOLDING}") from None
    except UsageError as error:
        raise UsageError(f"{error}; expected a folder {HOLDING}") from None
    md5 = hashlib.md5(content).hexdigest()
    if md5 != sums[path.name]:
        other = next((other for other, known in sums.items() if known == md5), None)
        mistake = f"it is {other} under a wrong name" if other else "it is damaged or something else"
        raise UsageError(
            f"{path}: {mistake}: MD5 {md5}, expected {sums[path.name]}; put the original file there, or delete it and "
            "let a run without --data find or download the data"
        )
    if path.suffix == ".gz":
        content = gzip.decompress(content)
    dimensions = content[3]
    shape = np.frombuffer(content, ">i4", dimensions, offset=4)
    return np.frombuffer(content, np.uint8, offset=4 + 4 * dimensions).reshape(shape)


def _places() -> list[Path]:
    """Where data is looked for, in this order."""
    given = os.environ.get("FMNIST_DATA")
    return [*([Path(given)] if given else []), Path("data"), Path("..", "shared", "datasets")]


def find_folder() -> Path | None:
    """The first place that holds all four files.

    Raises:
        UsageError: none does, but one holds them in another place.
    """
    for place in _places():
        if all(os.path.exists(_file(_raw(place), name)) for name in MD5):
            return place
    for place in _places():
        _check_place(str(place), place)
    return None


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


def _cache_file() -> Path | None:
    folder = cache_folder()
    return None if folder is None else folder / "FashionMNIST.bytes"


def _read_cache() -> Dataset | None:
    """The cached arrays; None, with a line that says so if they are damaged, where they have to be rebuilt."""
    path = _cache_file()
    if path is None:
        return None
    try:
        values = np.frombuffer(map_file(path, MOST_CACHED), np.uint8)
        # Images first, for a file is mapped to the beginning of a page: from there JAX on a CPU uses them as they lie.
        images, labels = np.split(values, [(TRAINING_IMAGES + TEST_IMAGES) * PIXELS])
        train, test = _splits(images.reshape(-1, SIDE, SIDE), labels.astype(np.int64))
        wrong = _verify(train, test)
    except FileNotFoundError:
        return None
    except (UsageError, ValueError) as error:
        wrong = words_of(error)
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
    if path is None:
        return
    train, test = dataset.train, dataset.test
    arrays = (train.images, test.images, train.labels, test.labels)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        write_atomically(path, b"".join(array.astype(np.uint8).tobytes() for array in arrays))
    except OSError as error:
        print(f"{path}: the data cache cannot be written ({error.strerror}); continuing without", file=sys.stderr)
