"""Kernels: transposed, reshaped, flipped, their axes exchanged."""

from typing import Any

import numpy as np

from parity.cases import Array
from parity.mistakes.layouts.misread import given_to, kernels, read_as
from parity.mistakes.mistake import Diff, Mistake, Subject

CONVOLUTIONS = "conv1d conv2d conv3d conv_transpose1d conv_transpose2d conv_transpose3d"
TRANSPOSED = "conv_transpose1d conv_transpose2d conv_transpose3d"


def _swapped(array: Array, _: Any) -> Array:
    return array.swapaxes(0, 1)


def _square(subject: Subject) -> list[str]:
    return [name for name in kernels(subject) if subject.state[name].shape[0] == subject.state[name].shape[1]]


def _reshaped(array: Array, _: Any) -> Array:
    axes = (*range(2, array.ndim), 1, 0)
    return array.reshape([array.shape[axis] for axis in axes]).transpose(np.argsort(axes))


def _reshaped_back(array: Array, _: Any) -> Array:
    return array.transpose((*range(2, array.ndim), 1, 0)).reshape(array.shape)


def _window_transposed(array: Array, _: Any) -> Array:
    return array.transpose((0, 1, *reversed(range(2, array.ndim))))


def _windows(subject: Subject) -> list[str]:
    return [name for name in given_to(subject, *CONVOLUTIONS.split()) if subject.state[name].ndim > 3]


def _transposed_kernel(array: Array, value: str) -> Array:
    array = array if value == "flipped" else array.swapaxes(0, 1)
    return array if value == "in and out swapped" else np.flip(array, tuple(range(2, array.ndim)))


