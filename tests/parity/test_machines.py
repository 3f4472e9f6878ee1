"""What people's machines do to the judge: full disks, character sets, missing devices, umasks, threads."""

import json
import os
import stat
import subprocess
import sys
import threading
from pathlib import Path
from typing import Any

import jax
import numpy as np
import pytest
from matplotlib.figure import Figure
from matplotlib.text import Text

import parity
from parity.command import main
from parity.flags import interpreter
from parity.locate import locate
from parity.verdict.comparison import Curves, Verdict
from parity.verdict.pictures import pictures
from tests.conftest import ROOT
from tests.parity import linear

QUICK = ("--quick", "--only", "load", "outputs")

IN_JAX = """
import jax
import jax.numpy as jnp
import optax
import parity.port

def forward(params, batch):
    return jnp.dot(batch["x"], params["fc"]["kernel"], precision="highest") + params["fc"]["bias"]

port = parity.port.from_functions(
    outputs=lambda params, batch, train: {"logits": forward(params, batch)},
    loss=lambda params, batch: jnp.square(forward(params, batch)).sum() / 2,
    optimizer=optax.sgd(0.1),
    params=jax.eval_shape(lambda: {"fc": {"kernel": jnp.zeros((3, 2)), "bias": jnp.zeros(2)}}),
)
"""
SEVERAL = (
    "\nreference = {'one': reference, 'two': reference}\n",
    "\nimport sys\nport = dict.fromkeys(('one', 'two'), sys.modules[__name__])\n",
)


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A user's folder: reference.py; port.py, which is right; and jax_port.py, which is so, too."""
    (tmp_path / "reference.py").write_text(linear.REFERENCE)
    (tmp_path / "port.py").write_text(linear.SOURCE)
    (tmp_path / "jax_port.py").write_text(IN_JAX)
    monkeypatch.chdir(tmp_path)
    return tmp_path


