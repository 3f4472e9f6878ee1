"""Names that do not match: what is left over, paired by shape and likeness, and the mapping to paste. No NumPy."""

import difflib
import itertools
import math
import re
from collections.abc import Iterable, Mapping
from typing import NamedTuple

Shape = tuple[int, ...]
_MOST_LINES, _LIKENESS = 40, 4.0
_TORCH_WORDS = {
    "kernel": "weight",
    "w": "weight",
    "b": "bias",
    "scale": "weight",
    "gamma": "weight",
    "offset": "bias",
    "beta": "bias",
    "embedding": "weight",
    "embeddings": "weight",
    "mean": "running_mean",
    "moving_mean": "running_mean",
    "var": "running_var",
    "moving_variance": "running_var",
}


class Pair(NamedTuple):
    """Two names that may mean the same tensor."""

    expected: str
    came: str
    axes: tuple[int, ...] | None
    """`expected` with these axes has the shape of `came`; None where it has to be reshaped."""
    alternatives: int
    """How many others fit as well by shape."""


def mismatch(expected: Mapping[str, Shape], came: Mapping[str, Shape]) -> tuple[str, str] | None:
    """What is wrong with names and shapes, in a line, and what helps, in several; None where nothing is.

    `expected` are the reference's tensors, `came` the port's.
    """
    missing = {name: shape for name, shape in expected.items() if name not in came}
    unknown = {name: shape for name, shape in came.items() if name not in expected}
    if missing or unknown:
        parts = [f"{len(missing)} of {len(expected)} names missing ({some(missing)})"] if missing else []
        parts += [f"{len(unknown)} unknown to the reference ({some(unknown)})"] if unknown else []
        return f"names do not match: {', '.join(parts)}", proposal(missing, unknown)
    name = next((name for name, shape in expected.items() if came[name] != shape), None)
    if name is None:
        return None
    axes = transposition(expected[name], came[name])
    how = f"; it is the reference's transposed: to torch's layout with .transpose{inverse(axes)}" if axes else ""
    return f"{name} has shape {came[name]}, expected {expected[name]}{how}", ""


def proposal(
    missing: Mapping[str, Shape], unknown: Mapping[str, Shape], tied: Mapping[str, tuple[str, str]] | None = None
) -> str:
    """The mapping to paste, the reference's names to the port's, with what is uncertain or left over beside it.

    Args:
        tied: missing names that have the same values as another → that other, and where it is in the port.
    """
    tied = tied or {}
    pairs = pair({name: shape for name, shape in missing.items() if name not in tied}, unknown)
    lines = []
    if pairs or tied:
        lines += ["paste and correct this mapping, the reference's names to the port's:", "", "names = {"]
        for one in pairs[:_MOST_LINES]:
            remark = _remark(one, missing[one.expected], unknown[one.came])
            lines.append(f'    "{one.expected}": "{one.came}",  # {remark}')
        lines += [f'    "{name}": "{path}",  # {missing[name]}, as {other}' for name, (other, path) in tied.items()]
        lines += [f"    # … and {len(pairs) - _MOST_LINES} more"] if len(pairs) > _MOST_LINES else []
        lines.append("}")
    paired = {name for one in pairs for name in (one.expected, one.came)} | tied.keys()
    for title, shapes in (("nothing of the port fits", missing), ("nothing of the reference fits", unknown)):
        left = [f"{name} {shape}" for name, shape in shapes.items() if name not in paired]
        if left:
            lines.append(f"{title}: {', '.join(left[:10])}{f' and {len(left) - 10} more' if len(left) > 10 else ''}")
    return "\n".join(lines)


def pair(missing: Mapping[str, Shape], unknown: Mapping[str, Shape]) -> list[Pair]:
    """Each missing name beside the unknown one that is most like it by shape, name and order, each used once."""
    places = {name: at / max(len(missing), 1) for at, name in enumerate(missing)}
    ordered = sorted(unknown, key=_natural)
    their_places = {name: at / max(len(ordered), 1) for at, name in enumerate(ordered)}
    scored = []
    for name, shape in missing.items():
        for other in ordered:
            fit = _fit(shape, unknown[other])
            if fit:
                order = 1 - abs(places[name] - their_places[other])
                scored.append((fit + _LIKENESS * likeness(name, other) + order, name, other))
    fits = {name: sum(1 for _, one, _ in scored if one == name) for name in missing}
    best: dict[str, str] = {}
    for _, name, other in sorted(scored, key=lambda entry: -entry[0]):
        if name not in best and other not in best.values():
            best[name] = other
    return [
        Pair(name, best[name], transposition(missing[name], unknown[best[name]]), fits[name] - 1)
        for name in missing
        if name in best
    ]


def likeness(name: str, other: str) -> float:
    """How much of two names is the same words in the same order, from 0 to 1."""
    return difflib.SequenceMatcher(None, words(name), words(other), autojunk=False).ratio()


def words(name: str) -> tuple[str, ...]:
    """A name in torch's words, whoever spelt it: `layers_0/norm1/scale` and `layers.0.norm1.weight` are equal."""
    parts = re.split(r"[/.]", name)
    parts[-1] = _TORCH_WORDS.get(parts[-1], parts[-1])
    return tuple(part for part in re.split(r"[/._]+", "/".join(parts).lower()) if part)


def transposition(shape: Shape, other: Shape) -> tuple[int, ...] | None:
    """Axes by which an array of `shape` gets the shape `other`; the identity first, then a full reversal."""
    if sorted(shape) != sorted(other) or len(shape) > 6:
        return None
    identity = tuple(range(len(shape)))
    convolution = (*identity[2:], 1, 0) if len(shape) > 2 else identity[::-1]
    candidates = itertools.chain([identity, convolution, identity[::-1]], itertools.permutations(identity))
    return next(axes for axes in candidates if tuple(shape[axis] for axis in axes) == other)


def inverse(axes: tuple[int, ...]) -> tuple[int, ...]:
    """The axes that undo a transposition."""
    return tuple(sorted(range(len(axes)), key=axes.__getitem__))


def _fit(shape: Shape, other: Shape) -> float:
    if shape == other:
        return 2.0
    if sorted(shape) == sorted(other):
        return 1.8
    return 1.0 if math.prod(shape) == math.prod(other) else 0.0


def _remark(one: Pair, shape: Shape, other: Shape) -> str:
    arrow = f" → {other}, {f'axes {one.axes}' if one.axes else 'reshaped'}" if shape != other else ""
    return f"{shape}{arrow}" + (f"; {one.alternatives} more would fit" if one.alternatives else "")


def some(names: Iterable[str]) -> str:
    """The first three of them."""
    told = list(names)
    return ", ".join(told[:3]) + (", …" if len(told) > 3 else "")


def _natural(name: str) -> list[tuple[int, int, str]]:
    """`Dense_2` before `Dense_10`."""
    return [(0, int(part), "") if part.isdigit() else (1, 0, part) for part in re.split(r"(\d+)", name) if part]
