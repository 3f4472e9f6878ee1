"""How parameters are drawn: their size, their distribution, their seed."""

from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn

from parity.mistakes.layouts.misread import grouped
from parity.mistakes.mistake import Diff, Mistake, Subject, Tries, Try
from parity.reference.rewrite import Rewrite


def _draws(change: Callable[[Tensor, Any], Tensor], values: tuple[Any, ...], **fit: Any) -> Tries:
    """Parameters are drawn otherwise, where a port has to draw torch's numbers."""

    def tries(subject: Subject) -> Iterator[Try]:
        draw = subject.reference.init
        if draw is None:
            return
        for place, group in grouped(subject, [name for name, _ in subject.module.named_parameters()]):

            def rewrite(value: Any, group: frozenset[str] = group) -> Rewrite:
                def init(seed: int) -> nn.Module:
                    module = draw(seed)
                    with torch.no_grad():
                        for name, parameter in module.named_parameters():
                            if name in group:
                                parameter.copy_(change(parameter, value))
                    return module

                return lambda reference: replace(reference, init=init)

            yield Try(place, rewrite, values, size=len(group), **fit)

    return tries


def _seeds(subject: Subject) -> Iterator[Try]:
    draw = subject.reference.init
    if draw is None:
        return

    def rewrite(value: str) -> Rewrite:
        def init(seed: int) -> nn.Module:
            return draw(0 if value == "seed 0" else seed + int(value[-2:]))

        return lambda reference: replace(reference, init=init)

    yield Try("the initial draw", rewrite, ("seed 0", "seed +1", "seed -1"))


MISTAKES = (
    Mistake(
        "D017",
        "init-scaled",
        "the draw of {place} is × {value} in the port",
        "Fan in or fan out, a gain that is left out or squared, a bound taken for a deviation: all are a factor. "
        "torch's Linear draws uniformly within 1/√fan_in, which has a deviation of 0.577/√fan_in; flax's "
        "lecun_normal has 1/√fan_in; an embedding has 1 in torch and 1/√width in flax.",
        (
            Diff("", "bound = 1 / math.sqrt(fan_in)", "bound = math.sqrt(3 / fan_in)"),
            Diff(
                "",
                "nn.Embed(vocabulary, width, embedding_init=nn.initializers.normal(1.0))",
                "nn.Embed(vocabulary, width)",
            ),
        ),
        ("jax#4862", "flax#215", "ppo_jax#2", "torch: nn.Linear"),
        _draws(
            lambda tensor, value: tensor * value,
            (3**0.5, 3**-0.5, 6**0.5, 2**0.5, 2**-0.5, 0.5, 2.0),
            fit="linear",
            was=1.0,
        ),
    ),
    Mistake(
        "D018",
        "init-constant",
        "{place} starts at {value} in the port, and is drawn in the reference",
        "flax's biases start at zero, torch's are drawn within 1/√fan_in. One step later nothing tells any more.",
        (Diff("", "bias_init=uniform(1 / math.sqrt(fan_in))", "bias_init=nn.initializers.zeros"),),
        ("jax#4862", "equinox#1143", "torch: nn.Linear"),
        _draws(lambda tensor, value: torch.full_like(tensor, value), (0.0, 1.0)),
    ),
    Mistake(
        "D019",
        "seed-of-another-draw",
        "the port draws what the reference draws with {value}",
        "A seed that is used for data first, or added to a rank, draws other numbers of the right distribution.",
        (Diff("", "params = init(seed)", "params = init(seed + 1)"),),
        ("torch: manual_seed",),
        _seeds,
    ),
    Mistake(
        "D020",
        "init-distribution",
        "{place} is drawn from another distribution in the port",
        "torch's `trunc_normal_(std)` cuts at -2 and 2, which for a deviation of 0.02 is no cut at all; JAX cuts at "
        "two deviations, and its `truncated_normal` has 0.88 of the deviation that it is told unless it is rescaled. "
        "Kaiming's normal and uniform draws have one deviation and other tails. Where a port need not draw torch's "
        "numbers only statistics can tell, and there is no rewrite.",
        (Diff("", "jax.random.normal(rng, shape) * std", "jax.random.truncated_normal(rng, -2, 2, shape) * std"),),
        ("algoperf#819", "flax#4091", "timm#1286", "timm#1283", "HF#19305"),
    ),
)
