"""Epsilons of normalizations: another one, or at another place."""

from itertools import pairwise
from typing import Any

import torch
from torch import Tensor

from parity.mistakes.layers.norms.formula import AFFINE, epsilon_of, normalized
from parity.mistakes.mistake import Diff, Mistake, Subject
from parity.mistakes.tries import Together, argument, calls, several, together
from parity.reference.rewrite import Call, Site


def _is_epsilon(call: Call) -> bool:
    return isinstance(call["other"], float) and 0 < call["other"] <= 1e-2 and isinstance(call["input"], Tensor)


def _added_to_norm(call: Call, epsilon: float) -> Any:
    dim = 1 if call["dim"] is None else call["dim"]
    x: Tensor = call["input"]
    normalized: Tensor = x / (x.norm(dim=dim, keepdim=True) + epsilon)
    return normalized


def _added_in_root(call: Call, epsilon: float) -> Any:
    dim = 1 if call["dim"] is None else call["dim"]
    x: Tensor = call["input"]
    return x * torch.rsqrt(x.square().sum(dim, keepdim=True) + epsilon)


def _roots_of_sums(subject: Subject) -> list[tuple[Site, ...]]:
    """An epsilon that is added, and the root that is taken of the sum next."""
    order = list(subject.calls.items())
    return [
        (site, after)
        for (site, call), (after, _) in pairwise(order)
        if site.function == "add" and _is_epsilon(call) and after.function in ("sqrt", "rsqrt")
    ]


def _outside(call: Call, at: int, group: Together, _: Any) -> Any:
    if at == 0:
        return call["input"]
    root = torch.sqrt(call["input"]) + group.calls[0]["other"]
    return root if call.site.function == "sqrt" else 1 / root


