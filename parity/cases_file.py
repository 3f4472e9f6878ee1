"""Cases and answers as bytes: an uncompressed `.npz` without pickle, signed as a whole by a SHA-256. NumPy only."""

import contextlib
import hashlib
import io
import json
import math
import os
import re
import secrets
import zipfile
from collections.abc import Mapping
from dataclasses import dataclass, is_dataclass
from pathlib import Path
from typing import Any

import numpy as np

from parity.cases import Answer, Array, Case
from parity.errors import PortError, UsageError, printable

MOST_BYTES = 8 << 30
"""A file or message larger than this is refused before it is read."""
_CONTENTS = "contents.npy"
_SIGNATURE = 64
_SMALL_FLOATS = re.compile(r"bfloat16|float8_\w+|float4_\w+|float6_\w+")


@dataclass(frozen=True)
class Recording:
    """An exam that is on paper: what is asked, and what everybody but the port says to it."""

    about: dict[str, Any]
    """JSON values: the reference and its places, versions, precision, seed, stages."""
    asked: tuple[tuple[Case, dict[str, Answer]], ...]
    """Cases in order, each with its answers by name: `expected`, `tolerance`, `reference`, …"""


@dataclass(frozen=True)
class Answers:
    """What a port said to a recorded exam; answers for the port wherever one is judged."""

    about: dict[str, Any]
    """What the port's `describe` returned."""
    given: dict[str, Answer | str]
    """By `digest(case)`: its answer, or the line in which it failed."""

    def describe(self) -> dict[str, Any]:
        """What the port's `describe` returned."""
        return self.about

    def answer(self, case: Case) -> Answer:
        """What the port said.

        Raises:
            PortError: it failed then, or was not asked this.
        """
        given = self.given.get(digest(case))
        if given is None:
            raise PortError(f"{case.call}: the port was not asked {case.name!r}: the answers are to another exam")
        if isinstance(given, str):
            message, _, hint = given.partition("\n")
            raise PortError(message, hint)
        return given


def digest(case: Case) -> str:
    """SHA-256 of all that is asked: equal for equal cases only."""
    arrays: dict[Any, tuple[str, Array]] = {}
    contents = _encode(case, (), arrays)
    return hashlib.sha256(repr((contents, [*arrays])).encode()).hexdigest()


def save(path: Path, value: Recording | Answers) -> None:
    """Write the file, whole or not at all.

    Raises:
        OSError: it cannot be written; what was there is untouched.
    """
    write(path, packed(value))


def packed(value: Recording | Answers) -> bytes:
    """What `save` writes."""
    return pack({"kind": type(value).__name__, **vars(value)})


