"""The contract: what an experiment is, its flags and their checks."""

import contextlib
import io
import itertools
import math
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, TypeVar, cast

import numpy as np
import tyro

from fmnist_torch.errors import UsageError

PIXELS = 784
CLASSES = 10
TRAINING_IMAGES = 60_000
TEST_IMAGES = 10_000
Flags = TypeVar("Flags")
FLOAT32 = np.finfo(np.float32)

# A gigabyte of float32: far above any width that means something here, far below what kills a machine.
MOST_PARAMETERS = 2**28

EXPECTED = {
    "hidden": f"one or more widths of at least 1, and at most {MOST_PARAMETERS:,} parameters in all, e.g. --hidden 16",
    "batch_size": f"a whole number from 1 to {TRAINING_IMAGES}, e.g. --batch-size 64",
    "lr": "a positive number that float32 can hold, e.g. --lr 0.001",
    "epochs": "a whole number of at least 1, e.g. --epochs 20",
    "seed": "a whole number from 0 to 2**64 - 1, e.g. --seed 0",
    "checkpoint_every": "a whole number of at least 1, e.g. --checkpoint-every 1",
}


@dataclass(frozen=True)
class Experiment:
    """What is trained and how: the same for every port.

    Raises:
        UsageError: a value outside what its flag allows.
    """

    hidden: tuple[int, ...] = (16,)
    """Widths of the hidden layers, from the images to the classes."""

    softmax_output: bool = False
    """Make the classic mistake: the network returns its softmax to a cross-entropy that expects logits."""

    batch_size: int = 64
    """Images in a batch; the last one of an epoch is as short as it comes out."""

    lr: float = 1e-3
    """Learning rate of SGD."""

    epochs: int = 20
    """Passes over the 60,000 training images, each followed by a test pass."""

    seed: int = 0
    """Seed of torch's CPU generator, which draws the starting parameters."""

    def __post_init__(self) -> None:
        valid = {
            "hidden": bool(self.hidden) and min(self.hidden) >= 1 and self.parameters <= MOST_PARAMETERS,
            "batch_size": 1 <= self.batch_size <= TRAINING_IMAGES,
            "lr": float(FLOAT32.tiny) <= self.lr <= float(FLOAT32.max),
            "epochs": self.epochs >= 1,
            "seed": 0 <= self.seed < 2**64,
        }
        for name, is_valid in valid.items():
            if not is_valid:
                value = getattr(self, name)
                given = " ".join(map(str, value)) if isinstance(value, tuple) else str(value)
                raise UsageError(complaint(name, given, EXPECTED[name]))

    @property
    def widths(self) -> tuple[int, ...]:
        """Width of every layer, from the 784 pixels to the 10 classes."""
        return (PIXELS, *self.hidden, CLASSES)

    @property
    def parameters(self) -> int:
        """How many weights and biases the network has."""
        return sum(fan_out * (fan_in + 1) for fan_in, fan_out in itertools.pairwise(self.widths))

    def batches(self, images: int) -> int:
        """How many batches `images` images make, the short last one included."""
        return math.ceil(images / self.batch_size)


@dataclass(frozen=True)
class Options:
    """One run of a trainer: the experiment, and where it happens."""

    experiment: tyro.conf.OmitArgPrefixes[Experiment] = field(default_factory=Experiment)

    data: Annotated[str | None, tyro.conf.arg(metavar="DIR|synthetic")] = None
    """Folder that holds FashionMNIST/raw/*.gz; 'synthetic' draws a stand-in. By default $FMNIST_DATA, ./data and
    ../shared/datasets are tried, then a download into ./data."""

    device: Annotated[str, tyro.conf.arg(metavar="NAME")] = "auto"
    """Device by its framework's name, e.g. cpu; 'auto' is the accelerator where there is one."""

    output: Annotated[Path | None, tyro.conf.arg(metavar="DIR")] = None
    """Folder for the run's files: config, environment, metrics, model and curves."""

    overwrite: bool = False
    """Delete the run that --output already holds, and write this one."""

    resume: bool = False
    """Go on with the run that --output holds, from its last checkpoint; what other flags leave open is as it was, and
    more --epochs extend it."""

    checkpoint_every: int = 1
    """Epochs from one checkpoint in --output to the next."""

    tensorboard: bool = False
    """Write the curves for TensorBoard, too, into the folder tensorboard in --output."""

    def __post_init__(self) -> None:
        if self.checkpoint_every < 1:
            given = str(self.checkpoint_every)
            raise UsageError(complaint("checkpoint_every", given, EXPECTED["checkpoint_every"]))
        if self.resume and self.output is None:
            raise UsageError("--resume without --output: name the folder of the run to go on with")
        if self.tensorboard and self.output is None:
            raise UsageError("--tensorboard without --output: name a folder to write into")
        if self.resume and self.overwrite:
            raise UsageError("--resume and --overwrite: a run is gone on with or replaced; give one of the two")


def flag(name: str) -> str:
    """The command line's spelling of a field's name."""
    return "--" + name.replace("_", "-")


def parse(
    kind: type[Flags],
    arguments: list[str],
    name: str,
    description: str,
    expected: Mapping[str, str],
    default: Flags | None = None,
) -> Flags:
    """What a command line asks for, by the flags of a dataclass; `--help` prints them and exits.

    Args:
        expected: what the values of some fields have to be, in words for whoever gave others.
        default: the values of flags that are not given, where they are not the dataclass's own.

    Raises:
        UsageError: an unknown flag or a value that its flag does not take.
    """
    for before, argument in itertools.pairwise(["", *arguments]):
        # What a shell makes of an unset variable. As a folder it would be the current one.
        if argument == "" or re.fullmatch(r"--[\w-]+=", argument):
            raise UsageError(f"{argument.strip('=') or before} without a value (--help lists what there is)")
    said = io.StringIO()
    try:
        with contextlib.redirect_stderr(said):
            return tyro.cli(
                kind,
                args=arguments,
                prog=f"python -m {name}",
                description=description,
                default=cast(Flags, default),
                config=(tyro.conf.FlagCreatePairsOff,),
            )
    except SystemExit as exit:
        if not exit.code:
            raise
        raise UsageError(_one_line(said.getvalue(), arguments, expected)) from None


def _one_line(box: str, arguments: list[str], all_expected: Mapping[str, str]) -> str:
    """tyro's complaint, which it draws as a box of text above a rule, as one line."""
    text = re.split(r"│ ─+ │", box)[0]
    said = " ".join(" ".join(line.strip("│╭╮╰╯─ ") for line in text.splitlines()[1:]).split())
    for name, expected in all_expected.items():
        if re.search(rf"(parsing|argument) '?{flag(name)}\b", said):
            return complaint(name, _values(arguments, flag(name)), expected)
    return f"{said} (--help lists what there is)"


def _values(arguments: list[str], name: str) -> str:
    """What a command line gives a flag, the last time it stands there."""
    words = [word for argument in arguments for word in argument.split("=", 1)]
    # tyro takes --batch_size for --batch-size.
    flags = [word.replace("_", "-") if word.startswith("--") else word for word in words]
    following = words[len(flags) - flags[::-1].index(name) :]
    return " ".join(itertools.takewhile(lambda word: not word.startswith("--"), following))


def complaint(name: str, given: str, expected: str) -> str:
    """The line for a value that its flag does not take."""
    return f"{flag(name)} {given or 'without a value'}: expected {expected}"
