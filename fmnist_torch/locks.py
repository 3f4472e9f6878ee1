"""One run in a folder at a time."""

import contextlib
import fcntl
import os
from collections.abc import Iterator
from pathlib import Path

from fmnist_torch.errors import UsageError

NAME = ".lock"


@contextlib.contextmanager
def hold(folder: Path) -> Iterator[None]:
    """Keep other runs out of a folder until the end of the block, or of this process however it dies.

    The kernel holds the lock for as long as its owner lives; the file's content only tells who that is.

    Raises:
        UsageError: another process holds it.
    """
    path = folder / NAME
    while True:
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT, 0o644)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            owner = os.read(descriptor, 20).decode(errors="replace")
            os.close(descriptor)
            raise UsageError(
                f"--output {folder}: process {owner} is at work there; wait for it, or choose another folder"
            ) from None
        # The last owner may have deleted the file between our opening and locking it.
        with contextlib.suppress(FileNotFoundError):
            if os.path.samestat(os.fstat(descriptor), os.stat(path)):
                break
        os.close(descriptor)
    os.truncate(descriptor, 0)
    os.pwrite(descriptor, str(os.getpid()).encode(), 0)
    try:
        yield
    finally:
        path.unlink(missing_ok=True)
        os.close(descriptor)
