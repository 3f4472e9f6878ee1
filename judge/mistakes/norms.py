"""Normalizations and the means, deviations and axes that they are made of."""

from collections.abc import Callable
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor, nn

from ..reference.rewrite import Call, Site
from .mistake import Diff, Mistake, Subject, Together, argument, calls, modules, several, together

AFFINE = "layer_norm group_norm batch_norm rms_norm"


def epsilon_of(call: Call) -> float:
    """The epsilon of a normalization's call."""
    if call["eps"] is not None:
        return float(call["eps"])
    return torch.finfo(call["input"].dtype).eps if call.site.function == "rms_norm" else 1e-5


def normalized(call: Call, factor: Callable[[Tensor], Tensor], axes: tuple[int, ...] = (), centre: bool = True) -> Any:
    """What a normalization returns that multiplies by another factor of the variance, or reduces over other axes."""
    x, shape = call["input"], call["input"].shape
    affine: tuple[int, ...] = ()
    if call.site.function == "batch_norm":
        affine = (1, -1, *(1 for _ in shape[2:]))
        axes = (0, *range(2, x.ndim))
    elif call.site.function == "group_norm":
        affine = (1, -1, *(1 for _ in shape[2:]))
        x, axes = x.reshape(shape[0], call["num_groups"], -1), (-1,)
    else:
        axes = axes or tuple(range(-len(call["normalized_shape"]), 0))
        centre = centre and call.site.function != "rms_norm"
    if call.site.function == "batch_norm" and not call["training"]:
        mean, variance = call["running_mean"].view(affine), call["running_var"].view(affine)
    else:
        mean = x.mean(axes, keepdim=True) if centre else torch.zeros_like(x)
        variance = (x - mean).square().mean(axes, keepdim=True)
    if call.site.function == "batch_norm" and call["training"]:
        call.run()  # moves the running statistics
    x = ((x - mean) * factor(variance)).reshape(shape)
    for name, operation in (("weight", torch.mul), ("bias", torch.add)):
        if call[name] is not None:
            x = operation(x, call[name].view(affine) if affine else call[name])
    return x


def parameter_of(call: Call) -> str | None:
    """Which operand of a product or sum is a vector of parameters, as the scale or shift of a layer is."""
    for name, other in (("other", "input"), ("input", "other")):
        vector, values = call[name], call[other]
        if isinstance(vector, nn.Parameter) and vector.ndim == 1 and isinstance(values, Tensor) and values.ndim > 1:
            return name
    return None


def without_parameter(call: Call) -> Any:
    """The operand that is no parameter."""
    return call["input" if parameter_of(call) == "other" else "other"]


def _is_epsilon(call: Call) -> bool:
    return isinstance(call["other"], float) and 0 < call["other"] <= 1e-2 and isinstance(call["input"], Tensor)


def _plus_one(call: Call, value: float) -> Any:
    name = parameter_of(call) if call.site.function == "mul" else "weight"
    assert name is not None
    return call.run(**{name: call[name] + value})


def _over_less(call: Call, part: str) -> Any:
    """Groups of channels that are normalized in each pixel, or each row of pixels, by itself."""
    axis = {"pixel": -1, "row": -2}[part]
    last = call["input"].movedim(1, axis)
    alone = call.run(input=last.reshape(-1, *last.shape[axis:]))
    return alone.reshape(last.shape).movedim(axis, 1)


def _corrected(call: Call, correction: int) -> Any:
    kept = {"keepdim": True} if call["keepdim"] else {}
    return call.function(call["input"], dim=call["dim"], correction=correction, **kept)


def _correction(call: Call) -> int:
    return int(call["correction"]) if call["correction"] is not None else int(call["unbiased"] is not False)


def _added_to_norm(call: Call, epsilon: float) -> Any:
    dim = 1 if call["dim"] is None else call["dim"]
    x: Tensor = call["input"]
    return x / (x.norm(dim=dim, keepdim=True) + epsilon)


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


def _norm_of_own(module: nn.Module) -> bool:
    """Whether it is a layer of the program's own whose only tensor is a vector of scales."""
    vectors = [*module.parameters(), *module.buffers()]
    own = not type(module).__module__.startswith("torch.nn") and not list(module.children())
    return own and len(vectors) == 1 and vectors[0].ndim == 1


