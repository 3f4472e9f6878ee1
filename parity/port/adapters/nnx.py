"""A port made of a flax.nnx module."""

from collections.abc import Callable
from typing import Any

from parity.port.adapters.chance import median_key
from parity.port.adapters.functions import FunctionsPort, of_module


def from_nnx(
    module: Any,
    optimizer: Any,
    *,
    call: Callable[[Any, Any], Any],
    loss: Callable[[Any, Any], Any],
    **options: Any,
) -> FunctionsPort:
    """A port of a flax.nnx module and an optax optimizer.

    Args:
        module: of any values. Its `nnx.Param` are the parameters; its other variables, such as `nnx.BatchStat`, are
            what training changes.
        call: `call(module, batch)`: what the module returns of a batch, in the mode that it is in: `module.train()` or
            `module.eval()` went before.
        loss: `loss(outputs, batch)`, `()`, of what `call` returns.
        options: `names`, `convert` and `float64` as in `from_functions`.
    """
    import jax
    import jax.numpy as jnp
    from flax import nnx

    definition, params, keys, stats = _split(nnx, module)

    def apply(params: Any, stats: Any, batch: Any, train: bool) -> tuple[Any, Any]:
        key = median_key()
        drawn = jax.tree.map(lambda leaf: key if jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key) else leaf, keys)
        made = nnx.merge(definition, nnx.State(params), drawn, nnx.State(stats))
        made.train() if train else made.eval()
        found = call(made, batch)
        return found, nnx.to_pure_dict(_split(nnx, made)[3])

    plain = nnx.to_pure_dict
    return of_module(apply, loss, optimizer, params=plain(params), stats=plain(stats), **options)


def _split(nnx: Any, module: Any) -> Any:
    """What a module is, its parameters, its random streams, and all else."""
    return nnx.split(module, nnx.Param, nnx.RngState, ...)
