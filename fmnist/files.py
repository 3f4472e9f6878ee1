"""Files that are either whole or not there."""

import contextlib
import errno
import mmap
import os
import secrets
import stat
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO

from fmnist.command import UsageError, say_once

# What a file system answers that cannot flush, rather than one that failed to.
UNSUPPORTED = {errno.EACCES, errno.EBADF, errno.EINVAL, errno.ENOSYS, errno.ENOTSUP, errno.EOPNOTSUPP, errno.EPERM}


def write_atomically(path: Path, content: bytes) -> None:
    """Replace the file at `path` by `content`: whoever reads it sees all of the old or all of the new.

    When this returns, the new file survives a loss of power, where its file system can flush; it says so where not.
    Who may read it is what the umask says.

    Raises:
        OSError: it could not be written; the old file is untouched and no temporary file is left.
    """
    with _naming(path):
        _replace(path, content)


def _replace(path: Path, content: bytes) -> None:
    temporary = path.parent / f"{_temporary(path.name)}{secrets.token_hex(8)}"
    descriptor = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o666)
    try:
        with _closed_at_the_end(descriptor):
            _write(descriptor, content)
            _sync(descriptor, path.parent)
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
    with _naming(path), _closed_at_the_end(os.open(path, os.O_WRONLY | os.O_CREAT, 0o666)) as descriptor:
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
        _sync(descriptor, path.parent)


def cut(path: Path, size: int) -> None:
    """Cut the file at `path` down to its first `size` bytes, in place."""
    with _naming(path), _closed_at_the_end(os.open(path, os.O_WRONLY)) as descriptor:
        os.ftruncate(descriptor, size)
        _sync(descriptor, path.parent)


def read_file(path: Path, most: int) -> bytes:
    """All of a regular file's content.

    Raises:
        FileNotFoundError: there is none.
        UsageError: it cannot be read, is no regular file, or has more than `most` bytes.
    """
    with _opened(path, most) as file:
        return file.read(most)


def map_file(path: Path, most: int) -> mmap.mmap:
    """A regular file's content as memory that is read where it is needed; what is written there stays in this process.

    Only for files that nobody writes into: `write_atomically` puts another one in their place.

    Raises:
        FileNotFoundError: there is none.
        UsageError: it cannot be read, is no regular file, or has more than `most` bytes.
        ValueError: it is empty.
    """
    with _opened(path, most) as file:
        return mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_COPY)


@contextlib.contextmanager
def _opened(path: Path, most: int) -> Iterator[BinaryIO]:
    """A regular file, opened to be read."""
    try:
        # What is no regular file may have no end, or not even a beginning: neither is waited for.
        with _closed_at_the_end(os.open(path, os.O_RDONLY | os.O_NONBLOCK)) as descriptor:
            status = os.fstat(descriptor)
            if not stat.S_ISREG(status.st_mode):
                what = "a folder, " if stat.S_ISDIR(status.st_mode) else ""
                raise UsageError(f"{path}: {what}not a regular file; expected one")
            if status.st_size > most:
                raise UsageError(f"{path}: {status.st_size:,} bytes, expected at most {most:,}; it is something else")
            with open(descriptor, "rb", closefd=False) as file:
                yield file
    except FileNotFoundError:
        raise
    except OSError as error:
        raise UsageError(f"{path}: cannot be read: {error.strerror}; make it readable") from None


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
    try:
        descriptor = os.open(folder, os.O_RDONLY)
    except PermissionError as error:  # files may be made in it, and its list not be read
        _say_unsafe(folder, error)
        return
    with _closed_at_the_end(descriptor):
        _sync(descriptor, folder)


def _sync(descriptor: int, folder: Path) -> None:
    """Flush, as far as the folder's file system can."""
    try:
        os.fsync(descriptor)
    except OSError as error:
        if error.errno not in UNSUPPORTED:
            raise
        _say_unsafe(folder, error)


def _say_unsafe(folder: Path, error: OSError) -> None:
    say_once(f"{folder}: cannot be flushed ({error.strerror}): a loss of power may take what was written last")


def cache_folder() -> Path | None:
    """The user's folder for what is kept between runs; None where the user has no home, or platformdirs is missing."""
    try:
        from platformdirs import user_cache_dir

        return Path(user_cache_dir("fmnist-parity"))
    except (ImportError, RuntimeError):
        return None


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
