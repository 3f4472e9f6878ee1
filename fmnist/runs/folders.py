"""A run's folder: its files, and one run in it at a time."""

import contextlib
import fcntl
import os
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path

from fmnist.command import UsageError, say_once

CHECKPOINT = "checkpoint.safetensors"
CONFIG = "config.json"
ENVIRONMENT = "environment.json"
METRICS = "metrics.jsonl"
MODEL = "model.safetensors"
CURVES = "curves.png"
# The checkpoint is the first to be deleted: without it, nothing else is taken for a run to resume.
FILES = (CHECKPOINT, CONFIG, ENVIRONMENT, METRICS, MODEL, CURVES)
LOCK = ".lock"


@contextlib.contextmanager
def hold(folder: Path) -> Iterator[None]:
    """Keep other runs out of a folder until the end of the block, or of this process however it dies.

    The kernel holds the lock for as long as its owner lives; the file's content only tells who that is. On a file
    system without locks nothing keeps others out, which is said.

    Raises:
        UsageError: another process holds it.
    """
    path = folder / LOCK
    while True:
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT, 0o666)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            owner = os.read(descriptor, 20).decode(errors="replace")
            os.close(descriptor)
            raise UsageError(
                f"--output {folder}: process {owner} is at work there; wait for it, or choose another folder"
            ) from None
        except OSError as error:
            say_once(f"--output {folder}: cannot be locked ({error.strerror}): see to it that no other run uses it")
            break
        # The last owner may have deleted the file between our opening and locking it.
        with contextlib.suppress(FileNotFoundError):
            if os.path.samestat(os.fstat(descriptor), os.stat(path)):
                break
        os.close(descriptor)
    with contextlib.suppress(OSError):
        os.truncate(descriptor, 0)
        os.pwrite(descriptor, str(os.getpid()).encode(), 0)
    try:
        yield
    finally:
        with contextlib.suppress(OSError):
            path.unlink()
        os.close(descriptor)


def check_folder(folder: Path, files: Sequence[str], overwrite: bool) -> None:
    """Make sure of a folder that can be written and, without `overwrite`, holds none of the files.

    Raises:
        UsageError: it is no such folder; nothing in it was touched.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
        held = [name for name in files if os.path.lexists(folder / name)]
        with tempfile.TemporaryFile(dir=folder):
            pass
    except (FileExistsError, NotADirectoryError):
        raise UsageError(f"--output {folder}: not a folder; expected one for the files that are written") from None
    except OSError as error:
        raise UsageError(
            f"--output {folder}: cannot be written: {error.strerror}; choose a folder that can be"
        ) from None
    if held and not overwrite:
        raise UsageError(
            f"--output {folder}: holds results already ({held[0]}); choose another folder, or replace them by "
            "--overwrite"
        )
    folders = [name for name in held if (folder / name).is_dir()]
    if folders:
        raise UsageError(f"--output {folder}: {folders[0]} is a folder where a file will be written; move it away")


def prepare_folder(folder: Path, files: Sequence[str], overwrite: bool) -> None:
    """Make sure of a folder as `check_folder` does; with `overwrite`, delete those of the files that it holds.

    Raises:
        UsageError: it is no such folder; nothing in it was touched.
    """
    check_folder(folder, files, overwrite)
    for name in files:
        (folder / name).unlink(missing_ok=True)
