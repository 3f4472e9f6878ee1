"""What ends a command: one line for the user, and what may help below it. Standard library only."""


class UsageError(Exception):
    """A flag, a file, a port or a reference that cannot be used as it is: what is wrong, what was expected."""

    def __init__(self, message: str, hint: str = "") -> None:
        super().__init__(one_line(message))
        self.hint = hint
        """Lines that help: a mapping to paste, the last lines that the port printed."""


class PortError(UsageError):
    """The port gave no answer that can be judged: it raised, ended, hung, or returned something else."""


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
