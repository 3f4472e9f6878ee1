"""What people's machines do to a program: missing devices, odd file systems, character sets, threads, umasks."""

import errno
import fcntl
import gc
import gzip
import json
import os
import stat
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import jax
import pytest
import torch
from PIL import Image

from benchmarks import measure, raw
from fmnist import command as commands
from fmnist.command import Failure, UnavailableError, interpreter, say, say_once, words_of
from fmnist.data import MD5, Dataset
from fmnist.experiment import Experiment
from fmnist.runs import folders
from fmnist_jax import train as jax_train
from fmnist_torch import train as torch_train
from tests.conftest import ROOT, assert_one_line, command, here
from tests.programs.conftest import SIDES

TINY = ("--epochs", "1", "--batch-size", "60000")
SWEEP = ("fmnist_jax.sweep", *TINY, "--seeds", "0-1")
RUN = {"checkpoint.safetensors", "config.json", "environment.json", "metrics.jsonl", "model.safetensors", "curves.png"}


@pytest.fixture(autouse=True)
def said_anew(dataset: Dataset) -> Iterator[None]:
    """What a process says once, each test may hear."""
    say_once.cache_clear()
    yield
    say_once.cache_clear()


# Devices that are missing


@pytest.mark.skipif(jax.default_backend() != "cpu", reason="this machine has the device")
@pytest.mark.parametrize("platform", ["cuda", "tpu", "nonsense"])
def test_a_platform_that_jax_lacks_ends_every_command_in_one_line(platform: str) -> None:
    modules = ["train", "predict", "sweep", "lessons"]
    program = f"""
import importlib, sys
from fmnist.command import run
for name in {modules}:
    module = importlib.import_module(f"fmnist_jax.{{name}}" + ".__main__" * (name in ("sweep", "lessons")))
    sys.argv = [name, *["README.md"] * (name == "predict")]
    print(run(module.main, module.NAME))
"""
    environment = {**os.environ, "JAX_PLATFORMS": platform}
    done = subprocess.run(
        [sys.executable, "-c", program], cwd=ROOT, env=environment, capture_output=True, text=True, check=True
    )
    assert done.stdout.split() == ["3"] * len(modules)
    for module, line in zip(modules, done.stderr.splitlines(), strict=True):
        assert line.startswith(f"fmnist_jax.{module}: JAX has no device to run on: JAX_PLATFORMS={platform}")


@pytest.mark.parametrize(
    "error", [AssertionError(), RuntimeError("no driver"), ImportError("libcuda"), OSError("busy")]
)
def test_whatever_jax_raises_for_a_missing_device_it_is_one_line(
    error: Exception, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: Any) -> Any:
        raise error

    monkeypatch.setattr(jax, "devices", fail)
    assert_one_line(here("fmnist_jax.train", *TINY), "fmnist_jax.train", 3, "JAX has no device to run on")


@pytest.mark.skipif(torch.accelerator.is_available(), reason="this machine has the device")
@pytest.mark.parametrize("program", ["train", "predict"])
def test_a_device_that_torch_lists_and_cannot_use_ends_in_one_line(
    program: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.accelerator, "current_accelerator", lambda check_available: torch.device("cuda"))
    monkeypatch.setattr(torch.accelerator, "device_count", lambda: 1)
    done = here(f"fmnist_torch.{program}", *(TINY if program == "train" else ["README.md"]))
    assert_one_line(done, f"fmnist_torch.{program}", 3, "--device auto: torch cannot use cuda")


def test_a_side_of_the_benchmarks_that_lacks_its_device_ends_them_as_that() -> None:
    with pytest.raises(UnavailableError, match="no device here"):
        measure.run([sys.executable, "-c", "import sys; print('no device here', file=sys.stderr); sys.exit(3)"])


# Output that fails


def test_no_character_ends_a_command_and_no_name_is_too_strange(tmp_path: Path) -> None:
    done = command(*SWEEP, "--output", str(tmp_path), PYTHONIOENCODING="ascii")
    assert done.returncode == 0, done.stderr
    assert r"\xb1" in done.stdout
    assert {path.name for path in tmp_path.iterdir()} == {"sweep.json", "sweep.png"}


