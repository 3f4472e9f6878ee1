"""A port made of plain JAX functions and an optax optimizer; JAX is imported where one is made."""

import inspect
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from parity.cases import Array, Batch, Tensors
from parity.port.places import COUNTER, Names, Places, by_conversion, by_names, twins


@dataclass(frozen=True)
class State:
    """What training carries, and the dtype that it is computed in."""

    params: Any
    stats: Any
    opt_state: Any
    places: Places
    kept: Tensors
    """As loaded: tensors that the program has no leaf for, such as constants and torch's counters of batches."""
    twins: Mapping[str, str]
    """Of those, further names of a tied parameter → its own."""
    names: tuple[str, ...]
    float64: bool


class FunctionsPort:
    """A port of `outputs(params, batch, train)`, `loss(params, batch)` and an optax optimizer.

    Args:
        outputs: returns arrays: one, or any nesting of mappings and tuples, named as torch's are: `hidden_states.2`.
        loss: of training mode, `()`.
        params: a pytree of arrays or of `jax.ShapeDtypeStruct`, such as `jax.eval_shape` returns.
        names: torch's names → paths of leaves, `{"fc1.weight": "Dense_0/kernel"}`, for those that are not the same
            up to spelling (`layers.0.norm.weight` is `layers_0/norm/scale`). Layouts follow from the leaf (`layouts`);
            a `Leaf` says another one. A tuple of paths is for leaves that torch stacks in one tensor; None for a
            buffer that the program needs no leaf for.
        convert: instead of `names`, the program's own way from torch's tensors to `params`, or to
            `{"params": …, "stats": …}` where there are statistics. It may move elements but not change them.
        stats: what training changes beside the parameters, a pytree as `params`. With it the functions are
            `outputs(params, stats, batch, train)` and `loss(params, stats, batch)`, which returns `(loss, new stats)`.
            What torch has no tensor for starts at the value it has here.
        dropout: "kept" where dropout keeps everything in training mode and scales by 1/(1-p); "median" where every
            random number is drawn with the key of `parity.port.median_key`.
        float64: whether the program can compute in float64.
        home: the function beside which the port is written, whose lines are told where it raises; by default `loss`.
    """

    def __init__(
        self,
        *,
        outputs: Callable[..., Any],
        loss: Callable[..., Any],
        optimizer: Any,
        params: Any,
        names: Names | None = None,
        convert: Callable[[Tensors], Any] | None = None,
        stats: Any = None,
        dropout: str = "off",
        float64: bool = True,
        home: Callable[..., Any] | None = None,
    ) -> None:
        import jax
        import optax

        self._jax, self._optimizer, self._names, self._convert = jax, optimizer, names or {}, convert
        self._has_stats, self._known = stats is not None, dict[Any, Places]()
        self.DROPOUT, self.FLOAT64 = dropout, float64
        self.REMARKS: tuple[str, ...] = ()
        self.FILE = inspect.getsourcefile(inspect.unwrap(home or loss))
        self.__module__ = (home or loss).__module__
        self._leaves, self._structure = self._flat({"params": params, "stats": stats if self._has_stats else {}})
        self._own = frozenset(
            path for path, leaf in self._leaves.items() if path.startswith("stats/") and hasattr(leaf, "__array__")
        )

        def with_stats(params: Any, old: Any, batch: Any) -> tuple[Any, Any]:
            return loss(params, old, batch) if self._has_stats else (loss(params, batch), old)

        def value_and_grad(params: Any, old: Any, batch: Any) -> Any:
            return jax.value_and_grad(with_stats, has_aux=True)(params, old, batch)

        def train_step(params: Any, old: Any, opt_state: Any, batch: Any) -> Any:
            (value, new), grads = value_and_grad(params, old, batch)
            updates, opt_state = optimizer.update(grads, opt_state, params)
            return optax.apply_updates(params, updates), new, opt_state, value

        def named_outputs(params: Any, old: Any, batch: Any, train: bool) -> Any:
            found = outputs(params, old, batch, train) if self._has_stats else outputs(params, batch, train)
            return [{name: value} for name, value in _named(found)]  # jit sorts a mapping by its names

        self._value_and_grad, self._train_step = jax.jit(value_and_grad), jax.jit(train_step)
        self._outputs = jax.jit(named_outputs, static_argnums=3)

    def load_state_dict(self, tensors: Tensors) -> State:
        places = self._places(tensors)
        float64 = any(tensor.dtype == np.float64 for tensor in tensors.values())
        with self._jax.enable_x64(float64):
            loaded = places.to_port(tensors)
            arrays = {path: self._jax.numpy.array(loaded.get(path, leaf)) for path, leaf in self._leaves.items()}
            tree = self._jax.tree_util.tree_unflatten(self._structure, list(arrays.values()))
            opt_state = self._optimizer.init(tree["params"])
        held = places.to_torch(loaded)
        kept = {name: tensor.copy() for name, tensor in tensors.items() if name not in held}
        also = twins(kept, held) if self._convert else {}
        return State(tree["params"], tree["stats"], opt_state, places, kept, also, tuple(tensors), float64)

    def state_dict(self, state: State) -> Tensors:
        tensors = self._to_torch(state, {"params": state.params, "stats": state.stats})
        return {name: tensors[name] for name in state.names}

    def outputs(self, state: State, batch: Batch, train: bool) -> dict[str, Array]:
        with self._jax.enable_x64(state.float64):
            found = self._outputs(state.params, state.stats, dict(batch), train)
        return {name: _crossing(array) for output in found for name, array in output.items()}

    def value_and_grad(self, state: State, batch: Batch) -> tuple[Array, Tensors]:
        with self._jax.enable_x64(state.float64):
            (value, _), grads = self._value_and_grad(state.params, state.stats, dict(batch))
        leaves = {path: _crossing(leaf) for path, leaf in self._flat({"params": grads})[0].items()}
        # Of what no leaf holds, such as a pooler that the other library leaves out, the loss cannot depend.
        nothing = {name: np.zeros_like(tensor) for name, tensor in state.kept.items() if tensor.dtype.kind == "f"}
        return _crossing(value), nothing | state.places.to_torch(leaves)

    def train_step(self, state: State, batch: Batch) -> tuple[State, Array]:
        with self._jax.enable_x64(state.float64):
            params, stats, opt_state, value = self._train_step(state.params, state.stats, state.opt_state, dict(batch))
        kept = self._counted(state, stats)
        return replace(state, params=params, stats=stats, opt_state=opt_state, kept=kept), _crossing(value)

    def _counted(self, state: State, stats: Any) -> Tensors:
        """What no leaf holds, with the batches counted where running statistics have moved."""
        if not any(name.endswith(COUNTER) for name in state.kept):
            return state.kept
        before, after = (self._to_torch(state, {"stats": each}) for each in (state.stats, stats))
        means = {name: f"{name.removesuffix(COUNTER)}running_mean" for name in state.kept if name.endswith(COUNTER)}
        still = {name for name, mean in means.items() if mean in after and np.array_equal(before[mean], after[mean])}
        return {name: tensor + (name in means and name not in still) for name, tensor in state.kept.items()}

    def _to_torch(self, state: State, tree: Any) -> Tensors:
        leaves = {path: _crossing(leaf) for path, leaf in self._flat(tree)[0].items()}
        held = state.places.to_torch(leaves)
        return held | state.kept | {name: held[own] for name, own in state.twins.items()}

    def _places(self, tensors: Tensors) -> Places:
        shapes = tuple((name, tensor.shape) for name, tensor in tensors.items())
        if shapes not in self._known:  # a conversion may take seconds
            if self._convert is None:
                self._known[shapes] = by_names(self._names, tensors, self._leaves, self._own)
            else:
                self._known[shapes] = by_conversion(self._converted, tensors, self._leaves, self._own)
        return self._known[shapes]

    def _converted(self, tensors: Tensors) -> Tensors:
        assert self._convert is not None
        found = self._convert(tensors)
        return self._flat(found if self._has_stats or "params" in found else {"params": found})[0]

    def _flat(self, tree: Any) -> tuple[dict[str, Any], Any]:
        leaves, structure = self._jax.tree_util.tree_flatten_with_path(tree)
        separated = self._jax.tree_util.keystr
        return {separated(path, simple=True, separator="/"): leaf for path, leaf in leaves}, structure


