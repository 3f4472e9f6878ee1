"""The training of all members, in as many chunks as memory asks for."""

import itertools
import math
from collections.abc import Sequence

import numpy as np
from jax.sharding import Mesh

from fmnist import metrics
from fmnist.experiment import TRAINING_IMAGES, Experiment
from fmnist.runs.lines import progress
from fmnist_jax.sweep import devices, population
from fmnist_jax.sweep.report import Member


def train_members(
    experiments: Sequence[Experiment], data: tuple[devices.DeviceSplit, devices.DeviceSplit], mesh: Mesh, memory: int
) -> list[Member]:
    """Train experiments that differ in `seed`, `lr` and `softmax_output` only, as one program.

    Args:
        memory: bytes that members may fill; those that do not fit together are trained one chunk after the other.
    """
    (images, labels), (test_images, test_labels) = data
    batch_size, epochs = experiments[0].batch_size, experiments[0].epochs
    chunk = chunk_size(experiments[0], len(experiments), mesh.size, memory)
    chunks = [experiments[first : first + chunk] for first in range(0, len(experiments), chunk)]
    epochs_of_chunks = progress(range(len(chunks) * epochs), f"{len(experiments)} members")
    members: list[Member] = []
    for part in chunks:
        # All chunks of one size: one program. Whoever fills up the last one is left out of the results.
        filled = [*part, *[part[-1]] * (chunk - len(part))]
        trained = devices.place_members(population.init(filled), mesh)
        results = []
        for _ in itertools.islice(epochs_of_chunks, epochs):
            trained, losses = population.train_epoch(trained, images, labels, batch_size)
            correct, test_losses = population.evaluate(trained, test_images, test_labels, batch_size)
            results.append([devices.gather(result) for result in (losses, correct, test_losses)])
        losses, correct, test_losses = (np.stack(epochs_of, axis=1) for epochs_of in zip(*results, strict=True))
        accuracy, average_losses = metrics.accuracy(correct, len(test_labels)), metrics.average_loss(test_losses)
        members += map(Member, part, losses, accuracy, average_losses)
    return members


def chunk_size(experiment: Experiment, members: int, devices: int, memory: int) -> int:
    """How many members are trained together: all, or equal parts that fit into `memory`, the same on every device."""
    # On a CPU, XLA sums a product of fewer than 64 rows, of all members of a device together, in another order. Devices
    # that have as many leave losses after an epoch within 5e-7 however many they are; with fewer it was 5e-6.
    least = math.ceil(64 / experiment.shapes[next(iter(experiment.shapes))][0])
    fitting = max(least, memory // bytes_of(experiment) // devices) * devices
    chunks = math.ceil(members / fitting)
    return max(least, math.ceil(members / chunks / devices)) * devices


def bytes_of(experiment: Experiment) -> int:
    """About how many bytes a member fills while it is trained, the data left out.

    Its parameters, their gradients and a copy; a batch's values and their gradients in every layer, of a CNN's the
    windows, too, which are as many; the losses.
    """
    values = (8 if experiment.network == "cnn" else 4) * experiment.batch_size * experiment.activations
    return 4 * (3 * experiment.parameters + values + 2 * experiment.batches(TRAINING_IMAGES))
