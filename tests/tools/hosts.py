"""The programs of tests/pairs as references and ports, and ports of them with a mistake planted."""

import importlib
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from parity.mistakes.mistake import Diff
from parity.reference.program import Reference

PAIRS = Path(__file__).parent.parent / "pairs"
HOSTS = ("mlp", "convnet", "transformer", "rnn", "unet", "decoder", "regression")


def reference(host: str) -> Reference:
    """The program in torch."""
    program = importlib.import_module(f"tests.pairs.{host}.program")
    return Reference(
        program.module,
        program.loss,
        program.optimizer,
        program.batches(),
        outputs=program.outputs,
        scheduler=getattr(program, "scheduler", None),
        clip=getattr(program, "clip", None),
        name=host,
    )


def mirror(host: str, name: str = "mirror") -> ModuleType:
    """The program in JAX, as one of its authors wrote it."""
    return importlib.import_module(f"tests.pairs.{host}.{name}")


def planted(diff: Diff) -> ModuleType:
    """The host's mirror with a diff applied backwards.

    Raises:
        ValueError: the right version does not stand in it exactly once.
    """
    path = PAIRS / diff.host / "mirror.py"
    source = path.read_text()
    if source.count(diff.right) != 1:
        raise ValueError(
            f"{diff.host}: {diff.right!r} stands {source.count(diff.right)} times in {path.name}, expected once"
        )
    return module(source.replace(diff.right, diff.wrong), path)


def module(source: str, path: Path) -> ModuleType:
    """A module of a source that is in no file."""
    made = ModuleType("planted")
    made.__file__ = str(path)
    made.__package__ = f"tests.pairs.{path.parent.name}"
    sys.modules["planted"] = made
    exec(compile(source, path, "exec"), made.__dict__)
    return made


def all_kept(call: Any, args: Any, kwargs: Any, context: Any) -> Any:
    """flax's dropout, all of it kept and scaled, for `nn.intercept_methods`."""
    dropout = context.module
    if not isinstance(dropout, nn.Dropout):
        return call(*args, **kwargs)
    given = kwargs.get("deterministic", args[1] if len(args) > 1 else None)
    deterministic = nn.merge_param("deterministic", dropout.deterministic, given)
    return args[0] if deterministic or dropout.rate in (0, 1) else args[0] / (1 - dropout.rate)


class HostPort:
    """A port made of a mirror's plain functions; where dropout is flax's, it keeps everything."""

    def __init__(self, mirror: Any, name: str = "") -> None:
        self.mirror = mirror
        self.__name__ = name or mirror.__name__
        self.value_and_grad_of = jax.jit(self._value_and_grad)
        self.outputs_of = jax.jit(mirror.outputs, static_argnums=2)
        keeps = "nn.Dropout(" in Path(mirror.__file__).read_text()
        self.DROPOUT = "kept" if keeps else "off"
        self.rng = (jax.random.key(0),) if keeps else ()

    def load_state_dict(self, tensors: dict[str, Any]) -> Any:
        wide = any(tensor.dtype == np.float64 for tensor in tensors.values())
        jax.config.update("jax_enable_x64", wide)
        variables = self.mirror.from_torch(tensors)
        return variables, self.mirror.optimizer.init(variables["params"])

    def state_dict(self, state: Any) -> dict[str, Any]:
        return {name: np.array(tensor) for name, tensor in self.mirror.to_torch(state[0]).items()}

    def outputs(self, state: Any, batch: Any, train: bool) -> dict[str, Any]:
        with nn.intercept_methods(all_kept):
            said = self.outputs_of(state[0], _arrays(batch), train, *self.rng)
        return {name: np.array(one) for name, one in said.items()}

    def value_and_grad(self, state: Any, batch: Any) -> tuple[Any, dict[str, Any]]:
        with nn.intercept_methods(all_kept):
            loss, grads = self.value_and_grad_of(state[0], _arrays(batch))
        named = self.mirror.to_torch({**state[0], "params": grads})
        buffers = ("running_", "num_batches_tracked")
        return np.array(loss), {
            name: np.array(grad) for name, grad in named.items() if not any(buffer in name for buffer in buffers)
        }

    def train_step(self, state: Any, batch: Any) -> tuple[Any, Any]:
        with nn.intercept_methods(all_kept):
            variables, opt_state, loss = self.mirror.train_step(*state, _arrays(batch), *self.rng)
        return (variables, opt_state), np.array(loss)

    def _value_and_grad(self, variables: Any, batch: Any) -> Any:
        def loss(params: Any) -> Any:
            return self.mirror.loss({**variables, "params": params}, batch, True, *self.rng)

        (value, _), grads = jax.value_and_grad(loss, has_aux=True)(variables["params"])
        return value, grads


def _arrays(batch: Any) -> dict[str, Any]:
    return {name: jnp.asarray(array) for name, array in batch.items()}
