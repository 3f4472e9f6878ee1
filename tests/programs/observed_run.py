"""Run a command as if torch were not installed; print, last, what it imported and what XLA compiled.

`python -m tests.programs.observed_run fmnist_jax.train --epochs 1`
"""

import importlib
import importlib.metadata
import logging
import sys
from importlib.metadata import Distribution

import jax

from fmnist import command

compiled: list[str] = []


class Recorder(logging.Handler):
    """Keeps the names out of jax's "Compiling jit(name)" messages."""

    def emit(self, record: logging.LogRecord) -> None:
        message = record.getMessage()
        if message.startswith("Compiling "):
            compiled.append(message.split()[1].removeprefix("jit(").removesuffix(")"))


def without_torch(distribution_name: str) -> Distribution:
    """`importlib.metadata.distribution` where neither torch nor torchvision is installed."""
    if distribution_name.startswith("torch"):
        raise importlib.metadata.PackageNotFoundError(distribution_name)
    return Distribution.from_name(distribution_name)


sys.modules |= dict.fromkeys(("torch", "torchvision"))  # type: ignore[arg-type]
importlib.metadata.distribution = without_torch
logging.getLogger("jax").addHandler(Recorder())
jax.config.update("jax_log_compiles", True)
module = importlib.import_module(sys.argv[1])
del sys.argv[1]
code = command.run(module.main, module.NAME)
print(({name.partition(".")[0] for name, module in sys.modules.items() if module}, compiled))
sys.exit(code)
