"""What docs/porting.md quotes, made anew: `python -m tests.tools.guide` puts it into the guide."""

import argparse
import re
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from fmnist.data import Dataset, load_dataset
from parity import report
from parity.faults import faults
from parity.judge import Judge
from parity.port import Held, PortError, find
from parity.ports import torch_port
from parity.reruns import Reruns
from parity.verdict import Verdict, climb

ROOT = Path(__file__).parent.parent.parent
GUIDE = ROOT / "docs" / "porting.md"
DRAFT = ROOT / "docs" / "first_draft.py"
STAGES = ["decode", "gradients", "epoch"]
FAULTS = {
    "reciprocal": "pixels * (1/255)",
    "sum": "sum for mean",
    "maximum": "jnp.maximum for relu",
    "tail": "tail dropped",
}


def fill(guide: str, dataset: Dataset) -> str:
    """The guide with every output as it is today."""
    told = dict(outputs(guide, dataset))
    return re.sub(
        r"(<!-- output: (.*?) -->\n```\n).*?(```\n)",
        lambda found: f"{found[1]}{told[found[2]]}\n{found[3]}",
        guide,
        flags=re.DOTALL,
    )


def excerpts(guide: str) -> Iterator[tuple[str, str]]:
    """The files that the guide quotes, and what it says they hold."""
    yield from re.findall(r"<!-- (\S+\.py) -->\n```python\n(.*?)```\n", guide, re.DOTALL)


def outputs(guide: str, dataset: Dataset) -> Iterator[tuple[str, str]]:
    """What the suite says, by the guide's names for it."""
    by_name = {fault.name: fault for fault in faults()}
    for name, fault in FAULTS.items():
        port = by_name[fault].make()
        yield f"faults {name}", _judged(port, dataset, [by_name[fault].stage]).sentence()
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "port.py")
        path.write_text("")
        yield "empty", _refusal(path)
        draft = DRAFT.read_text()
        path = Path(folder, "draft.py")
        path.write_text(draft)
        yield "draft", _told(_judged(find(str(path)), dataset, STAGES))
        for number, before, after in re.findall(r"<!-- fix (\d) -->\n```diff\n-(.*?)\n\+(.*?)\n```", guide):
            if draft.count(before) != 1:
                raise ValueError(f"fix {number}: first_draft.py does not hold {before!r} once")
            draft = draft.replace(before, after)
            path = Path(folder, f"draft_{number}.py")
            path.write_text(draft)
            yield f"fix {number}", _told(_judged(find(str(path)), dataset, STAGES))


def _refusal(path: Path) -> str:
    try:
        find(str(path))
    except PortError as error:
        return str(error).replace(str(path), path.name)
    raise ValueError("an empty file is taken for a port")


def _judged(port: Any, dataset: Dataset, stages: list[str]) -> Verdict:
    return climb(Judge(Held(port, "the port"), Held(torch_port, "the reference"), dataset, Reruns(None, "cpu")), stages)


def _told(verdict: Verdict) -> str:
    """What the command prints, without the checks that pass."""
    rows = [report.line(*report.row(outcome)) for outcome in verdict.outcomes if not outcome.passed]
    return "\n".join([*rows, verdict.sentence()])


def main() -> None:
    argparse.ArgumentParser(prog="python -m tests.tools.guide", description=__doc__).parse_args()
    GUIDE.write_text(fill(GUIDE.read_text(), load_dataset()))


if __name__ == "__main__":
    main()
