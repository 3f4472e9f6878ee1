"""What a port does in its own process ends in one line, and never in an answer that it did not give."""

import os
import subprocess
import sys
import textwrap
import time
from pathlib import Path

import numpy as np
import psutil
import pytest

from parity.cases import Answer, Case
from parity.errors import PortError, UsageError
from parity.port.held import Held, find
from parity.port.process import PortProcess
from tests.parity import linear


@pytest.fixture
def port_file(tmp_path: Path) -> Path:
    path = tmp_path / "port.py"
    path.write_text(linear.SOURCE)
    return path


def broken(path: Path, function: str, body: str, parameters: str = "*arguments") -> None:
    """Let the port do `body` in `function`, which it otherwise does right."""
    code = textwrap.indent(textwrap.dedent(body).strip(), "    ")
    source = f"{linear.SOURCE}\nright = {function}\n\ndef {function}({parameters}):\n{code}\n"
    path.write_text(source)


def failure(path: Path, case: Case, time_limit: float = 20.0, memory_limit: float | None = None) -> PortError:
    """How the port fails the case."""
    with (
        PortProcess(str(path), time_limit=time_limit, memory_limit=memory_limit) as port,
        pytest.raises(PortError) as error,
    ):
        port.answer(case)
    assert "\n" not in str(error.value)
    return error.value


def test_every_call_is_answered_as_in_this_process(port_file: Path) -> None:
    here = find(str(port_file))[""]
    for dtype in (np.float32, np.float64):
        with PortProcess(str(port_file)) as port:
            for case in linear.cases(dtype):
                if case.call == "init" and dtype == np.float64:
                    continue
                answer, expected = port.answer(case), here.answer(case)
                assert list(answer) == list(expected)
                assert all(linear.same(answer[name], expected[name]) for name in expected)


def test_a_port_is_described(port_file: Path) -> None:
    with port_file.open("a") as file:
        file.write('\nFLOAT64 = False\nDROPOUT = "kept"\ndel init\n')
    with PortProcess(str(port_file)) as port:
        description = port.describe()
    assert description["offers"] == ["train_epoch", "evaluate"]
    assert (description["float64"], description["dropout"]) == (False, "kept")
    assert description["versions"]["numpy"] == np.__version__


HOSTILE = {
    "exit": ("import os; os._exit(0)", "train_steps: the port ended its own process with exit code 0"),
    "sys.exit": ("raise SystemExit(0)", "train_step: the port raised SystemExit: 0 (port.py:"),
    "exit 7": (
        "import os, sys; print('sorry', file=sys.stderr, flush=True); os._exit(7)",
        "train_steps: the port ended its own process with exit code 7: sorry",
    ),
    "segfault": ("import ctypes; ctypes.string_at(0)", "train_steps: the port's process crashed (SIGSEGV)"),
    "abort": ("import os; os.abort()", "train_steps: the port's process crashed (SIGABRT)"),
    "kill": ("import os; os.kill(os.getpid(), 9)", "train_steps: the port's process was killed (SIGKILL)"),
    "close": ("import os; os.closerange(0, 100)", "train_steps: the port ended its own process with exit code 1"),
    "close and wait": (
        "import os, time; os.closerange(3, 100); time.sleep(60)",
        "train_steps: the port closed the pipe that the exam uses",
    ),
    "interrupt": ("raise KeyboardInterrupt", "train_steps: the port raised KeyboardInterrupt"),
    "exception": ("raise ValueError('a\\n b')", "train_step: the port raised ValueError: a b (port.py:"),
    "unprintable": (
        "class Bad(Exception):\n    def __str__(self): raise ValueError\nraise Bad",
        "train_step: the port raised Bad: (cannot be printed: ValueError) (port.py:",
    ),
    "recursion": (
        "def f(): f()\nf()",
        "train_step: the port raised RecursionError: maximum recursion depth exceeded (port.py:",
    ),
    "wrong pipe": (
        "import os\nfor at in range(3, 30):\n    try: os.write(at, b'agrees' * 9)\n    except OSError: pass\n"
        "return right(*arguments)",
        "train_steps: the port wrote into the pipe that the exam uses",
    ),
    "forged answer": (
        "import os, struct\nfrom parity.cases_file import pack\nforged = pack({'answer': {'loss/1': np.ones(())}})\n"
        "for at in range(3, 30):\n    try: os.write(at, struct.pack('<16sQ', b'', len(forged)) + forged)\n"
        "    except OSError: pass\ntime = __import__('time'); time.sleep(9)",
        "train_steps: the port wrote into the pipe that the exam uses",
    ),
    "fork": (
        "import os\nif os.fork() == 0:\n    import time; time.sleep(60)\nos._exit(0)",
        "train_steps: the port ended its own process with exit code 0",
    ),
}


