"""The command: judges, records, answers, replays, explains. Bad input ends in one line and exit code 2."""

import argparse
import contextlib
import difflib
import io
import os
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack
from types import MappingProxyType
from typing import Any

from parity.cases_file import Answers, Recording, digest, load, packed, save, write
from parity.errors import PortError, UsageError, one_line
from parity.flags import NAME, again, interpreter, names, parse
from parity.port.process import PortProcess
from parity.port.protocol import can_answer
from parity.port.stub import stub
from parity.verdict.comparison import Curves, Verdict
from parity.verdict.report import report
from parity.verdict.several import agree, as_json, as_markdown, sentence

FAILURE = "failure.npz"
"""The smallest case that still fails, with everybody's answers."""
REPORTS = ("report.json", "report.md", "trajectory.png", "trends.png", FAILURE)
_STDOUT = "standard output"


def main(arguments: list[str]) -> int:
    """The exit code.

    0 agrees or done, 1 differs or cannot be written, 2 wrong use, input or data, 3 the machine lacks a device,
    130 interrupted, 141 nobody reads standard output.
    """
    # A closed standard stream is None, and printing to None is printing to standard output.
    sys.stdout = sys.stdout or open(os.devnull, "w")  # noqa: SIM115
    sys.stderr = sys.stderr or open(os.devnull, "w")  # noqa: SIM115
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors="backslashreplace")  # as standard error: no character ends a command
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
        try:
            options = parse(arguments)
            return commands[options.command](options)
        finally:
            _say("", end="")
    except UsageError as error:
        print(f"{NAME}: {error}", file=sys.stderr)
        return error.exit_code
    except ModuleNotFoundError as error:
        if error.name != "torch":
            raise
        print(f"{NAME}: {error}: {options.command} needs it; a port alone sits an exam by answer", file=sys.stderr)
        return 3
    except KeyboardInterrupt:
        print(f"{NAME}: interrupted", file=sys.stderr)
        return 130
    except BrokenPipeError:
        _silence_stdout()
        return 141
    except OSError as error:
        if error.filename == _STDOUT:
            _silence_stdout()
        file = "" if error.filename is None else f"{error.filename}: "
        print(f"{NAME}: {one_line(f'{file}{error.strerror or error}')}", file=sys.stderr)
        return 1


def _judge(options: argparse.Namespace) -> int:
    named = names(options.names, options.port)
    _check_output(options)
    references = _references(named.reference, options)
    from parity.exam import examine
    from parity.last_stages import last_stages
    from parity.reference.asked import Sitting
    from parity.reference.whole_runs import Source

    verdicts: dict[str, Verdict] = {}
    failures: list[Recording] = []
    with _sitting(named.port, options, named.adapter) as process, _progress() as progress, ExitStack() as runs:
        examinees = process.programs
        if set(examinees) != set(references):
            raise UsageError(f"{named.port}: has {_listed(examinees)}, {named.reference} has {_listed(references)}")
        asked = _asked(options)
        precision = asked.pop("precision")
        prepared = {}
        for name, reference in references.items():
            sitting = Sitting.of(reference, examinees[name].describe(), precision)
            source = Source(named.reference, options.data, name)
            last = last_stages(sitting, examinees[name], options.only, options.quick, options.seeds, progress, source)
            if last is not None:
                runs.enter_context(last.runs)
                last.prepare()
            prepared[name] = sitting, examinees[name], last
        for name, (sitting, examinee, last) in prepared.items():
            found = examine(
                sitting,
                examinee,
                last,
                keep_going=options.keep_going,
                progress=progress,
                on_failure=failures.append if options.output else None,
                **asked,
            )
            verdicts[name] = found
            if name:
                progress("")
                # What is to be saved is not lost with a standard output that fails: the last line will say so.
                with contextlib.suppress(OSError) if options.output else contextlib.nullcontext():
                    _say(f"{name}\n{'-' * len(name)}\n{report(found, again(options))}\n")
            if not found.agrees and not options.keep_going:
                break
    margins = {name: reference.whole_run.margins for name, reference in references.items() if reference.whole_run}
    return _tell(verdicts, options, len(references), margins, failures)


def _record(options: argparse.Namespace) -> int:
    program = _only(_references(options.reference, options), options.program, options.reference)
    from parity.recorded import record

    with _progress() as progress:
        recording = record(program, dropout=options.dropout, progress=progress, **_asked(options))
    save(options.exam, recording)
    _say(f"recorded: {len(recording.asked)} cases in {options.exam}")
    return 0


