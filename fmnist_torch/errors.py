"""How a command ends: one clear line on standard error and an exit code."""

import contextlib
import gc
import os
import sys
from collections.abc import Callable


class Failure(Exception):
    """What was asked for was tried and did not succeed. The message is one line for the user."""

    exit_code = 1


class UsageError(Failure):
    """A flag, a file or data that cannot be used as it is: names it, what was expected, what to do."""

    exit_code = 2


class UnavailableError(Failure):
    """The environment lacks something that was asked for: a device, a download."""

    exit_code = 3


class Interrupted(BaseException):
    """The command was asked to end by a signal, and has come to a point where it can. The message is for the user."""

    def __init__(self, number: int, message: str) -> None:
        super().__init__(message)
        self.exit_code = 128 + number


def run(command: Callable[[], None], name: str) -> int:
    """Run `command` and return its exit code.

    A `Failure` becomes its message on standard error, one line after `name`, without a traceback. Ctrl-C gives 130
    and a reader of standard output that went away 141, as a shell counts their signals.
    """
    # A closed standard stream is None, and printing to None is printing to standard output.
    sys.stdout = sys.stdout or open(os.devnull, "w")  # noqa: SIM115
    sys.stderr = sys.stderr or open(os.devnull, "w")  # noqa: SIM115
    try:
        try:
            command()
        finally:
            sys.stdout.flush()
            # Python would look for cycles in all that was imported once more as it exits: 0.3 s for JAX or torch.
            gc.freeze()
    except Failure as failure:
        print(f"{name}: {' '.join(str(failure).split())}", file=sys.stderr)
        return failure.exit_code
    except Interrupted as interrupted:
        print(interrupted, file=sys.stderr)
        return interrupted.exit_code
    except KeyboardInterrupt:
        print(f"{name}: interrupted", file=sys.stderr)
        return 130
    except BrokenPipeError:
        _silence_stdout()
        return 141
    except OSError as error:
        _silence_stdout()
        print(f"{name}: {error.filename or 'standard output'}: {error.strerror or error}", file=sys.stderr)
        return 1
    return 0


def _silence_stdout() -> None:
    """Python flushes standard output once more as it exits, and would complain there."""
    with contextlib.suppress(OSError, ValueError):
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