def write(path: Path, content: bytes) -> None:
    """Put a file in place of what is there, whole or not at all. Who may read it is what the umask says.

    Raises:
        OSError: it cannot be written; names the file, and what was there is untouched.
    """
    temporary = path.with_name(f".{path.name}.{secrets.token_hex(8)}")
    try:
        with temporary.open("xb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(path)
    except BaseException as error:
        with contextlib.suppress(OSError):
            temporary.unlink()
        if isinstance(error, OSError):
            raise OSError(error.errno, f"cannot be written: {error.strerror}", str(path)) from None
        raise


def load(path: Path, kind: type[Recording] | type[Answers]) -> Any:
    """What `save` wrote, of the kind that is wanted, with equal dtypes and order of keys.

    Raises:
        UsageError: there is no such file, it was changed since it was written, or it holds something else.
    """
    if not path.is_file():
        raise UsageError(f"{path}: no such file; expected what `python -m parity` wrote")
    if path.stat().st_size > MOST_BYTES:
        raise UsageError(f"{path}: larger than {MOST_BYTES >> 30} GiB")
    try:
        tree = unpack(path.read_bytes())
        found = tree.get("kind") if isinstance(tree, dict) else None
        if found != kind.__name__:
            raise ValueError(f"holds {found}, expected {kind.__name__}")
        if kind is Answers:
            return Answers(tree["about"], tree["given"])
        return Recording(tree["about"], tuple((case_of(case), answers) for case, answers in tree["asked"]))
    except OSError as error:
        raise UsageError(f"{path}: cannot be read: {error.strerror}") from None
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise UsageError(f"{path}: {error}") from None


def case_of(tree: dict[str, Any]) -> Case:
    """A case from what `unpack` made of it."""
    return Case(**{**tree, "batches": tuple(tree["batches"]), "test_batches": tuple(tree["test_batches"])})


def pack(tree: Any) -> bytes:
    """Nested mappings, lists, dataclasses, arrays and JSON values as the bytes of a signed `.npz`.

    Equal trees give equal bytes; arrays of equal content are stored once.

    Raises:
        ValueError: something else is in it, such as an array of objects.
    """
    arrays: dict[Any, tuple[str, Array]] = {}
    contents = json.dumps(_encode(tree, (), arrays), ensure_ascii=False).encode()
    members = {_CONTENTS: np.frombuffer(contents, np.uint8), **dict(arrays.values())}
    file = io.BytesIO()
    np.savez(file, **{name.removesuffix(".npy"): array for name, array in members.items()})  # type: ignore[arg-type]
    with zipfile.ZipFile(file, "a") as archive:
        archive.comment = b"0" * _SIGNATURE
    signed = file.getbuffer()
    signed[-_SIGNATURE:] = hashlib.sha256(signed[:-_SIGNATURE]).hexdigest().encode()
    return bytes(signed)


def unpack(content: bytes) -> Any:
    """The tree that `pack` was given. Arrays are copies; mappings and dataclasses are dicts, sequences lists.

    Raises:
        ValueError: any bit of it is not as it was written, or it was not written by `pack`.
    """
    view = memoryview(content)
    if len(view) < _SIGNATURE or hashlib.sha256(view[:-_SIGNATURE]).hexdigest().encode() != view[-_SIGNATURE:]:
        raise ValueError("its SHA-256 is not that of its content: the file is cut off or was changed; make it again")
    left = MOST_BYTES

    def read(name: str) -> Array:
        nonlocal left
        array = _read(archive, name)
        left -= array.nbytes
        if left < 0:
            raise ValueError(f"holds more than {MOST_BYTES >> 30} GiB")
        return array

    try:
        with zipfile.ZipFile(io.BytesIO(content)) as archive:
            # Nothing compressed: no member is larger than the file. One may be named often, though.
            if any(member.compress_type != zipfile.ZIP_STORED for member in archive.infolist()):
                raise ValueError("holds compressed members")
            return _decode(json.loads(read(_CONTENTS).tobytes().decode()), read)
    except (zipfile.BadZipFile, KeyError, EOFError, RuntimeError, NotImplementedError, RecursionError) as error:
        raise ValueError(f"not a file of cases: {error}") from None


def _encode(node: Any, path: tuple[str, ...], arrays: dict[Any, tuple[str, Array]]) -> Any:
    """JSON of the tree, in which `["array", member, dtype]` stands for an array and `["list", …]` for a list."""
    if is_dataclass(node):
        node = vars(node)
    if isinstance(node, Mapping):
        if not all(isinstance(key, str) for key in node):
            raise ValueError(f"{'/'.join(path)}: a key is no string")
        return {key: _encode(value, (*path, key), arrays) for key, value in node.items()}
    if isinstance(node, list | tuple):
        return ["list", *(_encode(value, (*path, str(index)), arrays) for index, value in enumerate(node))]
    if isinstance(node, np.ndarray | np.generic):
        array = np.asarray(node)
        dtype = array.dtype.name
        if _SMALL_FLOATS.fullmatch(dtype):
            array = array.view(f"u{array.dtype.itemsize}")
        elif array.dtype.kind not in "biufc":
            raise ValueError(f"{'/'.join(path)}: an array of {dtype} cannot be kept; numbers only")
        array = np.asarray(array, array.dtype.newbyteorder("<"), order="C")
        key = (dtype, array.shape, hashlib.sha256(array.data if array.size else b"").digest())
        member, _ = arrays.setdefault(key, (printable(f"{len(arrays)}/{'/'.join(path)}")[:200] + ".npy", array))
        return ["array", member, dtype]
    if node is None or isinstance(node, str | bool | int | float):
        return node
    raise ValueError(f"{'/'.join(path)}: {type(node).__name__} cannot be kept")


def _decode(node: Any, read: Any) -> Any:
    if isinstance(node, dict):
        return {key: _decode(value, read) for key, value in node.items()}
    if not isinstance(node, list):
        return node
    kind, *values = node
    if kind == "list":
        return [_decode(value, read) for value in values]
    member, dtype = values
    array = read(member)
    if _SMALL_FLOATS.fullmatch(dtype):
        return array.view(_small_float(dtype))
    if array.dtype.name != dtype:
        raise ValueError(f"{member}: {array.dtype.name}, expected {dtype}")
    return array


def _small_float(name: str) -> np.dtype[Any]:
    try:
        import ml_dtypes

        dtype: np.dtype[Any] = np.dtype(getattr(ml_dtypes, name))
        return dtype
    except (ImportError, AttributeError):
        raise ValueError(f"holds {name}, which needs the package ml_dtypes; install it") from None


def _read(archive: zipfile.ZipFile, name: str) -> Array:
    content = archive.read(name)
    file = io.BytesIO(content)
    if np.lib.format.read_magic(file) != (1, 0):
        raise ValueError(f"{name}: not an array of NumPy's format 1.0")
    shape, fortran, dtype = np.lib.format.read_array_header_1_0(file)
    if dtype.kind not in "biufc" or fortran or math.prod(shape) * dtype.itemsize != len(content) - file.tell():
        raise ValueError(f"{name}: not an array of numbers of the size that it names")
    return np.frombuffer(content, dtype, math.prod(shape), file.tell()).reshape(shape).astype(dtype.newbyteorder("="))