def _answer(options: argparse.Namespace) -> int:
    recording: Recording = load(options.exam, Recording)
    given: dict[str, Any] = {}
    with _sitting(options.port, options) as process, _progress() as progress:
        examinee = _only(process.programs, options.program, options.port)
        about = examinee.describe()
        dropout = recording.about.get("dropout", about["dropout"])
        if dropout != about["dropout"]:
            raise UsageError(
                f"{options.exam}: recorded with dropout {dropout}, the port's is {about['dropout']}; "
                f"record with --dropout {about['dropout']}"
            )
        for case, _ in recording.asked:
            if not can_answer(about, case):
                continue
            progress(f"{case.call}: {case.name}")
            try:
                given[digest(case)] = examinee.answer(case)
            except PortError as error:
                given[digest(case)] = f"{error}\n{error.hint}".rstrip()
    save(options.answers, Answers(about, given))
    failed = sum(isinstance(one, str) for one in given.values())
    _say(f"answered: {len(given) - failed} of {len(recording.asked)} cases in {options.answers}, {failed} failed")
    return 0


def _replay(options: argparse.Namespace) -> int:
    _check_output(options)
    recording, answers = load(options.exam, Recording), load(options.answers, Answers)
    program = None
    if options.reference:
        program = _only(_references(options.reference, options), options.program, options.reference)
    from parity.recorded import replay

    with _progress() as progress:
        verdict = replay(
            recording, answers, program, stages=options.only, keep_going=options.keep_going, progress=progress
        )
    return _tell({"": verdict}, options)


def _new(options: argparse.Namespace) -> int:
    if options.file.exists():
        raise UsageError(f"{options.file}: exists; give the name of a new file")
    write(options.file, stub(options.file.name).encode())
    _say(f"wrote {options.file}: fill in its functions, then {interpreter()} -m {NAME} REFERENCE.py {options.file}")
    return 0


def _mistakes(options: argparse.Namespace) -> int:
    from parity.mistakes import CATALOGUE
    from parity.mistakes.page import document, listing

    _say(document(CATALOGUE) if options.markdown else listing(CATALOGUE), end="" if options.markdown else "\n")
    return 0


def _explain(options: argparse.Namespace) -> int:
    from parity.mistakes import CATALOGUE, by_code
    from parity.mistakes.page import page

    mistake = by_code(options.code)
    if mistake is None:
        near = difflib.get_close_matches(options.code, [name for one in CATALOGUE for name in (one.code, one.name)])
        hint = f"did you mean {near[0]}?" if near else f"{interpreter()} -m {NAME} mistakes lists all"
        raise UsageError(f"{options.code}: no such mistake; {hint}")
    _say(page(mistake))
    return 0


def _asked(options: argparse.Namespace) -> dict[str, Any]:
    """What `judge` and `record` are told of the cases."""
    told = {key: getattr(options, key) for key in ("quick", "precision", "seed")}
    return {"stages": options.only, **told}


def _sitting(port: str, options: argparse.Namespace, adapter: str = "") -> PortProcess:
    return PortProcess(port, options.python, options.time_limit, options.memory_limit, adapter)


def _references(spec: str, options: argparse.Namespace) -> dict[str, Any]:
    from parity.reference.find import find

    return find(spec, options.data)


def _only(programs: Mapping[str, Any], name: str | None, spec: str) -> Any:
    """The program that is asked for, or the one that there is."""
    if name is None and len(programs) == 1:
        return next(iter(programs.values()))
    if name is None or name not in programs:
        asked = "has several programs" if name is None else f"has no program {name}"
        raise UsageError(f"{spec}: {asked}; expected --program with one of {_listed(programs)}")
    return programs[name]


def _listed(programs: Iterable[str]) -> str:
    return ", ".join(name or "a lone program" for name in programs)


def _check_output(options: argparse.Namespace) -> None:
    """Find out before the exam, not after it, that its reports have no place."""
    if options.output is None:
        return
    try:
        options.output.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UsageError(f"{options.output}: {error.strerror}; expected a folder for the reports") from None
    held = [name for name in REPORTS if (options.output / name).exists()]
    if held and not options.overwrite:
        raise UsageError(f"{options.output}: holds {' and '.join(held)}; give another folder, or --overwrite")


def _tell(
    verdicts: dict[str, Verdict],
    options: argparse.Namespace,
    programs: int = 1,
    margins: Mapping[str, Mapping[str, float]] = MappingProxyType({}),
    failures: Sequence[Recording] = (),
) -> int:
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
        _say(sentence(verdicts, programs) if "" not in verdicts else report(verdicts[""], command))
    return 0 if agree(verdicts) else 1


def _say(text: str, end: str = "\n") -> None:
    """Print on standard output, at once; an OSError says that it is about that."""
    try:
        print(text, end=end, flush=True)
    except OSError as error:
        error.filename = _STDOUT
        raise


def _silence_stdout() -> None:
    """Python flushes standard output once more as it exits, and would complain there."""
    with contextlib.suppress(OSError, ValueError):
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


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
