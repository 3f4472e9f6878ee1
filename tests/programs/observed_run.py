"""Run `fmnist_jax.train` and print, last, which top-level modules it imported and which functions XLA compiled."""

import logging
import sys

import jax

from fmnist import command
from fmnist_jax import train

compiled: list[str] = []


class Recorder(logging.Handler):
    """Keeps the names out of jax's "Compiling jit(name)" messages."""

    def emit(self, record: logging.LogRecord) -> None:
        message = record.getMessage()
        if message.startswith("Compiling "):
            compiled.append(message.split()[1].removeprefix("jit(").removesuffix(")"))


logging.getLogger("jax").addHandler(Recorder())
jax.config.update("jax_log_compiles", True)
code = command.run(train.main, train.NAME)
print(({name.partition(".")[0] for name in sys.modules}, compiled))
sys.exit(code)
