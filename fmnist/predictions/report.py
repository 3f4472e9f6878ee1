"""What a trained model says of images: for people, for machines, and as a page of pictures. The same on both sides."""

import json
import sys
from collections.abc import Callable
from dataclasses import MISSING, dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fmnist import metrics
from fmnist.command import UsageError, like, option, parse
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
        "A safetensors file of linear layers from 784 to 10, such as either trainer's model.safetensors.",
        metavar="MODEL",
        positional=True,
    )
    images: tuple[Path, ...] = option(
        (),
        "PNG or JPEG files of any size; without any, the model is tried on the test set.",
        metavar="IMAGE",
        positional=True,
    )
    json: bool = option(False, "Print JSON, with the probabilities of all classes.")
    data: str | None = like(TrainOptions, "data")
    device: str = like(TrainOptions, "device")
    output: Path | None = option(
        None, "Folder for predictions.json and predictions.png, a page of pictures, of the test set.", metavar="DIR"
    )
    overwrite: bool = option(False, "Replace the predictions that --output already holds.")

    def __post_init__(self) -> None:
        if self.images and self.output is not None:
            raise UsageError("--output is for the test set; leave it out, or the images")


def run(arguments: list[str], name: str, prepare: Callable[[str], Predict]) -> None:
    """A side's command.

    Args:
        prepare: gives the side's network on the device of a name.
    """
    options = parse(PredictOptions, arguments, name, "Ask a trained model what is in images.")
    predict = prepare(options.device)
    experiment, state_dict = read_model(options.model)
    if options.images:
        _say_of_images(options, lambda images: predict(experiment, state_dict, images))
        return
    if options.output is not None:
        check_folder(options.output, (JSON, PICTURE), options.overwrite)
    dataset = load_dataset(options.data)
    _say_of_test_set(options, dataset, state_dict, predict(experiment, state_dict, dataset.test.images))


def _say_of_images(options: PredictOptions, predict: Callable[[NDArray[np.uint8]], Probabilities]) -> None:
    from fmnist.predictions.images import read_image

    prepared = [read_image(path) for path in progress(options.images, "images")]
    answers = []
    for path, image, probabilities in zip(
        options.images, prepared, predict(np.stack([image.pixels for image in prepared])), strict=True
    ):
        if image.inverted:
            print(f"{path}: its background is light, FashionMNIST's is black: inverted", file=sys.stderr)
        answers.append({"image": str(path), "inverted": image.inverted, **_answer(probabilities)})
        if not options.json:
            likeliest = probabilities.argsort()[::-1][:LIKELIEST]
            print(f"{path}: {', '.join(f'{NAMES[label]} {probabilities[label]:.1%}' for label in likeliest)}")
    if options.json:
        print(json.dumps(answers, indent=1))


def _answer(probabilities: Probabilities) -> dict[str, Any]:
    return {
        "class": NAMES[int(probabilities.argmax())],
        "probabilities": dict(zip(NAMES, map(float, probabilities), strict=True)),
    }


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
    content = json.dumps(found, indent=1)
    if options.json:
        print(content)
    else:
        print(f"{accuracy:.2%} of {len(labels):,} test images of {dataset.name} are correctly classified")
        print(f"{'class':<12} {'precision':>9} {'recall':>7} {'images':>6}")
        for label, name in enumerate(NAMES):
            print(f"{name:<12} {precision[label]:>9.1%} {recall[label]:>7.1%} {counts[label].sum():>6}")
    if options.output is not None:
        from fmnist.predictions.page import draw

        title = f"{options.model} on {dataset.name}: {accuracy:.2%} of {len(labels):,} test images"
        write_atomically(options.output / JSON, (content + "\n").encode())
        page = draw(title, NAMES, counts, images, labels, probabilities, state_dict["fc1.weight"])
        write_atomically(options.output / PICTURE, page)
