"""Files that are either whole or not there."""

import contextlib
import os
import stat
import tempfile
from collections.abc import Iterator
from pathlib import Path

from fmnist.command import UsageError


def write_atomically(path: Path, content: bytes) -> None:
    """Replace the file at `path` by `content`: whoever reads it sees all of the old or all of the new.

    When this returns, the new file survives a loss of power.

    Raises:
        OSError: it could not be written; the old file is untouched and no temporary file is left.
    """
    with _naming(path):
        _replace(path, content)


def _replace(path: Path, content: bytes) -> None:
    descriptor, temporary = tempfile.mkstemp(dir=path.parent, prefix=_temporary(path.name))
    try:
        with _closed_at_the_end(descriptor):
            _write(descriptor, content)
            # mkstemp keeps its files from everybody else; results are for everybody to read.
            os.fchmod(descriptor, 0o644)
            os.fsync(descriptor)
        os.replace(temporary, path)
    except BaseException:
        with contextlib.suppress(FileNotFoundError):
            os.unlink(temporary)
        raise
    _flush_folder(path.parent)


def append(path: Path, content: bytes) -> None:
    """Add `content` to the file at `path`, which is made if there is none; `flush` makes it survive a loss of power.

    Raises:
        OSError: it could not be written; the file is as long as it was.
    """
    with _naming(path), _closed_at_the_end(os.open(path, os.O_WRONLY | os.O_CREAT, 0o644)) as descriptor:
        size = os.lseek(descriptor, 0, os.SEEK_END)
        try:
            _write(descriptor, content)
        except BaseException:
            with contextlib.suppress(OSError):
                os.ftruncate(descriptor, size)
            raise


def flush(path: Path) -> None:
    """Let what was written to the file at `path` so far survive a loss of power."""
    with _naming(path), _closed_at_the_end(os.open(path, os.O_WRONLY)) as descriptor:
        os.fsync(descriptor)


def cut(path: Path, size: int) -> None:
    """Cut the file at `path` down to its first `size` bytes, in place."""
    with _naming(path), _closed_at_the_end(os.open(path, os.O_WRONLY)) as descriptor:
        os.ftruncate(descriptor, size)
        os.fsync(descriptor)


def read_file(path: Path, most: int) -> bytes:
    """All of a regular file's content.

    Raises:
        FileNotFoundError: there is none.
        UsageError: it cannot be read, is no regular file, or has more than `most` bytes.
    """
    try:
        # What is no regular file may have no end, or not even a beginning: neither is waited for.
        with _closed_at_the_end(os.open(path, os.O_RDONLY | os.O_NONBLOCK)) as descriptor:
            status = os.fstat(descriptor)
            if not stat.S_ISREG(status.st_mode):
                raise UsageError(f"{path}: not a regular file; move it away")
            if status.st_size > most:
                raise UsageError(f"{path}: {status.st_size:,} bytes, expected at most {most:,}; it is something else")
            with open(descriptor, "rb", closefd=False) as file:
                return file.read(most)
    except FileNotFoundError:
        raise
    except OSError as error:
        raise UsageError(f"{path}: cannot be read: {error.strerror}; make it readable or move it away") from None


def clear_temporaries(folder: Path, names: tuple[str, ...]) -> None:
    """Delete what a writer of these files left that was killed as it wrote."""
    for name in names:
        for left in folder.glob(f"{_temporary(name)}*"):
            left.unlink(missing_ok=True)


def _temporary(name: str) -> str:
    return f".{name}-"


def _write(descriptor: int, content: bytes) -> None:
    """The system may take less at a time than it is given."""
    rest = memoryview(content)
    while rest:
        rest = rest[os.write(descriptor, rest) :]


def _flush_folder(folder: Path) -> None:
    """A new name is safe on the disk only when its folder is."""
    with _closed_at_the_end(os.open(folder, os.O_RDONLY)) as descriptor:
        os.fsync(descriptor)


@contextlib.contextmanager
def _naming(path: Path) -> Iterator[None]:
    """Let an OSError within say which file it is about: system calls on descriptors do not."""
    try:
        yield
    except OSError as error:
        error.filename = str(path)
        raise


@contextlib.contextmanager
def _closed_at_the_end(descriptor: int) -> Iterator[int]:
    try:
        yield descriptor
    finally:
        os.close(descriptor)
