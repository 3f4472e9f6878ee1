"""What the command line and `[tool.parity]` say; bad use is a `UsageError` of one line."""

import argparse
import os
import shlex
import shutil
import sys
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple, NoReturn

from parity.errors import UsageError
from parity.port.process import TIME_LIMIT
from parity.port.protocol import DROPOUT
from parity.verdict.comparison import STAGES
from parity.verdict.trends import SEEDS

NAME = "parity"
COMMANDS = ("judge", "record", "answer", "replay", "new", "mistakes", "explain")
_NAMES = "FILE.py, FILE.py:NAME, MODULE or MODULE:NAME"


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        raise UsageError(f"{message} ({self.prog} --help lists what there is)")


def parse(arguments: list[str]) -> argparse.Namespace:
    """The flags of a command; `judge` goes without saying."""
    asked = _Parser(add_help=False)
    asked.add_argument("--quick", action="store_true", help="fewer cases")
    precisions = ("float32", "bfloat16", "float16", "tf32")
    asked.add_argument("--precision", choices=precisions, default="float32", help="what both compute in on purpose")
    asked.add_argument("--seed", type=_at_least(0), default=0, help="of the states that cases start from")
    asked.add_argument("--data", metavar="PLACE", help="where the reference's data is, if it takes `data`")
    one = _Parser(add_help=False)
    one.add_argument("--program", metavar="NAME", help="which one, where there are several")
    stages = _Parser(add_help=False)
    stages.add_argument("--only", nargs="+", choices=STAGES, metavar="STAGE", help=", ".join(STAGES))
    told = _Parser(add_help=False)
    told.add_argument("--keep-going", action="store_true", help="judge the stages after one that failed, too")
    told.add_argument(
        "--output", type=Path, metavar="DIR", help="folder for report.json, report.md, and pictures of whole runs"
    )
    told.add_argument("--overwrite", action="store_true", help="replace the reports that --output holds")
    port = _Parser(add_help=False)
    port.add_argument("--python", metavar="PATH", help="interpreter of the environment that the port runs in")
    port.add_argument("--time-limit", type=_positive, default=TIME_LIMIT, metavar="SECONDS", help="of each case")
    port.add_argument("--memory-limit", type=_gibibytes, metavar="GIB", help="default: 3/4 of the machine's")

    parser = _Parser(f"python -m {NAME}", description="Judge a port of a PyTorch training program.")
    commands = parser.add_subparsers(dest="command", metavar="COMMAND", parser_class=_Parser)
    judge = commands.add_parser("judge", parents=[asked, stages, told, port], help="judge a port; the default")
    judge.add_argument("names", nargs="*", metavar="REFERENCE PORT", help=f"{_NAMES}; or [tool.parity] says them")
    judge.add_argument("--port", metavar="PORT", help="the port alone, beside the reference of [tool.parity]")
    judge.add_argument("--seeds", type=_at_least(3), default=SEEDS, help=f"whole runs that trends compares; {SEEDS}")
    record = commands.add_parser(
        "record", parents=[asked, stages, one], help="write an exam, for where there is no torch"
    )
    record.add_argument("reference", metavar="REFERENCE", help=_NAMES)
    record.add_argument("exam", type=Path, metavar="EXAM.npz")
    record.add_argument("--dropout", choices=DROPOUT, default="off", help="what the port calls DROPOUT")
    answer = commands.add_parser("answer", parents=[port, one], help="let a port sit a recorded exam; needs no torch")
    answer.add_argument("exam", type=Path, metavar="EXAM.npz")
    answer.add_argument("port", metavar="PORT", help=_NAMES)
    answer.add_argument("answers", type=Path, metavar="ANSWERS.npz")
    replay = commands.add_parser("replay", parents=[stages, told, one], help="judge the answers to a recorded exam")
    replay.add_argument("exam", type=Path, metavar="EXAM.npz")
    replay.add_argument("answers", type=Path, metavar="ANSWERS.npz")
    replay.add_argument("--reference", metavar="REFERENCE", help="ask it again where they differ, and explain")
    replay.add_argument("--data", metavar="PLACE", help="where its data is, if it takes `data`")
    new = commands.add_parser("new", help="write a port to fill in")
    new.add_argument("file", type=Path, metavar="PORT.py")
    mistakes = commands.add_parser("mistakes", help="list the mistakes that can be named")
    mistakes.add_argument("--markdown", action="store_true", help="all of them as a document")
    explain = commands.add_parser("explain", help="tell all about one mistake")
    explain.add_argument("code", metavar="CODE", help="as in error[CODE], or its name")
    said = arguments[:1] and (arguments[0] in COMMANDS or arguments[0] in ("-h", "--help"))
    return parser.parse_args(arguments if said else ["judge", *arguments])


