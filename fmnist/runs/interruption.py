"""Ctrl-C and SIGTERM: end soon, with everything that was done kept."""

import contextlib
import os
import select
import signal
import sys
import threading
from collections.abc import Callable, Iterator
from types import FrameType

from fmnist.command import Interrupted

GRACE = 0.8
SIGNALS = (signal.SIGINT, signal.SIGTERM)


@contextlib.contextmanager
def graceful(advice: str) -> Iterator[Callable[[], None]]:
    """Let a block end at its next safe point, where it calls what this gives, when a signal asks for it.

    A signal raises `Interrupted` at the next safe point. If none comes within 0.8 s, for compiled programs cannot be
    left, or if a second signal comes, the process ends at once, between any two instructions: files must be valid
    always. A signal that this process was told to ignore stays ignored, and outside of the main thread, where Python
    takes no handlers, signals do what they did.

    Args:
        advice: what the user is told at either end.
    """
    mine = [each for each in SIGNALS if signal.getsignal(each) not in (signal.SIG_IGN, None)]
    if threading.current_thread() is not threading.main_thread() or not mine:
        yield lambda: None
        return
    receiving, sending = os.pipe()
    os.set_blocking(sending, False)
    asked = threading.Event()
    number = 0

    def watch() -> None:
        """Python runs handlers only between instructions of its main thread; this thread never waits for that."""
        nonlocal number
        first = os.read(receiving, 1)
        if not first or first[0] not in mine:
            return
        number = first[0]
        asked.set()
        select.select([receiving], [], [], GRACE)
        if asked.is_set():
            with contextlib.suppress(OSError, ValueError):
                show_cursor = "\x1b[?25h" if sys.stderr.isatty() else ""
                os.write(2, f"{show_cursor}{advice}\n".encode())
            os._exit(128 + number)

    def safe_point() -> None:
        if asked.is_set():
            asked.clear()
            raise Interrupted(number, advice)

    def leave_to_watch(_: int, __: FrameType | None) -> None:
        pass

    before = [signal.signal(each, leave_to_watch) for each in mine]
    wakeup = signal.set_wakeup_fd(sending, warn_on_full_buffer=False)
    watcher = threading.Thread(target=watch, daemon=True)
    watcher.start()
    try:
        yield safe_point
    finally:
        asked.clear()
        signal.set_wakeup_fd(wakeup)
        for each, handler in zip(mine, before, strict=True):
            signal.signal(each, handler)
        os.write(sending, b"\0")
        watcher.join(GRACE)
        os.close(sending)
        os.close(receiving)