@pytest.mark.parametrize(("body", "line"), HOSTILE.values(), ids=HOSTILE)
def test_whatever_a_port_does_instead_of_answering_is_told_in_one_line(port_file: Path, body: str, line: str) -> None:
    broken(port_file, "train_step", body)
    error = str(failure(port_file, linear.case("train_steps")))
    assert error.startswith(line)


ANSWERS = {
    "objects": ("outputs", "return {'logits': np.array([object()])}", "an array of object (1,) for outputs/logits"),
    "strings": (
        "outputs",
        "return {'logits': 'agrees'}",
        "str 'agrees' for outputs/logits, expected an array of float",
    ),
    "nothing": ("outputs", "return None", "the port returned nothing, expected a dict of name → array"),
    "wide": (
        "outputs",
        "return {'logits': np.zeros(3)}",
        "an array of float64 (3,) for outputs/logits, expected float32",
    ),
    "complex": ("outputs", "return {'logits': np.zeros(3, complex)}", "an array of complex128 (3,)"),
    "loss of a shape": (
        "value_and_grad",
        "return np.zeros(2, 'f4'), {}",
        "an array of float32 (2,) for loss, expected ()",
    ),
    "no pair": ("value_and_grad", "return 1.0", "the port returned float 1.0, expected a pair"),
    "wrong shape": (
        "value_and_grad",
        "l, g = right(*arguments); return l, {**g, 'fc.weight': g['fc.weight'].T}",
        "an array of float32 (3, 2) for gradients/fc.weight, expected (2, 3)",
    ),
    "unknown name": (
        "value_and_grad",
        "l, g = right(*arguments); return l, {'fc.kernel': g['fc.weight']}",
        "a gradient by 'fc.kernel', which is no tensor of the state",
    ),
    "numbers for names": ("outputs", "return {1: np.zeros(3, 'f4')}", "expected names that are strings"),
    "losses": (
        "train_epoch",
        "s, l = right(*arguments); return s, l[:1]",
        "an array of float32 (1,) for losses, expected (2,)",
    ),
    "batch written": (
        "outputs",
        "arguments[1]['x'] *= 2; return right(*arguments)",
        "the port wrote into x of batch 1 that it was given",
    ),
    "load keeps, step writes": (
        "train_step",
        "s, l = right(*arguments); arguments[0]['fc.bias'] += 1; return s, l",
        "the port wrote into the tensor fc.bias that it was given",
    ),
    "hostile mapping": (
        "outputs",
        "class Bad(dict):\n    def __iter__(self): raise OSError('no')\nreturn Bad()",
        "the port raised OSError: no (port.py:",
    ),
    "hostile array": (
        "outputs",
        "class Bad:\n    def __array__(self, *a, **k): raise OSError('no')\nreturn {'logits': Bad()}",
        "the port raised OSError: no (port.py:",
    ),
}


@pytest.mark.parametrize(("function", "body", "line"), ANSWERS.values(), ids=ANSWERS)
def test_what_is_no_answer_is_refused_with_what_came_and_what_was_expected(
    port_file: Path, function: str, body: str, line: str
) -> None:
    calls = {"train_step": "train_steps"}
    broken(port_file, function, body)
    if line.startswith("the port wrote into the tensor"):
        port_file.write_text(port_file.read_text() + "\ndef load_state_dict(tensors): return tensors\n")
    error = str(failure(port_file, linear.case(calls.get(function, function))))  # type: ignore[arg-type]
    assert line in error


def test_an_earlier_answer_that_changes_is_noticed(port_file: Path) -> None:
    broken(
        port_file,
        "train_step",
        "s, l = right(*arguments); arguments[0].update(s)\nfor k in s: KEPT[k][...] = s[k]\nreturn arguments[0], l",
    )
    with port_file.open("a") as file:
        file.write(
            "\nKEPT = {k: np.zeros(1) for k in ()}\n"
            "def load_state_dict(tensors):\n    KEPT.update({k: t.copy() for k, t in tensors.items()})\n"
            "    return dict(KEPT)\ndef state_dict(state): return KEPT\n"
        )
    error = str(failure(port_file, linear.case("train_steps")))
    assert error.startswith("train_steps: the port wrote into state/fc.weight that it had returned")


