"""The process that a port runs in: reads cases from one pipe and answers on another. NumPy only.

`process.py` starts it. Standard output and error are the port's to print on; nothing of the exam goes there.
"""

import contextlib
import faulthandler
import os
import struct
import sys
import threading
import time
from typing import IO, Any

from parity.cases_file import case_of, pack, unpack
from parity.errors import PortError, UnavailableError, told
from parity.port.held import Held, find

HEADER = struct.Struct("<16sQ")
"""What stands before each message: a number drawn for it, which its reply repeats, and its length in bytes."""

START = """
import importlib.util, sys
folder, package, *rest = sys.argv[1:]
if sys.version_info < (3, 10):
    sys.exit("needs Python 3.10 or later, this is " + sys.version.split()[0])
spec = importlib.util.spec_from_file_location(package, folder + "/__init__.py", submodule_search_locations=[folder])
sys.modules[package] = importlib.util.module_from_spec(spec)
spec.loader.exec_module(sys.modules[package])
importlib.import_module(package + ".port.worker").main(*rest)
"""
"""Run by `python -c`: this package alone is made known, whatever else is installed beside it."""


def main(asked: str, answered: str, spec: str, adapter: str) -> None:
    """Answer until there is no more question. The first one is the empty message: who are you?"""
    sys.argv = [spec]
    with contextlib.suppress(ImportError, ValueError, OSError):
        import resource

        resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    faulthandler.enable()
    threading.Thread(target=_end_with_the_judge, args=(os.getppid(),), daemon=True).start()
    try:
        with open(int(asked), "rb") as requests, open(int(answered), "wb") as replies:
            _answer_all(requests, replies, spec, adapter)
    except OSError as error:
        sys.exit(f"the port closed the pipe that the exam uses: {error.strerror}")


def _end_with_the_judge(judge: int) -> None:
    """A judge that was killed cannot end a port that hangs."""
    while os.getppid() == judge:
        time.sleep(1.0)
    os._exit(1)


def _answer_all(requests: IO[bytes], replies: IO[bytes], spec: str, adapter: str) -> None:
    ports: dict[str, Held] = {}

    def reply(question: Any) -> dict[str, Any]:
        nonlocal ports
        ports = ports or find(spec, adapter)
        if question:
            return ports[question["program"]].answer(case_of(question["case"]))
        return {name: port.describe() for name, port in ports.items()}

    while header := requests.read(HEADER.size):
        number, size = HEADER.unpack(header)
        question = unpack(requests.read(size)) if size else None
        try:
            content = pack({"answer": reply(question)})
        except UnavailableError as error:
            content = pack({"unavailable": str(error)})
        except PortError as error:
            content = pack({"error": str(error), "hint": error.hint})
        except BaseException as error:  # an array whose methods raise, say
            call = question["case"]["call"] if question else "import"
            content = pack({"error": f"{call}: the port raised {told(error)}"})
        replies.write(HEADER.pack(number, len(content)))
        replies.write(content)
        replies.flush()
