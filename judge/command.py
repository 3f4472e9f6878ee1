"""The command: judge · record · answer · replay · new. Bad input ends in one line and exit code 2."""

import argparse
import contextlib
import os
import shlex
import signal
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, NoReturn

from .cases_file import Answers, Recording, digest, load, save, write
from .errors import PortError, UsageError, line_of, one_line, told
from .port.locate import locate
from .port.process import TIME_LIMIT, PortProcess
from .port.stub import stub
from .verdict.comparison import STAGES, Verdict
from .verdict.report import as_json, as_markdown, report

NAME = "parity"
PRECISIONS = ("float32", "bfloat16", "float16", "tf32")
_OPTIONAL_CALLS = ("init", "train_epoch", "evaluate")


def main(arguments: list[str]) -> int:
    """The exit code: 0 agrees or done, 1 differs, 2 wrong use, input or data, 130 and 143 interrupted."""
    # A port runs on in its own process group unless somebody ends it.
    with contextlib.suppress(ValueError):  # not in the main thread
        signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    commands: Mapping[str, Callable[[list[str]], int]] = {
        "record": _record,
        "answer": _answer,
        "replay": _replay,
        "new": _new,
    }
    try:
        chosen = commands.get(arguments[0]) if arguments else None
        code = chosen(arguments[1:]) if chosen else _judge(arguments)
        sys.stdout.flush()
    except UsageError as error:
        print(f"{NAME}: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print(f"{NAME}: interrupted", file=sys.stderr)
        return 130
    except BrokenPipeError:
        with contextlib.suppress(OSError, ValueError):  # Python flushes standard output once more as it exits
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 141
    return code


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        raise UsageError(f"{message} ({self.prog} --help lists what there is)")


def _judge(arguments: list[str]) -> int:
    parser = _Parser(
        f"python -m {NAME}",
        description="Judge a port of a PyTorch training program. REFERENCE and PORT are FILE.py[:NAME] or "
        "MODULE[:NAME]; what is left out is taken from [tool.parity] in pyproject.toml.",
        epilog=f"also: {NAME} record | answer | replay | new, each with --help",
    )
    parser.add_argument("names", nargs="*", metavar="REFERENCE PORT")
    _settings(parser)
    _how_to_judge(parser)
    _border(parser)
    options = parser.parse_args(arguments)
    reference, port = _names(options.names)
    _check_output(options)
    program = _reference(reference)
    from .exam import judge

    with (
        PortProcess(port, options.python, options.time_limit, options.memory_limit) as process,
        _progress() as progress,
    ):
        verdict = judge(
            program,
            process,
            stages=options.only,
            keep_going=options.keep_going,
            quick=options.quick,
            precision=options.precision,
            seed=options.seed,
            progress=progress,
        )
    return _tell(verdict, options, f"python -m {NAME} {' '.join(map(shlex.quote, options.names))}".rstrip())


def _record(arguments: list[str]) -> int:
    parser = _Parser(
        f"python -m {NAME} record", description="Write an exam that a port can sit where there is no torch."
    )
    parser.add_argument("reference", metavar="REFERENCE")
    parser.add_argument("file", type=Path, metavar="EXAM.npz")
    parser.add_argument("--dropout", choices=("off", "kept"), default="off", help="what the port does; it says DROPOUT")
    _settings(parser)
    options = parser.parse_args(arguments)
    program = _reference(options.reference)
    from .exam import record

    with _progress() as progress:
        recording = record(
            program,
            stages=options.only,
            quick=options.quick,
            precision=options.precision,
            seed=options.seed,
            dropout=options.dropout,
            progress=progress,
        )
    save(options.file, recording)
    print(f"recorded: {len(recording.asked)} cases in {options.file}")
    return 0


def _answer(arguments: list[str]) -> int:
    parser = _Parser(f"python -m {NAME} answer", description="Let a port sit a recorded exam; needs no torch.")
    parser.add_argument("exam", type=Path, metavar="EXAM.npz")
    parser.add_argument("port", metavar="PORT")
    parser.add_argument("answers", type=Path, metavar="ANSWERS.npz")
    _border(parser)
    options = parser.parse_args(arguments)
    recording: Recording = load(options.exam, Recording)
    given: dict[str, Any] = {}
    with (
        PortProcess(options.port, options.python, options.time_limit, options.memory_limit) as process,
        _progress() as progress,
    ):
        about = process.describe()
        dropout = recording.about.get("dropout", about["dropout"])
        if dropout != about["dropout"]:
            raise UsageError(
                f"{options.exam}: recorded with dropout {dropout}, the port's is {about['dropout']}; "
                f"record with --dropout {about['dropout']}"
            )
        for case, _ in recording.asked:
            lacks = case.call in _OPTIONAL_CALLS and case.call not in about["offers"]
            if lacks or (case.dtype.itemsize > 4 and not about["float64"]):
                continue
            progress(f"{case.call}: {case.name}")
            try:
                given[digest(case)] = process.answer(case)
            except PortError as error:
                given[digest(case)] = f"{error}\n{error.hint}".rstrip()
    save(options.answers, Answers(about, given))
    failed = sum(isinstance(one, str) for one in given.values())
    print(f"answered: {len(given) - failed} of {len(recording.asked)} cases in {options.answers}, {failed} failed")
    return 0


def _replay(arguments: list[str]) -> int:
    parser = _Parser(f"python -m {NAME} replay", description="Judge the answers to a recorded exam.")
    parser.add_argument("exam", type=Path, metavar="EXAM.npz")
    parser.add_argument("answers", type=Path, metavar="ANSWERS.npz")
    parser.add_argument("--only", nargs="+", choices=STAGES, metavar="STAGE", help=", ".join(STAGES))
    _how_to_judge(parser)
    options = parser.parse_args(arguments)
    _check_output(options)
    recording, answers = load(options.exam, Recording), load(options.answers, Answers)
    from .exam import replay

    verdict = replay(recording, answers, stages=options.only, keep_going=options.keep_going)
    return _tell(verdict, options, f"python -m {NAME} replay {options.exam} {options.answers}")


def _new(arguments: list[str]) -> int:
    parser = _Parser(f"python -m {NAME} new", description="Write a port to fill in.")
    parser.add_argument("file", type=Path, metavar="PORT.py")
    options = parser.parse_args(arguments)
    if options.file.exists():
        raise UsageError(f"{options.file}: exists; give the name of a new file")
    write(options.file, stub(options.file.name).encode())
    print(f"wrote {options.file}: fill in its functions, then python -m {NAME} REFERENCE.py {options.file}")
    return 0


def _settings(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--only", nargs="+", choices=STAGES, metavar="STAGE", help=", ".join(STAGES))
    parser.add_argument("--quick", action="store_true", help="fewer cases")
    parser.add_argument("--precision", choices=PRECISIONS, default="float32", help="what both compute in on purpose")
    parser.add_argument("--seed", type=int, default=0, help="of the states that cases start from")


def _how_to_judge(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--keep-going", action="store_true", help="judge the stages after one that failed, too")
    parser.add_argument("--output", type=Path, metavar="DIR", help="folder for report.json and report.md")
    parser.add_argument("--overwrite", action="store_true", help="replace the reports that --output holds")


def _border(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--python", metavar="PATH", help="interpreter of the environment that the port runs in")
    parser.add_argument("--time-limit", type=_positive, default=TIME_LIMIT, metavar="SECONDS", help="of each case")
    parser.add_argument("--memory-limit", type=_gibibytes, metavar="GIB", help="default: 3/4 of the machine's")


def _positive(text: str) -> float:
    number = float(text) if text.replace(".", "", 1).isdecimal() else 0.0
    if not number > 0:
        raise argparse.ArgumentTypeError(f"{text!r}: expected a positive number")
    return number


def _gibibytes(text: str) -> float:
    return _positive(text) * (1 << 30)


def _names(given: list[str]) -> tuple[str, str]:
    """Reference and port: as given, or from the nearest pyproject.toml; a lone name is the port's."""
    if len(given) > 2:
        raise UsageError(f"{' '.join(given)}: expected REFERENCE and PORT, {len(given)} names came")
    reference, port = ["", *given] if len(given) == 1 else given or ["", ""]
    if reference and port:
        return reference, port
    defaults = _defaults(Path.cwd())
    found = {"reference": reference or defaults.get("reference", ""), "port": port or defaults.get("port", "")}
    missing = [what for what, name in found.items() if not name]
    if missing:
        raise UsageError(
            f"no {' and no '.join(missing)}: expected `python -m {NAME} REFERENCE PORT`, or [tool.parity] with "
            f"reference = and port = in pyproject.toml"
        )
    return found["reference"], found["port"]


def _defaults(folder: Path) -> dict[str, str]:
    """`[tool.parity]` of the nearest pyproject.toml that has one; its files are beside it."""
    import tomllib

    for parent in (folder, *folder.parents):
        path = parent / "pyproject.toml"
        if not path.is_file():
            continue
        try:
            table = tomllib.loads(path.read_text()).get("tool", {}).get("parity")
        except (tomllib.TOMLDecodeError, UnicodeDecodeError, OSError) as error:
            raise UsageError(f"{path}: {error}") from None
        if table is None:
            continue
        wrong = [key for key, value in table.items() if key not in ("reference", "port") or not isinstance(value, str)]
        if wrong:
            raise UsageError(f'{path}: [tool.parity] {", ".join(wrong)}: expected reference = "…" and port = "…"')
        is_file = {key: value.partition(":")[0].endswith(".py") for key, value in table.items()}
        return {key: os.path.relpath(parent / value) if is_file[key] else value for key, value in table.items()}
    return {}


def _reference(spec: str) -> Any:
    try:
        from .reference.program import Reference
    except ModuleNotFoundError as error:
        raise UsageError(f"{error}: the reference needs torch here; where there is none, use {NAME} answer") from None
    try:
        with contextlib.redirect_stdout(sys.stderr):
            module, reference = locate(spec, "reference")
    except UsageError:
        raise
    except Exception as error:
        own = str(Path(spec.partition(":")[0]).resolve())
        raise UsageError(f"{spec}: cannot be imported: {told(error)}{line_of(error, own)}") from None
    if not isinstance(reference, Reference):
        kind = "a module without `reference`" if reference is module else type(reference).__name__
        raise UsageError(f"{spec}: is {kind}, expected a parity.Reference, such as `reference = parity.Reference(...)`")
    return reference


def _check_output(options: argparse.Namespace) -> None:
    """Find out before the exam, not after it, that its reports have no place."""
    if options.output is None:
        return
    try:
        options.output.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UsageError(f"{options.output}: {error.strerror}; expected a folder for the reports") from None
    held = [name for name in ("report.json", "report.md") if (options.output / name).exists()]
    if held and not options.overwrite:
        raise UsageError(f"{options.output}: holds {' and '.join(held)}; give another folder, or --overwrite")


def _tell(verdict: Verdict, options: argparse.Namespace, command: str) -> int:
    print(report(verdict, command))
    if options.output is not None:
        write(options.output / "report.json", as_json(verdict).encode())
        write(options.output / "report.md", as_markdown(verdict, command).encode())
    return 0 if verdict.agrees else 1


@contextlib.contextmanager
def _progress() -> Any:
    """What is being done, on standard error: one line that is written over on a terminal, else a line each."""
    terminal = sys.stderr.isatty()

    def tell(text: str) -> None:
        line = one_line(text, 100)
        print(f"\r\x1b[K{line}" if terminal else line, end="" if terminal else "\n", file=sys.stderr, flush=True)

    try:
        yield tell
    finally:
        if terminal:
            print("\r\x1b[K", end="", file=sys.stderr, flush=True)