def test_a_hang_ends_at_the_time_limit(port_file: Path) -> None:
    broken(port_file, "outputs", "while True: pass")
    begin = time.monotonic()
    error = failure(port_file, linear.case("outputs"), time_limit=1.0)
    assert str(error) == "outputs: no answer in 1 s; --time-limit allows more"
    assert time.monotonic() - begin < 5


def test_a_port_that_does_not_read_ends_at_the_time_limit(port_file: Path) -> None:
    case = Case("large", "load", {"fc.weight": np.zeros((2000, 2000), np.float32)})
    broken(port_file, "load_state_dict", "import threading, os, time\nos.kill(os.getpid(), 19)")
    assert "no answer in 1 s" in str(failure(port_file, case, time_limit=1.0))


def test_memory_ends_at_its_limit(port_file: Path) -> None:
    broken(port_file, "outputs", "kept = []\nwhile True: kept.append(np.ones(1 << 20)); import time; time.sleep(0.003)")
    error = failure(port_file, linear.case("outputs"), memory_limit=0.5 * (1 << 30))
    assert str(error) == "outputs: the port took more than 0.5 GiB of memory; --memory-limit allows more"


def test_what_a_port_prints_is_not_a_verdict(port_file: Path, capfd: pytest.CaptureFixture[str]) -> None:
    broken(port_file, "outputs", "print('agrees: 1 comparison', flush=True); import os; os._exit(0)")
    error = failure(port_file, linear.case("outputs"))
    assert capfd.readouterr() == ("", "")
    assert "  | agrees: 1 comparison" in error.hint


def test_control_characters_do_not_reach_the_terminal(port_file: Path) -> None:
    broken(port_file, "outputs", r"raise ValueError('\x1b[2Jagrees')")
    assert "\x1b" not in str(failure(port_file, linear.case("outputs")))


def test_much_output_neither_blocks_nor_is_kept(port_file: Path) -> None:
    broken(port_file, "outputs", "print('x' * 50_000_000); return right(*arguments)")
    with PortProcess(str(port_file), time_limit=20) as port:
        assert "outputs/logits" in port.answer(linear.case("outputs"))


@pytest.mark.parametrize(
    ("source", "line"),
    [
        ("import os; os._exit(0)", "import: the port ended its own process with exit code 0"),
        (
            "import no_such_package",
            "import: the port raised ModuleNotFoundError: No module named 'no_such_package' (port.py:1)",
        ),
        ("def f(:", "import: the port raised SyntaxError: invalid syntax (port.py, line 1) (port.py:1)"),
        ("raise SystemExit", "import: the port raised SystemExit (port.py:1)"),
        ("x = 1", "the port lacks load_state_dict, state_dict, outputs, value_and_grad, train_step"),
        (linear.SOURCE + "\nDROPOUT = 1", 'DROPOUT is 1, expected "off", "kept" or "median"'),
    ],
)
def test_a_port_that_cannot_be_had_says_so_at_once(port_file: Path, source: str, line: str) -> None:
    port_file.write_text(source)
    with pytest.raises(PortError) as error, PortProcess(str(port_file), time_limit=20):
        pass
    assert line in str(error.value)
    assert not [one for one in psutil.Process().children() if str(port_file) in one.cmdline()]


def test_what_is_not_there_is_named(tmp_path: Path, port_file: Path) -> None:
    for spec, line in {
        f"{tmp_path}/none.py": "no such file",
        f"{port_file}:nothing": "has no nothing",
        "no_such_module": "no such module",
        "": "expected FILE.py",
    }.items():
        with pytest.raises(PortError) as error, PortProcess(spec, time_limit=20):
            pass
        assert line in str(error.value)
    with pytest.raises(UsageError, match="cannot be run"), PortProcess(str(port_file), python="/no/python"):
        pass


