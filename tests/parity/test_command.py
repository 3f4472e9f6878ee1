"""The command: what it takes, what it answers to what it cannot take, and what it leaves on disk."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import pytest

import parity
from parity.assertion import assert_parity
from parity.cases_file import Answers, Recording, digest, load, save
from parity.command import main
from parity.flags import interpreter
from parity.locate import locate
from tests.conftest import ROOT
from tests.parity import linear

QUICK = ("--quick", "--only", "load", "outputs")


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A user's folder: reference.py, and port.py, which is right."""
    (tmp_path / "reference.py").write_text(linear.REFERENCE)
    (tmp_path / "port.py").write_text(linear.SOURCE)
    monkeypatch.chdir(tmp_path)
    return tmp_path


def python(*arguments: str, **options: Any) -> subprocess.Popen[str]:
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    return subprocess.Popen(
        [sys.executable, *arguments], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=environment
    )


def test_a_right_port_agrees_and_a_wrong_one_differs(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["reference.py", "port.py", *QUICK]) == 0
    out, err = capsys.readouterr()
    assert out.splitlines()[-1].startswith("agrees: ")
    assert "outputs: shaken, training mode" in err
    (folder / "port.py").write_text(linear.SOURCE.replace('state["fc.weight"].T +', 'state["fc.weight"].T * 1.001 +'))
    assert main(["reference.py", "port.py", *QUICK, "--output", "made/here"]) == 1
    out = capsys.readouterr().out
    assert "error[D001]: outputs differ: logits" in out
    assert f"   = next: {interpreter()} -m parity reference.py port.py --quick --only outputs\n" in out
    assert out.splitlines()[-1].startswith("differs at outputs: outputs/logits in 'as given, evaluation mode', ratio ")
    assert json.loads(Path("made/here/report.json").read_text())["agrees"] is False
    assert Path("made/here/report.md").read_text().startswith("# port.py beside reference.py")


@pytest.mark.parametrize(
    ("body", "line"),
    [
        ("import os; os._exit(0)", "error: outputs: the port ended its own process with exit code 0"),
        ("print('agrees: all'); raise SystemExit(0)", "error: outputs: the port raised SystemExit: 0 (port.py:"),
        ("return {'logits': np.full((len(batch['x']), 2), np.nan, 'f4')}", "error: outputs differ: logits"),
    ],
)
def test_a_hostile_port_never_agrees(folder: Path, capsys: pytest.CaptureFixture[str], body: str, line: str) -> None:
    (folder / "port.py").write_text(f"{linear.SOURCE}\ndef outputs(state, batch, train):\n    {body}\n")
    assert main(["reference.py", "port.py", *QUICK]) == 1
    out = capsys.readouterr().out
    assert line in out
    assert not [text for text in out.splitlines() if text.startswith("agrees")]


WRONG = {
    "nothing": ([], "no reference and no port: expected `python -m parity REFERENCE PORT`, or [tool.parity] with"),
    "three": (["a.py", "b.py", "c.py"], "a.py b.py c.py: expected REFERENCE and PORT, 3 names came"),
    "no reference": (["none.py", "port.py"], "none.py: no such file; expected FILE.py, FILE.py:NAME, MODULE or"),
    "no name": (["reference.py:it", "port.py"], "reference.py:it: reference.py has no it; expected FILE.py"),
    "no Reference": (["reference.py:Net", "port.py"], "reference.py:Net: is type, expected a parity.Reference"),
    "not a reference": (["port.py", "port.py"], "port.py: is a module without `reference`, expected a parity.Ref"),
    "no port": (["reference.py", "none.py"], "none.py: no such file; expected FILE.py"),
    "flag": (["--fast"], "unrecognized arguments: --fast (python -m parity --help lists what there is)"),
    "stage": (["reference.py", "port.py", "--only", "x"], "argument --only: invalid choice: 'x'"),
    "time": (["a.py", "b.py", "--time-limit", "-1"], "argument --time-limit: '-1': expected a positive number"),
    "seed": (["a.py", "b.py", "--seed", "-1"], "argument --seed: '-1': expected a whole number of at least 0"),
    "python": (["reference.py", "port.py", "--python", "/no/python"], "/no/python: cannot be run: No such file"),
    "output": (["reference.py", "port.py", "--output", "port.py"], "port.py: File exists; expected a folder for the"),
    "record": (["record", "none.py", "exam.npz"], "none.py: no such file"),
    "answer": (["answer", "none.npz", "port.py", "answers.npz"], "none.npz: no such file; expected what `python -m"),
    "replay": (["replay", "port.py", "port.py"], "port.py: its SHA-256 is not that of its content"),
    "new": (["new", "port.py"], "port.py: exists; give the name of a new file"),
}


