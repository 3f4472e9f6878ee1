"""Train a population of settings and seeds: `python -m fmnist_jax.sweep`."""

import itertools
import math
import re
import sys
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Annotated, Literal

import numpy as np
import tyro
from jax.sharding import Mesh

from fmnist_jax import devices, hosts, population, programs, sweep_report, train
from fmnist_jax.sweep_report import Member
from fmnist_torch import errors, runs
from fmnist_torch.data import load_dataset
from fmnist_torch.errors import UsageError
from fmnist_torch.experiment import EXPECTED, TRAINING_IMAGES, Experiment, complaint, flag, parse
from fmnist_torch.files import write_atomically

NAME = "fmnist_jax.sweep"
FILES = ("sweep.json", "sweep.png")
MOST_MEMBERS = 100_000
EXPECTED_VALUES = {
    "hidden": "networks by their hidden widths, e.g. --hidden 16 32 16-16 for three",
    "lr": "one or more positive numbers that float32 can hold, e.g. --lr 0.001 0.01",
    "seeds": "whole numbers from 0 to 2**64 - 1 and ranges of them, e.g. --seeds 0-63 100",
    "softmax_output": "off, on or both",
    "batch_size": EXPECTED["batch_size"],
    "epochs": EXPECTED["epochs"],
    "memory": "a positive number of GiB, e.g. --memory 4",
    "processes": "a whole number of at least 1, and more than one only with --coordinator HOST:PORT",
    "process": "a whole number from 0 to less than --processes",
    "coordinator": "HOST:PORT where process 0 listens, with a port from 1 to 65535",
    "wait": "a positive number of seconds, e.g. --wait 60",
}


@dataclass(frozen=True)
class Options:
    """A sweep: every network with every softmax switch, learning rate and seed."""

    hidden: Annotated[tuple[str, ...], tyro.conf.arg(metavar="WIDTHS...")] = ("16",)
    """Networks by their hidden widths, '16-16' for two layers; each is a program of its own."""

    softmax_output: Literal["off", "on", "both"] = "off"
    """Whether the network returns its softmax to a cross-entropy that expects logits."""

    lr: Annotated[tuple[float, ...], tyro.conf.arg(metavar="RATE...")] = (1e-3,)
    """Learning rates of SGD."""

    seeds: Annotated[tuple[str, ...], tyro.conf.arg(metavar="SEED|FIRST-LAST...")] = ("0-9",)
    """Seeds of torch's CPU generator, which draws the starting parameters; ranges include their last."""

    batch_size: int = 64
    """Images in a batch, which all members share."""

    epochs: int = 20
    """Passes over the 60,000 training images, each followed by a test pass."""

    data: Annotated[str | None, tyro.conf.arg(metavar="DIR|synthetic")] = None
    """Folder that holds FashionMNIST/raw/*.gz, or 'synthetic'; looked for and downloaded like the trainers' if not
    given."""

    device: Annotated[str, tyro.conf.arg(metavar="NAME")] = "auto"
    """Kind of device, by JAX's name; the members are spread over all devices of this kind."""

    memory: Annotated[float | None, tyro.conf.arg(metavar="GIB")] = None
    """Memory in GiB for members; what needs more is trained in chunks. By default four fifths of what is free."""

    output: Annotated[Path | None, tyro.conf.arg(metavar="DIR")] = None
    """Folder for sweep.json and sweep.png."""

    overwrite: bool = False
    """Replace the sweep that --output already holds."""

    processes: int = 1
    """How many processes, on this host or others, train together; started with the same flags but --process."""

    process: int = 0
    """Which of them this one is; number 0 prints and writes."""

    coordinator: Annotated[str | None, tyro.conf.arg(metavar="HOST:PORT")] = None
    """Where process 0 listens for the others."""

    wait: Annotated[float, tyro.conf.arg(metavar="SECONDS")] = 60.0
    """Seconds to wait for the other processes."""

    def __post_init__(self) -> None:
        address = re.fullmatch(r"\S+:(\d{1,5})", self.coordinator or ":")
        valid = {
            "memory": self.memory is None or 0 < self.memory < math.inf,
            "wait": 0 < self.wait < math.inf,
            "coordinator": self.coordinator is None or (address and 0 < int(address[1]) < 2**16),
            "processes": self.processes == 1 or (self.processes > 1 and self.coordinator),
            "process": 0 <= self.process < self.processes,
        }
        for name, is_valid in valid.items():
            if not is_valid:
                raise UsageError(complaint(name, str(getattr(self, name)), EXPECTED_VALUES[name]))
        for name, values in (("hidden", self.networks), ("lr", self.lr), ("seeds", self.all_seeds)):
            if not values:
                raise UsageError(complaint(name, "", EXPECTED_VALUES[name]))
            value, count = Counter(values).most_common(1)[0]
            if count > 1:
                given = "-".join(map(str, value)) if isinstance(value, tuple) else value
                raise UsageError(f"{flag(name)} {given}: given {count} times; give every value once")
        if len(self.settings) * len(self.all_seeds) > MOST_MEMBERS:
            given = " ".join(self.seeds)
            raise UsageError(f"--seeds {given}: more than {MOST_MEMBERS:,} members in all; give fewer")

    @cached_property
    def networks(self) -> list[tuple[int, ...]]:
        """Hidden widths of every network."""
        for hidden in self.hidden:
            if not re.fullmatch(r"\d{1,9}(-\d{1,9})*", hidden):
                raise UsageError(complaint("hidden", hidden, EXPECTED_VALUES["hidden"]))
        return [tuple(map(int, hidden.split("-"))) for hidden in self.hidden]

    @cached_property
    def switches(self) -> tuple[bool, ...]:
        return {"off": (False,), "on": (True,), "both": (False, True)}[self.softmax_output]

    @cached_property
    def all_seeds(self) -> list[int]:
        """Every seed, with ranges written out."""
        seeds: list[int] = []
        for given in self.seeds:
            bounds = re.fullmatch(r"(\d{1,20})(?:-(\d{1,20}))?", given)
            first, last = (int(bounds[1]), int(bounds[2] or bounds[1])) if bounds else (0, -1)
            if not first <= last < 2**64:
                raise UsageError(complaint("seeds", given, EXPECTED_VALUES["seeds"]))
            # One more than may be is enough to be refused.
            seeds.extend(itertools.islice(range(first, last + 1), MOST_MEMBERS + 1))
        return seeds

    @cached_property
    def settings(self) -> list[Experiment]:
        """What is trained with every seed."""
        return [
            Experiment(hidden, switch, self.batch_size, lr, self.epochs)
            for hidden, switch, lr in itertools.product(self.networks, self.switches, self.lr)
        ]


