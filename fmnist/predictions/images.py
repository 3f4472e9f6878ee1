"""Image files as the network wants them: 28×28, grey, light on black."""

import io
import warnings
from pathlib import Path
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageOps, UnidentifiedImageError

from fmnist.command import UsageError, words_of
from fmnist.files import read_file

# What is read, by Pillow's names: formats that are common, and whose decoders have seen every kind of damage.
FORMATS = ("PNG", "JPEG", "GIF", "WEBP", "BMP")
EXPECTED = "a PNG, JPEG, GIF, WebP or BMP image"

MOST_BYTES = 2**26
MOST_PIXELS = 2**24
SIDE = 28


class ReadImage(NamedTuple):
    """An image `uint8 (28, 28)`, and whether it was inverted, for its background was light."""

    pixels: NDArray[np.uint8]
    inverted: bool


def read_image(path: Path) -> ReadImage:
    """A PNG, JPEG, GIF, WebP or BMP file of any size; of the several pictures that phones write into a JPEG, the first.

    Transparent parts become white, colours grey by their luma (ITU-R 601). What is the median of the border counts as
    background: if it is light, everything is inverted, for FashionMNIST's is black. Then the image is padded to a
    square with its background and resampled (Lanczos). An image that has 28×28 pixels already keeps them.

    Raises:
        UsageError: it cannot be read, is damaged, too large, animated, or something else.
    """
    try:
        content = read_file(path, MOST_BYTES)
        # Pillow warns of images that are refused here anyway.
        with (
            warnings.catch_warnings(action="ignore"),
            Image.open(io.BytesIO(content), formats=FORMATS) as image,
        ):
            if image.width * image.height > MOST_PIXELS:
                raise ValueError(f"{image.width} x {image.height} pixels, expected at most {MOST_PIXELS:,} in all")
            if image.format != "MPO" and getattr(image, "n_frames", 1) > 1:
                raise ValueError("animated")
            image.load()
            grey = _grey(ImageOps.exif_transpose(image))
    except FileNotFoundError:
        raise UsageError(f"{path}: no such file; expected {EXPECTED}") from None
    except UnidentifiedImageError:
        what = _format(content)
        wrong = f"its format is {what}, which is not read" if what else "not an image, or of an unknown format"
        raise UsageError(f"{path}: {wrong}; expected {EXPECTED}") from None
    except UsageError as error:
        raise UsageError(f"{error}; expected {EXPECTED}") from None
    except (OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:
        raise UsageError(f"{path}: {words_of(error)}; expected {EXPECTED}, whole and a single one") from None
    border = np.concatenate([grey[0], grey[-1], grey[:, 0], grey[:, -1]])
    background = int(np.median(border))
    inverted = background > 127
    if inverted:
        grey, background = 255 - grey, 255 - background
    if grey.shape != (SIDE, SIDE):
        square = ImageOps.pad(Image.fromarray(grey), (max(grey.shape),) * 2, color=background)
        grey = np.asarray(square.resize((SIDE, SIDE), Image.Resampling.LANCZOS))
    return ReadImage(grey, inverted)


def _format(content: bytes) -> str | None:
    """What a file says that it is, by its first bytes; nothing of it is decoded."""
    if content[4:8] == b"ftyp":
        brand = content[8:12]
        return "HEIC" if brand in (b"heic", b"heix", b"hevc", b"mif1", b"msf1") else brand.decode("latin-1").upper()
    Image.init()
    known = (
        name for name, (_, accept) in Image.OPEN.items() if name not in FORMATS and accept and accept(content[:16])
    )
    return next(known, None) if len(content) >= 16 else None


def _grey(image: Image.Image) -> NDArray[np.uint8]:
    if image.mode.startswith("I"):  # 16 bits, which conversion would cut off instead of scaling
        return (np.asarray(image).astype(np.uint32) >> 8).astype(np.uint8)
    if "A" in image.getbands() or "transparency" in image.info:
        image = image.convert("RGBA")
        image = Image.alpha_composite(Image.new("RGBA", image.size, "white"), image)
    return np.asarray(image.convert("L"))
