"""What a trained model says of images: for people, for machines, and as a page of pictures. The same on both sides."""

import json
import sys
from collections.abc import Callable, Sequence
from dataclasses import MISSING, dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fmnist import metrics
from fmnist.command import Failure, like, option, parse, say
from fmnist.data import Dataset, load_dataset
from fmnist.experiment import CLASSES, Experiment, StateDict
from fmnist.files import write_atomically
from fmnist.predictions.model_file import read_model
from fmnist.runs.folders import check_folder
from fmnist.runs.lines import progress
from fmnist.runs.options import TrainOptions

# The names that the post uses: its `classes`.
NAMES = (
    "T-shirt/top",
    "Trouser",
    "Pullover",
    "Dress",
    "Coat",
    "Sandal",
    "Shirt",
    "Sneaker",
    "Bag",
    "Ankle boot",
)
JSON, PICTURE = "predictions.json", "predictions.png"
LIKELIEST = 3

Probabilities = NDArray[np.float32]
Predict = Callable[[Experiment, StateDict, NDArray[np.uint8]], Probabilities]
"""The probabilities of the classes, `(n, 10)`, by a network of these parameters for images `uint8 (n, 28, 28)`."""


@dataclass(frozen=True)
class PredictOptions:
    """A model, and what it is asked about."""

    model: Path = option(
        MISSING,
        "A run's folder, or any safetensors file of linear layers from 784 to 10.",
        metavar="MODEL",
        positional=True,
    )
    images: tuple[Path, ...] = option(
        (),
        "PNG, JPEG, GIF, WebP or BMP files of any size; without any, the model is tried on the test set.",
        metavar="IMAGE",
        positional=True,
    )
    json: bool = option(False, "Print JSON, with the probabilities of all classes.")
    data: str | None = like(TrainOptions, "data")
    device: str = like(TrainOptions, "device")
    output: Path | None = option(
        None,
        "Folder for predictions.json and predictions.png, a page of pictures: of the images as the network gets them, "
        "or of the test set.",
        metavar="DIR",
    )
    overwrite: bool = option(False, "Replace the predictions that --output already holds.")


def run(arguments: list[str], name: str, prepare: Callable[[str], Predict]) -> None:
    """A side's command.

    Args:
        prepare: gives the side's network on the device of a name.
    """
    options = parse(PredictOptions, arguments, name, "Ask a trained model what is in images.")
    predict = prepare(options.device)
    experiment, state_dict = read_model(options.model)
    if options.output is not None:
        check_folder(options.output, (JSON, PICTURE), options.overwrite)
    if options.images:
        _say_of_images(options, lambda images: predict(experiment, state_dict, images))
        return
    dataset = load_dataset(options.data)
    probabilities = predict(experiment, state_dict, dataset.test.images)
    _check_finite(probabilities, [f"test image {number}" for number in range(1, len(probabilities) + 1)])
    _say_of_test_set(options, dataset, state_dict, probabilities)


def _check_finite(probabilities: Probabilities, names: Sequence[Any]) -> None:
    """Raise a Failure that names the first input whose answer is no number: a NaN is no most likely class."""
    finite = np.isfinite(probabilities).all(axis=1)
    if not finite.all():
        raise Failure(
            f"{names[int(finite.argmin())]}: the network's outputs are not finite, for its parameters are too large; "
            "give a model that was trained to its end"
        )


