"""Where a program attends: its softmax, the product that it is of, and what masks it."""

import math
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor

from parity.mistakes.mistake import Subject
from parity.reference.rewrite import Call, Site

PRODUCTS = frozenset(("matmul", "einsum", "baddbmm"))
MASKING = frozenset(("masked_fill", "add", "where"))
LOW = -1e3
"""A score below it is as good as masked."""


def softmaxes(subject: Subject) -> Iterator[tuple[Site, Call]]:
    """Softmaxes over scores `(…, queries, keys)`: those that a product comes before."""
    for site, call in subject.calls.items():
        if site.function == "softmax" and first_argument(call).dim() >= 3 and _before(subject, site, PRODUCTS):
            yield site, call


def products(subject: Subject) -> Iterator[Site]:
    """The products of queries and keys."""
    for site, call in softmaxes(subject):
        fitting = [
            one
            for one in _before(subject, site, PRODUCTS)
            if subject.calls[one].run().shape == first_argument(call).shape  # of several, the last
        ]
        yield from fitting[-1:]


def masks(subject: Subject) -> Iterator[Site]:
    """Where scores are masked."""
    for site, call in softmaxes(subject):
        for one in _before(subject, site, MASKING):
            masking = subject.calls[one]
            if blocked(masking) is not None and masking.run().shape == first_argument(call).shape:
                yield one


def blocked(call: Call) -> Tensor | None:
    """Which scores a call masks, True where it does, `(…, queries or 1, keys or 1)`; None where it masks none."""
    values = list(call.arguments.values())
    if call.site.function == "masked_fill":
        value = call["value"]
        return call["mask"] if _number(value) <= LOW else None
    if call.site.function == "add":
        other = call["other"]
        if not isinstance(other, Tensor) or not other.dtype.is_floating_point or other.dim() < 2:
            return None
        low = other <= LOW
        return low if bool(low.any()) or _given_low(call) else None
    condition, other = _condition(values)
    if condition is None or (isinstance(other, Tensor) and other.dim()):
        return None
    return ~condition if _number(other) <= LOW else None


def scores(call: Call) -> Tensor:
    """What a masking call masks."""
    values = list(call.arguments.values())
    if call.site.function == "where":
        return values[0] if values[1].dtype == torch.bool else values[1]  # type: ignore[no-any-return]
    return values[0]  # type: ignore[no-any-return]


def remasked(change: Callable[[Tensor, Any], Tensor | None]) -> Callable[[Any], Callable[[Call], Any]]:
    """Masking with another mask; without one where `change` gives None."""

    def make(value: Any) -> Callable[[Call], Any]:
        def act(call: Call) -> Any:
            mask = blocked(call)
            if mask is None:
                mask = call["other"] <= LOW
            changed = change(mask, value)
            return scores(call) + 0.0 if changed is None else scores(call).masked_fill(changed, _low(call))

        return act

    return make


def is_causal(call: Call) -> bool:
    """Whether a masking call keeps queries from later keys; it may mask padding, too."""
    mask = blocked(call)
    if mask is None or mask.dim() < 2 or mask.shape[-1] != mask.shape[-2] or mask.shape[-1] == 1:
        return False
    return bool(mask[..., torch.ones(mask.shape[-2:], dtype=torch.bool).triu(1)].all() and not mask.all())


def attending(subject: Subject) -> frozenset[str]:
    """Modules within which scores meet their softmax."""
    return frozenset(site.module for site, _ in softmaxes(subject))


def _low(call: Call) -> float:
    """The score of what is masked: -inf, or the finite one that the program itself takes."""
    if call.site.function == "add":
        return float(call["other"].min()) if bool((call["other"] <= LOW).any()) else -math.inf
    if call.site.function == "masked_fill":
        return _number(call["value"])
    return _number(_condition(list(call.arguments.values()))[1])


def _given_low(call: Call) -> bool:
    """Whether what is added holds a mask, though it masks nothing in this batch: it is 0 or lower everywhere."""
    return bool((call["other"] == 0).all())


def _condition(values: list[Any]) -> tuple[Tensor | None, Any]:
    """Where scores are kept, and what stands in place of the others."""
    if len(values) < 3:
        return None, None
    first, second, third = values[:3]
    if isinstance(first, Tensor) and first.dtype == torch.bool:
        kept_first = isinstance(second, Tensor) and second.dim() > 0
        return (first, third) if kept_first else (~first, second)
    return (second, third) if isinstance(second, Tensor) and second.dtype == torch.bool else (None, None)


def _number(value: Any) -> float:
    if isinstance(value, Tensor):
        return float(value) if value.numel() == 1 else math.inf
    return float(value)


def _before(subject: Subject, site: Site, functions: frozenset[str]) -> list[Site]:
    """Calls of these functions in the same module, before a site and after the softmax before it."""
    found: list[Site] = []
    for other in subject.calls:
        if other == site:
            return found
        if other.module == site.module and other.kind == site.kind:
            found = [] if other.function == "softmax" else [*found, other] if other.function in functions else found
    return found


def first_argument(call: Call) -> Any:
    return next(iter(call.arguments.values()))
