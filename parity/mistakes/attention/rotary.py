"""Rotary positions: their base, their direction, and what is turned with what."""

from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import torch
from torch import nn

from parity.mistakes.attention.scores import first_argument
from parity.mistakes.mistake import Diff, Mistake, Subject
from parity.mistakes.tries import argument, at, modules, several
from parity.reference.program import array
from parity.reference.rewrite import Call, Site

BASES = (10000.0, 500000.0, 1000000.0, 100.0, 1e8)
CUTS = ("chunk", "split", "tensor_split")


def _bases(part: nn.Module) -> dict[str, float]:
    """The bases of a module's buffers that are rotary frequencies: base^(-i/n) for i from 0 to n - 1."""
    found = {}
    for name, buffer in part.named_buffers(recurse=False):
        values = array(buffer).astype(np.float64)
        if values.ndim == 1 and len(values) > 1 and values.dtype.kind == "f" and values[0] == 1 and 0 < values[1] < 1:
            exponents = np.arange(len(values)) / len(values)
            base = float(values[1] ** -len(values))
            if np.allclose(values, base**-exponents, rtol=1e-5):
                found[name] = float(f"{base:.5g}")
    return found


def _with_base(part: nn.Module, base: float) -> None:
    for name in _bases(part):
        buffer = getattr(part, name)
        with torch.no_grad():
            buffer.copy_(torch.tensor(base) ** (-torch.arange(len(buffer)) / len(buffer)))


def _turns(subject: Subject) -> Iterator[Site]:
    """Cosines and sines of angles in modules that attend, or that have no parameters: positions."""
    both = [{site.module for site in subject.calls if site.function == function} for function in ("cos", "sin")]
    yield from (site for site in subject.calls if site.function in ("cos", "sin") and site.module in both[0] & both[1])


def _sines(subject: Subject) -> Iterator[Site]:
    return (site for site in _turns(subject) if site.function == "sin")


def _unturned(_: None) -> Callable[[Call], Any]:
    def act(call: Call) -> Any:
        angles = call.run()
        return torch.ones_like(angles) if call.site.function == "cos" else torch.zeros_like(angles)

    return act


def _halves(call: Call) -> bool:
    """Whether a call is one of a rotation's in halves."""
    values = first_argument(call)
    if call.site.function in CUTS:
        parts = call.run()
        shapes = [part.shape for part in parts]
        return len(parts) == 2 and shapes[0] == shapes[1] and shapes[0][:-1] == values.shape[:-1]
    if call.site.function == "repeat":
        return bool(values.dim() == 2 and call.run().shape == (values.shape[0], 2 * values.shape[1]))
    if call.site.function == "cat":
        shapes = [part.shape for part in values]
        return len(values) == 2 and shapes[0] == shapes[1] and bool(call.run().shape[:-1] == shapes[0][:-1])
    return False


def _interleaved(subject: Subject) -> Iterator[Site]:
    turning = {site.module for site in _turns(subject)}
    for site, call in subject.calls.items():
        if site.module in turning and site.function in (*CUTS, "repeat", "cat") and _halves(call):
            yield site


def _pairwise(_: None) -> Callable[[Call], Any]:
    """Neighbours are turned together, where the reference turns the first half with the second."""

    def act(call: Call) -> Any:
        values = first_argument(call)
        if call.site.function == "repeat":
            return values.repeat_interleave(2, -1)
        if call.site.function == "cat":
            return torch.stack(tuple(values), -1).flatten(-2)
        return values[..., ::2], values[..., 1::2]

    return act


MISTAKES = (
    Mistake(
        "F110",
        "rotary-base",
        "the base of the rotary frequencies of {place} is {value}, the reference's is {was}",
        "10000 in the paper, 500000 in Llama 3, 1000000 in Code Llama and Qwen, another one for each kind of layer in "
        "Gemma 3. Exponents of i/width instead of 2i/width are a base of its root. The first positions agree, and the "
        "error grows with the distance.",
        (
            Diff("decoder", "frequencies = ROPE_BASE **", "frequencies = 500000.0 **"),
            Diff("decoder", "dtype=x.dtype) / width)", "dtype=x.dtype) / (2 * width))"),
        ),
        ("TransformerLens#910", "maxtext#2294"),
        several(
            argument("rpow", "base", None, BASES, "log"),
            modules(
                _with_base,
                lambda part: bool(_bases(part)),
                BASES,
                "log",
                was=lambda part: next(iter(_bases(part).values())),
            ),
        ),
    ),
    Mistake(
        "F111",
        "rotary-positions-scaled",
        "the rotary angles of {place} are × {value} in the port",
        "Longer contexts are reached by dividing positions, or only the low frequencies, by a factor. A scaling "
        "that is ignored, or applied twice, does nothing to the first position and more to every later one.",
        (
            Diff(
                "decoder",
                "jnp.outer(jnp.arange(length, dtype=x.dtype), ",
                "jnp.outer(jnp.arange(length, dtype=x.dtype) / 4, ",
            ),
        ),
        ("TransformerLens#910", "swiss-ai/Megatron-LM#85"),
        at(
            _turns,
            lambda value: lambda call: call.function(first_argument(call) * value),
            (0.5, 2.0, 0.25, 0.125, 4.0),
            "linear",
            1.0,
        ),
    ),
    Mistake(
        "F112",
        "rotary-turned-back",
        "the rotary embedding of {place} turns the other way in the port",
        "The sign of the sine decides the direction: exchanged, all angles are negative. The scores of one position "
        "with itself agree, and those of all others are as if keys came later.",
        (
            Diff(
                "decoder",
                "[first * cos - second * sin, second * cos + first * sin]",
                "[first * cos + second * sin, second * cos - first * sin]",
            ),
        ),
        ("TransformerLens#385",),
        at(_sines, lambda _: lambda call: -call.run()),
    ),
    Mistake(
        "F113",
        "rotary-interleaved",
        "the rotary embedding of {place} turns neighbours together in the port, the reference the first half with the "
        "second",
        "GPT-J and the paper turn features 2i and 2i+1 together, GPT-NeoX and Llama as transformers has it features i "
        "and i + width/2. Weights come in either order: taken without the permutation that belongs to them, the first "
        "position is right, and the error grows with the distance.",
        (
            Diff(
                "decoder",
                "first, second = jnp.split(x, 2, axis=-1)\n"
                "    return jnp.concatenate([first * cos - second * sin, second * cos + first * sin], axis=-1)",
                "first, second = x[..., ::2], x[..., 1::2]\n"
                "    return jnp.stack([first * cos - second * sin, second * cos + first * sin], -1).reshape(x.shape)",
            ),
        ),
        ("maxtext#581", "maxtext#2294"),
        at(_interleaved, _pairwise),
    ),
    Mistake(
        "F114",
        "rotary-missing",
        "queries or keys of {place} are not turned in the port",
        "Both have to be turned for their product to depend on the distance. Turned alone, or not at all, position "
        "enters as an absolute one, or not.",
        (
            Diff("decoder", "grouped, rotate(k), precision", "grouped, k, precision"),
            Diff("decoder", "grouped = rotate(q).reshape(", "grouped = q.reshape("),
        ),
        ("maxtext#3112",),
        at(_turns, _unturned),
    ),
)
