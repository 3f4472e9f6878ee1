"""Where each of torch's tensors lies in a port: by names and rules, or as a conversion shows. NumPy only."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from parity.cases import Array, Tensors
from parity.errors import PortError
from parity.port.layouts import Leaf, stacked
from parity.port.names import Shape, likeness, proposal, words

Names = Mapping[str, "str | tuple[str, ...] | Leaf | None"]
COUNTER = "num_batches_tracked"
_DIGIT = 1 << 20


@dataclass(frozen=True)
class Named:
    """Torch's names → the leaves that hold the tensor, with the rows that each of them holds."""

    found: Mapping[str, list[tuple[Leaf, slice]]]

    def to_port(self, tensors: Tensors) -> Tensors:
        """By the paths of leaves."""
        leaves: Tensors = {}
        for name, parts in self.found.items():
            for leaf, rows in parts:
                leaves.setdefault(leaf.path, leaf.to_port(tensors[name][rows] if tensors[name].ndim else tensors[name]))
        return leaves

    def to_torch(self, leaves: Tensors) -> Tensors:
        """By torch's names; those of which no leaf is given are left out."""
        tensors = {}
        for name, places in self.found.items():
            if all(leaf.path in leaves for leaf, _ in places):
                parts = [leaf.to_torch(leaves[leaf.path]) for leaf, _ in places]
                tensors[name] = parts[0] if len(parts) == 1 else np.concatenate(parts)
        return tensors


@dataclass(frozen=True)
class Learned:
    """Which element of which of torch's tensors stands at each element of a leaf, all tensors laid end to end."""

    shapes: Mapping[str, Shape]
    taken: Mapping[str, Array]

    def to_port(self, tensors: Tensors) -> Tensors:
        """By the paths of leaves."""
        everything = np.concatenate([tensors[name].ravel() for name in self.shapes])
        return {path: everything[index] for path, index in self.taken.items()}

    def to_torch(self, leaves: Tensors) -> Tensors:
        """By torch's names; those of which no leaf is given are left out."""
        sizes = [int(np.prod(shape)) for shape in self.shapes.values()]
        everything, known = np.zeros(sum(sizes)), np.zeros(sum(sizes), bool)
        for path in self.taken.keys() & leaves.keys():
            everything[self.taken[path]], known[self.taken[path]] = leaves[path], True
        dtype = np.result_type(*(leaves[path] for path in self.taken.keys() & leaves.keys()))
        parts = np.split(everything.astype(dtype), np.cumsum(sizes)[:-1])
        given = np.split(known, np.cumsum(sizes)[:-1])
        return {
            name: part.reshape(shape)
            for (name, shape), part, there in zip(self.shapes.items(), parts, given, strict=True)
            if there.all()
        }


Places = Named | Learned


def by_names(names: Names, tensors: Tensors, leaves: Mapping[str, Any], own: frozenset[str]) -> Places:
    """As `names` say, else by names that are alike.

    Args:
        leaves: by paths, `params/…` and `stats/…`; arrays or shapes.
        own: leaves that need not be anybody's.

    Raises:
        PortError: something is left over on either side; its hint is the mapping to paste.
    """
    shapes = {path: tuple(leaf.shape) for path, leaf in leaves.items()}
    found: dict[str, list[tuple[Leaf, slice]]] = {}
    inner = {words(short(short(path))): short(path) for path in leaves if path.startswith("stats/")}  # of a collection
    by_words = inner | {words(short(path)): short(path) for path in leaves}
    for name, tensor in tensors.items():
        meant = names.get(name, by_words.get(words(name), ""))
        if isinstance(meant, Leaf):
            found[name] = [(meant._replace(path=_path(leaves, name, meant.path)), slice(None))]
        elif meant:
            paths = tuple(_path(leaves, name, path) for path in ((meant,) if isinstance(meant, str) else meant))
            found[name] = stacked(name, tensor.shape, paths, shapes)
    used = {leaf.path for parts in found.values() for leaf, _ in parts}
    missing = {name: tensor.shape for name, tensor in tensors.items() if name not in found and not _is_own(names, name)}
    unused = {short(path): shape for path, shape in shapes.items() if path not in used | own}
    if missing or unused:
        left = [f"{len(missing)} of the reference ({', '.join([*missing][:3])})"] if missing else []
        left += [f"{len(unused)} of the port ({', '.join([*unused][:3])})"] if unused else []
        held = {name: tensors[name] for name, parts in found.items() if len(parts) == 1}
        same = twins({name: tensors[name] for name in missing}, held) if not unused else {}
        tied = {name: (other, short(found[other][0][0].path)) for name, other in same.items()}
        free = {short(path): shapes[path] for path in own - used} if missing else {}
        raise PortError(f"names are left over: {', '.join(left)}", proposal(missing, unused | free, tied))
    return Named(found)