def _say_of_images(options: PredictOptions, predict: Callable[[NDArray[np.uint8]], Probabilities]) -> None:
    from fmnist.predictions.images import read_image
    from fmnist.predictions.likeness import CAUTION, unlike_training

    prepared = [read_image(path) for path in progress(options.images, "images")]
    pixels = np.stack([image.pixels for image in prepared])
    probabilities = predict(pixels)
    _check_finite(probabilities, options.images)
    unlike = [unlike_training(image) for image in pixels]
    answers = [
        {"image": str(path), "inverted": image.inverted, "unlike_training": words, **_answer(its)}
        for path, image, words, its in zip(options.images, prepared, unlike, probabilities, strict=True)
    ]
    content = json.dumps(answers, indent=1, allow_nan=False)
    if options.output is not None:
        from fmnist.predictions.page import draw_images

        title = f"As {options.model} gets them, and what it takes them for"
        page = draw_images(title, CAUTION, [path.name for path in options.images], pixels, unlike, NAMES, probabilities)
        write_atomically(options.output / JSON, (content + "\n").encode())
        write_atomically(options.output / PICTURE, page)
    for path, image, words in zip(options.images, prepared, unlike, strict=True):
        if image.inverted:
            print(f"{path}: its background is light, FashionMNIST's is black: inverted", file=sys.stderr)
        if words is not None:
            print(f"{path}: {words}: do not believe its classes", file=sys.stderr)
    print(f"caution: {CAUTION}", file=sys.stderr)
    if options.json:
        say(content)
        return
    for path, its in zip(options.images, probabilities, strict=True):
        say(f"{path}: {', '.join(f'{NAMES[label]} {its[label]:.1%}' for label in likeliest(its))}")


def _answer(probabilities: Probabilities) -> dict[str, Any]:
    return {
        "class": NAMES[int(probabilities.argmax())],
        "probabilities": dict(zip(NAMES, map(float, probabilities), strict=True)),
    }


def likeliest(probabilities: Probabilities) -> list[int]:
    """The three likeliest classes of an image, the most likely first."""
    return [int(label) for label in probabilities.argsort(kind="stable")[::-1][:LIKELIEST]]


def confusion(labels: NDArray[np.int64], predicted: NDArray[np.int64]) -> NDArray[np.int64]:
    """How many images of each class, by row, were taken for each, by column: `(10, 10)`."""
    return np.bincount(CLASSES * labels + predicted, minlength=CLASSES**2).reshape(CLASSES, CLASSES)


def scores(counts: NDArray[np.int64]) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Every class's precision and recall from a confusion matrix; NaN where nothing was taken for the class."""
    right = np.diag(counts).astype(np.float64)
    with np.errstate(invalid="ignore"):
        return right / counts.sum(axis=0), right / counts.sum(axis=1)


def _say_of_test_set(
    options: PredictOptions, dataset: Dataset, state_dict: StateDict, probabilities: Probabilities
) -> None:
    images, labels = dataset.test
    predicted = probabilities.argmax(axis=1)
    counts = confusion(labels, predicted)
    precision, recall = scores(counts)
    accuracy = float(metrics.accuracy((predicted == labels).sum(), len(labels)))
    found = {
        "model": str(options.model),
        "data": dataset.name,
        "accuracy": accuracy,
        "classes": {
            name: {
                "precision": None if np.isnan(precision[label]) else float(precision[label]),
                "recall": float(recall[label]),
                "images": int(counts[label].sum()),
            }
            for label, name in enumerate(NAMES)
        },
        "confusion": counts.tolist(),
    }
    content = json.dumps(found, indent=1, allow_nan=False)
    if options.output is not None:
        from fmnist.predictions.page import draw

        title = f"{options.model} on {dataset.name}: {accuracy:.2%} of {len(labels):,} test images"
        page = draw(title, NAMES, counts, images, labels, probabilities, next(iter(state_dict.values())))
        write_atomically(options.output / JSON, (content + "\n").encode())
        write_atomically(options.output / PICTURE, page)
    if options.json:
        say(content)
        return
    say(f"{accuracy:.2%} of {len(labels):,} test images of {dataset.name} are correctly classified")
    say(f"{'class':<12} {'precision':>9} {'recall':>7} {'images':>6}")
    for label, name in enumerate(NAMES):
        say(f"{name:<12} {precision[label]:>9.1%} {recall[label]:>7.1%} {counts[label].sum():>6}")
