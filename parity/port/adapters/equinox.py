"""A port made of an Equinox module."""

from collections.abc import Callable
from typing import Any

import numpy as np

from parity.port.adapters.chance import median_key
from parity.port.adapters.equinox_state import by_name, state_indices
from parity.port.adapters.functions import FunctionsPort, of_module


def from_equinox(
    module: Any,
    optimizer: Any,
    *,
    call: Callable[[Any, Any, Any, Any], tuple[Any, Any]],
    loss: Callable[[Any, Any], Any],
    state: Any = None,
    **options: Any,
) -> FunctionsPort:
    """A port of an Equinox module and an optax optimizer.

    Args:
        module: of any values. Its floating-point arrays are the parameters.
        call: `call(module, state, batch, key)`: what the module returns of a batch, with your `jax.vmap` over its
            examples, and the new state. In evaluation it is given the module in inference mode.
        loss: `loss(outputs, batch)`, `()`, of what `call` returns first.
        state: of `eqx.nn.make_with_state`, where the module has one. The statistics of a `BatchNorm` called `bn` are
            `bn/mean` and `bn/var`.
        options: `names`, `convert` and `float64` as in `from_functions`.
    """
    import equinox as eqx
    import jax

    params, static = eqx.partition(module, eqx.is_inexact_array)
    indices = state_indices(module)

    def read(held: Any) -> dict[str, Any]:
        return {path: by_name(held.get(index)) for path, index in indices.items()}

    def apply(params: Any, stats: Any, batch: Any, train: bool) -> tuple[Any, Any]:
        made = eqx.nn.inference_mode(eqx.combine(params, static), value=not train)
        # A new one, for what `set` has been called on is not to be used again; in the dtype of what it is to hold.
        dtype = jax.numpy.result_type(*jax.tree.leaves(params))
        held = jax.tree.map(
            lambda leaf: jax.numpy.asarray(leaf, dtype if eqx.is_inexact_array(leaf) else leaf.dtype), state
        )
        for path, index in indices.items():
            values = stats[path]
            held = held.set(index, tuple(values.values()) if isinstance(values, dict) else values)
        found, new = call(made, held, batch, median_key())
        return found, read(new)

    stats = jax.tree.map(np.asarray, read(state))  # of weak types Equinox would make others
    return of_module(apply, loss, optimizer, params=params, stats=stats, **options)
