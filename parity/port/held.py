"""A port that is held to the protocol where it stands: found, described and asked in this process. NumPy only."""

import contextlib
import platform
import sys
from collections.abc import Mapping
from types import ModuleType
from typing import Any

from parity.cases import OPTIONAL, Answer, Case
from parity.errors import PortError, UnavailableError, UsageError
from parity.locate import locate
from parity.port.protocol import DROPOUT, REQUIRED, answer, guarded


class Held:
    """A port object or module, asked in this very process.

    Raises:
        PortError: it lacks a function that a port must have.
    """

    def __init__(self, port: Any, module: Any = None, name: str = "") -> None:
        self.port = port
        self.module = module or sys.modules.get(getattr(port, "__module__", None) or "", port)
        self.name = name or getattr(port, "__name__", None) or type(port).__name__
        lacking = [function for function in REQUIRED if not callable(getattr(port, function, None))]
        if lacking:
            raise PortError(
                f"{self.name}: the port lacks {', '.join(lacking)}; "
                "`python -m parity new port.py` writes a file that has them"
            )

    def describe(self) -> dict[str, Any]:
        """Its name, the optional functions that it offers, what it can do, and the packages that it uses."""
        dropout = getattr(self.port, "DROPOUT", "off")
        if dropout not in DROPOUT:
            raise PortError(f'{self.name}: DROPOUT is {dropout!r}, expected "off", "kept" or "median"')
        return {
            "port": self.name,
            "offers": [function for function in OPTIONAL if callable(getattr(self.port, function, None))],
            "float64": bool(getattr(self.port, "FLOAT64", True)),
            "dropout": dropout,
            "remarks": list(getattr(self.port, "REMARKS", ())),
            "versions": self._versions(),
        }

    def answer(self, case: Case) -> Answer:
        """What it says to a case; `PortError` where that is no answer."""
        with contextlib.redirect_stdout(sys.stderr):  # standard output is for the verdict
            return answer(self.port, case)

    def _versions(self) -> dict[str, str]:
        """Python's, and of the packages that the port's module names."""
        values = vars(self.module).values()
        names = {one.__name__ if isinstance(one, ModuleType) else getattr(one, "__module__", None) for one in values}
        packages = sorted({str(name).partition(".")[0] for name in names} | {"numpy"})
        versions = {name: getattr(sys.modules.get(name), "__version__", None) for name in packages}
        numbers = {name: version for name, version in versions.items() if isinstance(version, str)}
        return {"python": platform.python_version(), **numbers}


def find(spec: str, adapter: str = "") -> dict[str, Held]:
    """The ports of that name, by the names of their programs; a lone one's program is called "".

    Args:
        spec: `file.py:name` or `module:name`; without a name the module's `port`, else the module itself.
        adapter: likewise, a function that makes ports of what was not written for this interface.

    Raises:
        PortError: there is none, it cannot be imported, or it lacks a function.
    """

    def made() -> tuple[Any, Any]:
        module, found = locate(spec, "port")
        if adapter and not isinstance(found, type | Mapping) and not hasattr(found, REQUIRED[0]):
            found = locate(adapter)[1](found)
        return module, found

    try:
        module, found = guarded(None, "import", made)
    except UnavailableError:
        raise
    except PortError as error:
        raise PortError(f"{spec}: {error}", error.hint) from None
    except UsageError as error:
        raise PortError(str(error)) from None
    if isinstance(found, type):
        found = guarded(module, spec, found)
    if not isinstance(found, Mapping):
        return {"": Held(found, module, spec)}
    return {name: Held(port, module, f"{spec} {name}") for name, port in found.items()}
