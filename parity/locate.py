"""Finding a port or a reference by `file.py:name`, `file.py`, `module:name` or `module`. Standard library only."""

import importlib
import importlib.util
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

from parity.errors import UsageError

FORMS = "expected FILE.py, FILE.py:NAME, MODULE or MODULE:NAME"


def locate(spec: str, default: str = "") -> tuple[ModuleType, Any]:
    """The module, and what is named in it: by `spec`, else `default` where the module has that, else the module itself.

    A file that lies in a package is imported as part of it; beside any other file its neighbours can be imported.

    Raises:
        UsageError: there is no such file, module or name. What the module itself raises passes through.
    """
    place, _, attribute = spec.partition(":")
    module = _import_file(Path(place)) if place.endswith(".py") else _import_module(place)
    found: Any = module
    for part in filter(None, (attribute or default).split(".")):
        if not hasattr(found, part):
            if not attribute:
                return module, module
            raise UsageError(f"{spec}: {place} has no {part}; {FORMS}")
        found = getattr(found, part)
    return module, found


def _import_file(path: Path) -> ModuleType:
    if not path.is_file():
        raise UsageError(f"{path}: no such file; {FORMS}")
    path = path.resolve()
    root, parts = path.parent, [] if path.stem == "__init__" else [path.stem]
    while (root / "__init__.py").is_file():
        parts.insert(0, root.name)
        root = root.parent
    if str(root) not in sys.path:
        sys.path.insert(0, str(root))
    name = ".".join(parts)
    if name in sys.modules and getattr(sys.modules[name], "__file__", None) != str(path):
        name = f"_{name.replace('.', '_')}_at_{abs(hash(path))}"  # a file may be called as a module that is in use
    if name in sys.modules:
        return sys.modules[name]
    if len(parts) > 1:
        return importlib.import_module(name)
    specification = importlib.util.spec_from_file_location(name, path)
    assert specification is not None
    assert specification.loader is not None
    module = importlib.util.module_from_spec(specification)
    sys.modules[name] = module
    try:
        specification.loader.exec_module(module)
    except BaseException:
        del sys.modules[name]
        raise
    return module


def _import_module(name: str) -> ModuleType:
    if "" not in sys.path:
        sys.path.insert(0, "")
    try:
        return importlib.import_module(name)
    except ModuleNotFoundError as error:
        if error.name is not None and (name == error.name or name.startswith(error.name + ".")):
            raise UsageError(f"{name}: no such module here or on Python's path; {FORMS}") from None
        raise
    except (ValueError, TypeError):
        raise UsageError(f"{name!r}: {FORMS}") from None