def judge(*arguments: str, **settings: Any) -> subprocess.CompletedProcess[str]:
    """Run `python -m parity` as a user does."""
    variables = settings.pop("variables", {})
    return subprocess.run(
        [sys.executable, "-W", "ignore", "-m", "parity", *arguments],
        env={**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1", **variables},
        stdout=settings.pop("stdout", subprocess.PIPE),
        stderr=subprocess.PIPE,
        text=True,
        check=False,
        timeout=120,
        **settings,
    )


full_disk = pytest.mark.skipif(not Path("/dev/full").exists(), reason="this system has no /dev/full")


@full_disk
@pytest.mark.parametrize("programs", [("", ""), SEVERAL], ids=["one program", "several"])
def test_a_standard_output_that_is_full_takes_no_report_along(folder: Path, programs: tuple[str, str]) -> None:
    for name, more in zip(("reference.py", "port.py"), programs, strict=True):
        (folder / name).write_text((folder / name).read_text() + more)
    with Path("/dev/full").open("w") as full:
        done = judge("reference.py", "port.py", *QUICK, "--output", "made", stdout=full)
    assert done.returncode == 1
    assert done.stderr.endswith("\nparity: standard output: No space left on device\n")
    assert "Traceback" not in done.stderr
    assert json.loads((folder / "made" / "report.json").read_text())["agrees"] is True
    assert "agrees: " in (folder / "made" / "report.md").read_text()


@full_disk
def test_help_for_a_full_disk_ends_in_one_line(folder: Path) -> None:
    with Path("/dev/full").open("w") as full:
        done = judge("--help", stdout=full)
    assert (done.returncode, done.stderr) == (1, "parity: standard output: No space left on device\n")


def test_no_character_ends_the_judge(folder: Path) -> None:
    (folder / "größe.py").write_text(linear.SOURCE.replace('+ state["fc.bias"]', ""))
    variables = {"PYTHONIOENCODING": "ascii", "PYTHONUTF8": "1"}
    done = judge("reference.py", "größe.py", *QUICK, "--output", "made", variables=variables)
    assert done.returncode == 1, done.stderr
    assert r" \xb1 " in done.stdout
    assert r"gr\xf6\xdfe.py" in done.stdout
    assert (folder / "made" / "report.md").read_text().startswith("# größe.py beside")


def test_a_report_that_cannot_be_written_is_named(folder: Path) -> None:
    made = folder / "made"
    made.mkdir()
    small_disk = "import resource; resource.setrlimit(resource.RLIMIT_FSIZE, (200, 200))"
    (folder / "sitecustomize.py").write_text(f"import sys\nif sys.orig_argv[1:2] != ['-c']:\n    {small_disk}\n")
    variables = {"PYTHONDONTWRITEBYTECODE": "1", "PYTHONPATH": f"{folder}{os.pathsep}{ROOT}"}
    done = judge("reference.py", "port.py", *QUICK, "--output", "made", variables=variables)
    assert done.returncode == 1
    assert done.stderr.endswith("\nparity: made/report.json: cannot be written: File too large\n")
    assert list(made.iterdir()) == []
    assert done.stdout.splitlines()[-1].startswith("agrees: ")


@pytest.mark.parametrize(
    ("arguments", "name"),
    [
        (("new", "none/port.py"), "none/port.py"),
        (("record", "reference.py", "none/exam.npz"), "none/exam.npz"),
        (("answer", "exam.npz", "port.py", "none/answers.npz"), "none/answers.npz"),
    ],
)
def test_a_file_that_has_no_place_is_named_before_anything_is_asked(
    folder: Path, capsys: pytest.CaptureFixture[str], arguments: tuple[str, ...], name: str
) -> None:
    assert main([*arguments]) == 1
    assert capsys.readouterr().err == f"parity: {name}: cannot be written: No such file or directory\n"


def test_a_folder_that_cannot_be_written_is_named_before_anything_is_asked(
    folder: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(os, "access", lambda path, mode: Path(path).name != "made")  # tests may run as root
    assert main(["reference.py", "port.py", "--output", "made"]) == 1
    assert capsys.readouterr().err == "parity: made/report.json: cannot be written: Permission denied\n"


@pytest.mark.parametrize("umask", [0o022, 0o077, 0o002])
def test_who_may_read_a_file_is_what_the_umask_says(folder: Path, umask: int) -> None:
    before = os.umask(umask)
    try:
        assert main(["new", "mine.py"]) == 0
    finally:
        os.umask(before)
    assert stat.S_IMODE((folder / "mine.py").stat().st_mode) == 0o666 & ~umask


@pytest.mark.skipif(jax.default_backend() != "cpu", reason="this machine has the device")
@pytest.mark.parametrize(("platform", "when"), [("cuda", "asked"), ("nonsense", "imported")])
def test_a_device_that_is_missing_is_not_the_port_s_fault(folder: Path, platform: str, when: str) -> None:
    if when == "imported":
        (folder / "jax_port.py").write_text(IN_JAX.replace("import optax\n", "import optax\njnp.zeros(1)\n"))
    done = judge("reference.py", "jax_port.py", *QUICK, variables={"JAX_PLATFORMS": platform})
    assert done.returncode == 3, done.stderr
    assert done.stdout == ""
    last = done.stderr.splitlines()[-1]
    assert last.startswith(f"parity: JAX has no device to run the port on: JAX_PLATFORMS={platform}, and its plugin")


def test_where_there_is_no_torch_an_exam_on_paper_is_sat_and_judged(folder: Path) -> None:
    only = ("--quick", "--only", "load", "outputs", "loss", "gradients")
    assert main(["record", "reference.py", "exam.npz", *only]) == 0
    bare = folder / "bare"
    bare.mkdir()
    (bare / "torch.py").write_text("raise ModuleNotFoundError(\"No module named 'torch'\", name='torch')\n")
    variables = {"PYTHONPATH": f"{bare}{os.pathsep}{ROOT}"}
    done = judge("answer", "exam.npz", "jax_port.py", "answers.npz", variables=variables)
    assert done.returncode == 0, done.stderr
    done = judge("replay", "exam.npz", "answers.npz", variables=variables)
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines()[-1].startswith("agrees: ")
    for command in (["reference.py", "jax_port.py"], ["mistakes"]):
        done = judge(*command, variables=variables)
        assert (done.returncode, done.stdout) == (3, "")
        assert done.stderr.startswith("parity: No module named 'torch': ")
        assert done.stderr.count("\n") == 1


def test_a_port_is_judged_without_jit(folder: Path) -> None:
    done = judge("reference.py", "jax_port.py", *QUICK, variables={"JAX_DISABLE_JIT": "1"})
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines()[-1].startswith("agrees: ")


def test_names_are_drawn_as_they_are(monkeypatch: pytest.MonkeyPatch) -> None:
    drawn: list[str] = []
    save = Figure.savefig

    def note(figure: Figure, *arguments: Any, **settings: Any) -> None:
        drawn.extend(text.get_text() for text in figure.findobj(Text) if not text.get_parse_math())
        save(figure, *arguments, **settings)

    monkeypatch.setattr(Figure, "savefig", note)
    name, metric = r"$\por{t.py", r"pri$ce of \x$"  # no formula: as one, each of them raises
    side = {metric: np.random.default_rng(0).normal(size=(3, 2)).tolist()}
    drift = {"port": [1e-7, 1e-6], "reference, moved 1": [1e-7, 2e-6]}
    made = pictures(Curves(drift, {"reference": side, "port": side}), {metric: 0.1}, name)
    assert [*made] == ["trajectory.png", "trends.png"]
    assert drawn.count(name) == 2
    assert {metric, f"{metric}, 3 seeds", f"difference in {metric}"} <= set(drawn)


def test_hints_name_the_interpreter_as_a_shell_finds_it(
    folder: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    (folder / "port.py").write_text(linear.SOURCE.replace('+ state["fc.bias"]', ""))
    real, executable = sys.executable, folder / "my env" / "bin" / "python"
    executable.parent.mkdir(parents=True)
    executable.touch(0o755)
    monkeypatch.setattr(sys, "executable", str(executable))
    assert interpreter() == "'my env/bin/python'"
    assert main(["reference.py", "port.py", *QUICK, "--python", real]) == 1
    assert "next: 'my env/bin/python' -m parity reference.py" in capsys.readouterr().out
    monkeypatch.setenv("PATH", f"{executable.parent}:{os.environ['PATH']}")
    assert interpreter() == "python"


def test_a_port_is_judged_in_a_thread(folder: Path) -> None:
    reference = locate("reference.py", "reference")[1]
    found: list[Verdict] = []
    thread = threading.Thread(target=lambda: found.append(parity.judge(reference, "port.py", quick=True)))
    thread.start()
    thread.join()
    assert [verdict.agrees for verdict in found] == [True]
