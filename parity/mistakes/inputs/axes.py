"""Axes of images and rows: exchanged, mirrored, reversed."""

import torch
from torch import Tensor

from parity.mistakes.inputs.entries import entry_as, is_images
from parity.mistakes.mistake import Diff, Mistake


def _is_colour(entry: Tensor) -> bool:
    return is_images(entry) and entry.ndim == 4 and entry.shape[1] in (3, 4)


def _is_picture(entry: Tensor) -> bool:
    """Real-valued with channels, or bytes, which may have none."""
    return is_images(entry) or (entry.dtype == torch.uint8 and entry.dim() in (3, 4))


def _is_square(entry: Tensor) -> bool:
    return _is_picture(entry) and entry.shape[-1] == entry.shape[-2]


def _is_rows(entry: Tensor) -> bool:
    return entry.dtype.is_floating_point and entry.dim() == 2


MISTAKES = (
    Mistake(
        "D004",
        "channels-reversed",
        "the channels of {place} are reversed in the port: blue comes first",
        "OpenCV reads blue, green, red. A trained network loses a few percents and no more, for it knows objects by "
        "their shape.",
        (Diff("convnet", "jnp.transpose(images, (0, 2, 3, 1))", "jnp.transpose(images[:, ::-1], (0, 2, 3, 1))"),),
        ("DALI#2966", "opencv: imread"),
        entry_as(lambda entry, _: torch.cat([entry[:, :3].flip(1), entry[:, 3:]], 1), _is_colour),
    ),
    Mistake(
        "D005",
        "image-axes-exchanged",
        "height and width of {place} are exchanged in the port",
        "From (batch, channels, height, width) one comes to channels last by (0, 2, 3, 1); `.T`, or (0, 3, 2, 1), "
        "mirrors each image at its diagonal. Square images fit.",
        (
            Diff(
                "mlp",
                "x = images.reshape(images.shape[0], -1)",
                "x = images.swapaxes(2, 3).reshape(images.shape[0], -1)",
            ),
            Diff(
                "unet", 'jnp.transpose(batch["images"], (0, 2, 3, 1))', 'jnp.transpose(batch["images"], (0, 3, 2, 1))'
            ),
        ),
        ("jax: numpy.transpose",),
        entry_as(lambda entry, _: entry.transpose(-2, -1), _is_square),
    ),
    Mistake(
        "D006",
        "images-mirrored",
        "{place} is {value} in the port",
        "Some formats and plots have their origin at the bottom; an augmentation may be left on for evaluation.",
        (
            Diff("convnet", "jnp.transpose(images, (0, 2, 3, 1))", "jnp.transpose(images[:, :, ::-1], (0, 2, 3, 1))"),
            Diff(
                "mlp", "x = images.reshape(images.shape[0], -1)", "x = images[..., ::-1].reshape(images.shape[0], -1)"
            ),
        ),
        ("numpy: flip",),
        entry_as(
            lambda entry, value: entry.flip(-2 if value == "upside down" else -1),
            _is_picture,
            ("upside down", "mirrored"),
        ),
    ),
    Mistake(
        "D011",
        "columns-reversed",
        "the columns of {place} are in reverse order in the port",
        "Coordinates are (x, y) in one library and (row, column) in another, boxes (x, y) or (y, x), quaternions have "
        "the real part first or last. Order is all that tells columns apart.",
        (
            Diff(
                "regression",
                'Standardize(name="standardize")(rows, train)',
                'Standardize(name="standardize")(rows[:, ::-1], train)',
            ),
        ),
        ("tensorflow: image.crop_and_resize",),
        entry_as(lambda entry, _: entry.flip(1), _is_rows),
    ),
)
