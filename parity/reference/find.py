"""Finding references by name."""

import contextlib
import inspect
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from parity.errors import UsageError, line_of, told
from parity.locate import locate
from parity.reference.program import Reference


def find(spec: str, data: str | None = None) -> dict[str, Reference]:
    """The references of that name, by the names of their programs; a lone one's is "".

    Args:
        spec: `file.py:name` or `module:name`; without a name the module's `reference`. A Reference, a dict of them, or
            a function that returns either.
        data: given to that function, where it takes `data`.

    Raises:
        UsageError: there is none, or it cannot be made.
    """
    try:
        with contextlib.redirect_stdout(sys.stderr):
            module, found = locate(spec, "reference")
            found = _made(spec, found, data)
    except UsageError:
        raise
    except (Exception, SystemExit) as error:
        own = str(Path(spec.partition(":")[0]).resolve())
        raise UsageError(f"{spec}: cannot be imported: {told(error)}{line_of(error, own)}") from None
    references = dict(found) if isinstance(found, Mapping) else {"": found}
    wrong = next((one for one in references.values() if not isinstance(one, Reference)), None)
    if wrong is not None or not references:
        kind = "a module without `reference`" if wrong is module else type(wrong).__name__
        raise UsageError(f"{spec}: is {kind}, expected a parity.Reference, such as `reference = parity.Reference(...)`")
    return references


def _made(spec: str, found: Any, data: str | None) -> Any:
    takes_data = inspect.isfunction(found) and "data" in inspect.signature(found).parameters
    if data is not None and not takes_data:
        raise UsageError(f"--data {data}: {spec} is no function that takes data")
    if not inspect.isfunction(found):
        return found
    return found(data=data) if takes_data else found()
