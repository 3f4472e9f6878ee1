"""The command: judges, records, answers, replays, explains. Bad input ends in one line and exit code 2."""

import argparse
import contextlib
import difflib
import os
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from .cases_file import Answers, Recording, digest, load, save, write
from .errors import PortError, UsageError, line_of, one_line, told
from .flags import NAME, again, names, parse
from .port.locate import locate
from .port.process import PortProcess
from .port.protocol import OPTIONAL
from .port.stub import stub
from .verdict.comparison import Verdict
from .verdict.report import as_json, as_markdown, report

REPORTS = ("report.json", "report.md")
FAILURE = "failure.npz"
"""The smallest case that still fails, with everybody's answers."""


def main(arguments: list[str]) -> int:
    """The exit code: 0 agrees or done, 1 differs, 2 wrong use, input or data, 130 interrupted, 141 nobody reads."""
    commands: dict[str, Callable[[argparse.Namespace], int]] = {
        "judge": _judge,
        "record": _record,
        "answer": _answer,
        "replay": _replay,
        "new": _new,
        "mistakes": _mistakes,
        "explain": _explain,
    }
    try:
        options = parse(arguments)
        code = commands[options.command](options)
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


def _judge(options: argparse.Namespace) -> int:
    reference, port = names(options.names)
    _check_output(options)
    program = _reference(reference)
    from .exam import judge

    with _sitting(port, options) as process, _progress() as progress:
        verdict = judge(
            program,
            process,
            keep_going=options.keep_going,
            progress=progress,
            on_failure=options.output and (lambda failure: save(options.output / FAILURE, failure)),
            **_asked(options),
        )
    return _tell(verdict, options)


def _record(options: argparse.Namespace) -> int:
    program = _reference(options.reference)
    from .exam import record

    with _progress() as progress:
        recording = record(program, dropout=options.dropout, progress=progress, **_asked(options))
    save(options.exam, recording)
    print(f"recorded: {len(recording.asked)} cases in {options.exam}")
    return 0


def _answer(options: argparse.Namespace) -> int:
    recording: Recording = load(options.exam, Recording)
    given: dict[str, Any] = {}
    with _sitting(options.port, options) as process, _progress() as progress:
        about = process.describe()
        dropout = recording.about.get("dropout", about["dropout"])
        if dropout != about["dropout"]:
            raise UsageError(
                f"{options.exam}: recorded with dropout {dropout}, the port's is {about['dropout']}; "
                f"record with --dropout {about['dropout']}"
            )
        for case, _ in recording.asked:
            lacks = case.call in OPTIONAL and case.call not in about["offers"]
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


def _replay(options: argparse.Namespace) -> int:
    _check_output(options)
    recording, answers = load(options.exam, Recording), load(options.answers, Answers)
    program = _reference(options.reference) if options.reference else None
    from .exam import replay

    with _progress() as progress:
        verdict = replay(
            recording, answers, program, stages=options.only, keep_going=options.keep_going, progress=progress
        )
    return _tell(verdict, options)


def _new(options: argparse.Namespace) -> int:
    if options.file.exists():
        raise UsageError(f"{options.file}: exists; give the name of a new file")
    write(options.file, stub(options.file.name).encode())
    print(f"wrote {options.file}: fill in its functions, then python -m {NAME} REFERENCE.py {options.file}")
    return 0


def _mistakes(options: argparse.Namespace) -> int:
    from .mistakes import CATALOGUE
    from .mistakes.page import document, listing

    print(document(CATALOGUE) if options.markdown else listing(CATALOGUE), end="" if options.markdown else "\n")
    return 0


def _explain(options: argparse.Namespace) -> int:
    from .mistakes import CATALOGUE, by_code
    from .mistakes.page import page

    mistake = by_code(options.code)
    if mistake is None:
        near = difflib.get_close_matches(options.code, [name for one in CATALOGUE for name in (one.code, one.name)])
        hint = f"did you mean {near[0]}?" if near else f"python -m {NAME} mistakes lists all"
        raise UsageError(f"{options.code}: no such mistake; {hint}")
    print(page(mistake))
    return 0


def _asked(options: argparse.Namespace) -> dict[str, Any]:
    """What `judge` and `record` are told of the cases."""
    told = {key: getattr(options, key) for key in ("quick", "precision", "seed")}
    return {"stages": options.only, **told}


def _sitting(port: str, options: argparse.Namespace) -> PortProcess:
    return PortProcess(port, options.python, options.time_limit, options.memory_limit)


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
    except (Exception, SystemExit) as error:
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
    held = [name for name in REPORTS if (options.output / name).exists()]
    if options.overwrite:
        (options.output / FAILURE).unlink(missing_ok=True)
    if held and not options.overwrite:
        raise UsageError(f"{options.output}: holds {' and '.join(held)}; give another folder, or --overwrite")


def _tell(verdict: Verdict, options: argparse.Namespace) -> int:
    command = again(options)
    print(report(verdict, command))
    if options.output is not None:
        for name, text in zip(REPORTS, (as_json(verdict), as_markdown(verdict, command)), strict=True):
            write(options.output / name, text.encode())
    return 0 if verdict.agrees else 1


@contextlib.contextmanager
def _progress() -> Iterator[Callable[[str], None]]:
    """What is being done, on standard error: one line that is written over on a terminal, else a line each."""
    begin, end = ("\r\x1b[K", "") if sys.stderr.isatty() else ("", "\n")

    def tell(text: str) -> None:
        print(f"{begin}{one_line(text, 100)}", end=end, file=sys.stderr, flush=True)

    try:
        yield tell
    finally:
        print(begin, end="", file=sys.stderr, flush=True)
