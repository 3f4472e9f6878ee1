"""How fast a device trains, as JSON: `python -m benchmarks.device`."""

import json
import sys
import time
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import torch
from jax import lax

from benchmarks.accelerator import MEMBERS, QUICK_MEMBERS
from fmnist import command
from fmnist.command import option, parse, say
from fmnist.experiment import SIDE, TRAINING_IMAGES, Experiment
from fmnist_jax import train
from fmnist_jax.lessons import latency
from fmnist_jax.sweep import population
from fmnist_torch import train as torch_train
from fmnist_torch.model import init

NAME = "benchmarks.device"


@dataclass(frozen=True)
class DeviceOptions:
    """How thoroughly is measured."""

    quick: bool = option(False, "Small sizes, to see that it works.")


def fastest(function: Any, times: int = 3) -> float:
    """Seconds of the fastest of some calls after a first one."""
    taken = []
    for _ in range(times + 1):
        began = time.perf_counter()
        jax.block_until_ready(function())
        taken.append(time.perf_counter() - began)
    return min(taken[1:])


def launches(steps: int) -> float:
    """Seconds of a loop's step that does next to nothing: what no program of such a loop can be faster than."""

    @jax.jit
    def loop(start: jax.Array) -> jax.Array:
        return lax.scan(lambda carry, _: (carry * 1.0001, None), start, None, length=steps)[0]

    return fastest(lambda: loop(jnp.ones(8))) / steps


def members(count: int, steps: int) -> float:
    """Seconds of a step of a population."""
    experiment = Experiment()
    images = jnp.full((steps * experiment.batch_size, SIDE, SIDE), 128, jnp.uint8)
    labels = jnp.zeros(len(images), jnp.int32)
    one = population.init([experiment])
    start = jax.tree.map(lambda leaf: np.repeat(leaf, count, axis=0), one)
    return fastest(lambda: population.train_epoch(jax.device_put(start), images, labels, experiment.batch_size)) / steps


def torch_step(experiment: Experiment, steps: int) -> float:
    """Seconds of a step of the reference, on torch's own choice of a device."""
    device = torch_train.find_device("auto")
    model = init(experiment).to(device)
    optimizer = torch.optim.SGD(model.parameters(), lr=experiment.lr)
    images = torch_train.decode(np.full((steps * experiment.batch_size, SIDE, SIDE), 128, np.uint8), device)
    labels = torch.zeros(len(images), dtype=torch.int64, device=device)

    def epoch() -> None:
        torch_train.train_epoch(model, optimizer, images, labels, experiment.batch_size)
        if torch.accelerator.is_available():
            torch.accelerator.synchronize()

    with torch_train.threads(experiment):
        return fastest(epoch) / steps


def main() -> None:
    options = parse(DeviceOptions, sys.argv[1:], NAME, "Time this machine's device.")
    device = jax.devices()[0]
    if options.quick:
        latency.BATCH_SIZES = latency.WIDTHS = (16, 64)
        latency.SECONDS = 0.01
    steps = 20 if options.quick else 200
    limit = launches(steps)
    networks = (Experiment(), Experiment(network="cnn"))
    per_step = {each: latency.epoch_seconds(device, each) / (TRAINING_IMAGES / each.batch_size) for each in networks}
    by_torch = {each: torch_step(each, steps) for each in networks}
    populations = {count: members(count, steps) for count in (QUICK_MEMBERS if options.quick else MEMBERS)}
    kinds = {each.platform: each for each in [*train.cpu_devices(), device]}
    told = {
        "Steady state": [
            {
                "network": each.structure,
                f"JAX on {device.platform}, µs a step": f"{1e6 * per_step[each]:.0f}",
                "share of an empty step": f"{limit / per_step[each]:.0%}",
                f"torch on {torch_train.find_device('auto').type}, µs a step": f"{1e6 * by_torch[each]:.0f}",
                "torch / JAX": f"{by_torch[each] / per_step[each]:.1f}",
            }
            for each in networks
        ],
        "Populations": [
            {"members": count, "µs a step": f"{1e6 * each:.0f}", "µs a member": f"{1e6 * each / count:.2f}"}
            for count, each in populations.items()
        ],
        "Lesson 5: seconds an epoch": [timing._asdict() for each in kinds.values() for timing in latency.measure(each)],
    }
    say(json.dumps(told))


if __name__ == "__main__":
    sys.exit(command.run(main, NAME))
