"""The post's lessons against many seeds: `python -m fmnist_jax.lessons`."""

import sys
from dataclasses import dataclass, replace
from pathlib import Path

import jax
import numpy as np

from fmnist import command
from fmnist.command import UsageError, complaint, like, option, parse, say
from fmnist.data import load_dataset
from fmnist.experiment import Experiment
from fmnist.files import write_atomically
from fmnist.runs.environment import Environment, describe_environment
from fmnist.runs.folders import check_folder
from fmnist.runs.options import TrainOptions
from fmnist_jax import programs, train
from fmnist_jax.lessons import latency, report
from fmnist_jax.lessons.claims import CONVERGED, Observations, conclude, setting
from fmnist_jax.sweep import devices
from fmnist_jax.sweep.options import SweepOptions
from fmnist_jax.sweep.training import train_members

NAME = "fmnist_jax.lessons"
JSON, PICTURE = "lessons.json", "lessons.png"

# What the lessons speak of, one program a network.
TRAINED = (
    (Experiment(hidden=(4,), epochs=5), Experiment(hidden=(4,), epochs=5, softmax_output=True)),
    (Experiment(hidden=(16,), epochs=40),),
    (Experiment(hidden=(32,), epochs=5),),
    (Experiment(hidden=(16, 16), epochs=40),),
    (Experiment(hidden=(16,), epochs=20, lr=CONVERGED),),
    (Experiment(network="cnn", epochs=20), Experiment(network="cnn", epochs=20, lr=CONVERGED)),
)
CNN_SEEDS = 4
"""A CNN takes a hundred times as long: at two rates these are a quarter of an hour on two cores."""


@dataclass(frozen=True)
class LessonsOptions:
    """Where the lessons are tried."""

    seeds: tuple[str, ...] = option(
        ("0-19",),
        "At least 3 seeds of torch's CPU generator; ranges include their last.",
        metavar="SEED|FIRST-LAST",
        expected="at least 3 whole numbers from 0 to 2**64 - 1 and ranges of them, e.g. --seeds 0-19",
    )
    data: str | None = like(TrainOptions, "data")
    device: str = option(
        "auto", "Kind of device, by JAX's name; the seeds are spread over all devices of this kind.", metavar="NAME"
    )
    output: Path | None = option(None, "Folder for lessons.json and lessons.png.", metavar="DIR")
    overwrite: bool = option(False, "Replace the lessons that --output already holds.")

    def __post_init__(self) -> None:
        if len(self.all_seeds) < 3:
            raise complaint(self, "seeds", self.seeds)

    @property
    def all_seeds(self) -> list[int]:
        """Every seed, with ranges written out.

        Raises:
            UsageError: what a sweep over them would raise.
        """
        return SweepOptions(seeds=self.seeds).all_seeds


def main() -> None:
    description = "Try the post's lessons on many seeds."
    options = parse(LessonsOptions, sys.argv[1:], NAME, description)
    if jax.config.jax_disable_jit:  # type: ignore[attr-defined]
        raise UsageError("JAX_DISABLE_JIT: the lessons train thousands of epochs and time compiled ones; unset it")
    devices.split_cpu()
    programs.keep()
    mesh = devices.find_mesh(options.device)
    dataset = load_dataset(options.data)
    if options.output is not None:
        check_folder(options.output, (JSON, PICTURE), options.overwrite)
    environment = Environment("jax", devices.describe(mesh), "highest", train.cores())
    print(f"data: {dataset.name} ({dataset.source}), SHA-256 {dataset.sha256[:16]}…", file=sys.stderr)
    print(f"device: {environment.device}, {len(options.all_seeds)} seeds", file=sys.stderr)

    data = devices.place_data(dataset, mesh)
    memory = devices.free_memory(mesh)
    accuracy = {}
    for settings in TRAINED:
        chosen = options.all_seeds[: CNN_SEEDS if settings[0].network == "cnn" else None]
        experiments = [replace(setting, seed=seed) for setting in settings for seed in chosen]
        members = train_members(experiments, data, mesh, memory)
        percents = 100 * np.stack([member.accuracy for member in members])
        for one, seeds in zip(settings, np.split(percents, len(settings)), strict=True):
            accuracy[setting(one)] = seeds
    kinds = {device.platform: device for device in [*train.cpu_devices(), *mesh.local_devices][::-1]}
    timings = [timing for device in kinds.values() for timing in latency.measure(device)]

    seconds = {
        experiment.structure: latency.epoch_seconds(mesh.local_devices[0], experiment)
        for experiment in (Experiment(), Experiment(network="cnn"))
    }

    lessons = conclude(Observations(options.all_seeds, accuracy, timings, seconds))
    if options.output is not None:
        described = describe_environment(environment, dataset)
        write_atomically(options.output / JSON, report.as_json(lessons, timings, described))
        write_atomically(options.output / PICTURE, report.draw(lessons, accuracy, timings, dataset.name))
    say(*report.table(lessons))


if __name__ == "__main__":
    sys.exit(command.run(main, NAME))