def by_conversion(
    convert: Callable[[Tensors], Tensors], tensors: Tensors, leaves: Mapping[str, Any], own: frozenset[str]
) -> Places:
    """As the port's own way of converting torch's tensors shows, which may move elements but not change them: it is
    given tensors of numbers, by which each element is known again.

    Args:
        convert: returns arrays by the paths of leaves.

    Raises:
        PortError: it changes elements, or a leaf gets none.
    """
    real = {name: tensor.shape for name, tensor in tensors.items() if tensor.dtype.kind == "f"}
    count = sum(int(np.prod(shape)) for shape in real.values())
    numbers = np.split(np.arange(count), np.cumsum([int(np.prod(shape)) for shape in real.values()])[:-1])

    def sent(change: Callable[[Array], Array]) -> dict[str, Array]:
        numbered = {
            name: change(part).astype(np.float32).reshape(shape)
            for (name, shape), part in zip(real.items(), numbers, strict=True)
        }
        return {path: np.asarray(leaf, np.float64) for path, leaf in convert({**tensors, **numbered}).items()}

    # float32 holds whole numbers of 24 bits.
    low, high = sent(lambda number: number % _DIGIT), sent(lambda number: number // _DIGIT)
    taken = {}
    for path in leaves.keys() - own:
        if np.dtype(leaves[path].dtype).kind in "iub":
            continue  # a seed, or a count: no tensor of torch's is moved there
        if path not in low:
            raise PortError(f"convert: returns nothing for {short(path)}")
        index = low[path] + _DIGIT * high[path]
        if index.shape != tuple(leaves[path].shape):
            raise PortError(f"convert: {short(path)} has shape {index.shape}, expected {tuple(leaves[path].shape)}")
        if not ((index >= 0) & (index < count) & (index % 1 == 0) & (low[path] < _DIGIT)).all():
            raise PortError(f"convert: changes the numbers of {short(path)}; it may only move them")
        taken[path] = index.astype(np.int64)
    return Learned(real, taken)


def twins(kept: Tensors, held: Tensors) -> dict[str, str]:
    """Of tensors that no leaf holds, further names of one that a leaf does hold: what torch ties has equal values. Of
    several such names the most alike is taken."""
    found = {}
    for name, tensor in kept.items():
        equal = [other for other, one in held.items() if tensor.dtype.kind == "f" and np.array_equal(one, tensor)]
        if equal:
            found[name] = max(equal, key=lambda other: likeness(name, other))
    return found


def short(path: str) -> str:
    """A leaf's path as its users know it, without `params/` or `stats/`."""
    return path.partition("/")[2]


def _is_own(names: Names, name: str) -> bool:
    """Whether the port needs no leaf for a tensor."""
    return names.get(name, "") is None or name.endswith(COUNTER)


def _path(leaves: Mapping[str, Any], name: str, path: str) -> str:
    path = path.removeprefix("params/").removeprefix("stats/")
    for kind in ("params", "stats"):
        if f"{kind}/{path}" in leaves:
            return f"{kind}/{path}"
    known = ", ".join([short(known) for known in leaves][:8])
    raise PortError(f"names: {name!r} is said to be {path!r}, which is no leaf of params or stats: {known}, …")
