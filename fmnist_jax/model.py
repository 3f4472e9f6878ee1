"""The network, as a flax.linen module, and its params ↔ torch's state_dict."""

from typing import Any

import jax
import numpy as np
from flax import linen as nn

from fmnist.experiment import CLASSES, Experiment, StateDict

Params = dict[str, dict[str, Any]]
"""flax's parameters: `{"fc1": {"kernel": (784, 16), "bias": (16,)}, …}`."""


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


def network(experiment: Experiment) -> ShallowNetwork:
    """The experiment's network: its structure only, for linen keeps parameters outside."""
    return ShallowNetwork(experiment.hidden, experiment.softmax_output)


def from_torch(state_dict: StateDict) -> Params:
    """flax's parameters from torch's: a kernel is a weight transposed, `(in, out)` from `(out, in)`."""
    layers = [name.removesuffix(".weight") for name in state_dict if name.endswith(".weight")]
    return {layer: {"kernel": state_dict[f"{layer}.weight"].T, "bias": state_dict[f"{layer}.bias"]} for layer in layers}


def to_torch(params: Params) -> StateDict:
    """torch's `state_dict` from flax's parameters: NumPy copies, C-contiguous."""
    state_dict = {}
    for layer, values in params.items():
        state_dict[f"{layer}.weight"] = np.array(np.asarray(values["kernel"]).T, order="C")
        state_dict[f"{layer}.bias"] = np.array(values["bias"])
    return state_dict