@pytest.mark.parametrize(("arguments", "line"), WRONG.values(), ids=WRONG)
def test_wrong_use_ends_in_one_line(
    folder: Path, capsys: pytest.CaptureFixture[str], arguments: list[str], line: str
) -> None:
    before = {path.name: path.read_bytes() for path in folder.glob("*.*")}
    assert main(arguments) == 2
    out, err = capsys.readouterr()
    assert out == ""
    assert err.startswith(f"parity: {line}")
    assert err.count("\n") == 1
    assert before == {path.name: path.read_bytes() for path in folder.glob("*.*")}


def test_a_reference_that_cannot_be_imported_is_told_with_its_line(
    folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (folder / "broken.py").write_text("import torch\n\nprint('hello')\ntorch.nothing\n")
    assert main(["broken.py", "port.py"]) == 2
    out, err = capsys.readouterr()
    assert out == ""
    assert (
        "broken.py: cannot be imported: AttributeError: module 'torch' has no attribute 'nothing' (broken.py:4)" in err
    )


def test_defaults_come_from_the_nearest_pyproject(
    folder: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    (folder / "pyproject.toml").write_text('[tool.parity]\nreference = "reference.py"\nport = "port.py"\n')
    below = folder / "a" / "b"
    below.mkdir(parents=True)
    (below / "pyproject.toml").write_text("[project]\nname = 'x'\n")
    monkeypatch.chdir(below)
    assert main([*QUICK]) == 0
    assert main(["none.py", *QUICK]) == 2
    assert "none.py: no such file" in capsys.readouterr().err
    (folder / "pyproject.toml").write_text("[tool.parity]\nprot = 'port.py'\n")
    assert main([]) == 2
    assert "[tool.parity] prot: expected reference" in capsys.readouterr().err


def test_reports_are_not_replaced_unless_asked(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (folder / "report.md").write_text("mine")
    assert main(["reference.py", "port.py", *QUICK, "--output", "."]) == 2
    assert "holds report.md; give another folder, or --overwrite" in capsys.readouterr().err
    assert (folder / "report.md").read_text() == "mine"
    (folder / "trends.png").write_text("of an earlier exam")
    (folder / "failure.npz").write_text("too")
    assert main(["reference.py", "port.py", *QUICK, "--output", ".", "--overwrite"]) == 0
    assert {path.name for path in folder.glob("*.*")} == {"reference.py", "port.py", "report.json", "report.md"}


def test_a_new_port_has_every_function_and_says_that_it_is_empty(
    folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["new", "mine.py"]) == 0
    text = (folder / "mine.py").read_text()
    compile(text, "mine.py", "exec")
    for function in ("load_state_dict(tensors)", "train_step(state, batch)"):
        assert f'\ndef {function}:\n    """' in text
    assert "\n# def train_epoch(state, batches):\n" in text
    capsys.readouterr()
    assert main(["reference.py", "mine.py", *QUICK]) == 1
    assert "error: load_state_dict: the port raised NotImplementedError (mine.py:" in capsys.readouterr().out
    uncommented = "\n".join(line.removeprefix("#").removeprefix(" ") for line in text.splitlines())
    compile(uncommented.replace("Optional; remove", "'''").replace("to offer one.", "'''"), "mine.py", "exec")


def test_a_port_sits_a_recorded_exam_as_it_would_be_asked(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with Path("port.py").open("a") as file:
        file.write("\ndel init\nFLOAT64 = False\ndef train_step(state, batch): raise ValueError('no')\n")
    cases = [*linear.cases(), *(case for case in linear.cases(np.float64) if case.call == "outputs")]
    save(Path("exam.npz"), Recording({"dropout": "off"}, tuple((case, {}) for case in cases)))
    assert main(["answer", "exam.npz", "port.py", "answers.npz"]) == 0
    assert capsys.readouterr().out == "answered: 4 of 9 cases in answers.npz, 3 failed\n"
    answers: Answers = load(Path("answers.npz"), Answers)
    by_call = {case.call: answers.given.get(digest(case)) for case in cases[:-1]}
    assert by_call["init"] is None
    assert digest(cases[-1]) not in answers.given
    assert isinstance(by_call["outputs"], dict)
    assert str(by_call["train_steps"]).startswith("train_step: the port raised ValueError: no (port.py:")
    save(Path("exam.npz"), Recording({"dropout": "kept"}, ()))
    assert main(["answer", "exam.npz", "port.py", "answers.npz"]) == 2
    assert "recorded with dropout kept, the port's is off; record with --dropout off" in capsys.readouterr().err


@pytest.mark.parametrize("wrong", [False, True])
def test_record_answer_replay_give_the_verdict_of_one_go(
    folder: Path, capsys: pytest.CaptureFixture[str], wrong: bool
) -> None:
    if wrong:
        (folder / "port.py").write_text(linear.SOURCE.replace("dtype.type(0.1)", "dtype.type(0.11)"))
    only = ("--quick", "--only", "load", "loss", "gradients", "step")
    code = main(["reference.py", "port.py", "--output", "direct", *only])
    assert code == int(wrong)
    assert main(["record", "reference.py", "exam.npz", *only]) == 0
    assert main(["answer", "exam.npz", "port.py", "answers.npz"]) == 0
    replay = ["replay", "exam.npz", "answers.npz", "--only", *only[2:]]
    assert main([*replay, "--output", "replayed", "--reference", "reference.py"]) == code
    assert Path("direct/report.json").read_bytes() == Path("replayed/report.json").read_bytes()
    capsys.readouterr()
    assert main(replay) == code
    assert capsys.readouterr().out.splitlines()[-1].startswith("differs at step" if wrong else "agrees: ")


@pytest.mark.parametrize(("number", "code"), [(signal.SIGTERM, 143), (signal.SIGINT, 130)])
def test_an_interrupted_exam_takes_its_port_along(folder: Path, number: int, code: int) -> None:
    save(Path("exam.npz"), Recording({}, ((linear.case("outputs"), {}),)))
    with Path("port.py").open("a") as file:
        file.write("\ndef outputs(state, batch, train):\n    open('begun', 'w').close()\n    while True: pass\n")
    process = python("-m", "parity", "answer", "exam.npz", "port.py", "answers.npz")
    end = time.monotonic() + 20
    while not Path("begun").exists() and time.monotonic() < end:
        time.sleep(0.02)
    children = psutil.Process(process.pid).children()
    assert children
    process.send_signal(number)
    assert process.wait(10) == code
    assert psutil.wait_procs(children, 5)[1] == []
    assert not Path("answers.npz").exists()


def test_the_package_and_its_port_side_import_neither_torch_nor_jax() -> None:
    code = (
        "import sys, parity.port, parity.command; print({'torch', 'jax', 'optax'} & set(sys.modules), parity.port.Port)"
    )
    process = python("-c", code)
    assert process.communicate()[0].startswith("set() ")


def test_public_names_are_there_and_others_are_not() -> None:
    assert all(getattr(parity, name) is not None for name in parity.__all__)
    with pytest.raises(AttributeError, match="no attribute 'nothing'"):
        _ = parity.nothing


def test_an_assertion_fails_with_the_report_and_without_the_way_there(folder: Path) -> None:
    reference = locate("reference.py", "reference")[1]
    port, _ = locate("port.py")
    settings: dict[str, Any] = {"quick": True, "stages": ["load", "outputs"]}
    assert_parity(reference, port, **settings)
    assert_parity(reference, "port.py", **settings)
    (folder / "wrong.py").write_text(linear.SOURCE.replace('+ state["fc.bias"]', ""))
    with pytest.raises(AssertionError, match=r"error(\[\w+\])?: outputs differ: logits"):
        assert_parity(reference, "wrong.py", **settings)
    (folder / "test_port.py").write_text(
        "import parity, reference\n"
        "def test_port():\n"
        f"    parity.assert_parity(reference.reference, 'wrong.py', **{settings})\n"
    )
    process = python("-m", "pytest", "-q", "-p", "no:cacheprovider", "test_port.py")
    out = process.communicate()[0]
    assert process.returncode == 1
    assert "differs at outputs: outputs/logits in " in out
    assert "assertion.py" not in out


def test_the_page_of_mistakes_is_that_of_the_catalogue(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["mistakes", "--markdown"]) == 0
    assert capsys.readouterr().out == (ROOT / "docs" / "mistakes.md").read_text()


def test_a_mistake_is_explained_by_its_code_or_name(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["explain", "F001"]) == 0
    assert "layer-norm-epsilon" in capsys.readouterr().out
    assert main(["explain", "layer-norm-epsilo"]) == 2
    assert "did you mean layer-norm-epsilon?" in capsys.readouterr().err
