"""Ways to look for tensors that are loaded as others: permuted, exchanged, or not at all."""

import itertools
import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np
from torch import Tensor, nn

from parity.cases import Array, Tensors
from parity.mistakes.mistake import Subject, Tries, Try
from parity.reference.rewrite import misread

Change = Callable[[Array, Any], Array]

FAMILIES = (nn.RNNBase, nn.modules.conv._ConvNd, nn.modules.batchnorm._NormBase)


def tensors(
    change: Change,
    back: Change | None,
    which: Callable[[Subject], Iterable[str]],
    values: tuple[Any, ...] = (None,),
) -> Tries:
    """Tensors are read another way, at all places, at those of a kind, and at each alone.

    Args:
        change: what the port has in a tensor's place, of the same shape.
        back: its inverse, for ports that give tensors back as they took them; None where there is none.
        which: names of those that may be read so.
    """

    def tries(subject: Subject) -> Iterator[Try]:
        names = [name for name in which(subject) if name in subject.state]
        for value in values:
            fitting = [name for name in names if _changes(subject.state[name], change, value)]
            for place, group in grouped(subject, fitting):
                taken = _each(group, change, value)
                # What is told as it came first: where a state is told as it came, the load stage has passed.
                if back is not None:
                    told = _each(group, back, value)
                    yield Try(place, lambda _, taken=taken, told=told: misread(taken, told), (value,), size=len(group))  # type: ignore[misc]
                yield Try(place, lambda _, taken=taken: misread(taken), (value,), size=len(group))  # type: ignore[misc]

    return tries


def renamed(find: Callable[[Subject], Iterable[tuple[str, Mapping[str, str]]]], both: bool = True) -> Tries:
    """Tensors are taken for others.

    Args:
        find: places, and for each tensor there the one that is read in its stead; one-to-one if `both`.
        both: whether they are told by the same wrong names, too.
    """

    def tries(subject: Subject) -> Iterator[Try]:
        told_of: list[frozenset[tuple[str, str]]] = []
        for place, names in find(subject):
            key = frozenset(names.items())
            if not key or key in told_of:
                continue
            told_of.append(key)
            taken = _read(names)
            if both:
                told = _read({source: name for name, source in names.items()})
                yield Try(place, lambda _, taken=taken, told=told: misread(taken, told), size=len(names))  # type: ignore[misc]
            yield Try(place, lambda _, taken=taken: misread(taken), size=len(names))  # type: ignore[misc]

    return tries


def grouped(subject: Subject, names: Sequence[str]) -> Iterator[tuple[str, frozenset[str]]]:
    """Sets of tensors to try, and what to call them: all, those of one kind, of one place in repeated parts, each."""
    told: set[frozenset[str]] = set()
    groups: dict[str, list[str]] = {"everywhere": list(names)}
    for name in names:
        path, _, last = name.rpartition(".")
        owner = subject.module.get_submodule(path)
        for kind in [type(owner), *(family for family in FAMILIES if isinstance(owner, family))]:
            groups.setdefault(f"every {kind.__name__.strip('_')}", []).append(name)
            groups.setdefault(f"the {last} of every {kind.__name__.strip('_')}", []).append(name)
        groups.setdefault(f"every {last}", []).append(name)
        groups.setdefault(re.sub(r"\b\d+\b", "*", name), []).append(name)
    for name in names:
        groups.setdefault(name, [name])
    for place, group in groups.items():
        key = frozenset(group)
        if key and key not in told:
            told.add(key)
            yield group[0] if len(group) == 1 else place, key


def parameters(subject: Subject) -> dict[str, Array]:
    """What is trained, each by its first name."""
    return {name: subject.state[name] for name, _ in subject.module.named_parameters()}


def given_to(subject: Subject, *functions: str) -> frozenset[str]:
    """Names of the parameters that some functions of torch are called with."""
    storages = {
        argument.untyped_storage().data_ptr()
        for site, call in subject.calls.items()
        if site.function in functions
        for values in call.arguments.values()
        for argument in (values if isinstance(values, list | tuple) else (values,))
        if isinstance(argument, Tensor)
    }
    return frozenset(
        name
        for name, parameter in subject.module.named_parameters()
        if parameter.untyped_storage().data_ptr() in storages
    )


def kernels(subject: Subject) -> list[str]:
    """Names of parameters that inputs are multiplied with, not looked up in."""
    tables = given_to(subject, "embedding", "getitem")
    return [name for name, array in parameters(subject).items() if array.ndim > 1 and name not in tables]


