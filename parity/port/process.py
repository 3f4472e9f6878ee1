"""A port in a process of its own: what it does there cannot change the verdict but by being reported."""

import contextlib
import os
import secrets
import selectors
import signal
import subprocess
import sys
import threading
import time
from collections import deque
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import IO, Any

from parity.cases import Answer, Case
from parity.cases_file import MOST_BYTES, pack, unpack
from parity.errors import PortError, UnavailableError, UsageError, printable
from parity.port.held import Held
from parity.port.worker import HEADER, START

try:
    import psutil
except ImportError:  # where a port sits a recorded exam, NumPy and the port's own packages are enough
    psutil = None

TIME_LIMIT = 600.0
"""Seconds that one case may take, compilation included."""
_TICK = 0.1
_PACKAGE = Path(__file__).parents[1]
_PRINTED_LINES = 8


class PortProcess:
    """`with PortProcess("port.py") as port: port.answer(case)`.

    `python` is the interpreter to run it, of any environment that has NumPy and what the port needs. `time_limit` is
    in seconds a case, `memory_limit` in bytes, of the process and its children; three quarters of the machine's
    where it is not given. A process that ended is started afresh for the next case.

    Raises:
        PortError: from all methods, for whatever the port does instead of answering.
        UsageError: the interpreter cannot be run.
        UnavailableError: JAX has no device there.
    """

    def __init__(
        self,
        spec: str,
        python: str | None = None,
        time_limit: float = TIME_LIMIT,
        memory_limit: float | None = None,
        adapter: str = "",
    ) -> None:
        self.spec, self.python, self.time_limit, self.adapter = spec, python, time_limit, adapter
        if psutil is None and memory_limit is not None:
            raise UsageError("--memory-limit needs the package psutil; install it, or leave the flag out")
        self.memory_limit = memory_limit or (0.75 * psutil.virtual_memory().total if psutil else float("inf"))
        self._process: subprocess.Popen[bytes] | None = None
        self._descriptions: dict[str, dict[str, Any]] = {}

    def __enter__(self) -> "PortProcess":
        self._start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop()

    @property
    def programs(self) -> dict[str, Any]:
        """What can be examined, with its own `describe()` and `answer(case)`, by its name; a lone one's is ""."""
        return {
            name: SimpleNamespace(describe=partial(self.describe, name), answer=partial(self.answer, program=name))
            for name in self._descriptions
        }

    def describe(self, program: str = "") -> dict[str, Any]:
        """The optional functions it offers, whether it can do float64, its dropout, its packages' versions."""
        return self._descriptions[program]

    def answer(self, case: Case, program: str = "") -> Answer:
        """What the port says to the case."""
        if self._process is None:
            self._start()
        answer: Answer = self._ask(case.call, pack({"program": program, "case": case}))
        return answer

    def _start(self) -> None:
        ours = () if self.python is None else ("PYTHONPATH", "PYTHONHOME")  # not to be seen in another environment
        inherited = {key: value for key, value in os.environ.items() if key not in ours}
        environment = {"XLA_PYTHON_CLIENT_PREALLOCATE": "false", **inherited, "PYTHONUNBUFFERED": "1"}
        for_port, self._requests = os.pipe()
        self._replies, from_port = os.pipe()
        package = __package__.partition(".")[0]
        arguments = [str(_PACKAGE), package, str(for_port), str(from_port), self.spec, self.adapter]
        try:
            self._process = subprocess.Popen(
                [self.python or sys.executable, "-c", START, *arguments],
                stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE,
                stderr=subprocess.STDOUT,
                pass_fds=(for_port, from_port),
                env=environment,
                start_new_session=True,  # Ctrl-C is for the judge, who ends the port
            )
        except OSError as error:
            os.close(self._requests)
            os.close(self._replies)
            raise UsageError(f"{self.python}: cannot be run: {error.strerror}; expected a Python interpreter") from None
        finally:
            os.close(for_port)
            os.close(from_port)
        os.set_blocking(self._requests, False)
        assert self._process.stdout is not None
        self._printed: deque[bytes] = deque(maxlen=_PRINTED_LINES)
        self._reader = threading.Thread(target=_keep_last, args=(self._process.stdout, self._printed), daemon=True)
        self._reader.start()
        try:
            self._descriptions = self._ask("import", b"")
        except BaseException:  # a port that cannot be had is not waited for
            self._stop()
            raise

    def _stop(self) -> None:
        process, self._process = self._process, None
        if process is None:
            return
        for one in _family(process.pid)[1:]:
            with contextlib.suppress(psutil.Error):
                one.kill()
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()
        self._reader.join(1.0)
        os.close(self._requests)
        os.close(self._replies)

    def _ask(self, call: str, question: bytes) -> Any:
        number = secrets.token_bytes(16)
        try:
            reply = self._exchange(HEADER.pack(number, len(question)) + question, number)
        except _Ended as ended:
            reason = str(ended) or self._end()
            self._stop()
            raise PortError(f"{call}: {reason}", self._hint()) from None
        except BaseException:
            self._stop()
            raise
        if "unavailable" in reply:
            raise UnavailableError(reply["unavailable"])
        if "answer" not in reply:
            raise PortError(reply["error"], reply.get("hint", "") or self._hint())
        return reply["answer"]

    def _exchange(self, question: bytes, number: bytes) -> dict[str, Any]:
        """Send the question while the port reads, and return its reply, within the limits."""
        assert self._process is not None
        end, to_send, received = time.monotonic() + self.time_limit, memoryview(question), bytearray()
        with selectors.DefaultSelector() as selector:
            selector.register(self._replies, selectors.EVENT_READ)
            selector.register(self._requests, selectors.EVENT_WRITE)
            checked = 0.0
            while True:
                ready = {key.fd for key, _ in selector.select(_TICK)}
                if self._requests in ready:
                    try:
                        to_send = to_send[os.write(self._requests, to_send[: 1 << 20]) :]
                    except BrokenPipeError:  # it can still say why
                        to_send = to_send[:0]
                    if not to_send:
                        selector.unregister(self._requests)
                if self._replies in ready:
                    part = os.read(self._replies, 1 << 20)
                    received += part
                    if len(received) >= HEADER.size:
                        echoed, size = HEADER.unpack_from(received)
                        if echoed != number or size > MOST_BYTES or len(received) > HEADER.size + size:
                            raise _Ended("the port wrote into the pipe that the exam uses")
                        if len(received) == HEADER.size + size:
                            return _unpacked(bytes(received[HEADER.size :]))
                    if not part:
                        raise _Ended("")
                elif self._process.poll() is not None:
                    raise _Ended("")
                now = time.monotonic()
                if now > end:
                    raise _Ended(f"no answer in {self.time_limit:g} s; --time-limit allows more")
                if now > checked + _TICK:
                    checked = now
                    if _memory(self._process.pid) > self.memory_limit:
                        limit = f"{self.memory_limit / (1 << 30):.3g} GiB"
                        raise _Ended(f"the port took more than {limit} of memory; --memory-limit allows more")

    def _end(self) -> str:
        """How a process ended that went away without an answer."""
        assert self._process is not None
        try:
            code = self._process.wait(2.0)
        except subprocess.TimeoutExpired:
            return "the port closed the pipe that the exam uses"
        if code == -signal.SIGKILL:
            return "the port's process was killed (SIGKILL), as a system short of memory does"
        if code < 0:
            return f"the port's process crashed ({signal.Signals(-code).name})"
        self._reader.join(1.0)
        last = next((line.strip() for line in reversed(self._last_lines()) if line), "")
        return f"the port ended its own process with exit code {code}" + (f": {last}" if code and last else "")

    def _hint(self) -> str:
        lines = [f"  | {line}" for line in self._last_lines()]
        return "\n".join(["the last lines that the port printed:", *lines]) if lines else ""

    def _last_lines(self) -> list[str]:
        return [printable(line.decode(errors="replace").rstrip())[:200] for line in self._printed]


