"""Shows the PyTorch programs to parity: `reference` and `cnn` make a Reference for each experiment that is judged."""

from collections.abc import Iterator, Mapping
from dataclasses import replace
from functools import partial
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from fmnist import metrics
from fmnist.data import Dataset, Split, load_dataset
from fmnist.experiment import CLASSES, Experiment, StateDict
from fmnist.judged import ACCURACY_MARGIN, CONVOLUTIONAL, JUDGED, LOSS_MARGIN, Once, joined
from fmnist_torch import train
from fmnist_torch.model import from_numpy, init, network
from parity.cases import Batch, Case
from parity.reference.program import Reference, TorchBatch, WholeRun
from parity.reference.rounding import own_precision
from parity.variations import Program, as_float64

CPU = torch.device("cpu")
Data = tuple[Tensor, Tensor]
"""Pixels and labels."""

torch.set_num_threads(1)  # matrices as small as these gain nothing from more

# A power of two times small integers: far enough apart for exp to give 0 and 1 exactly, in float64 too.
GAP = 1024


def reference(data: str | None = None, first: int = 0) -> dict[str, Reference]:
    """What a port is judged beside, by the names of `JUDGED`.

    Args:
        data: where the images are, as for the trainers.
        first: the training and test image that batches begin with.
    """
    dataset = load_dataset(data)
    return references(JUDGED, dataset, first, Experiment.epochs)


def cnn(data: str | None = None, first: int = 0) -> dict[str, Reference]:
    """The same of `CONVOLUTIONAL`; its whole runs are of a fifth of the images and a few epochs: torch's take long."""
    dataset = load_dataset(data)
    fewer = dataset._replace(train=_first(dataset.train, 12_800), test=_first(dataset.test, 2_000))
    return references(CONVOLUTIONAL, fewer, first, 3)


def _first(split: Split, count: int) -> Split:
    return Split(split.images[:count], split.labels[:count])


def references(judged: Mapping[str, Experiment], dataset: Dataset, first: int, epochs: int) -> dict[str, Reference]:
    """One for each experiment; the last one's whole runs have so many epochs."""
    last = list(judged)[-1]
    return {
        name: Reference(
            module=partial(network, experiment),
            loss=_loss,
            optimizer=partial(_optimizer, experiment),
            batches=batches(dataset.train, experiment, first, 4.5),
            outputs=_outputs,
            train_epoch=partial(_train_epoch, experiment, Once(_decoded)),
            evaluate=partial(_evaluate, experiment, Once(_decoded)),
            init=partial(_init, experiment),
            cases=partial(_cases, experiment, dataset, first),
            whole_run=_whole_run(experiment, dataset, epochs) if name == last else None,
            name=f"fmnist_torch {name}",
        )
        for name, experiment in judged.items()
    }


def batches(split: Split, experiment: Experiment, first: int = 0, count: float = float("inf")) -> list[Batch]:
    """`count` batches of a split from its image `first` on, or all; the last one as short as it comes out."""
    size = experiment.batch_size
    last = int(min(first + count * size, len(split.labels)))
    slices = [slice(start, min(start + size, last)) for start in range(first, last, size)]
    return [{"images": split.images[each], "labels": split.labels[each]} for each in slices]


def _whole_run(experiment: Experiment, dataset: Dataset, epochs: int) -> WholeRun:
    margins = {"accuracy": ACCURACY_MARGIN, "average_loss": LOSS_MARGIN}
    return WholeRun(batches(dataset.train, experiment), batches(dataset.test, experiment), epochs, margins)


def _decoded(split: Split) -> tuple[Tensor, Tensor]:
    with own_precision():  # a port has to make the same pixels, to the bit
        return train.decode_split(split, CPU)


def _init(experiment: Experiment, seed: int) -> nn.Module:
    return init(replace(experiment, seed=seed))


def _optimizer(experiment: Experiment, model: nn.Module) -> torch.optim.Optimizer:
    return torch.optim.SGD(model.parameters(), lr=experiment.lr)


def _outputs(model: nn.Module, batch: TorchBatch) -> dict[str, Tensor]:
    pixels, _ = _decoded(joined([batch]))
    return {"pixels": pixels, "logits": model(pixels)}


def _loss(model: nn.Module, batch: TorchBatch) -> Tensor:
    pixels, labels = _decoded(joined([batch]))
    return cross_entropy(model(pixels), labels)


def _train_epoch(
    experiment: Experiment,
    decoded: Once[Data],
    model: nn.Module,
    optimizer: torch.optim.Optimizer,
    batches: list[TorchBatch],
) -> Tensor:
    return train.train_epoch(model, optimizer, *decoded(batches), experiment.batch_size)


def _evaluate(
    experiment: Experiment, decoded: Once[Data], model: nn.Module, batches: list[TorchBatch]
) -> dict[str, Any]:
    images, labels = decoded(batches)
    correct, losses = train.evaluate(model, images, labels, experiment.batch_size)
    return {
        "accuracy": metrics.accuracy(correct.numpy(), len(labels)),
        "average_loss": metrics.average_loss(losses.numpy()),
    }