MISTAKES = (
    Mistake(
        "L001",
        "kernel-not-transposed",
        "the kernel of {place} is not transposed: the port reads (out, in) as (in, out)",
        "torch keeps a linear layer's weight as (out, in) and multiplies by its transpose; flax's kernel is (in, out). "
        "Converters transpose where shapes do not fit, so that every square layer is loaded as it stands. Shapes, "
        "parameter counts and losses at the start of a training all look right; only the outputs of the same weights "
        "tell.",
        (
            Diff(
                "decoder",
                'return tensor.T if path[-1] == "kernel" else tensor',
                "return tensor if tensor.shape == _.shape else tensor.T",
            ),
            Diff(
                "transformer",
                'return tensor.T if path[-1] == "kernel" else tensor',
                "return tensor if tensor.shape == _.shape else tensor.T",
            ),
            Diff(
                "mlp",
                '"kernel": jnp.asarray(state_dict[f"{name}.weight"].T),',
                '"kernel": jnp.asarray(state_dict[f"{name}.weight"].T if layer in ("fc1", "head") else '
                'state_dict[f"{name}.weight"]),',
            ),
            Diff(
                "regression",
                '{"kernel": tensors[f"{name}.weight"].T} for layer',
                '{"kernel": tensors[f"{name}.weight"].T if layer != "gate" else tensors[f"{name}.weight"]} for layer',
            ),
        ),
        ("flax: Migrating from PyTorch, fully connected layers",),
        read_as(
            lambda subject: [name for name in _square(subject) if subject.state[name].ndim == 2], _swapped, _swapped
        ),
    ),
    Mistake(
        "L002",
        "kernel-reshaped",
        "the kernel of {place} is reshaped where its axes have to be transposed",
        "`reshape` gives the shape that is asked for and keeps the numbers in their old order, so that every weight "
        "ends at another place. Nothing but the outputs of the same weights can tell: shapes, mean and deviation of "
        "each tensor are right.",
        (
            Diff(
                "mlp",
                'jnp.asarray(state_dict[f"{name}.weight"].T)',
                'jnp.asarray(state_dict[f"{name}.weight"].reshape(state_dict[f"{name}.weight"].shape[::-1]))',
            ),
            Diff(
                "convnet",
                '{"kernel": tensors[f"{name}.weight"].transpose(2, 3, 1, 0)}',
                '{"kernel": tensors[w := f"{name}.weight"].reshape(tensors[w].shape[2:] + tensors[w].shape[1::-1])}',
            ),
            Diff("unet", "weight.transpose(2, 3, 1, 0)}", "weight.reshape(weight.shape[2:] + weight.shape[1::-1])}"),
            Diff("decoder", "return tensor.T if path[-1]", "return tensor.reshape(tensor.shape[::-1]) if path[-1]"),
            Diff("transformer", "return tensor.T if path[-1]", "return tensor.reshape(tensor.shape[::-1]) if path[-1]"),
            Diff(
                "rnn",
                '"kernel": tensors[f"{name}.weight_{side}_{suffix}"].T,',
                '"kernel": tensors[w := f"{name}.weight_{side}_{suffix}"].reshape(tensors[w].shape[::-1]),',
            ),
            Diff(
                "regression",
                '{"kernel": tensors[f"{name}.weight"].T} for layer',
                '{"kernel": tensors[w := f"{name}.weight"].reshape(tensors[w].shape[::-1])} for layer',
            ),
        ),
        ("jax-ai-stack#208", "numpy: reshape"),
        read_as(kernels, _reshaped, _reshaped_back),
    ),
    Mistake(
        "L006",
        "kernel-channels-swapped",
        "inputs and outputs of the kernel of {place} are exchanged in the port",
        "flax's convolution kernel is (height, width, in, out), torch's weight (out, in, height, width), and that of a "
        "transposed convolution (in, out, height, width). Where a layer has as many channels out as in, exchanging "
        "the two passes every check of shapes.",
        (
            Diff(
                "unet",
                "weight.transpose(2, 3, 1, 0)}",
                "weight.transpose((2, 3, 0, 1) if weight.shape[0] == weight.shape[1] else (2, 3, 1, 0))}",
            ),
        ),
        ("flax: Migrating from PyTorch, convolutions",),
        read_as(
            lambda subject: [name for name in _square(subject) if subject.state[name].ndim > 2], _swapped, _swapped
        ),
    ),
    Mistake(
        "L007",
        "kernel-window-transposed",
        "the window of the kernel of {place} is transposed: height and width are exchanged in the port",
        "`.T` of a weight (out, in, height, width) reverses all four axes: (width, height, in, out), which has the "
        "right shape for every square window. Features are then looked for on their side; images that are nearly "
        "symmetric hide it from an accuracy.",
        (
            Diff(
                "convnet",
                '{"kernel": tensors[f"{name}.weight"].transpose(2, 3, 1, 0)}',
                '{"kernel": tensors[f"{name}.weight"].T}',
            ),
            Diff("unet", "weight.transpose(2, 3, 1, 0)}", "weight.T}"),
        ),
        ("numpy: ndarray.T", "flax: Migrating from PyTorch, convolutions"),
        read_as(_windows, _window_transposed, _window_transposed),
    ),
    Mistake(
        "L008",
        "transposed-convolution-kernel",
        "the kernel of the transposed convolution {place} is taken with its window or channels {value}",
        "torch's transposed convolution is the gradient of a convolution; flax's `ConvTranspose` is a convolution of "
        "the stretched input, unless `transpose_kernel=True`. Between them the window is mirrored and the two channel "
        "axes are exchanged. With one pixel set to 1 the answer is the mirrored kernel.",
        (
            Diff("", "nn.ConvTranspose(CHANNELS, (3, 3), transpose_kernel=True)", "nn.ConvTranspose(CHANNELS, (3, 3))"),
            Diff(
                "unet",
                'x = ConvTranspose(CHANNELS, (3, 3), padding=((1, 2), (1, 2)), name="up1")(x)',
                'x = ConvTranspose(CHANNELS, (3, 3), padding=((1, 2), (1, 2)), transpose_kernel=False, name="up1")(x)',
            ),
        ),
        ("flax#1872", "flax#3137", "jax#11252", "flax: Migrating from PyTorch, transposed convolutions"),
        read_as(
            lambda subject: given_to(subject, *TRANSPOSED.split()),
            _transposed_kernel,
            _transposed_kernel,
            ("flipped", "in and out swapped", "flipped and swapped"),
        ),
    ),
    Mistake(
        "L009",
        "kernel-flipped",
        "the kernel of {place} is flipped in the port: it convolves where the reference correlates",
        "Every framework's convolution is a correlation: no kernel is flipped. Kernels that come from SciPy, or are "
        "written for `jnp.convolve`, are.",
        (
            Diff(
                "convnet",
                '{"kernel": tensors[f"{name}.weight"].transpose(2, 3, 1, 0)}',
                '{"kernel": tensors[f"{name}.weight"].transpose(2, 3, 1, 0)[::-1, ::-1]}',
            ),
            Diff("unet", "weight.transpose(2, 3, 1, 0)}", "weight.transpose(2, 3, 1, 0)[::-1, ::-1]}"),
        ),
        ("torch: nn.Conv2d, cross-correlation", "scipy: signal.convolve"),
        read_as(
            lambda subject: [name for name in given_to(subject, *CONVOLUTIONS.split()) if subject.state[name].ndim > 2],
            lambda array, _: np.flip(array, tuple(range(2, array.ndim))),
            lambda array, _: np.flip(array, tuple(range(2, array.ndim))),
        ),
    ),
)
