"""What the command prints and writes, where standard output may fail, and a disk be full."""

import argparse
import contextlib
import errno
import io
import os
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from types import MappingProxyType

from parity.cases_file import Recording, packed, write
from parity.errors import UsageError, one_line
from parity.flags import again
from parity.verdict.comparison import Curves, Verdict
from parity.verdict.report import report
from parity.verdict.several import agree, as_json, as_markdown, sentence

FAILURE = "failure.npz"
"""The smallest case that still fails, with everybody's answers."""
REPORTS = ("report.json", "report.md", "trajectory.png", "trends.png", FAILURE)
STDOUT = "standard output"


def check_place(path: Path) -> None:
    """Find out before the exam, not after it, that what it makes has no place.

    Raises:
        OSError: a file cannot be put there.
    """
    if not os.access(path.parent, os.W_OK):
        code = errno.EACCES if path.parent.exists() else errno.ENOENT
        raise OSError(code, f"cannot be written: {os.strerror(code)}", str(path))


def check_output(options: argparse.Namespace) -> None:
    """Likewise, of the folder for the reports.

    Raises:
        UsageError: it is none, or holds reports that are not to be replaced.
    """
    if options.output is None:
        return
    try:
        options.output.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UsageError(f"{options.output}: {error.strerror}; expected a folder for the reports") from None
    check_place(options.output / REPORTS[0])
    held = [name for name in REPORTS if (options.output / name).exists()]
    if held and not options.overwrite:
        raise UsageError(f"{options.output}: holds {' and '.join(held)}; give another folder, or --overwrite")


def tell(
    verdicts: dict[str, Verdict],
    options: argparse.Namespace,
    programs: int = 1,
    margins: Mapping[str, Mapping[str, float]] = MappingProxyType({}),
    failures: Sequence[Recording] = (),
) -> int:
    """Write the reports, where they are asked for, and print the verdict; the exit code."""
    command = again(options)
    try:
        if options.output is not None:
            files = {
                "report.json": as_json(verdicts, programs).encode(),
                "report.md": as_markdown(verdicts, programs, command).encode(),
                **({FAILURE: packed(failures[-1])} if failures else {}),
            }
            for program, verdict in verdicts.items():
                if verdict.curves != Curves():
                    from parity.verdict.pictures import pictures

                    files |= pictures(verdict.curves, margins[program], verdict.port)
            for name in REPORTS:
                if name in files:
                    write(options.output / name, files[name])
                else:  # of an earlier exam
                    (options.output / name).unlink(missing_ok=True)
    finally:  # a disk that is full takes no verdict along
        say(sentence(verdicts, programs) if "" not in verdicts else report(verdicts[""], command))
    return 0 if agree(verdicts) else 1


def prepare() -> None:
    """Let neither a closed standard stream nor a character that it lacks end a command."""
    # A closed one is None, and printing to None is printing to standard output.
    sys.stdout = sys.stdout or open(os.devnull, "w")  # noqa: SIM115
    sys.stderr = sys.stderr or open(os.devnull, "w")  # noqa: SIM115
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors="backslashreplace")  # as standard error does


def say(text: str, end: str = "\n") -> None:
    """Print on standard output, at once; an OSError says that it is about that."""
    try:
        print(text, end=end, flush=True)
    except OSError as error:
        error.filename = STDOUT
        raise


def silence() -> None:
    """Python flushes standard output once more as it exits, and would complain there."""
    with contextlib.suppress(OSError, ValueError):
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


@contextlib.contextmanager
def shown_progress() -> Iterator[Callable[[str], None]]:
    """What is being done, on standard error: one line that is written over on a terminal, else a line each."""
    begin, end = ("\r\x1b[K", "") if sys.stderr.isatty() else ("", "\n")

    def tell(text: str) -> None:
        print(f"{begin}{one_line(text, 100)}", end=end, file=sys.stderr, flush=True)

    try:
        yield tell
    finally:
        print(begin, end="", file=sys.stderr, flush=True)
