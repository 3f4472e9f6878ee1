"""A port made of a flax.linen module."""

from collections.abc import Callable, Mapping
from typing import Any

from parity.port.adapters.chance import median_key
from parity.port.adapters.functions import FunctionsPort, of_module

_NOT_KEPT = ("params", "intermediates", "losses", "perturbations")


def from_linen(
    module: Any,
    variables: Mapping[str, Any],
    optimizer: Any,
    *,
    call: Callable[[Any, Any, bool], Any],
    loss: Callable[[Any, Any], Any],
    **options: Any,
) -> FunctionsPort:
    """A port of a flax.linen module and an optax optimizer.

    Args:
        variables: as `module.init` returns them, or `jax.eval_shape` of it; their collections other than `params`, such
            as `batch_stats`, are what training changes.
        call: `call(module, batch, train)`: what the module returns of a batch, `module(batch["x"], train=train)`.
        loss: `loss(outputs, batch)`, `()`, of what `call` returns.
        options: `names`, `convert` and `float64` as in `from_functions`. What `convert` returns is `{"params": …,
            "stats": …}`, the statistics by their collections, where there are any.
    """
    stats = {kind: tree for kind, tree in variables.items() if kind not in _NOT_KEPT}

    def apply(params: Any, stats: Any, batch: Any, train: bool) -> tuple[Any, Any]:
        key = median_key()
        found, new = module.apply(
            {"params": params, **stats},
            batch,
            train,
            method=call,
            rngs={"params": key, "dropout": key},
            mutable=list(stats) if train else [],
        )
        return found, {**stats, **new}

    return of_module(apply, loss, optimizer, params=variables["params"], stats=stats, **options)
