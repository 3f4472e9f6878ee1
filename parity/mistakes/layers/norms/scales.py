"""Scales and biases of normalizations and other layers: forgotten, or one too many."""

from typing import Any

from torch import Tensor, nn

from parity.mistakes.layers.norms.formula import AFFINE
from parity.mistakes.mistake import Diff, Mistake
from parity.mistakes.tries import calls, several
from parity.reference.rewrite import Call


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


def _plus_one(call: Call, value: float) -> Any:
    name = parameter_of(call) if call.site.function == "mul" else "weight"
    assert name is not None
    return call.run(**{name: call[name] + value})


MISTAKES = (
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
)
