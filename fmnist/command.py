"""Commands: flags as dataclasses, and how a command ends: one clear line on standard error and an exit code."""

import argparse
import atexit
import contextlib
import functools
import gc
import io
import os
import re
import shlex
import shutil
import sys
from collections.abc import Callable, Iterator
from dataclasses import Field, field, fields, is_dataclass
from types import EllipsisType, NoneType
from typing import Any, Literal, NoReturn, TypeVar, get_args, get_origin, get_type_hints

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


def option(
    default: Any, help: str, metavar: str | None = None, expected: str | None = None, positional: bool = False
) -> Any:
    """A dataclass field that `parse` reads from the command line.

    Args:
        default: its value where the flag is not given; `dataclasses.MISSING` demands one.
        expected: what its values have to be, in words for whoever gave another.
        positional: a place on the command line in place of a flag.
    """
    told = {"help": help, "metavar": metavar, "expected": expected, "positional": positional}
    return field(default=default, metadata=told)


def like(kind: Any, name: str) -> Any:
    """The same option as one of another dataclass."""
    other = _field(kind, name)
    return field(default=other.default, metadata=other.metadata)


def parse(kind: type[Flags], arguments: list[str], name: str, description: str, default: Flags | None = None) -> Flags:
    """What a command line asks for, as a dataclass whose fields are options or other such dataclasses.

    `--help` prints the flags and exits. Booleans are switches, tuples take any number of values.

    Args:
        default: the values of flags that are not given, where they are not the dataclass's own.

    Raises:
        UsageError: an unknown flag, or a value that its flag does not take.
    """
    parser = _Parser(
        prog=f"python -m {name}",
        description=description,
        allow_abbrev=False,
        argument_default=argparse.SUPPRESS,
        exit_on_error=False,
    )
    parser.usage = "%(prog)s [options]"
    for _, each, its_kind in _options(kind):
        _add(parser, each, its_kind)
    # --batch_size for --batch-size
    spelled = [
        word.replace("_", "-") + equals + value if word.startswith("--") else word + equals + value
        for word, equals, value in (argument.partition("=") for argument in arguments)
    ]
    try:
        given = vars(parser.parse_intermixed_args(spelled))
    except argparse.ArgumentError as error:
        for owner, each, _ in _options(kind):
            if error.argument_name == flag(each.name) and "expected" in error.message:
                raise complaint(owner, each.name, "") from None
        raise UsageError(f"{error} (--help lists what there is)") from None
    return _build(kind, given, default)


class _Parser(argparse.ArgumentParser):
    def __init__(self, **settings: Any) -> None:
        super().__init__(**settings)
        self._negative_number_matcher = re.compile(r"-[\d.]")  # -1e5 is a value, and no flag

    def error(self, message: str) -> NoReturn:
        raise UsageError(f"{message} (--help lists what there is)")


def _options(kind: Any) -> Iterator[tuple[Any, Field[Any], Any]]:
    """Every option of a dataclass and of those within it, with the one that owns it and its type."""
    types = get_type_hints(kind)
    for each in fields(kind):
        if is_dataclass(types[each.name]):
            yield from _options(types[each.name])
        else:
            yield kind, each, types[each.name]


def _add(parser: argparse.ArgumentParser, each: Field[Any], kind: Any) -> None:
    told, many = each.metadata, get_origin(kind) is tuple
    default: Any = each.default
    shown = " ".join(map(str, default)) if many else default
    has_default = not told["positional"] and kind is not bool and shown is not None
    text = told["help"].replace("%", "%%") + (f" (default: {shown})" if has_default else "")
    if kind is bool:
        parser.add_argument(flag(each.name), dest=each.name, action="store_true", help=text)
    elif told["positional"]:
        parser.usage = f"{parser.usage} [{told['metavar']} ...]" if many else f"{parser.usage} {told['metavar']}"
        optional: dict[str, Any] = {"nargs": "*", "default": argparse.SUPPRESS} if many else {}
        parser.add_argument(each.name, metavar=told["metavar"], help=text, **optional)
    else:
        choices = "{" + ",".join(get_args(kind)) + "}" if get_origin(kind) is Literal else None
        metavar = told["metavar"] or choices or kind.__name__.upper()
        parser.add_argument(flag(each.name), dest=each.name, metavar=metavar, nargs="+" if many else None, help=text)


def _build(kind: type[Flags], given: dict[str, Any], default: Any) -> Flags:
    values = {}
    types = get_type_hints(kind)
    for each in fields(kind):  # type: ignore[arg-type]
        earlier = getattr(default, each.name, None)
        if is_dataclass(types[each.name]):
            values[each.name] = _build(types[each.name], given, earlier)
        elif each.name in given:
            values[each.name] = _value(kind, each.name, types[each.name], given[each.name])
        elif default is not None:
            values[each.name] = earlier
    return kind(**values)


