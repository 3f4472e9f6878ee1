"""Activations: another one, another form or slope of it, another place."""

from collections.abc import Callable, Iterator
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

from parity.mistakes.mistake import Diff, Mistake, Subject, Tries
from parity.mistakes.tries import Together, argument, calls, several, together
from parity.reference.rewrite import Call, Site

Function = Callable[[Tensor], Tensor]

RECTIFIERS: dict[str, Function] = {
    "relu": functional.relu,
    "relu6": functional.relu6,
    "gelu": functional.gelu,
    "gelu by tanh": lambda x: functional.gelu(x, approximate="tanh"),
    "gelu by sigmoid": lambda x: x * torch.sigmoid(1.702 * x),
    "silu": functional.silu,
    "elu": functional.elu,
    "selu": functional.selu,
    "leaky_relu": functional.leaky_relu,
    "softplus": functional.softplus,
    "mish": functional.mish,
    "hardswish": functional.hardswish,
}
SQUASHERS: dict[str, Function] = {
    "sigmoid": torch.sigmoid,
    "tanh": torch.tanh,
    "relu6(x + 3) / 6": lambda x: functional.relu6(x + 3) / 6,
    "clip(0.2 x + 0.5)": lambda x: (0.2 * x + 0.5).clamp(0, 1),
    "clip(x, -1, 1)": lambda x: x.clamp(-1, 1),
}
ACTIVATIONS = ("relu", "gelu", "silu", "elu", "selu", "leaky_relu", "softplus", "mish", "hardswish", "sigmoid", "tanh")


def _another(function: str, family: dict[str, Function]) -> Tries:
    def change(call: Call, value: str) -> Any:
        return family[value](call["input"])

    # GELU's two forms are a mistake of their own.
    others = tuple(name for name in family if name != function and not (name == "gelu by tanh" and function == "gelu"))
    return calls(function, change, others, was=lambda call: call.site.function)


def _normalized_first(subject: Subject) -> Iterator[tuple[Site, ...]]:
    """A normalization, and the activation that it is given to next."""
    order = list(subject.calls.items())
    for (site, call), (after, activation) in pairwise(order):
        follows = site.function.endswith("_norm") and after.function in ACTIVATIONS
        if follows and call["input"].shape == activation["input"].shape:
            yield site, after


def _activated_first(call: Call, at: int, group: Together, _: Any) -> Any:
    if at == 1:
        return call["input"]
    return call.run(input=group.calls[1].run(input=call["input"]))


def _gates(subject: Subject) -> Iterator[tuple[Site, ...]]:
    """An activation, and the product soon after it with values of the same shape."""
    order = list(subject.calls.items())
    for index, (site, call) in enumerate(order):
        if site.function not in ACTIVATIONS:
            continue
        for after, product in order[index + 1 : index + 4]:
            factors = (product["input"], product["other"])
            gates = after.function == "mul" and after.module == site.module and all(map(torch.is_tensor, factors))
            if gates and all(factor.shape == call["input"].shape for factor in factors):
                yield site, after
                break


def _swapped(call: Call, at: int, group: Together, _: Any) -> Any:
    if at == 0:
        group.kept.update(gate=call["input"], activated=call.run(), run=call.run)
        return group.kept["activated"]
    for one, other in (("input", "other"), ("other", "input")):
        if call[one] is group.kept["activated"]:
            return group.kept["run"](input=call[other]) * group.kept["gate"]
    return call.run()


def _swapped_halves(call: Call) -> Any:
    first, second = call["input"].chunk(2, -1 if call["dim"] is None else call["dim"])
    gated: Tensor = torch.sigmoid(first) * second
    return gated


