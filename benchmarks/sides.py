"""What is compared: each side's command for a whole run, and its function for turns in steady state."""

import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, NamedTuple

from fmnist.experiment import TRAINING_IMAGES, Experiment
from fmnist.runs.curves import BLUE, GREEN, GREY, ORANGE, SKY

MEMBERS = 64


@dataclass(frozen=True)
class Setting:
    """What a turn trains."""

    network: Literal["mlp", "cnn"] = "mlp"
    width: int = 16
    batch_size: int = 64
    members: int = 1

    steps: int | None = None
    """Full batches of a turn; None for a whole epoch, with its short last batch."""

    @property
    def images(self) -> int:
        """How many training images a turn takes, from the first on."""
        return TRAINING_IMAGES if self.steps is None else self.steps * self.batch_size

    @property
    def experiment(self) -> Experiment:
        """One member's experiment."""
        if self.network == "cnn":
            return Experiment(network="cnn", batch_size=self.batch_size)
        return Experiment(hidden=(self.width,), batch_size=self.batch_size)


class Prepared(NamedTuple):
    """A side that is ready to be timed: compiled and warm."""

    turn: Callable[[], None]
    """Trains on the setting's images once and returns when the device is done."""

    compile_seconds: float | None
    """Seconds from the first call to a compiled program, or None where nothing is compiled."""


class Environment(NamedTuple):
    """Where a side runs, in its framework's words."""

    device: str
    """`cpu`, or the accelerator's model."""

    threads: int
    """Threads of the CPU that the framework uses."""

    peak_device_bytes: int | None
    """The most memory that was taken of an accelerator so far; None without one."""


@dataclass(frozen=True)
class Side:
    """A way to train."""

    name: str
    color: str
    marker: str

    program: tuple[str, ...]
    """Module and arguments of a whole run."""

    turns: str
    """`module:function` that makes a `Prepared` of the data's folder and a `Setting`."""

    axes: tuple[str, ...] = ("width", "batch_size")
    """The settings over which its growth is measured."""

    members: int = 1
    """Models that a whole run and an epoch train."""

    most_rounds: int | None = None
    """Whole runs at most, for a side that takes minutes."""

    network: Literal["mlp", "cnn"] = "mlp"

    most_epochs: int | None = None
    """Epochs of a whole run at most, for the same reason."""

    reads_raw: bool = False
    """Whether `--data` is torchvision's own folder, which is written beside."""

    @property
    def base(self) -> str:
        """The side that it is held against."""
        return BASE if self.network == "mlp" else f"{BASE}, CNN"

    def command(self, epochs: int, data: str | None, folder: Path) -> list[str]:
        """A whole run's command line."""
        place = str(folder) if self.reads_raw else data
        arguments = [
            "--epochs",
            str(min(epochs, self.most_epochs or epochs)),
            *([] if place is None else ["--data", place]),
        ]
        return [sys.executable, "-m", *self.program, *arguments]


SIDES = (
    Side(
        "post",
        GREY,
        "v",
        ("benchmarks.post",),
        "benchmarks.torch_turns:post",
        most_rounds=3,
        reads_raw=True,
    ),
    Side("fmnist_torch", BLUE, "o", ("fmnist_torch.train",), "benchmarks.torch_turns:eager"),
    Side("torch.compile", SKY, "^", ("benchmarks.compiled",), "benchmarks.torch_turns:compiled"),
    Side("fmnist_jax", ORANGE, "s", ("fmnist_jax.train",), "benchmarks.jax_turns:one_model"),
    Side(
        "population",
        GREEN,
        "D",
        ("fmnist_jax.sweep", "--seeds", f"0-{MEMBERS - 1}"),
        "benchmarks.jax_turns:population",
        axes=("members",),
        members=MEMBERS,
    ),
    Side(
        "fmnist_torch, CNN",
        BLUE,
        "P",
        ("fmnist_torch.train", "--network", "cnn"),
        "benchmarks.torch_turns:eager",
        axes=(),
        most_rounds=3,
        network="cnn",
        most_epochs=5,
    ),
    Side(
        "fmnist_jax, CNN",
        ORANGE,
        "X",
        ("fmnist_jax.train", "--network", "cnn"),
        "benchmarks.jax_turns:one_model",
        axes=(),
        most_rounds=3,
        network="cnn",
        most_epochs=5,
    ),
)

# What the others are held against.
BASE = "fmnist_jax"
