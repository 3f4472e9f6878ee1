"""What the numbers mean that go in: their range, their normalisation, their window."""

import torch
from torch import Tensor

from parity.mistakes.inputs.entries import entry_as, is_images
from parity.mistakes.mistake import Diff, Mistake

STATISTICS: dict[str, tuple[tuple[float, ...], tuple[float, ...]]] = {
    "ImageNet's": ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225)),
    "CIFAR-10's": ((0.4914, 0.4822, 0.4465), (0.2470, 0.2435, 0.2616)),
    "CLIP's": ((0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711)),
    "MNIST's": ((0.1307,), (0.3081,)),
    "Fashion-MNIST's": ((0.2860,), (0.3530,)),
}
"""Mean and standard deviation of each channel of pixels in [0, 1], as everybody copies them."""


def _is_real(entry: Tensor) -> bool:
    return entry.dtype.is_floating_point and entry.dim() > 1


def _normalised(entry: Tensor, value: str) -> Tensor:
    means, deviations = STATISTICS[value]
    if len(means) not in (1, entry.shape[1]):
        raise ValueError("other channels")
    mean, deviation = (torch.tensor(one, dtype=entry.dtype)[:, None, None] for one in (means, deviations))
    return (entry - mean) / deviation


MISTAKES = (
    Mistake(
        "D001",
        "inputs-scaled",
        "{place} is × {value} in the port",
        "Pixels are 0 to 255, 0 to 1 or -1 to 1, and each library's loader has a habit of its own. A network with "
        "batch normalisation after its first layer hides the factor altogether; others are some percents worse.",
        (
            Diff("convnet", "jnp.transpose(images, (0, 2, 3, 1))", "jnp.transpose(images / 255.0, (0, 2, 3, 1))"),
            Diff("mlp", "x = images.reshape(images.shape[0], -1)", "x = images.reshape(images.shape[0], -1) / 255.0"),
            Diff(
                "unet",
                'jnp.transpose(batch["images"], (0, 2, 3, 1))',
                'jnp.transpose(batch["images"] * 2.0, (0, 2, 3, 1))',
            ),
        ),
        ("HF#20430", "DALI#2966"),
        entry_as(lambda entry, value: entry * value, _is_real, (1 / 255, 2.0, 0.5, 255.0), fit="linear", was=1.0),
    ),
    Mistake(
        "D002",
        "inputs-to-minus-one",
        "{place} is mapped from [0, 1] to [-1, 1] in the port, and not in the reference",
        "Inception, ViT in JAX and most generators take pixels in [-1, 1], torchvision's networks take them "
        "normalised by mean and deviation. The relation of the two is affine, and the network works with either, "
        "some percents worse.",
        (
            Diff("convnet", "jnp.transpose(images, (0, 2, 3, 1))", "jnp.transpose(images * 2 - 1, (0, 2, 3, 1))"),
            Diff("mlp", "x = images.reshape(images.shape[0], -1)", "x = images.reshape(images.shape[0], -1) * 2 - 1"),
        ),
        ("HF#20430",),
        entry_as(lambda entry, _: entry * 2 - 1, _is_real),
    ),
    Mistake(
        "D003",
        "inputs-normalised-again",
        "{place} is normalised by {value} mean and deviation in the port, and not in the reference",
        "A data pipeline that normalises, and a model that normalises what it is given: each is right alone. The "
        "network sees inputs that are shifted and four times as large.",
        (
            Diff(
                "convnet",
                "jnp.transpose(images, (0, 2, 3, 1))",
                "(jnp.transpose(images, (0, 2, 3, 1)) - jnp.array([0.485, 0.456, 0.406]))"
                " / jnp.array([0.229, 0.224, 0.225])",
            ),
            Diff(
                "mlp",
                "x = images.reshape(images.shape[0], -1)",
                "x = (images.reshape(images.shape[0], -1) - 0.2860) / 0.3530",
            ),
        ),
        ("algoperf#114", "torchvision: transforms.Normalize"),
        entry_as(_normalised, is_images, tuple(STATISTICS)),
    ),
    Mistake(
        "D022",
        "window-symmetric",
        "the window of the Fourier transform of {place} is symmetric in the port, periodic in the reference",
        "`torch.hann_window` is periodic, NumPy's and SciPy's `hann` symmetric by default: one sample apart, a "
        "percent in every frame. Made in a constructor the window is a buffer, and is told as one.",
        (Diff("", "window = scipy.signal.get_window('hann', length)", "window = numpy.hanning(length)"),),
        ("torch: hann_window", "scipy: signal.get_window"),
    ),
)