MISTAKES = (
    Mistake(
        "F002",
        "gelu-by-tanh",
        "GELU at {place} is computed by tanh, the reference's is exact",
        "jax.nn.gelu approximates by tanh unless told approximate=False; torch's default is exact. They differ by "
        "4.7e-4 at most, at |x| = 2.7.",
        (
            Diff("transformer", "approximate=False", "approximate=True"),
            Diff("mlp", "approximate=False", "approximate=True"),
        ),
        ("jax#4428", "gemma_pytorch#33"),
        calls(
            "gelu",
            lambda call, _: call.run(approximate="tanh"),
            when=lambda call: call["approximate"] in (None, "none"),
        ),
    ),
    Mistake(
        "F020",
        "leaky-relu-slope",
        "the negative slope of {place} is {value}, the reference's is {was}",
        "torch's and jax.nn's default is 0.01, Keras's 0.3, GANs set 0.2 and detectors 0.1; a call without the "
        "argument takes another slope without a word. Positive values agree.",
        (Diff("mlp", ", negative_slope=0.1)", ")"),),
        ("torch: LeakyReLU, negative_slope=0.01", "Keras: LeakyReLU, negative_slope=0.3"),
        argument("leaky_relu", "negative_slope", 0.01, (0.01, 0.2, 0.3, 0.1), "linear"),
    ),
    Mistake(
        "F021",
        "another-activation",
        "the activation at {place} is {value}, the reference's is {was}",
        "Names mislead: swish is SiLU, a SwiGLU's gate is no GELU, CLIP's quick_gelu is x·sigmoid(1.702x), "
        "MobileNet's ReLU ends at 6, Keras's hard_sigmoid has slope 0.2 and JAX's 1/6. The curves lie so close to "
        "each other that a network trains about as well with either.",
        (
            Diff("decoder", "nn.silu(gate) * up", "nn.gelu(gate) * up"),
            Diff("unet", "return nn.silu(nn.GroupNorm", "return nn.relu(nn.GroupNorm"),
            Diff("mlp", "nn.relu(dense(WIDTH", "nn.silu(dense(WIDTH"),
            Diff("convnet", 'nn.relu(BatchNorm(name="norm")', 'nn.relu6(BatchNorm(name="norm")'),
            Diff("transformer", "nn.gelu(Dense(4 * WIDTH", "(lambda x, approximate: nn.relu(x))(Dense(4 * WIDTH"),
            Diff("regression", "nn.elu(BatchNorm", "nn.selu(BatchNorm"),
            Diff("regression", 'nn.sigmoid(Dense(WIDTH, name="gate")', 'nn.hard_sigmoid(Dense(WIDTH, name="gate")'),
        ),
        ("jax: nn.hard_sigmoid, nn.swish", "transformers: ACT2FN", "Keras: activations.hard_sigmoid"),
        several(
            *(_another(name, RECTIFIERS) for name in ACTIVATIONS if name not in SQUASHERS),
            *(_another(name, SQUASHERS) for name in ("sigmoid", "tanh")),
        ),
    ),
    Mistake(
        "F022",
        "elu-alpha",
        "the alpha of {place} is {value}, the reference's is {was}",
        "ELU's alpha scales its negative side alone; a SELU taken for an ELU brings 1.673 along.",
        (
            Diff(
                "regression",
                'use_bias=False, name="in")(x), train))',
                'use_bias=False, name="in")(x), train), alpha=0.5)',
            ),
        ),
        ("torch: ELU, alpha=1.0",),
        argument("elu", "alpha", 1.0, (0.5, 0.1, 1.0, 2.0), "linear"),
    ),
    Mistake(
        "F023",
        "activation-forgotten",
        "the activation at {place}, {was}, is left out",
        "Layers without an activation between them are one linear map. It learns the easy part of every task, and "
        "losses fall as they should for some epochs.",
        (
            Diff(
                "mlp", 'nn.leaky_relu(dense(WIDTH, name="fc3")(x), negative_slope=0.1)', 'dense(WIDTH, name="fc3")(x)'
            ),
            Diff(
                "convnet",
                'nn.relu(conv(16, (3, 3), feature_group_count=4, name="grouped")(x))',
                'conv(16, (3, 3), feature_group_count=4, name="grouped")(x)',
            ),
            Diff("unet", "nn.silu(ConvTranspose(", "(ConvTranspose("),
            Diff("regression", "nn.softplus(Dense", "(Dense"),
            Diff("transformer", "nn.gelu(Dense(4 * WIDTH", "(lambda x, approximate: x)(Dense(4 * WIDTH"),
            Diff("decoder", "nn.silu(gate) * up", "gate * up"),
        ),
        ("flax: Dense has no activation",),
        calls(" ".join(ACTIVATIONS), lambda call, _: call["input"], was=lambda call: call.site.function),
    ),
    Mistake(
        "F024",
        "activation-before-norm",
        "at {place} the activation comes before the normalization, in the reference after it",
        "convolution, normalization, activation is the usual order, and papers and code disagree about it often "
        "enough. Both train.",
        (
            Diff(
                "convnet",
                'nn.relu(BatchNorm(name="stem_norm")(x, train))',
                'BatchNorm(name="stem_norm")(nn.relu(x), train)',
            ),
            Diff(
                "unet",
                'nn.silu(nn.GroupNorm(GROUPS, epsilon=1e-5, use_fast_variance=False, name="norm")(x))',
                'nn.GroupNorm(GROUPS, epsilon=1e-5, use_fast_variance=False, name="norm")(nn.silu(x))',
            ),
            Diff(
                "regression",
                'nn.elu(BatchNorm(name="norm")(Dense(WIDTH, use_bias=False, name="in")(x), train))',
                'BatchNorm(name="norm")(nn.elu(Dense(WIDTH, use_bias=False, name="in")(x)), train)',
            ),
        ),
        ("fastestimator#1201",),
        together(_normalized_first, _activated_first),
    ),
    Mistake(
        "F025",
        "gate-and-value-swapped",
        "at {place} the activation is applied to the values, in the reference to their gate",
        "A gated layer has two products of equal shape, and which of them is activated is a convention: SwiGLU's w1 "
        "and w3, a GLU's first and second half, gate_proj and up_proj fused in either order. Shapes cannot tell.",
        (Diff("decoder", "nn.silu(gate) * up", "nn.silu(up) * gate"),),
        ("torch: functional.glu", "jax: nn.glu"),
        several(
            together(_gates, _swapped),
            calls("glu", lambda call, _: _swapped_halves(call)),
        ),
    ),
)
