"""Parity as an assertion, for pytest: a failure shows the report and nothing of how it came about."""

from typing import Any

from parity.exam import judge
from parity.verdict.report import errors, report


def assert_parity(reference: Any, port: Any, **settings: Any) -> None:
    """That the port agrees with the reference at every stage.

    Args:
        reference: a `Reference`.
        port: `file.py:name` or `module:name`, which run in a process of their own; or a module or object of `Port`.
        settings: those of `judge`: stages, quick, precision, seed, ….

    Raises:
        AssertionError: it does not; the message is the report.
        PortError: there is no port to judge.
    """
    __tracebackhide__ = True
    verdict = judge(reference, port, **settings)
    if not verdict.agrees:
        told = (line for line in errors(verdict) if line.startswith("error"))
        first = next(told, "nothing was compared")  # what a CI's review shows
        raise AssertionError(f"{first}\n{report(verdict)}") from None
