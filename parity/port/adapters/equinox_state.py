"""Where an Equinox module keeps what training changes."""

from typing import Any


def by_name(held: Any) -> Any:
    """What is held at an index: a batch norm keeps a pair, which is `{"mean": …, "var": …}`."""
    return {"mean": held[0], "var": held[1]} if isinstance(held, tuple) and len(held) == 2 else held


def state_indices(module: Any) -> dict[str, Any]:
    """The `StateIndex` of every part of a module, by path: a batch norm's by its own, all others' by their fields'."""
    import equinox as eqx
    import jax

    def has_index(part: Any) -> bool:
        return isinstance(part, eqx.Module) and any(isinstance(one, eqx.nn.StateIndex) for one in vars(part).values())

    indices = {}
    for path, part in jax.tree_util.tree_flatten_with_path(module, is_leaf=has_index)[0]:
        for name, index in vars(part).items() if has_index(part) else ():
            if isinstance(index, eqx.nn.StateIndex):
                at = jax.tree_util.keystr(path, simple=True, separator="/")
                indices[at if name.endswith("_state_index") else f"{at}/{name}"] = index
    return indices