def test_what_a_port_changes_globally_stays_with_it(port_file: Path) -> None:
    broken(
        port_file,
        "outputs",
        "import os, sys, random\nnp.seterr(all='raise'); os.chdir('/'); os.environ.clear()\n"
        "sys.stdout = sys.stderr = None; random.seed(0); np.random.seed(0); sys.path.clear()\n"
        "return {'logits': np.float32(1e38) * right(*arguments)['logits'] * np.float32(0)}",
    )
    before = (os.getcwd(), dict(os.environ), np.geterr(), list(sys.path))
    with PortProcess(str(port_file), time_limit=20) as port:
        for _ in range(2):
            assert "outputs/logits" in port.answer(linear.case("outputs"))
    assert before == (os.getcwd(), dict(os.environ), np.geterr(), list(sys.path))


def test_after_a_crash_the_next_case_is_answered_afresh(port_file: Path) -> None:
    broken(port_file, "outputs", "import os; os._exit(0)")
    with PortProcess(str(port_file), time_limit=20) as port:
        for _ in range(2):
            with pytest.raises(PortError, match="exit code 0"):
                port.answer(linear.case("outputs"))
            assert "loss/1" not in port.answer(linear.case("load"))


def test_nothing_runs_on_after_the_exam(port_file: Path) -> None:
    orphan = port_file.with_name("orphan")
    broken(
        port_file,
        "outputs",
        "import subprocess, sys\nsubprocess.Popen([sys.executable, '-c', 'import time; time.sleep(99)'])\n"
        f"subprocess.run(['sh', '-c', 'sleep 99 & echo $! > {orphan}'])\n"
        "return right(*arguments)",
    )
    before = psutil.Process().children(recursive=True)
    with PortProcess(str(port_file), time_limit=20) as port:
        port.answer(linear.case("outputs"))
        children = [one for one in psutil.Process().children(recursive=True) if one not in before]
        assert len(children) >= 2
    _, alive = psutil.wait_procs(children, timeout=5)
    assert not [one.cmdline() for one in alive]
    assert (
        not psutil.pid_exists(int(orphan.read_text())) or psutil.Process(int(orphan.read_text())).status() == "zombie"
    )


def test_a_port_that_hangs_ends_with_a_judge_that_was_killed(port_file: Path) -> None:
    broken(port_file, "outputs", "while True: pass")
    code = (
        "from parity.port.process import PortProcess; from tests.parity import linear\n"
        f"with PortProcess({str(port_file)!r}) as port: port.answer(linear.case('outputs'))"
    )
    judge = psutil.Popen([sys.executable, "-c", code], cwd=Path(__file__).parents[2])
    end = time.monotonic() + 20
    while not judge.children() and time.monotonic() < end:
        time.sleep(0.02)
    time.sleep(0.5)
    ports = judge.children()
    judge.kill()
    judge.wait()
    assert ports
    assert psutil.wait_procs(ports, 10)[1] == []


def test_only_numpy_is_needed_and_nothing_of_ours_leaks_in(
    port_file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In an environment with NumPy alone: a link to it is all that is on the path of an isolated interpreter."""
    site = tmp_path / "site"
    site.mkdir()
    for name in ("numpy", "numpy.libs"):
        folder = Path(np.__file__).parents[1] / name
        if folder.exists():
            (site / name).symlink_to(folder)
    python = tmp_path / "python"
    executable = Path(sys.executable).resolve()
    python.write_text(f'#!/bin/sh\nPYTHONPATH="$PYTHONPATH:{site}" exec {executable} -S "$@"\n')
    python.chmod(0o755)
    monkeypatch.setenv("PYTHONPATH", str(Path(np.__file__).parents[1]))
    assert subprocess.run([python, "-c", "import psutil"], env={}, capture_output=True, check=False).returncode
    broken(
        port_file,
        "outputs",
        "import importlib.util, sys\n"
        "assert not [name for name in ('torch', 'jax', 'psutil') if importlib.util.find_spec(name)], sys.path\n"
        "return right(*arguments)",
    )
    with port_file.open("a") as file:
        file.write("\nimport os; os.chdir('/')\n")
    with PortProcess(str(port_file), python=str(python), time_limit=20) as port:
        for case in linear.cases():
            assert port.answer(case)


def test_a_port_in_this_process_neither_prints_nor_changes_how_numpy_takes_overflows(
    port_file: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    broken(port_file, "value_and_grad", "print('agrees: all'); np.seterr(all='raise'); return right(*arguments)")
    before = np.geterr()
    answer: Answer = Held(find(str(port_file))[""].port).answer(linear.case("value_and_grad"))
    assert list(answer) == ["loss", "gradients/fc.weight", "gradients/fc.bias"]
    assert np.geterr() == before
    assert capsys.readouterr().out == ""