@pytest.mark.parametrize("module", ["fmnist_jax.sweep", "fmnist_jax.predict", "fmnist_torch.predict"])
def test_results_are_saved_before_they_are_printed(
    module: str, tmp_path: Path, trained_tiny: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A full disk behind standard output is said to be that, and takes nothing else with it."""
    program = __import__(f"{module}.__main__" if "sweep" in module else module, fromlist=["main"])
    arguments = SWEEP[1:] if "sweep" in module else [str(trained_tiny)]
    monkeypatch.setattr(sys, "argv", [module, *arguments, "--output", str(tmp_path)])
    with monkeypatch.context() as patch, (tmp_path / "said").open("w") as said:
        patch.setattr(sys, "stderr", said)
        patch.setattr(sys, "stdout", Full())
        assert commands.run(program.main, module) == 1
    kind = module.partition(".")[2].replace("predict", "predictions")
    assert (tmp_path / f"{kind}.json").stat().st_size > 1000
    assert (tmp_path / f"{kind}.png").read_bytes().startswith(b"\x89PNG")
    assert (tmp_path / "said").read_text().endswith(f"{module}: standard output: No space left on device\n")


class Full:
    """A standard output whose disk is full."""

    def write(self, _: str) -> int:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    def flush(self) -> None:
        pass

    def fileno(self) -> int:
        raise OSError(errno.EBADF, os.strerror(errno.EBADF))


@pytest.fixture(scope="module")
def trained_tiny(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a run of one step."""
    folder = tmp_path_factory.mktemp("tiny")
    done = here("fmnist_jax.train", *TINY, "--output", str(folder))
    assert done.returncode == 0, done.stderr
    return folder


def test_an_epoch_is_recorded_before_it_is_printed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "argv", ["train", *TINY, "--output", str(tmp_path)])
    monkeypatch.setattr(sys, "stdout", Full())
    assert commands.run(jax_train.main, jax_train.NAME) == 1
    assert '"loss"' in (tmp_path / "metrics.jsonl").read_text()


@pytest.mark.parametrize(
    ("error", "words"),
    [
        (OSError(errno.ENOSPC, "No space left on device"), "x: No space left on device"),
        (OSError(errno.ENOSPC, "No space left on device", "a"), "x: a: No space left on device"),
        (OSError(errno.ENOSPC, "No space left on device", "a", None, "b"), "x: a -> b: No space left on device"),
    ],
)
def test_an_os_error_is_about_the_files_that_it_names(
    error: OSError, words: str, capsys: pytest.CaptureFixture[str]
) -> None:
    def fail() -> None:
        raise error

    assert commands.run(fail, "x") == 1
    assert capsys.readouterr().err == f"{words}\n"


def test_the_benchmarks_say_which_folder_is_full_and_how_much_it_takes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: Any) -> int:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(Path, "write_bytes", full)
    with pytest.raises(Failure, match=rf"{tmp_path}: No space left on device: the data takes 55 MB there; .*TMPDIR"):
        raw.write("synthetic", tmp_path)


