"""Commands: their flags as dataclasses, and how they end: one clear line on standard error and an exit code."""

import contextlib
import gc
import io
import itertools
import os
import re
import sys
from collections.abc import Callable, Mapping
from typing import TypeVar, cast

import tyro

Flags = TypeVar("Flags")


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


def flag(name: str) -> str:
    """The command line's spelling of a field's name."""
    return "--" + name.replace("_", "-")


def parse(
    kind: type[Flags],
    arguments: list[str],
    name: str,
    description: str,
    expected: Mapping[str, str],
    default: Flags | None = None,
) -> Flags:
    """What a command line asks for, by the flags of a dataclass; `--help` prints them and exits.

    Args:
        expected: what the values of some fields have to be, in words for whoever gave others.
        default: the values of flags that are not given, where they are not the dataclass's own.

    Raises:
        UsageError: an unknown flag or a value that its flag does not take.
    """
    for before, argument in itertools.pairwise(["", *arguments]):
        # What a shell makes of an unset variable. As a folder it would be the current one.
        if argument == "" or re.fullmatch(r"--[\w-]+=", argument):
            raise UsageError(f"{argument.strip('=') or before} without a value (--help lists what there is)")
    said = io.StringIO()
    try:
        with contextlib.redirect_stderr(said):
            return tyro.cli(
                kind,
                args=arguments,
                prog=f"python -m {name}",
                description=description,
                default=cast(Flags, default),
                config=(tyro.conf.FlagCreatePairsOff,),
            )
    except SystemExit as exit:
        if not exit.code:
            raise
        raise UsageError(_one_line(said.getvalue(), arguments, expected)) from None


def _one_line(box: str, arguments: list[str], all_expected: Mapping[str, str]) -> str:
    """tyro's complaint, which it draws as a box of text above a rule, as one line."""
    text = re.split(r"│ ─+ │", box)[0]
    said = " ".join(" ".join(line.strip("│╭╮╰╯─ ") for line in text.splitlines()[1:]).split())
    for name, expected in all_expected.items():
        if re.search(rf"(parsing|argument) '?{flag(name)}\b", said):
            return complaint(name, _values(arguments, flag(name)), expected)
    return f"{said} (--help lists what there is)"


def _values(arguments: list[str], name: str) -> str:
    """What a command line gives a flag, the last time it stands there."""
    words = [word for argument in arguments for word in argument.split("=", 1)]
    # tyro takes --batch_size for --batch-size.
    flags = [word.replace("_", "-") if word.startswith("--") else word for word in words]
    following = words[len(flags) - flags[::-1].index(name) :]
    return " ".join(itertools.takewhile(lambda word: not word.startswith("--"), following))


def complaint(name: str, given: str, expected: str) -> str:
    """The line for a value that its flag does not take."""
    return f"{flag(name)} {given or 'without a value'}: expected {expected}"


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