def again(options: argparse.Namespace) -> str:
    """The command that asks the same once more, without what it says of stages and reports."""
    names = ["replay", str(options.exam), str(options.answers)] if options.command == "replay" else options.names
    flags = ["--quick"] if getattr(options, "quick", False) else []
    told = ("precision", "float32"), ("seed", 0), ("seeds", SEEDS), ("data", None), ("python", None), ("port", None)
    for flag, default in (*told, ("reference", None), ("program", None)):
        value = getattr(options, flag, default)
        flags += [f"--{flag}", str(value)] if value != default else []
    return f"{interpreter()} -m {NAME} {shlex.join([*names, *flags])}".rstrip()


def interpreter() -> str:
    """What a shell has to be given for this Python, as short as may be: `python` in an active environment."""
    for name in ("python", "python3"):
        if shutil.which(name) == sys.executable:
            return name
    here = os.path.relpath(sys.executable)
    return shlex.quote(sys.executable if here.startswith(os.pardir) else here)


class Names(NamedTuple):
    """What is judged beside what."""

    reference: str
    port: str
    adapter: str = ""


def names(given: list[str], lone: str | None = None) -> Names:
    """Reference and port: as given, or from the nearest pyproject.toml; a lone name is the port's.

    Only what is judged beside the reference of pyproject.toml may need its adapter.
    """
    given = [*given, lone] if lone else given
    if len(given) > 2:
        raise UsageError(f"{' '.join(given)}: expected REFERENCE and PORT, {len(given)} names came")
    reference, port = ["", *given] if len(given) == 1 else given or ["", ""]
    defaults = {} if reference and port else _defaults(Path.cwd())
    found = {"reference": reference or defaults.get("reference"), "port": port or defaults.get("port")}
    missing = [what for what, name in found.items() if not name]
    if missing:
        raise UsageError(
            f"no {' and no '.join(missing)}: expected `python -m {NAME} REFERENCE PORT`, or [tool.parity] with "
            f"reference = and port = in pyproject.toml"
        )
    return Names(str(found["reference"]), str(found["port"]), defaults.get("adapter", ""))


def _defaults(folder: Path) -> dict[str, str]:
    """`[tool.parity]` of the nearest pyproject.toml that has one; its files are beside it."""
    import tomllib

    for parent in (folder, *folder.parents):
        path = parent / "pyproject.toml"
        try:
            table = tomllib.loads(path.read_text()).get("tool", {}).get("parity") if path.is_file() else None
        except (tomllib.TOMLDecodeError, UnicodeDecodeError, OSError) as error:
            raise UsageError(f"{path}: {error}") from None
        if table is None:
            continue
        if not isinstance(table, dict):
            raise UsageError(f"{path}: [tool.parity] is no table")
        wrong = [key for key, value in table.items() if key not in Names._fields or not isinstance(value, str)]
        if wrong:
            raise UsageError(f'{path}: [tool.parity] {", ".join(wrong)}: expected reference = "…" and port = "…"')
        is_file = {key: value.partition(":")[0].endswith(".py") for key, value in table.items()}
        return {key: os.path.relpath(parent / value) if is_file[key] else value for key, value in table.items()}
    return {}


def _positive(text: str) -> float:
    if text.replace(".", "", 1).isdecimal() and float(text) > 0:
        return float(text)
    raise argparse.ArgumentTypeError(f"{text!r}: expected a positive number")


def _at_least(least: int) -> Callable[[str], int]:
    def number(text: str) -> int:
        if text.isdecimal() and int(text) >= least:
            return int(text)
        raise argparse.ArgumentTypeError(f"{text!r}: expected a whole number of at least {least}")

    return number


def _gibibytes(text: str) -> float:
    return _positive(text) * (1 << 30)
