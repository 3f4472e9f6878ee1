"""A port made of an Equinox module."""

from collections.abc import Callable
from typing import Any

from parity.port.adapters.chance import median_key
from parity.port.adapters.functions import FunctionsPort


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
    indices = _indices(jax, eqx, module)

    def apply(params: Any, stats: Any, batch: Any, train: bool) -> tuple[Any, Any]:
        made = eqx.nn.inference_mode(eqx.combine(params, static), value=not train)
        held = state
        for path, index in indices.items():
            held = held.set(index, stats[path])
        found, new = call(made, held, batch, median_key())
        return found, {path: new.get(index) for path, index in indices.items()}

    def loss_and_stats(params: Any, stats: Any, batch: Any) -> tuple[Any, Any]:
        found, new = apply(params, stats, batch, True)
        return loss(found, batch), new

    return FunctionsPort(
        outputs=lambda *asked: apply(*asked)[0],
        loss=loss_and_stats,
        optimizer=optimizer,
        params=params,
        stats={path: state.get(index) for path, index in indices.items()},
        dropout="median",
        home=loss,
        **options,
    )


def _indices(jax: Any, eqx: Any, module: Any) -> dict[str, Any]:
    """Where a module's parts keep what they change, by path."""
    parts = jax.tree_util.tree_flatten_with_path(module, is_leaf=lambda one: _has_index(eqx, one))[0]
    return {
        f"{jax.tree_util.keystr(path, simple=True, separator='/')}/{name}": index
        for path, part in parts
        if _has_index(eqx, part)
        for name, index in vars(part).items()
        if isinstance(index, eqx.nn.StateIndex)
    }


def _has_index(eqx: Any, part: Any) -> bool:
    held = vars(part).values() if isinstance(part, eqx.Module) else ()
    return any(isinstance(one, eqx.nn.StateIndex) for one in held)