def _crossing(value: Any) -> Array:
    """An array as it is compared: half precision as float32, as the reference's."""
    array = np.asarray(value)
    return array.astype(np.float32) if array.dtype.itemsize == 2 and array.dtype.kind in "fV" else array


def _named(returned: Any, path: tuple[str, ...] = ()) -> Iterator[tuple[str, Any]]:
    """The arrays of a nested output by their paths; a lone one is `output`. What is None is left out."""
    if isinstance(returned, Mapping):
        for name, value in returned.items():
            yield from _named(value, (*path, str(name)))
    elif isinstance(returned, tuple | list):
        for at, value in enumerate(returned):
            yield from _named(value, (*path, str(at)))
    elif returned is not None:
        yield ".".join(path) or "output", returned


def of_module(
    apply: Callable[..., tuple[Any, Any]],
    loss: Callable[[Any, Any], Any],
    optimizer: Any,
    *,
    params: Any,
    stats: Any,
    **options: Any,
) -> FunctionsPort:
    """A port of `apply(params, stats, batch, train)`, which returns outputs and new statistics and draws with the
    median key, and of `loss(outputs, batch)`."""

    def loss_and_stats(params: Any, stats: Any, batch: Any) -> tuple[Any, Any]:
        found, new = apply(params, stats, batch, True)
        return loss(found, batch), new

    return FunctionsPort(
        outputs=lambda *asked: apply(*asked)[0],
        loss=loss_and_stats,
        optimizer=optimizer,
        params=params,
        stats=stats,
        dropout="median",
        home=loss,
        **options,
    )


from_functions = FunctionsPort
"""As its users call it."""
