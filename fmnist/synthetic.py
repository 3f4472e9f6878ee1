"""A stand-in for FashionMNIST: ten garment-like shapes with noise, the same bytes on every machine."""

import numpy as np
from numpy.typing import NDArray

from fmnist.experiment import CLASSES, TEST_IMAGES, TRAINING_IMAGES

SEED = 20240607
SIZE = 28
MARGIN = 3  # a garment is shifted by up to so many pixels, and cut off at the border

# Every garment is a stack of bands that goes from one row to another while its left and right edge go from a first
# column to a second one, in a shade of 0 to 255: (rows, left edge, right edge, shade).
Band = tuple[tuple[int, int], tuple[int, int], tuple[int, int], int]
GARMENTS: tuple[tuple[Band, ...], ...] = (
    # T-shirt
    (((4, 6), (9, 8), (18, 19), 200), ((6, 11), (3, 3), (24, 24), 210), ((11, 24), (8, 8), (19, 19), 210)),
    # trouser
    (((3, 7), (9, 9), (18, 18), 200), ((7, 25), (9, 8), (12, 11), 200), ((7, 25), (15, 16), (18, 19), 200)),
    # pullover
    (
        ((4, 6), (9, 7), (18, 20), 190),
        ((6, 23), (4, 2), (8, 6), 180),
        ((6, 23), (19, 21), (23, 25), 180),
        ((6, 24), (8, 8), (19, 19), 200),
    ),
    # dress
    (((3, 11), (10, 11), (17, 16), 190), ((11, 26), (11, 7), (16, 20), 210)),
    # coat
    (
        ((3, 6), (8, 7), (19, 20), 170),
        ((6, 24), (4, 2), (8, 6), 170),
        ((6, 24), (19, 21), (23, 25), 170),
        ((6, 26), (8, 7), (13, 13), 190),
        ((6, 26), (14, 14), (19, 20), 190),
    ),
    # sandal
    (((14, 16), (4, 6), (8, 18), 160), ((17, 18), (10, 12), (22, 24), 150), ((20, 21), (2, 2), (25, 25), 200)),
    # shirt
    (
        ((4, 6), (9, 8), (12, 13), 190),
        ((4, 6), (16, 15), (18, 19), 190),
        ((6, 15), (4, 3), (8, 7), 180),
        ((6, 15), (19, 20), (23, 24), 180),
        ((6, 25), (8, 8), (19, 19), 190),
    ),
    # sneaker
    (((12, 16), (14, 9), (24, 25), 190), ((16, 19), (4, 2), (25, 26), 200), ((20, 21), (2, 2), (26, 26), 240)),
    # bag
    (((6, 10), (10, 8), (12, 10), 160), ((6, 10), (16, 18), (18, 20), 160), ((11, 23), (4, 3), (23, 24), 210)),
    # ankle boot
    (((5, 13), (14, 14), (24, 23), 200), ((13, 20), (9, 3), (24, 25), 200), ((21, 22), (3, 3), (25, 25), 240)),
)


def draw() -> tuple[NDArray[np.uint8], NDArray[np.int64]]:
    """60,000 training and then 10,000 test images `uint8 (70000, 28, 28)` and their labels, balanced, in random order.

    Integer arithmetic on the frozen stream of `numpy.random.RandomState` only, so that no release of NumPy and no
    processor changes a bit.
    """
    random = np.random.RandomState(SEED)
    count = TRAINING_IMAGES + TEST_IMAGES
    labels = np.concatenate([random.permutation(n) % CLASSES for n in (TRAINING_IMAGES, TEST_IMAGES)])
    garments = _placed_garments()
    place = random.randint(0, garments.shape[1], count)
    brightness = random.randint(24, 257, count).astype(np.uint16)
    images = garments[labels, place] * brightness[:, None, None]
    images >>= 8
    noise = np.frombuffer(random.bytes(images.size), np.uint8).reshape(images.shape)
    images += noise >> 1
    np.minimum(images, 255, out=images)
    return images.astype(np.uint8), labels.astype(np.int64)


def _placed_garments() -> NDArray[np.uint16]:
    """Every garment and its mirror image at every shift, `(10, places, 28, 28)`, without noise."""
    shifts = range(2 * MARGIN + 1)
    placed = []
    for garment in map(_paint, GARMENTS):
        for image in (np.pad(garment, MARGIN), np.pad(garment[:, ::-1], MARGIN)):
            placed += [image[row : row + SIZE, column : column + SIZE] for row in shifts for column in shifts]
    return np.array(placed).reshape(len(GARMENTS), -1, SIZE, SIZE)


def _paint(bands: tuple[Band, ...]) -> NDArray[np.uint16]:
    """One garment, `(28, 28)`; a later band lies over an earlier one."""
    image = np.zeros((SIZE, SIZE), np.uint16)
    for (top, bottom), left, right, shade in bands:
        for row in range(top, bottom + 1):
            first, last = (
                edge[0] + (edge[1] - edge[0]) * (row - top) // max(bottom - top, 1) for edge in (left, right)
            )
            image[row, first : last + 1] = shade
    return image