def _value(owner: Any, name: str, kind: Any, given: Any) -> Any:
    """A flag's value of its type, from a word or several."""
    if kind is bool:
        return given
    words = given if isinstance(given, list) else [given]
    # An empty word is what a shell makes of an unset variable. As a folder it would be the current one.
    if not all(words):
        raise complaint(owner, name, "")
    if get_origin(kind) is Literal:
        if words[0] not in get_args(kind):
            raise complaint(owner, name, words[0])
        return words[0]
    convert = next((each for each in get_args(kind) if each not in (NoneType, EllipsisType, Ellipsis)), kind)
    try:
        values = tuple(map(convert, words))
    except ValueError:
        raise complaint(owner, name, " ".join(words)) from None
    return values if get_origin(kind) is tuple else values[0]


def _field(kind: Any, name: str) -> Field[Any]:
    return next(each for each in fields(kind) if each.name == name)


def flag(name: str) -> str:
    """The command line's spelling of a field's name."""
    return "--" + name.replace("_", "-")


def complaint(owner: Any, name: str, given: Any) -> UsageError:
    """The error for a value that an option does not take, with what its dataclass says was expected."""
    told = _field(owner, name).metadata
    words = " ".join(map(str, given)) if isinstance(given, tuple | list) else str(given)
    what = told["metavar"] if told["positional"] else flag(name)
    expected = f": expected {told['expected']}" if told["expected"] else " (--help lists what there is)"
    return UsageError(f"{what} {words or 'without a value'}{expected}")


def run(command: Callable[[], None], name: str) -> int:
    """Run `command` and return its exit code.

    A `Failure` becomes its message on standard error, one line after `name`, without a traceback. Ctrl-C gives 130
    and a reader of standard output that went away 141, as a shell counts their signals.
    """
    # A closed standard stream is None, and printing to None is printing to standard output.
    sys.stdout = sys.stdout or open(os.devnull, "w")  # noqa: SIM115
    sys.stderr = sys.stderr or open(os.devnull, "w")  # noqa: SIM115
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors="backslashreplace")  # as standard error: no character ends a command
    gc.freeze()  # What was imported stays. Python would look for cycles in it again, and as it exits: 0.3 s with JAX.
    gc.enable()
    try:
        try:
            command()
        finally:
            with _naming_stdout():
                sys.stdout.flush()
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
        files = " -> ".join(str(file) for file in (error.filename, error.filename2) if file is not None)
        print(f"{name}: {files + ': ' if files else ''}{error.strerror or error}", file=sys.stderr)
        return 1
    return 0


def leave(status: int, name: str) -> NoReturn:
    """End the process of `python -m NAME` without taking a thousand modules apart, which is 3 % of a run.

    For commands that have closed all that they opened. Where more than the command is in the process, such as a
    profiler, a notebook or a test, it ends as others do.
    """
    if sys.orig_argv[1:3] != ["-m", name]:
        sys.exit(status)
    atexit._run_exitfuncs()  # libraries may still have to clean up
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(status)


def say(*lines: str) -> None:
    """Print lines on standard output, at once.

    Raises:
        Failure: they cannot be written.
        BrokenPipeError: nobody reads them any more.
    """
    with _naming_stdout():
        print(*lines, sep="\n", flush=True)


@functools.cache
def say_once(line: str) -> None:
    """Print a line on standard error, unless this process has done so before."""
    print(line, file=sys.stderr)


def words_of(error: BaseException) -> str:
    """What an exception says, in words: a KeyError says the key only, others may say nothing."""
    if isinstance(error, KeyError):
        return f"it lacks {error}"
    return str(error) or type(error).__name__


def interpreter() -> str:
    """What a shell has to be given for this Python, as short as may be: `python` in an active environment."""
    for name in ("python", "python3"):
        if shutil.which(name) == sys.executable:
            return name
    here = os.path.relpath(sys.executable)
    return shlex.quote(sys.executable if here.startswith(os.pardir) else here)


@contextlib.contextmanager
def _naming_stdout() -> Iterator[None]:
    """Let an OSError within say that it is about standard output: writing there does not."""
    try:
        yield
    except BrokenPipeError:
        raise
    except OSError as error:
        _silence_stdout()
        raise Failure(f"standard output: {error.strerror or error}") from None


def _silence_stdout() -> None:
    """Python flushes standard output once more as it exits, and would complain there."""
    with contextlib.suppress(OSError, ValueError):
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
