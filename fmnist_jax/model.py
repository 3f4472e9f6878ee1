"""The networks, as flax.linen modules, and their params ↔ torch's state_dict."""

from collections.abc import Callable
from typing import Any

import jax
import numpy as np
from flax import linen as nn
from jax import lax

from fmnist.experiment import CLASSES, SIDE, Experiment, StateDict
from fmnist_jax import columns

Params = dict[str, dict[str, Any]]
"""flax's parameters: `{"fc1": {"kernel": (784, 16), "bias": (16,)}, …}`; of convolutions `"kernel": (3, 3, 1, 8)`."""

Apply = Callable[[Any, jax.Array], jax.Array]
"""`apply({"params": params}, images)`, as linen's."""


class ShallowNetwork(nn.Module):
    """Dense layers `fc1`, `fc2`, … with a ReLU between any two.

    Maps `(batch, 784) float32 in [0, 1]` to logits `(batch, 10) float32`; with `softmax_output` to the softmax of them.
    float64 parameters make all of it float64.
    """

    hidden: tuple[int, ...]
    softmax_output: bool

    @nn.compact
    def __call__(self, images: jax.Array) -> jax.Array:
        activations = images
        for layer, width in enumerate(self.hidden, 1):
            # On accelerators JAX multiplies float32 matrices in TF32 or bfloat16 unless told otherwise; torch does not.
            activations = nn.relu(nn.Dense(width, precision="highest", name=f"fc{layer}")(activations))
        logits = nn.Dense(CLASSES, precision="highest", name=f"fc{len(self.hidden) + 1}")(activations)
        return nn.softmax(logits) if self.softmax_output else logits


class ConvolutionalNetwork(nn.Module):
    """3x3 convolutions `conv1`, `conv2`, … that are each followed by a ReLU and a 2x2 max pool; a dense layer `fc`.

    Maps `(batch, 784) float32 in [0, 1]` to logits `(batch, 10) float32`.
    """

    channels: tuple[int, ...]

    @nn.compact
    def __call__(self, images: jax.Array) -> jax.Array:
        activations = images.reshape(-1, SIDE, SIDE, 1)
        for layer, channels in enumerate(self.channels, 1):
            convolution = nn.Conv(channels, (3, 3), padding=1, precision="highest", name=f"conv{layer}")
            activations = nn.max_pool(nn.relu(convolution(activations)), (2, 2), strides=(2, 2))
        features = activations.transpose(0, 3, 1, 2).reshape(len(images), -1)  # channels first, as torch flattens
        logits: jax.Array = nn.Dense(CLASSES, precision="highest", name="fc")(features)
        return logits


def convolutional_logits(params: Params, images: jax.Array) -> jax.Array:
    """Those of a `ConvolutionalNetwork`, which a CPU computes ten times as fast by products as by convolutions."""
    module = ConvolutionalNetwork(tuple(len(layer["bias"]) for name, layer in params.items() if name != "fc"))
    logits: jax.Array = lax.platform_dependent(
        params, images, cpu=columns.logits, default=lambda *given: module.apply({"params": given[0]}, given[1])
    )
    return logits


def network(experiment: Experiment) -> Apply:
    """The experiment's network as a function of its variables and images, for linen keeps parameters outside."""
    if experiment.network == "mlp":
        return ShallowNetwork(experiment.hidden, experiment.softmax_output).apply  # type: ignore[return-value]

    def apply(variables: Any, images: jax.Array) -> jax.Array:
        logits = convolutional_logits(variables["params"], images)
        return nn.softmax(logits) if experiment.softmax_output else logits

    return apply


def from_torch(state_dict: StateDict) -> Params:
    """flax's parameters from torch's: a kernel is `(in, out)` from `(out, in)`, or `(height, width, in, out)` from
    `(out, in, height, width)`."""
    layers = [name.removesuffix(".weight") for name in state_dict if name.endswith(".weight")]
    return {
        layer: {"kernel": _kernel(state_dict[f"{layer}.weight"]), "bias": state_dict[f"{layer}.bias"]}
        for layer in layers
    }


def to_torch(params: Params) -> StateDict:
    """torch's `state_dict` from flax's parameters: NumPy copies, C-contiguous."""
    state_dict = {}
    for layer, values in params.items():
        kernel = np.asarray(values["kernel"])
        weight = kernel.transpose(3, 2, 0, 1) if kernel.ndim == 4 else kernel.T
        state_dict[f"{layer}.weight"] = np.array(weight, order="C")
        state_dict[f"{layer}.bias"] = np.array(values["bias"])
    return state_dict


def _kernel(weight: Any) -> Any:
    return weight.transpose(2, 3, 1, 0) if weight.ndim == 4 else weight.T
