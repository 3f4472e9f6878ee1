"""What a sweep's command line asks for."""

import itertools
import math
import re
from collections import Counter
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Annotated, Literal

import tyro

from fmnist.command import UsageError, complaint, flag
from fmnist.experiment import EXPECTED, Experiment

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
