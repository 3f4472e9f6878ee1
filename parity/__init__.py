"""Judges a port of any PyTorch training program: whether it differs by rounding or by a bug, where, and why.

Names come lazily: a port's process imports this package, and never meets torch.
"""

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from parity import port as port
    from parity.assertion import assert_parity as assert_parity
    from parity.exam import judge as judge
    from parity.reference.program import Reference as Reference
    from parity.verdict.comparison import Verdict as Verdict

_HOMES = {
    "assert_parity": ".assertion",
    "judge": ".exam",
    "Reference": ".reference.program",
    "Verdict": ".verdict.comparison",
}
__all__ = ["Reference", "Verdict", "assert_parity", "judge", "port"]


def __getattr__(name: str) -> Any:
    if name == "port":
        return importlib.import_module(".port", __name__)
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(_HOMES[name], __name__), name)
