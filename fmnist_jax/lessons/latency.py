"""How long an epoch takes over batch size and width: latency against throughput."""

import time
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from fmnist.experiment import SIDE, TRAINING_IMAGES, Experiment
from fmnist.runs.lines import progress
from fmnist_jax import torch_rng, train
from fmnist_jax.model import from_torch

BATCH_SIZES: tuple[int, ...] = (16, 64, 256, 1024, 4096)
WIDTHS: tuple[int, ...] = (16, 64, 256, 1024, 4096)
SECONDS = 0.25


class Timing(NamedTuple):
    """Seconds that an epoch of 60,000 images takes a device."""

    device: str
    width: int
    batch_size: int
    seconds: float


def measure(device: jax.Device) -> list[Timing]:
    """An epoch's time at batch 64 over widths, and at 16 units over batch sizes.

    An epoch is timed on as many of its steps as take about a quarter of a second; the fastest of three counts, for what
    else the machine does only ever adds to it.
    """
    grid = [*((16, batch_size) for batch_size in BATCH_SIZES), *((width, 64) for width in WIDTHS if width != 16)]
    timings = []
    for width, batch_size in progress(grid, f"timing {device}"):
        seconds = epoch_seconds(device, Experiment(hidden=(width,), batch_size=batch_size))
        timings.append(Timing(str(device), width, batch_size, seconds))
    return timings


def epoch_seconds(device: jax.Device, experiment: Experiment) -> float:
    """What an epoch of training takes, timed as `measure` says."""
    batch_size = experiment.batch_size
    start = jax.device_put(train.init(experiment, from_torch(torch_rng.init(experiment))), device)

    def seconds(steps: int) -> float:
        images = jax.device_put(jnp.full((steps * batch_size, SIDE, SIDE), 128, jnp.uint8), device)
        labels = jax.device_put(jnp.zeros(steps * batch_size, jnp.int32), device)
        taken = []
        for _ in range(4):  # the first one compiles
            began = time.perf_counter()
            jax.block_until_ready(train.train_epoch(start, images, labels, batch_size))
            taken.append(time.perf_counter() - began)
        return min(taken[1:])

    few, most = 4, max(8, TRAINING_IMAGES // batch_size)
    steps = int(np.clip(SECONDS / (seconds(few) / few), 8, most))
    return seconds(steps) / steps * TRAINING_IMAGES / batch_size