def train_members(
    experiments: Sequence[Experiment], data: tuple[devices.Split, devices.Split], mesh: Mesh, memory: int
) -> list[Member]:
    """Train experiments that differ in `seed`, `lr` and `softmax_output` only, as one program.

    Args:
        memory: bytes that members may fill; those that do not fit together are trained one chunk after the other.
    """
    (images, labels), (test_images, test_labels) = data
    batch_size, epochs = experiments[0].batch_size, experiments[0].epochs
    chunk = chunk_size(experiments[0], len(experiments), mesh.size, memory)
    chunks = [experiments[first : first + chunk] for first in range(0, len(experiments), chunk)]
    epochs_of_chunks = runs.progress(range(len(chunks) * epochs), f"{len(experiments)} members")
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
        average_losses = test_losses.astype(np.float64).mean(axis=2)
        members += map(Member, part, losses, correct / len(test_labels), average_losses)
    return members


def chunk_size(experiment: Experiment, members: int, devices: int, memory: int) -> int:
    """How many members are trained together: all, or equal parts that fit into `memory`, the same on every device."""
    # On a CPU, XLA sums a product of fewer than 64 rows, of all members of a device together, in another order. Devices
    # that have as many leave losses after an epoch within 5e-7 however many they are; with fewer it was 5e-6.
    least = math.ceil(64 / experiment.hidden[0])
    fitting = max(least, memory // bytes_of(experiment) // devices) * devices
    chunks = math.ceil(members / fitting)
    return max(least, math.ceil(members / chunks / devices)) * devices


def bytes_of(experiment: Experiment) -> int:
    """About how many bytes a member fills while it is trained, the data left out.

    Its parameters, their gradients and a copy; a batch's values and their gradients in every layer; the losses.
    """
    values = 4 * experiment.batch_size * sum(experiment.widths[1:])
    return 4 * (3 * experiment.parameters + values + 2 * experiment.batches(TRAINING_IMAGES))


def main() -> None:
    options = parse(Options, sys.argv[1:], NAME, "Train many models on FashionMNIST at once.", EXPECTED_VALUES)
    is_first = options.process == 0
    # What may fail in one process only comes before they join: the others would wait for it in vain.
    if options.output is not None and is_first:
        runs.check_folder(options.output, FILES, options.overwrite)
    dataset = load_dataset(options.data)
    devices.split_cpu()
    programs.keep()
    if options.coordinator is not None:
        settings = repr(replace(options, process=0, data=None, output=None, overwrite=False)) + dataset.sha256
        hosts.join(options.coordinator, options.processes, options.process, settings, options.wait)
    mesh = devices.find_mesh(options.device)
    memory = devices.free_memory(mesh) if options.memory is None else int(options.memory * 2**30)
    device = devices.describe(mesh)
    environment = runs.Environment("jax", device, "highest", train.cores())
    if is_first:
        print(f"device: {device}, {options.processes} process{'es' * (options.processes > 1)}", file=sys.stderr)
        print(f"data: {dataset.name} ({dataset.source}), SHA-256 {dataset.sha256[:16]}…", file=sys.stderr)
        print(f"members: {len(options.settings)} settings x {len(options.all_seeds)} seeds", file=sys.stderr)

    data = devices.place_data(dataset, mesh)
    members = []
    for hidden in options.networks:
        settings_of = [setting for setting in options.settings if setting.hidden == hidden]
        experiments = [replace(setting, seed=seed) for setting in settings_of for seed in options.all_seeds]
        members += train_members(experiments, data, mesh, memory)
    if is_first:
        summaries = sweep_report.summarise(members)
        print("\n".join(sweep_report.table(summaries)), flush=True)
        if options.output is not None:
            described = runs.describe_environment(environment, dataset)
            content = sweep_report.as_json(members, summaries, described)
            write_atomically(options.output / "sweep.json", content)
            write_atomically(options.output / "sweep.png", sweep_report.draw(summaries, dataset.name))


if __name__ == "__main__":
    sys.exit(errors.run(main, NAME))
