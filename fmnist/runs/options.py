"""What a trainer's command line asks for."""

from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from fmnist.command import UsageError, complaint, flag, option, parse
from fmnist.experiment import Experiment
from fmnist.runs import checkpoints
from fmnist.runs.folders import CHECKPOINT


@dataclass(frozen=True)
class TrainOptions:
    """One run of a trainer: the experiment, and where it happens."""

    experiment: Experiment = field(default_factory=Experiment)
    data: str | None = option(
        None,
        "Folder that holds FashionMNIST/raw/*.gz, or these unpacked; 'synthetic' draws a stand-in. By default "
        "$FMNIST_DATA, ./data and ../shared/datasets are tried, then a download into ./data.",
        metavar="DIR|synthetic",
    )
    device: str = option(
        "auto",
        "Device by its framework's name, e.g. cpu; 'auto' is the accelerator where there is one.",
        metavar="NAME",
    )
    output: Path | None = option(
        None, "Folder for the run's files: config, environment, metrics, model and curves.", metavar="DIR"
    )
    overwrite: bool = option(False, "Delete the run that --output already holds, and write this one.")
    resume: bool = option(
        False,
        "Resume the run that --output holds from its last checkpoint; flags that are not given are as they were, and "
        "more --epochs extend it.",
    )
    checkpoint_every: int = option(
        1,
        "Epochs from one checkpoint in --output to the next.",
        expected="a whole number of at least 1, e.g. --checkpoint-every 1",
    )
    tensorboard: bool = option(
        False,
        "Write the curves for TensorBoard, too, into the folder tensorboard in --output; tensorboard --logdir DIR "
        "shows them, and lays those of several runs over each other where DIR is the folder above them.",
    )

    def __post_init__(self) -> None:
        if self.checkpoint_every < 1:
            given = str(self.checkpoint_every)
            raise complaint(self, "checkpoint_every", given)
        if self.resume and self.output is None:
            raise UsageError("--resume without --output: name the folder of the run to resume")
        if self.tensorboard and self.output is None:
            raise UsageError("--tensorboard without --output: name a folder to write into")
        if self.resume and self.overwrite:
            raise UsageError("--resume and --overwrite: a run is resumed or replaced; give one of the two")


def parse_options(arguments: list[str], name: str, description: str) -> TrainOptions:
    """What a trainer's command line asks for; with `--resume`, what it leaves open is as it was.

    Raises:
        UsageError: it cannot be done, or contradicts the run that it resumes.
    """
    options = parse(TrainOptions, arguments, name, description)
    if not options.resume:
        return options
    assert options.output is not None
    try:
        checkpoint = checkpoints.read(options.output / CHECKPOINT)
    except FileNotFoundError:
        return options
    was = TrainOptions(checkpoint.experiment, data="synthetic" if checkpoint.data["name"] == "synthetic" else None)
    options = parse(TrainOptions, arguments, name, description, default=was)
    asked, before = asdict(options.experiment), asdict(checkpoint.experiment)
    if asked["epochs"] > before["epochs"]:
        before["epochs"] = asked["epochs"]
    different = [
        f"{flag(field)} {_words(asked[field])} was {_words(before[field])}"
        for field in before
        if asked[field] != before[field]
    ]
    if different:
        raise UsageError(
            f"--resume: {'; '.join(different)}; leave these flags out, or start another run in another folder"
        )
    return options


def _words(value: Any) -> str:
    return " ".join(map(str, value)) if isinstance(value, tuple) else str(value)
