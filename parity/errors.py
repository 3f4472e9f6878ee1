"""What ends a command: one line for the user, and what may help below it. Standard library only."""

import traceback
from pathlib import Path


class UsageError(Exception):
    """A flag, a file, a port or a reference that cannot be used as it is: what is wrong, what was expected."""

    exit_code = 2

    def __init__(self, message: str, hint: str = "") -> None:
        super().__init__(one_line(message))
        self.hint = hint
        """Lines that help: a mapping to paste, the last lines that the port printed."""


class PortError(UsageError):
    """The port gave no answer that can be judged: it raised, ended, hung, or returned something else."""


class UnavailableError(UsageError):
    """The machine lacks what was asked for, such as a device."""

    exit_code = 3


def one_line(text: object, most: int = 500) -> str:
    """Printable characters on one line, the middle of a long one left out."""
    try:
        line = " ".join(printable(str(text)).split())
    except BaseException as error:  # an exception's own __str__ may raise
        line = f"(cannot be printed: {type(error).__name__})"
    return line if len(line) <= most else f"{line[: most // 2]} … {line[-most // 2 :]}"


def printable(text: str) -> str:
    """The text without control characters, which could rewrite what a terminal shows."""
    return "".join(character if character.isprintable() or character in "\n\t" else "�" for character in text)


def told(error: BaseException) -> str:
    """`ValueError: shapes differ` on one line, or the name of an exception that says nothing."""
    message = one_line(error)
    return f"{type(error).__name__}: {message}" if message else type(error).__name__


def line_of(error: BaseException, own: str | None = None) -> str:
    """Where in the user's files an error came from, ` (port.py:12)`: in `own` or beside it, else the very last line."""
    if isinstance(error, SyntaxError) and error.filename:
        return f" ({Path(error.filename).name}:{error.lineno})"
    ours = Path(__file__).parent
    frames = [frame for frame in traceback.extract_tb(error.__traceback__) if ours not in Path(frame.filename).parents]
    near = Path(own).parent if own else None

    def beside(frame: traceback.FrameSummary) -> bool:
        return near in Path(frame.filename).parents and "site-packages" not in Path(frame.filename).parts

    chosen = [frame for frame in frames if frame.filename == own] or [*filter(beside, frames)] or frames
    return f" ({Path(chosen[-1].filename).name}:{chosen[-1].lineno})" if chosen else ""
