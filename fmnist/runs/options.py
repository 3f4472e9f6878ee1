"""What a trainer's command line asks for."""

from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Annotated, Any

import tyro

from fmnist.command import UsageError, complaint, flag, parse
from fmnist.experiment import EXPECTED, Experiment
from fmnist.runs import checkpoints
from fmnist.runs.folders import CHECKPOINT


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


def parse_options(arguments: list[str], name: str, description: str) -> Options:
    """What a trainer's command line asks for; with `--resume`, what it leaves open is as it was.

    Raises:
        UsageError: it cannot be done, or contradicts the run that it resumes.
    """
    options = parse(Options, arguments, name, description, EXPECTED)
    if not options.resume:
        return options
    assert options.output is not None
    try:
        checkpoint = checkpoints.read(options.output / CHECKPOINT)
    except FileNotFoundError:
        return options
    was = Options(checkpoint.experiment, data="synthetic" if checkpoint.data["name"] == "synthetic" else None)
    options = parse(Options, arguments, name, description, EXPECTED, default=was)
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
