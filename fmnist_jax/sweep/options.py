"""What a sweep's command line asks for."""

import itertools
import math
import re
from collections import Counter
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Literal

from fmnist.command import UsageError, complaint, flag, like, option
from fmnist.experiment import Experiment, check_network
from fmnist.runs.options import TrainOptions

MOST_MEMBERS = 100_000


@dataclass(frozen=True)
class SweepOptions:
    """A sweep: every network with every softmax switch, learning rate and seed."""

    network: Literal["mlp", "cnn"] = like(Experiment, "network")
    hidden: tuple[str, ...] = option(
        ("16",),
        "MLPs by their hidden widths, '16-16' for two layers; each is a program of its own.",
        metavar="WIDTHS",
        expected="networks by their hidden widths, e.g. --hidden 16 32 16-16 for three",
    )
    channels: tuple[str, ...] = option(
        ("8-16",),
        "CNNs by the channels of their convolutions; each is a program of its own.",
        metavar="CHANNELS",
        expected="networks by the channels of their convolutions, e.g. --channels 8-16 16 for two",
    )
    softmax_output: Literal["off", "on", "both"] = option(
        "off",
        "Whether the network returns its softmax to a cross-entropy that expects logits.",
        expected="off, on or both",
    )
    lr: tuple[float, ...] = option(
        (1e-3,),
        "Learning rates of SGD.",
        metavar="RATE",
        expected="one or more positive numbers that float32 can hold, e.g. --lr 0.001 0.01",
    )
    seeds: tuple[str, ...] = option(
        ("0-9",),
        "Seeds of torch's CPU generator, which draws the initial parameters; ranges include their last.",
        metavar="SEED|FIRST-LAST",
        expected="whole numbers from 0 to 2**64 - 1 and ranges of them, e.g. --seeds 0-63 100",
    )
    batch_size: int = like(Experiment, "batch_size")
    epochs: int = like(Experiment, "epochs")
    data: str | None = like(TrainOptions, "data")
    device: str = option(
        "auto", "Kind of device, by JAX's name; the members are spread over all devices of this kind.", metavar="NAME"
    )
    memory: float | None = option(
        None,
        "Memory in GiB for members; what needs more is trained in chunks. By default four fifths of what is free.",
        metavar="GIB",
        expected="a positive number of GiB, e.g. --memory 4",
    )
    output: Path | None = option(None, "Folder for sweep.json and sweep.png.", metavar="DIR")
    overwrite: bool = option(False, "Replace the sweep that --output already holds.")
    distributed: bool = option(
        False,
        "One of several processes that a cluster started with the same flags, as JAX detects them: Slurm, Open MPI, "
        "Kubernetes, TPU pods. The first prints and writes.",
    )
    processes: int = option(
        1,
        "How many processes train together, where no cluster starts them: the same flags for each but --process.",
        expected="a whole number of at least 1, e.g. --processes 2",
    )
    process: int = option(
        0,
        "Which of them this one is; number 0 prints and writes.",
        expected="a whole number from 0 to less than --processes",
    )
    coordinator: str = option(
        "127.0.0.1:29400",
        "Where process 0 listens for the others, and nowhere else.",
        metavar="HOST:PORT",
        expected="HOST:PORT where process 0 listens, with a port from 1 to 65535",
    )
    wait: int = option(
        60,
        "Seconds to wait for the other processes.",
        metavar="SECONDS",
        expected="a whole number of seconds of at least 1, e.g. --wait 60",
    )

    def __post_init__(self) -> None:
        address = re.fullmatch(r"\S+:(\d{1,5})", self.coordinator)
        valid = {
            "memory": self.memory is None or 0 < self.memory < math.inf,
            "wait": self.wait >= 1,
            "coordinator": address is not None and 0 < int(address[1]) < 2**16,
            "processes": self.processes >= 1,
            "process": 0 <= self.process < self.processes,
        }
        if self.distributed and self.processes > 1:
            raise UsageError("--distributed and --processes: a cluster knows how many there are; give one of the two")
        for name, is_valid in valid.items():
            if not is_valid:
                raise complaint(self, name, getattr(self, name))
        check_network(self.network, self.hidden != type(self).hidden, self.channels != type(self).channels)
        for name, values in ((self._kind, self.networks), ("lr", self.lr), ("seeds", self.all_seeds)):
            if not values:
                raise complaint(self, name, "")
            value, count = Counter(values).most_common(1)[0]
            if count > 1:
                given = "-".join(map(str, value)) if isinstance(value, tuple) else value
                raise UsageError(f"{flag(name)} {given}: given {count} times; give every value once")
        if len(self.settings) * len(self.all_seeds) > MOST_MEMBERS:
            given = " ".join(self.seeds)
            raise UsageError(f"--seeds {given}: more than {MOST_MEMBERS:,} members in all; give fewer")

    @property
    def _kind(self) -> Literal["hidden", "channels"]:
        """What networks differ in."""
        return "channels" if self.network == "cnn" else "hidden"

    @cached_property
    def networks(self) -> list[tuple[int, ...]]:
        """Hidden widths, or channels, of every network."""
        given: tuple[str, ...] = getattr(self, self._kind)
        for each in given:
            if not re.fullmatch(r"\d{1,9}(-\d{1,9})*", each):
                raise complaint(self, self._kind, each)
        return [tuple(map(int, each.split("-"))) for each in given]

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
                raise complaint(self, "seeds", given)
            # One more than may be is enough to be refused.
            seeds.extend(itertools.islice(range(first, last + 1), MOST_MEMBERS + 1))
        return seeds

    @cached_property
    def settings(self) -> list[Experiment]:
        """What is trained with every seed."""
        return [
            Experiment(
                network=self.network,
                softmax_output=switch,
                batch_size=self.batch_size,
                lr=lr,
                epochs=self.epochs,
                **{self._kind: sizes},  # type: ignore[arg-type]
            )
            for sizes, switch, lr in itertools.product(self.networks, self.switches, self.lr)
        ]
