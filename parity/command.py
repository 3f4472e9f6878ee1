"""The command: judges, records, answers, replays, explains. Bad input ends in one line and exit code 2."""

import argparse
import contextlib
import difflib
import sys
from collections.abc import Callable, Iterable, Mapping
from contextlib import ExitStack
from typing import Any

from parity.cases_file import Answers, Recording, digest, load, save, write
from parity.errors import PortError, UsageError, one_line
from parity.flags import NAME, again, interpreter, names, parse
from parity.output import STDOUT, check_output, check_place, prepare, say, shown_progress, silence, tell
from parity.port.process import PortProcess
from parity.port.protocol import can_answer
from parity.port.stub import stub
from parity.verdict.comparison import Verdict
from parity.verdict.report import report


def main(arguments: list[str]) -> int:
    """The exit code.

    0 agrees or done, 1 differs or cannot be written, 2 wrong use, input or data, 3 the machine lacks a device,
    130 interrupted, 141 nobody reads standard output.
    """
    prepare()
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
            say("", end="")
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
        silence()
        return 141
    except OSError as error:
        if error.filename == STDOUT:
            silence()
        file = "" if error.filename is None else f"{error.filename}: "
        print(f"{NAME}: {one_line(f'{file}{error.strerror or error}')}", file=sys.stderr)
        return 1


def _judge(options: argparse.Namespace) -> int:
    named = names(options.names, options.port)
    check_output(options)
    references = _references(named.reference, options)
    from parity.exam import examine
    from parity.last_stages import last_stages
    from parity.reference.asked import Sitting
    from parity.reference.whole_runs import Source

    verdicts: dict[str, Verdict] = {}
    failures: list[Recording] = []
    with _sitting(named.port, options, named.adapter) as process, shown_progress() as progress, ExitStack() as runs:
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
                    say(f"{name}\n{'-' * len(name)}\n{report(found, again(options))}\n")
            if not found.agrees and not options.keep_going:
                break
    margins = {name: reference.whole_run.margins for name, reference in references.items() if reference.whole_run}
    return tell(verdicts, options, len(references), margins, failures)


def _record(options: argparse.Namespace) -> int:
    check_place(options.exam)
    program = _only(_references(options.reference, options), options.program, options.reference)
    from parity.recorded import record

    with shown_progress() as progress:
        recording = record(program, dropout=options.dropout, progress=progress, **_asked(options))
    save(options.exam, recording)
    say(f"recorded: {len(recording.asked)} cases in {options.exam}")
    return 0


def _answer(options: argparse.Namespace) -> int:
    check_place(options.answers)
    recording: Recording = load(options.exam, Recording)
    given: dict[str, Any] = {}
    with _sitting(options.port, options) as process, shown_progress() as progress:
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
    say(f"answered: {len(given) - failed} of {len(recording.asked)} cases in {options.answers}, {failed} failed")
    return 0


def _replay(options: argparse.Namespace) -> int:
    check_output(options)
    recording, answers = load(options.exam, Recording), load(options.answers, Answers)
    program = None
    if options.reference:
        program = _only(_references(options.reference, options), options.program, options.reference)
    from parity.recorded import replay

    with shown_progress() as progress:
        verdict = replay(
            recording, answers, program, stages=options.only, keep_going=options.keep_going, progress=progress
        )
    return tell({"": verdict}, options)


def _new(options: argparse.Namespace) -> int:
    if options.file.exists():
        raise UsageError(f"{options.file}: exists; give the name of a new file")
    write(options.file, stub(options.file.name).encode())
    say(f"wrote {options.file}: fill in its functions, then {interpreter()} -m {NAME} REFERENCE.py {options.file}")
    return 0


def _mistakes(options: argparse.Namespace) -> int:
    from parity.mistakes import CATALOGUE
    from parity.mistakes.page import document, listing

    say(document(CATALOGUE) if options.markdown else listing(CATALOGUE), end="" if options.markdown else "\n")
    return 0


def _explain(options: argparse.Namespace) -> int:
    from parity.mistakes import CATALOGUE, by_code
    from parity.mistakes.page import page

    mistake = by_code(options.code)
    if mistake is None:
        near = difflib.get_close_matches(options.code, [name for one in CATALOGUE for name in (one.code, one.name)])
        hint = f"did you mean {near[0]}?" if near else f"{interpreter()} -m {NAME} mistakes lists all"
        raise UsageError(f"{options.code}: no such mistake; {hint}")
    say(page(mistake))
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
