"""A port made of plain JAX functions and an optax optimizer; JAX is imported where one is made."""

import inspect
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from parity.cases import Array, Batch, Tensors
from parity.errors import PortError
from parity.port.layouts import Leaf, stacked
from parity.port.names import Shape, proposal, words

Names = Mapping[str, "str | tuple[str, ...] | Leaf | None"]
_COUNTER = "num_batches_tracked"


@dataclass(frozen=True)
class State:
    """What training carries, and the dtype that it is computed in."""

    params: Any
    stats: Any
    opt_state: Any
    names: tuple[str, ...]
    kept: Tensors
    """Buffers that the program has no leaf for: constants, and torch's counters of training batches."""
    float64: bool


class FunctionsPort:
    """A port of `outputs(params, batch, train)`, `loss(params, batch)` and an optax optimizer.

    Args:
        outputs: returns a mapping of name → array, or one array.
        loss: of training mode, `()`.
        params: a pytree of arrays or of `jax.ShapeDtypeStruct`, such as `jax.eval_shape` returns.
        names: torch's names → paths of leaves, `{"fc1.weight": "Dense_0/kernel"}`, for those that are not the same
            up to spelling (`layers.0.norm.weight` is `layers_0/norm/scale`). Layouts follow from the leaf (`layouts`);
            a `Leaf` says another one. A tuple of paths is for leaves that torch stacks in one tensor; None for a
            buffer that the program needs no leaf for.
        stats: the running statistics, a pytree as `params`. With it the functions are
            `outputs(params, stats, batch, train)` and `loss(params, stats, batch)`, which returns `(loss, new stats)`.
        dropout: "kept" where dropout keeps everything in training mode and scales by 1/(1-p).
    """

    def __init__(
        self,
        *,
        outputs: Callable[..., Any],
        loss: Callable[..., Any],
        optimizer: Any,
        params: Any,
        names: Names | None = None,
        stats: Any = None,
        dropout: str = "off",
    ) -> None:
        import jax
        import optax

        self._jax, self._optimizer, self._names = jax, optimizer, names or {}
        self.DROPOUT = dropout
        self.FILE = inspect.getsourcefile(inspect.unwrap(loss))
        self.__module__ = loss.__module__
        self._leaves, self._structure = _flat(jax, {"params": params, "stats": {} if stats is None else stats})

        def with_stats(params: Any, old: Any, batch: Any) -> tuple[Any, Any]:
            return loss(params, old, batch) if stats is not None else (loss(params, batch), old)

        def value_and_grad(params: Any, old: Any, batch: Any) -> Any:
            return jax.value_and_grad(with_stats, has_aux=True)(params, old, batch)

        def train_step(params: Any, old: Any, opt_state: Any, batch: Any) -> Any:
            (value, new), grads = value_and_grad(params, old, batch)
            updates, opt_state = optimizer.update(grads, opt_state, params)
            return optax.apply_updates(params, updates), new, opt_state, value

        def named_outputs(params: Any, old: Any, batch: Any, train: bool) -> Any:
            found = outputs(params, old, batch, train) if stats is not None else outputs(params, batch, train)
            found = found if isinstance(found, Mapping) else {"output": found}
            return [{name: value} for name, value in found.items()]  # jit sorts a mapping by its names

        self._value_and_grad, self._train_step = jax.jit(value_and_grad), jax.jit(train_step)
        self._outputs = jax.jit(named_outputs, static_argnums=3)

    def load_state_dict(self, tensors: Tensors) -> State:
        places = self._places({name: tensor.shape for name, tensor in tensors.items()})
        float64 = any(tensor.dtype == np.float64 for tensor in tensors.values())
        with self._jax.enable_x64(float64):
            arrays: dict[str, Any] = {}
            for name, parts in places.items():
                for leaf, rows in parts:
                    part = tensors[name][rows] if tensors[name].ndim else tensors[name]
                    arrays.setdefault(leaf.path, self._jax.numpy.array(leaf.to_port(part)))
            tree = self._jax.tree_util.tree_unflatten(self._structure, [arrays[path] for path in self._leaves])
            opt_state = self._optimizer.init(tree["params"])
        kept = {name: tensor.copy() for name, tensor in tensors.items() if name not in places}
        return State(tree["params"], tree["stats"], opt_state, tuple(tensors), kept, float64)

    def state_dict(self, state: State) -> Tensors:
        tensors = self._to_torch({"params": state.params, "stats": state.stats}) | state.kept
        return {name: tensors[name] for name in state.names}

    def outputs(self, state: State, batch: Batch, train: bool) -> dict[str, Array]:
        with self._jax.enable_x64(state.float64):
            found = self._outputs(state.params, state.stats, dict(batch), train)
        return {name: np.asarray(array) for output in found for name, array in output.items()}

    def value_and_grad(self, state: State, batch: Batch) -> tuple[Array, Tensors]:
        with self._jax.enable_x64(state.float64):
            (value, _), grads = self._value_and_grad(state.params, state.stats, dict(batch))
        return value, self._to_torch({"params": grads, "stats": {}})

    def train_step(self, state: State, batch: Batch) -> tuple[State, Array]:
        with self._jax.enable_x64(state.float64):
            params, stats, opt_state, value = self._train_step(state.params, state.stats, state.opt_state, dict(batch))
        counted = {name: tensor + name.endswith(_COUNTER) for name, tensor in state.kept.items()}
        return State(params, stats, opt_state, state.names, counted, state.float64), value

    def _to_torch(self, tree: Any) -> Tensors:
        arrays = {path: np.asarray(leaf) for path, leaf in _flat(self._jax, tree)[0].items()}
        tensors = {}
        for name, places in self._found.items():
            if all(leaf.path in arrays for leaf, _ in places):
                parts = [leaf.to_torch(arrays[leaf.path]) for leaf, _ in places]
                tensors[name] = parts[0] if len(parts) == 1 else np.concatenate(parts)
        return tensors

    def _places(self, shapes: Mapping[str, Shape]) -> dict[str, list[tuple[Leaf, slice]]]:
        """Where each of torch's tensors lies in the pytree: as `names` say, else by names that are alike.

        Raises:
            PortError: something is left over on either side; its hint is the mapping to paste.
        """
        leaves = {path: tuple(leaf.shape) for path, leaf in self._leaves.items()}
        self._found = {}
        by_words = {words(_short(path)): _short(path) for path in leaves}
        for name, shape in shapes.items():
            meant = self._names.get(name, by_words.get(words(name), ""))
            if isinstance(meant, Leaf):
                self._found[name] = [(meant._replace(path=self._path(name, meant.path)), slice(None))]
            elif meant:
                paths = tuple(self._path(name, path) for path in ((meant,) if isinstance(meant, str) else meant))
                self._found[name] = stacked(name, shape, paths, leaves)
        kept = [name for name in shapes if self._names.get(name, "") is None or name.endswith(_COUNTER)]
        used = {leaf.path for parts in self._found.values() for leaf, _ in parts}
        missing = {name: shape for name, shape in shapes.items() if name not in self._found and name not in kept}
        unused = {_short(path): shape for path, shape in leaves.items() if path not in used}
        if missing or unused:
            left = [f"{len(missing)} of the reference ({', '.join([*missing][:3])})"] if missing else []
            left += [f"{len(unused)} of the port ({', '.join([*unused][:3])})"] if unused else []
            raise PortError(f"names are left over: {', '.join(left)}", proposal(missing, unused))
        return self._found

    def _path(self, name: str, path: str) -> str:
        for kind in ("params", "stats"):
            if f"{kind}/{path}" in self._leaves:
                return f"{kind}/{path}"
        known = ", ".join([_short(known) for known in self._leaves][:8])
        raise PortError(f"names: {name!r} is said to be {path!r}, which is no leaf of params or stats: {known}, …")


def _flat(jax: Any, tree: Any) -> tuple[dict[str, Any], Any]:
    leaves, structure = jax.tree_util.tree_flatten_with_path(tree)
    return {jax.tree_util.keystr(path, simple=True, separator="/"): leaf for path, leaf in leaves}, structure


def _short(path: str) -> str:
    return path.partition("/")[2]


from_functions = FunctionsPort
"""As its users call it."""