def _cases(experiment: Experiment, dataset: Dataset, first: int, program: Program) -> Iterator[Case]:
    """What this program is worth asking further: of pixels, far logits, ties, sizes of batches."""
    state = program.state
    one, other = program.batches[0], program.batches[1]
    exact = _exact(experiment)
    far = {f"logits up to {largest:g}": scaled(experiment, state, one, largest) for largest in (20, 300, 900)}
    bias = f"{_layers(experiment)[0]}.bias"
    shifted = {
        name: {**state, bias: np.full_like(state[bias], value)}
        for name, value in (("dead units", -100), ("units all alive", 100))
    }
    flat = _batch(np.concatenate([np.zeros((32, 28, 28)), np.full((32, 28, 28), 255)]), np.arange(64) % CLASSES)

    for name, batch in (
        ("every grey", _batch(np.broadcast_to(np.arange(256)[:, None, None], (256, 28, 28)), np.zeros(256))),
        ("pixels that hold their place", _batch(np.stack(np.divmod(np.arange(784).reshape(28, 28), 28)), [0, 1])),
        ("other images", other),
    ):
        yield Case(name, "outputs", state, (batch,))
    for name, its_state, batch in (
        *((name, its_state, one) for name, its_state in {**far, **shifted}.items()),
        ("black and white", state, flat),
        ("exact integers", *exact),
    ):
        yield Case(name, "outputs", its_state, (batch,))
        yield Case(name, "value_and_grad", its_state, (batch,))
    for name, labels in (("labels all 0", 0), ("labels all 9", 9), ("every class", np.arange(len(one["labels"])) % 10)):
        yield Case(
            name, "value_and_grad", state, (_batch(one["images"], np.broadcast_to(labels, one["labels"].shape)),)
        )

    short = {name: array[:3] for name, array in one.items()}
    yield Case("a short batch", "train_steps", state, (short,))
    yield Case("logits up to 300", "train_steps", far["logits up to 300"], (other, one))
    yield Case("exact integers", "train_steps", exact[0], (exact[1],))
    if program.has_init:
        yield Case("a seed beyond 32 bits", "init", {}, seed=2**40 + 5)
    if program.has_epoch:
        yield Case("whole batches", "train_epoch", state, program.batches[1:3])
        yield Case("a short batch", "train_epoch", state, (short,))
        yield as_float64(Case("float64, a short batch", "train_epoch", state, (short,)))
    if program.has_evaluate:
        tests = tuple(batches(dataset.test, experiment, first, 4.5))
        right = tuple(
            _batch(batch["images"], _logits(experiment, far["logits up to 20"], batch).argmax(1)) for batch in tests
        )
        yield Case("test images", "evaluate", state, tests)
        yield Case("logits up to 20", "evaluate", far["logits up to 20"], program.batches)
        yield Case("all of them right", "evaluate", far["logits up to 20"], right)
        yield Case("ties", "evaluate", {name: np.zeros_like(tensor) for name, tensor in state.items()}, tests)
        yield Case("a short batch", "evaluate", state, (short,))


def _batch(images: Any, labels: Any) -> Batch:
    return {"images": np.array(images, np.uint8), "labels": np.array(labels, np.int64)}


@torch.no_grad()
def _logits(experiment: Experiment, state: StateDict, batch: Batch) -> NDArray[np.float64]:
    """What the network's last layer returns, in float64."""
    model = network(replace(experiment, softmax_output=False)).double()
    model.load_state_dict(from_numpy(state))
    logits: NDArray[np.float64] = model(train.decode(batch["images"], CPU).double()).numpy()
    return logits


def scaled(experiment: Experiment, state: StateDict, batch: Batch, largest: float) -> StateDict:
    """The state with a last layer so scaled that the largest logit is about so far from 0."""
    factor = np.float32(largest / np.abs(_logits(experiment, state, batch)).max())
    last = f"{_layers(experiment)[-1]}."
    return {name: tensor * factor if name.startswith(last) else tensor for name, tensor in state.items()}


def _layers(experiment: Experiment) -> list[str]:
    return [name.removesuffix(".bias") for name in experiment.shapes if name.endswith(".bias")]


def _exact(experiment: Experiment, rows: int = 8) -> tuple[StateDict, Batch]:
    """Small integers in black and white: all products, ReLUs, softmaxes, losses and gradients are exact in float32.

    The first layer's inputs are 0 and 1; hidden weights are -1, 0 and 1; the last layer's are multiples of 1024, so
    that logits differ by so much that exp underflows to 0, and every probability is 0 or 1. All numbers stay below
    2**24, a mean over 8 rows only shifts their point, and factors of products have at most 11 significant bits, so
    that even TF32 loses none. The first unit's pre-activation is 0 for every image, the second unit is dead, the third
    always alive.

    Raises:
        ValueError: there is none for this network.
    """
    for attempt in range(1000):
        state, batch = _try_exact(experiment, rows, np.random.RandomState(attempt))
        logits = _logits(experiment, state, batch)
        best = np.sort(logits, axis=1)[:, -2:]
        if np.all(best[:, 1] - best[:, 0] >= GAP) and len(set(logits.argmax(axis=1))) > 2:
            return state, batch
    raise ValueError(f"no exact integers without ties for {experiment}")


def _try_exact(experiment: Experiment, rows: int, random: np.random.RandomState) -> tuple[StateDict, Batch]:
    tensors: StateDict = {}
    first, *_, last = _layers(experiment)
    for name, shape in experiment.shapes.items():
        is_last = name.startswith(f"{last}.")
        dense = len(experiment.shapes) < 6 or name.startswith("conv1.")
        sparse = random.randint(-1, 2, shape) * (random.random_sample(shape) < (1 if dense else 0.4))
        tensors[name] = (random.randint(-3, 4, shape) * GAP if is_last else sparse).astype(np.float32)
    weight, bias = tensors[f"{first}.weight"], tensors[f"{first}.bias"]
    weight[:2], bias[:2] = 0, (0, -2)
    weight[2] = np.abs(weight[2])
    bias[2] = 1
    images = (random.random_sample((rows, 28, 28)) < random.random_sample((rows, 1, 1)) / 8) * 255
    images[0], images[1, 3:20, 4] = 0, 255
    images[2, :] = 255
    return tensors, _batch(images, random.permutation(np.arange(rows) % CLASSES))