def _centre_inputs(module: nn.Module, _: Any) -> None:
    inner = module.forward
    module.forward = lambda x, *rest: inner(x - x.mean(-1, keepdim=True), *rest)


def _centred(call: Call, _: Any) -> Any:
    axes = tuple(range(-len(call["normalized_shape"]), 0))
    return call.run(input=call["input"] - call["input"].mean(axes, keepdim=True))


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
        "F006",
        "group-norm-groups",
        "{place} normalizes {value} groups of channels, the reference {was}",
        "The number of groups is a setting that ports accept and then ignore: flax's default is 32, and a configured "
        "4 goes unread. Every shape fits, whatever the number is.",
        (Diff("unet", "nn.GroupNorm(GROUPS,", "nn.GroupNorm(2,"),),
        ("diffusers#621", "diffusers#789"),
        argument("group_norm", "num_groups", None, (1, 2, 4, 8, 16, 32)),
    ),
    Mistake(
        "F007",
        "group-norm-over-less",
        "{place} normalizes every {value} by itself, the reference a group's channels over the whole image",
        "A normalization written for channels-last arrays that reduces over the last axis alone is a layer "
        "normalization of each pixel. Shapes, parameters and the size of the outputs stay as they are.",
        (
            Diff("", "nn.GroupNorm(4)(x)", "nn.GroupNorm(4, reduction_axes=(-1,))(x)"),
            Diff("unet", "nn.GroupNorm(GROUPS,", "nn.GroupNorm(GROUPS, reduction_axes=(-2, -1),"),
        ),
        ("flax: GroupNorm, reduction_axes", "torch: GroupNorm"),
        calls("group_norm", _over_less, ("pixel", "row"), when=lambda call: call["input"].ndim > 2),
    ),
    Mistake(
        "F008",
        "bias-forgotten",
        "the bias of {place} is not added",
        "A bias starts at zero and is small for long, so leaving it out changes nothing in a fresh network and little "
        "in a young one; layers with a bias in one framework have none in the other (attention outputs, tied heads, "
        "convolutions before a normalization).",
        (
            Diff("transformer", 'embedding, precision="highest") + bias', 'embedding, precision="highest")'),
            Diff("convnet", "rsqrt(var + self.epsilon) * scale + bias", "rsqrt(var + self.epsilon) * scale"),
            Diff("regression", "rsqrt(var + self.epsilon) * scale + bias", "rsqrt(var + self.epsilon) * scale"),
        ),
        ("equinox#1003", "transformers#20934"),
        several(
            calls(
                f"linear conv1d conv2d conv3d conv_transpose1d conv_transpose2d {AFFINE}",
                lambda call, _: call.run(bias=None),
                when=lambda call: call["bias"] is not None,
            ),
            calls("add", lambda call, _: without_parameter(call), when=lambda call: parameter_of(call) is not None),
        ),
    ),
    Mistake(
        "F009",
        "norm-scale-forgotten",
        "what {place} normalizes is not multiplied by its scale",
        "Scales start at one, so that a normalization without them passes every test on a fresh network. Trained ones "
        "are anything; a checkpoint is needed to see it, or parameters that were moved.",
        (
            Diff("decoder", "wide.astype(x.dtype) * scale", "wide.astype(x.dtype)"),
            Diff("convnet", "rsqrt(var + self.epsilon) * scale + bias", "rsqrt(var + self.epsilon) + bias"),
            Diff("regression", "rsqrt(var + self.epsilon) * scale + bias", "rsqrt(var + self.epsilon) + bias"),
        ),
        ("flax: LayerNorm, use_scale", "transformers#18273"),
        several(
            calls(AFFINE, lambda call, _: call.run(weight=None), when=lambda call: call["weight"] is not None),
            calls("mul", lambda call, _: without_parameter(call), when=lambda call: parameter_of(call) is not None),
        ),
    ),
    Mistake(
        "F010",
        "norm-scale-plus-one",
        "{place} multiplies by its scale + {value}, the reference by the scale alone",
        "Gemma and others keep the scale minus one and multiply by 1 + w; LLaMA keeps the scale. Code taken from one "
        "family for the other doubles every normalized value of a fresh network, which the next normalization hides.",
        (
            Diff("decoder", "wide.astype(x.dtype) * scale", "wide.astype(x.dtype) * (1 + scale)"),
            Diff("convnet", "rsqrt(var + self.epsilon) * scale", "rsqrt(var + self.epsilon) * (1 + scale)"),
            Diff("regression", "rsqrt(var + self.epsilon) * scale", "rsqrt(var + self.epsilon) * (1 + scale)"),
        ),
        ("litgpt#1031", "transformers#29402", "gemma_pytorch#67"),
        several(
            calls(AFFINE, _plus_one, (1.0, -1.0), when=lambda call: call["weight"] is not None),
            calls("mul", _plus_one, (1.0, -1.0), when=lambda call: parameter_of(call) is not None),
        ),
    ),
    Mistake(
        "F011",
        "rms-norm-centred",
        "{place} takes the mean off its input, the reference divides by the root mean square alone",
        "A layer normalization stands where the reference has an RMS normalization: features of zero mean make them "
        "equal, and in a fresh network they nearly are.",
        (
            Diff(
                "decoder",
                "wide *= jax.lax.rsqrt(jnp.mean(wide**2,",
                "wide -= jnp.mean(wide, axis=-1, keepdims=True)\n        wide *= jax.lax.rsqrt(jnp.mean(wide**2,",
            ),
        ),
        ("torch: RMSNorm", "flax: RMSNorm"),
        several(calls("rms_norm", _centred), modules(_centre_inputs, _norm_of_own)),
    ),
    Mistake(
        "F012",
        "std-correction",
        "{place} divides its sum of squares by n - {value}, the reference by n - {was}",
        "torch's std and var divide by n - 1, NumPy's and jax.numpy's by n unless told ddof=1. The ratio √((n-1)/n) "
        "is half a percent at a hundred values: below a loose tolerance, and gone in a test with many rows.",
        (Diff("regression", "rows.std(axis=0, ddof=1)", "rows.std(axis=0)"),),
        ("pytorch#50010", "pytorch#2436", "pytorch#8284", "Morphology-Informed-HGNN#11"),
        calls("std var", _corrected, (0, 1), was=_correction),
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
        "F016",
        "reduction-axis",
        "{place} reduces over axis {value}, the reference over {was}",
        "With keepdims=True a mean over the wrong axis broadcasts as well as one over the right axis does, and the "
        "shapes say nothing: axis 1 is the channels in torch's layout and a row of the image in JAX's.",
        (Diff("decoder", "jnp.mean(wide**2, axis=-1, keepdims=True)", "jnp.mean(wide**2, axis=-2, keepdims=True)"),),
        ("jax: numpy.mean, axis and keepdims",),
        argument("mean sum std var amax", "dim", None, (-1, -2, 1, 0, (-2, -1))),
    ),
    Mistake(
        "F017",
        "layer-norm-axes",
        "{place} normalizes over axes {value} together, the reference over the features of each position",
        "flax reduces over reduction_axes, torch over the axes of normalized_shape. A normalization of all positions "
        "together keeps shapes and sizes, and mixes examples of a sequence that must not know each other.",
        (Diff("transformer", "nn.LayerNorm, epsilon=1e-5,", "nn.LayerNorm, reduction_axes=(-2, -1), epsilon=1e-5,"),),
        ("flax: LayerNorm, reduction_axes", "torch: LayerNorm, normalized_shape"),
        calls(
            "layer_norm rms_norm",
            lambda call, axes: normalized(call, lambda variance: torch.rsqrt(variance + epsilon_of(call)), axes),
            ((-2, -1), (-3, -2, -1)),
            when=lambda call: call["input"].ndim > len(call["normalized_shape"]) + 1,
        ),
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
    Mistake(
        "F019",
        "layer-norm-not-centred",
        "{place} divides by the root mean square without taking off the mean, which the reference does",
        "An RMS normalization stands where the reference has a layer normalization. Features of zero mean make them "
        "equal, so that a check on random numbers sees little.",
        (Diff("", "nn.LayerNorm(epsilon=1e-5)(x)", "nn.RMSNorm(epsilon=1e-5)(x)"),),
        ("torch: LayerNorm, RMSNorm",),
        calls(
            "layer_norm",
            lambda call, _: normalized(call, lambda variance: torch.rsqrt(variance + epsilon_of(call)), centre=False),
        ),
    ),
)
