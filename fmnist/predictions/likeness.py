"""Whether an image looks like anything in training, by three simple measures of its pixels."""

import numpy as np
from numpy.typing import NDArray

# From the least to the most that FashionMNIST's 60,000 training images have: beyond, an image is like none of them.
BRIGHTNESS = (4.943, 191.83)
ROUGHNESS = (0.0942, 0.8991)
SHARPNESS = (1.715, np.inf)

CAUTION = (
    "the percents divide 100 among ten garments, whatever the image shows: a softmax is no measure of being a garment"
)


def measures(images: NDArray[np.uint8]) -> NDArray[np.float64]:
    """Brightness, roughness and sharpness, `(…, 3)`, of images `uint8 (…, 28, 28)`.

    Brightness is the mean of the pixels, in 0..255. Roughness and sharpness are the mean and the largest difference of
    neighbouring pixels, in units of the standard deviation of all: noise is rough, and what is blurred not sharp.
    """
    pixels, image = images.astype(np.int16), (-2, -1)
    across, down = (abs(np.diff(pixels, axis=axis)) for axis in image)
    deviation = pixels.std(axis=image)
    deviation = np.where(deviation == 0, 1, deviation)
    roughness = (across.mean(axis=image) + down.mean(axis=image)) / 2 / deviation
    sharpness = np.maximum(across.max(axis=image), down.max(axis=image)) / deviation
    return np.stack([pixels.mean(axis=image), roughness, sharpness], axis=-1)


def unlike_training(image: NDArray[np.uint8]) -> str | None:
    """How an image differs from every training image, in words; None if these measures tell no difference."""
    found = zip(measures(image), (BRIGHTNESS, ROUGHNESS, SHARPNESS), strict=True)
    (dark, bright), (smooth, rough), (blurred, _) = ((value < least, value > most) for value, (least, most) in found)
    words = {"darker": dark, "brighter": bright, "smoother": smooth, "noisier": rough, "less sharp": blurred}
    said = [word for word, applies in words.items() if applies]
    return f"{', '.join(said)} than any of the 60,000 training images" if said else None