def test_unpacked_data_is_trained_on_though_no_temporary_folder_is_left(
    source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    packed = source / "FashionMNIST" / "raw"
    unpacked = tmp_path / "FashionMNIST" / "raw"
    unpacked.mkdir(parents=True)
    for name in MD5:
        (unpacked / name).with_suffix("").write_bytes(gzip.decompress((packed / name).read_bytes()))
    monkeypatch.setattr("tempfile.tempdir", "/nowhere")
    done = here("fmnist_jax.train", *TINY, "--data", str(tmp_path))
    assert done.returncode == 0, done.stderr
    assert f"data: FashionMNIST ({tmp_path})" in done.stderr
    done = here("fmnist_jax.train", *TINY, "--data", str(unpacked))
    assert_one_line(done, "fmnist_jax.train", 2, f"name the folder above both: {tmp_path}")


def test_a_phone_s_picture_is_answered(trained_tiny: Path, tmp_path: Path) -> None:
    first, second = Image.new("L", (280, 280)), Image.new("L", (140, 140), 255)
    first.paste(180, (80, 40, 200, 240))
    first.save(tmp_path / "phone.jpg", format="MPO", save_all=True, append_images=[second])
    for side in SIDES:
        done = here(f"{side}.predict", str(trained_tiny), str(tmp_path / "phone.jpg"))
        assert done.returncode == 0, done.stderr
        assert "inverted" not in done.stderr, "the first picture is dark at its border, the second light"


# File systems that cannot do everything


def refuse(number: int, only: Callable[..., bool] = lambda *_: True) -> Callable[[Any], Any]:
    """Make a system call fail with an error number, where its arguments are these."""

    def broken(call: Any) -> Any:
        def instead(*arguments: Any) -> Any:
            if only(*arguments):
                raise OSError(number, os.strerror(number))
            return call(*arguments)

        return instead

    return broken


def is_folder(descriptor: int) -> bool:
    return stat.S_ISDIR(os.fstat(descriptor).st_mode)


@pytest.mark.parametrize("side", SIDES)
def test_what_a_file_system_cannot_do_is_said_once_and_the_run_goes_on(
    side: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(fcntl, "flock", refuse(errno.ENOLCK)(fcntl.flock))
    monkeypatch.setattr(os, "fsync", refuse(errno.EINVAL, is_folder)(os.fsync))
    for name in ("chmod", "fchmod"):
        monkeypatch.setattr(os, name, refuse(errno.EPERM)(getattr(os, name)))
    done = here(f"{side}.train", *TINY, "--output", str(tmp_path))
    assert done.returncode == 0, done.stderr
    assert {path.name for path in tmp_path.iterdir()} == RUN
    assert done.stderr.count("cannot be locked (No locks available)") == 1
    assert done.stderr.count("cannot be flushed (Invalid argument)") == 1
    done = here(f"{side}.train", "--epochs", "2", "--resume", "--output", str(tmp_path))
    assert done.returncode == 0, done.stderr


def test_a_disk_that_fails_ends_the_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "fsync", refuse(errno.EIO)(os.fsync))
    done = here("fmnist_jax.train", *TINY, "--output", str(tmp_path))
    assert done.returncode == 1
    assert done.stderr.endswith("config.json: cannot be written: Input/output error\n")


@pytest.mark.parametrize(("mask", "mode"), [(0o077, 0o600), (0o002, 0o664)])
def test_files_are_as_the_umask_says(mask: int, mode: int, tmp_path: Path) -> None:
    before = os.umask(mask)
    try:
        assert here("fmnist_jax.train", *TINY, "--output", str(tmp_path)).returncode == 0
    finally:
        os.umask(before)
    modes = {path.name: stat.S_IMODE(path.stat().st_mode) for path in tmp_path.iterdir()}
    assert modes == dict.fromkeys(RUN, mode)


# The process that a program finds itself in


@pytest.mark.parametrize("module", [jax_train, torch_train])
def test_a_trainer_runs_in_a_thread(module: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "argv", ["train", *TINY, "--output", str(tmp_path)])
    threads, codes = torch.get_num_threads(), []
    thread = threading.Thread(target=lambda: codes.append(commands.run(module.main, module.NAME)))
    thread.start()
    thread.join()
    assert codes == [0]
    assert {path.name for path in tmp_path.iterdir()} == RUN
    assert torch.get_num_threads() == threads, "what torch's user has chosen is left as it was"


def test_a_sweep_runs_where_jax_was_used_before() -> None:
    jax.devices()
    done = here(*SWEEP)
    assert done.returncode == 0, done.stderr


def test_tiny_networks_get_one_thread_of_torch_unless_asked_for_more(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    monkeypatch.delenv("MKL_NUM_THREADS", raising=False)
    before = torch.get_num_threads()
    torch.set_num_threads(3)
    try:
        for experiment, count in ((Experiment(), 1), (Experiment(hidden=(4096,)), 3), (Experiment(batch_size=4096), 3)):
            with torch_train.threads(experiment) as given:
                assert given == torch.get_num_threads() == count
            assert torch.get_num_threads() == 3
        monkeypatch.setenv("OMP_NUM_THREADS", "3")
        with torch_train.threads(Experiment()) as given:
            assert given == 3
    finally:
        torch.set_num_threads(before)


def test_the_number_of_threads_is_in_the_header(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    monkeypatch.delenv("MKL_NUM_THREADS", raising=False)
    done = here("fmnist_torch.train", "--epochs", "1", "--output", str(tmp_path))
    assert "device: cpu, highest precision, 1 thread\n" in done.stderr
    assert json.loads((tmp_path / "environment.json").read_text())["threads"] == 1


@pytest.fixture
def without_jit() -> Iterator[None]:
    jax.config.update("jax_disable_jit", True)
    yield
    jax.config.update("jax_disable_jit", False)


def test_without_jit_the_mirror_does_the_same_slowly(without_jit: None, tmp_path: Path) -> None:
    slow = here("fmnist_jax.train", *TINY, "--output", str(tmp_path / "slow"))
    assert slow.returncode == 0, slow.stderr
    assert slow.stderr.startswith("JAX_DISABLE_JIT: nothing is compiled")
    slow_sweep = here(*SWEEP[:-1], "0")
    assert slow_sweep.returncode == 0, slow_sweep.stderr
    jax.config.update("jax_disable_jit", False)
    fast = here("fmnist_jax.train", *TINY, "--output", str(tmp_path / "fast"))
    lines = [(tmp_path / name / "metrics.jsonl").read_text().splitlines() for name in ("slow", "fast")]
    for one, other in zip(*lines, strict=True):
        assert json.loads(one) == pytest.approx(json.loads(other), abs=1e-4)
    assert slow.stdout.count("\n") == fast.stdout.count("\n")


def test_what_measures_compiled_programs_says_that_it_needs_them(without_jit: None) -> None:
    assert_one_line(here("fmnist_jax.lessons"), "fmnist_jax.lessons", 2, "JAX_DISABLE_JIT: .*; unset it")
    assert_one_line(here("benchmarks", JAX_DISABLE_JIT="1"), "benchmarks", 2, "JAX_DISABLE_JIT: .*; unset it")


# Words


def test_a_hint_names_the_interpreter_that_it_is_for(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    executable = tmp_path / "my env" / "bin" / "python"
    executable.parent.mkdir(parents=True)
    executable.touch(mode=0o755)
    monkeypatch.setattr(sys, "executable", str(executable))
    assert interpreter() == f"'{executable}'"
    monkeypatch.chdir(tmp_path)
    assert interpreter() == "'my env/bin/python'"
    monkeypatch.setenv("PATH", str(executable.parent))
    assert interpreter() == "python"


def test_reasons_are_words() -> None:
    assert words_of(KeyError("BF16")) == "it lacks 'BF16'"
    assert words_of(AssertionError()) == "AssertionError"
    assert words_of(ValueError("too long")) == "too long"


def test_a_note_is_said_once(capsys: pytest.CaptureFixture[str]) -> None:
    for _ in range(3):
        say_once("only once")
    say("out", "put")
    assert capsys.readouterr() == ("out\nput\n", "only once\n")


def test_a_new_folder_is_told_to_hold_no_run(tmp_path: Path, trained_tiny: Path) -> None:
    done = here("fmnist_jax.train", *TINY, "--output", str(tmp_path / "new"), "--resume")
    assert done.returncode == 0
    assert f"--resume: {tmp_path / 'new'} holds no run yet: starting one\n" in done.stderr
    done = here("fmnist_jax.train", "--output", str(trained_tiny), "--resume")
    assert "holds no run" not in done.stderr


def test_a_lock_that_another_holds_is_still_kept(tmp_path: Path) -> None:
    with folders.hold(tmp_path):
        done = here("fmnist_jax.train", *TINY, "--output", str(tmp_path))
    assert done.returncode == 2
    assert f"process {os.getpid()} is at work there" in done.stderr


def test_a_command_looks_for_cycles_though_its_imports_did_not() -> None:
    enabled: list[bool] = []
    gc.disable()
    try:
        assert commands.run(lambda: enabled.append(gc.isenabled()), "a command") == 0
    finally:
        gc.enable()
    assert enabled == [True]


@pytest.mark.parametrize(("watched", "as_others"), [((), False), (("-m", "cProfile"), True), (("-X", "dev"), True)])
def test_leaving_at_once_loses_neither_status_nor_words_nor_a_profile(
    watched: tuple[str, ...], as_others: bool, tmp_path: Path
) -> None:
    (tmp_path / "script.py").write_text(
        "import atexit, sys\n"
        "from fmnist import command\n"
        "atexit.register(print, 'cleaned up')\n"
        "def main():\n"
        "    print('done')\n"
        "    print('nearly', end='', file=sys.stderr)\n"
        "    raise command.Failure('failed')\n"
        "if __name__ == '__main__':\n"
        "    try:\n"
        "        command.leave(command.run(main, 'script'), 'script')\n"
        "    finally:\n"
        "        print('left as others do')\n"
    )
    arguments = [sys.executable, *watched, "-m", "script"]
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    done = subprocess.run(arguments, capture_output=True, text=True, env=environment, cwd=tmp_path, check=False)
    assert done.stderr == "nearlyscript: failed\n"
    assert done.stdout.startswith("done\n")
    assert "cleaned up" in done.stdout
    assert ("left as others do" in done.stdout) == as_others
    assert ("function calls" in done.stdout) == ("cProfile" in watched)
    assert done.returncode == 1 or "cProfile" in watched


def test_no_epoch_is_begun_that_nobody_asked_for(monkeypatch: pytest.MonkeyPatch) -> None:
    begun: list[int] = []
    train_epoch = jax_train.train_epoch

    def counted(*args: Any, **kwargs: Any) -> Any:
        begun.append(len(begun) + 1)
        return train_epoch(*args, **kwargs)

    monkeypatch.setattr(jax_train, "train_epoch", counted)
    done = here("fmnist_jax.train", "--epochs", "3", "--batch-size", "60000")
    assert done.returncode == 0, done.stderr
    assert begun == [1, 2, 3]
    assert done.stdout.count("Avg loss") == 3


def test_what_a_test_pass_raises_in_its_thread_reaches_the_user(monkeypatch: pytest.MonkeyPatch) -> None:
    def fails(*_: Any) -> Any:
        raise Failure("no test pass today")

    monkeypatch.setattr(jax_train, "evaluate", fails)
    done = here("fmnist_jax.train", "--epochs", "3", "--batch-size", "60000")
    assert done.returncode == 1
    assert done.stderr.splitlines()[-1] == "fmnist_jax.train: no test pass today"
    assert "Epoch 1" in done.stdout
    assert "Epoch 2" not in done.stdout