MISTAKES = (
    Mistake(
        "F001",
        "layer-norm-epsilon",
        "the epsilon of {place} is {value}, the reference's is {was}",
        "flax.linen.LayerNorm adds 1e-6 to the variance, torch's adds 1e-5, and papers use others again. On inputs of "
        "unit variance the outputs differ by five parts in a million, which every usual tolerance lets through; on "
        "rows of small variance they differ by percents.",
        (Diff("transformer", "epsilon=1e-5", "epsilon=1e-6"),),
        ("kornia#2786", "candle#271"),
        argument("layer_norm", "eps", 1e-5, (1e-6, 1e-5, 1e-3, 1e-8, 1e-12), "log"),
    ),
    Mistake(
        "F003",
        "batch-norm-epsilon",
        "the epsilon of {place} is {value}, the reference's is {was}",
        "Keras adds 1e-3 to the variance, torch and flax 1e-5, and models by others again 1e-4. Channels whose "
        "running variance is about one hide it; one with a variance of 0.01 is off by five percent, and every layer "
        "after it amplifies that.",
        (
            Diff("convnet", "epsilon: float = 1e-5", "epsilon: float = 1e-3"),
            Diff("regression", "epsilon: float = 1e-5", "epsilon: float = 1e-3"),
        ),
        ("nn-transfer#3", "Keras: BatchNormalization, epsilon=0.001"),
        argument("batch_norm", "eps", 1e-5, (1e-3, 1e-6, 1e-5, 1e-4), "log"),
    ),
    Mistake(
        "F004",
        "group-norm-epsilon",
        "the epsilon of {place} is {value}, the reference's is {was}",
        "flax.linen.GroupNorm adds 1e-6 to the variance, torch's GroupNorm 1e-5, and diffusion models set 1e-6 in "
        "some of their layers and leave the default in others. It only shows where a group hardly varies.",
        (Diff("unet", "epsilon=1e-5", "epsilon=1e-6"),),
        ("mindone#219", "flax: GroupNorm, epsilon=1e-06; torch: GroupNorm, eps=1e-05"),
        argument("group_norm instance_norm", "eps", 1e-5, (1e-6, 1e-5, 1e-3, 1e-12), "log"),
    ),
    Mistake(
        "F005",
        "added-epsilon",
        "the small number that {place} adds is {value}, the reference's is {was}",
        "A normalization that a program writes itself has an epsilon of its own: LLaMA's RMSNorm 1e-6 or 1e-5 by "
        "version, others 1e-8. Copied code brings another one along; on inputs of unit size nothing is seen of it.",
        (
            Diff("decoder", "epsilon: float = 1e-6", "epsilon: float = 1e-5"),
            Diff("regression", "epsilon: float = 1e-6", "epsilon: float = 1e-3"),
        ),
        ("lit-llama#13", "torchtune#290", "CTranslate2#951"),
        several(
            argument("rms_norm", "eps", torch.finfo(torch.float32).eps, (1e-5, 1e-6, 1e-8, 1e-12), "log"),
            calls(
                "add",
                lambda call, value: call.run(other=value),
                (1e-5, 1e-6, 1e-8, 1e-3, 1e-12),
                "log",
                lambda call: call["other"],
                _is_epsilon,
            ),
        ),
    ),
    Mistake(
        "F013",
        "normalize-epsilon-added",
        "{place} divides by the norm + {value}, the reference by the norm unless it is nearly zero",
        "functional.normalize divides by max(‖x‖, 1e-12); by hand one writes x / (‖x‖ + 1e-6), which shortens every "
        "vector a little, and short ones much.",
        (
            Diff(
                "regression",
                "jnp.maximum(jnp.linalg.norm(direction, axis=-1, keepdims=True), 1e-12)",
                "(jnp.linalg.norm(direction, axis=-1, keepdims=True) + 1e-6)",
            ),
        ),
        ("torch: functional.normalize",),
        calls("normalize", _added_to_norm, (1e-6, 1e-8, 1e-5, 1e-3), "log", when=lambda call: call["p"] in (None, 2.0)),
    ),
    Mistake(
        "F014",
        "normalize-epsilon-in-root",
        "{place} divides by √(‖x‖² + {value}), the reference by the norm unless it is nearly zero",
        "x · rsqrt(Σx² + ε) avoids the gradient's NaN at zero, so that people prefer it to torch's max(‖x‖, 1e-12); "
        "the epsilon now counts beside the square of the norm, and with 1e-6 a vector of norm 0.01 is off by half a "
        "percent.",
        (
            Diff(
                "regression",
                "direction / jnp.maximum(jnp.linalg.norm(direction, axis=-1, keepdims=True), 1e-12)",
                "direction * jax.lax.rsqrt(jnp.sum(direction**2, axis=-1, keepdims=True) + 1e-6)",
            ),
        ),
        ("torch: functional.normalize", "jax#3058"),
        calls("normalize", _added_in_root, (1e-6, 1e-8, 1e-5, 1e-3), "log", when=lambda call: call["p"] in (None, 2.0)),
    ),
    Mistake(
        "F018",
        "epsilon-outside-root",
        "{place} divides by the root of the variance + epsilon, the reference by the root of (variance + epsilon)",
        "Textbook code writes (x - mean) / (std + eps), the frameworks (x - mean) / sqrt(var + eps). With 1e-5 the "
        "first is five millionths off on unit variance and much more on small variances, and its gradient is NaN at "
        "zero.",
        (
            Diff(
                "convnet",
                "* jax.lax.rsqrt(var + self.epsilon)",
                "/ (jnp.sqrt(var) + self.epsilon)",
            ),
            Diff(
                "regression",
                "* jax.lax.rsqrt(var + self.epsilon)",
                "/ (jnp.sqrt(var) + self.epsilon)",
            ),
            Diff(
                "decoder",
                "wide *= jax.lax.rsqrt(jnp.mean(wide**2, axis=-1, keepdims=True) + self.epsilon)",
                "wide /= jnp.sqrt(jnp.mean(wide**2, axis=-1, keepdims=True)) + self.epsilon",
            ),
        ),
        ("optax#532", "torch: BatchNorm2d, LayerNorm"),
        several(
            calls(
                AFFINE,
                lambda call, _: normalized(call, lambda variance: 1 / (torch.sqrt(variance) + epsilon_of(call))),
            ),
            together(_roots_of_sums, _outside),
        ),
    ),
)