class _Ended(Exception):
    """The exchange is over without an answer: the reason, or "" where the process just went away."""


def _family(pid: int) -> list[Any]:
    """A process and its children, and theirs."""
    try:
        process = psutil.Process(pid) if psutil else None
        return [process, *process.children(recursive=True)] if process else []
    except psutil.Error:
        return []


def _memory(pid: int) -> float:
    """Bytes that a process and its children hold in memory; not what they reserve, which JAX does generously."""
    total = 0.0
    for one in _family(pid):
        with contextlib.suppress(psutil.Error):
            total += one.memory_info().rss
    return total


def _unpacked(content: bytes) -> dict[str, Any]:
    try:
        reply = unpack(content)
        if isinstance(reply, dict):
            return reply
    except ValueError as error:
        if "ml_dtypes" in str(error):
            raise PortError(f"the port's answer {error}") from None
    raise _Ended("the port wrote into the pipe that the exam uses")


def _keep_last(stream: IO[bytes], lines: deque[bytes]) -> None:
    """Keep the last lines of what is printed, however much and however long."""
    with contextlib.suppress(ValueError, OSError):
        while line := stream.readline(1 << 16):
            lines.append(line)


@contextlib.contextmanager
def examinee(port: Any) -> Iterator[Any]:
    """Whatever a caller names as a port, as something to be examined: `file.py:name` in a process of its own; a module
    or object of the functions of `Port` in this one; what has `describe` and `answer` as it is."""
    if isinstance(port, str):
        with PortProcess(port) as process:
            yield process
    elif callable(getattr(port, "describe", None)) and callable(getattr(port, "answer", None)):
        yield port
    else:
        yield Held(port)