def exchanged(subject: Subject) -> Iterator[tuple[str, dict[str, str]]]:
    """Pairs of tensors of one shape within a module: in it, and in all modules of its kind."""
    kinds: dict[tuple[str, str, str], dict[str, str]] = {}
    for owner, module in subject.module.named_modules():
        prefix = f"{owner}." if owner else ""
        own = [name for name in subject.state if name.rpartition(".")[0] == owner and subject.state[name].ndim]
        swaps = [
            {one: other, other: one}
            for one, other in itertools.combinations(own, 2)
            if subject.state[one].shape == subject.state[other].shape
        ]
        for layer in sorted({name.rpartition("_")[2] for name in own if "_ih_" in name}):
            pairs = {name: name.replace("_ih_", "_hh_") for name in own if f"_ih_{layer}" in name}
            if all(subject.state[a].shape == subject.state[b].shape for a, b in pairs.items()):
                swaps.append(pairs | {other: one for one, other in pairs.items()})
        for swap in swaps[:24]:
            yield " and ".join(sorted(swap)), swap
            first, second = sorted(name.removeprefix(prefix) for name in list(swap)[:2])
            kinds.setdefault((type(module).__name__, first, second), {}).update(swap)
    for (kind, first, second), swap in kinds.items():
        yield f"{first} and {second} of every {kind}", swap


def siblings(subject: Subject) -> Iterator[tuple[str, dict[str, str]]]:
    """Two modules of one shape next to each other, under one parent and in all parents that are alike."""
    alike: dict[tuple[str, str, str], dict[str, str]] = {}
    for parent, module in subject.module.named_modules():
        prefix = f"{parent}." if parent else ""
        children = {name: _inside(subject, prefix + name) for name, _ in module.named_children()}
        pairs = [
            (one, other)
            for one, other in itertools.combinations(children, 2)
            if children[one] and _shapes(subject, children[one]) == _shapes(subject, children[other])
        ]
        if len(pairs) > 6:  # of many layers only neighbours
            pairs = [pair for pair in pairs if list(children).index(pair[1]) - list(children).index(pair[0]) == 1]
        for one, other in pairs:
            a, b = children[one], children[other]
            swap = dict(zip(a, b, strict=True)) | dict(zip(b, a, strict=True))
            yield f"{prefix}{one} and {prefix}{other}", swap
            alike.setdefault((re.sub(r"\b\d+\b", "*", prefix), one, other), {}).update(swap)
    for (pattern, one, other), swap in alike.items():
        yield f"{pattern}{one} and {pattern}{other}", swap


def reordered(subject: Subject, order: Callable[[list[str]], list[str]]) -> Iterator[tuple[str, dict[str, str]]]:
    """Repeated parts in another order."""
    for parent, module in subject.module.named_modules():
        prefix = f"{parent}." if parent else ""
        numbered = [name for name, _ in module.named_children() if name.isdigit()]
        parts = [(name, _inside(subject, prefix + name)) for name in numbered]
        parts = [(name, inside) for name, inside in parts if inside]
        if len(parts) < 2 or len({tuple(_shapes(subject, inside)) for _, inside in parts}) != 1:
            continue
        own, inside = [name for name, _ in parts], dict(parts)
        names = {
            target: source
            for to, out_of in zip(own, order(own), strict=True)
            if to != out_of
            for target, source in zip(inside[to], inside[out_of], strict=True)
        }
        yield f"{prefix}*", names


def _inside(subject: Subject, module: str) -> list[str]:
    return [name for name in subject.state if name.startswith(f"{module}.")]


def _shapes(subject: Subject, names: Sequence[str]) -> list[tuple[int, ...]]:
    return [subject.state[name].shape for name in names]


def _changes(array: Array, change: Change, value: Any) -> bool:
    """Whether a tensor of other numbers than a fresh one's constants would be another one, of the same shape."""
    some = np.arange(1, array.size + 1, dtype=np.float64).reshape(array.shape)
    try:
        changed = change(some, value)
    except (ValueError, IndexError, np.exceptions.AxisError):
        return False
    return changed.shape == some.shape and not np.array_equal(changed, some)


def _each(names: frozenset[str], change: Change, value: Any) -> Callable[[Tensors], Tensors]:
    return lambda state: {
        name: np.ascontiguousarray(change(array, value)) if name in names else array for name, array in state.items()
    }


def _read(names: Mapping[str, str]) -> Callable[[Tensors], Tensors]:
    return lambda state: {name: state[names.get(name, name)] for name in state}


def modules_with(subject: Subject, *functions: str) -> frozenset[str]:
    """Names of the modules that call one of some functions of torch."""
    return frozenset(site.module for site in subject.calls if site.function in functions)


def read_as(which: Any, change: Any, back: Any = None, values: tuple[Any, ...] = (None,)) -> Tries:
    return tensors(change, back, which, values)
