"""Turns of the sides that are written in torch."""

import contextlib
import functools
import time
from collections.abc import Callable
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader
from torchvision import datasets
from torchvision.transforms import ToTensor

import benchmarks.post
from benchmarks.compiled import compile_step
from benchmarks.raw import read_training
from benchmarks.sides import Environment, Prepared, Setting
from fmnist_torch import train
from fmnist_torch.model import init


def environment(side: str) -> Environment:
    """Where a side runs, and the accelerator's memory that it took at most."""
    device = train.find_device("auto")
    with contextlib.nullcontext() if side == "post" else train.threads(Setting().experiment):
        threads = torch.get_num_threads()
    if device.type == "cpu":
        return Environment("cpu", threads, None)
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else device.type
    return Environment(name, threads, torch.accelerator.max_memory_allocated())


def post(folder: Path, setting: Setting) -> Prepared:
    """The post's own loop, its DataLoader included."""
    training_data = datasets.FashionMNIST(root=folder, train=True, transform=ToTensor())
    training_data.data = training_data.data[: setting.images]
    training_data.targets = training_data.targets[: setting.images]
    dataloader = DataLoader(training_data, batch_size=setting.batch_size)
    torch.manual_seed(0)
    model = benchmarks.post.NeuralNetwork(setting.width).to(benchmarks.post.device)
    optimizer = torch.optim.SGD(model.parameters(), lr=1e-3)

    def turn() -> None:
        benchmarks.post.train(dataloader, model, nn.CrossEntropyLoss(), optimizer)

    return _warm(turn, None)


def eager(folder: Path, setting: Setting) -> Prepared:
    """The reference's epoch."""
    return _warm(_epoch(folder, setting), None)


def compiled(folder: Path, setting: Setting) -> Prepared:
    """The reference's epoch with its step compiled."""
    torch.compiler.reset()
    compile_step()
    # A batch of each length that an epoch has makes every program that it needs.
    lengths = {setting.batch_size, setting.images % setting.batch_size or setting.batch_size}
    first_calls = [_epoch(folder, setting, length) for length in lengths]
    start = time.perf_counter()
    for call in first_calls:
        call()
    return _warm(_epoch(folder, setting), time.perf_counter() - start)


def _epoch(folder: Path, setting: Setting, images: int | None = None) -> Callable[[], None]:
    """A turn by `fmnist_torch.train.train_epoch`, over fewer images if asked."""
    experiment, device = setting.experiment, train.find_device("auto")
    pixels, labels = (tensor[: images or setting.images] for tensor in _data(folder, device))
    model = init(experiment).to(device)
    optimizer = torch.optim.SGD(model.parameters(), lr=experiment.lr)

    def turn() -> None:
        with train.threads(experiment):
            train.train_epoch(model, optimizer, pixels, labels, experiment.batch_size)

    return turn


@functools.cache
def _data(folder: Path, device: torch.device) -> tuple[Tensor, Tensor]:
    images, labels = read_training(folder)
    return train.decode(images, device), torch.tensor(labels, device=device)


def _warm(turn: Callable[[], None], compile_seconds: float | None) -> Prepared:
    """The turn, after a first one, made to wait for the device."""

    def finished() -> None:
        turn()
        if torch.accelerator.is_available():
            torch.accelerator.synchronize()

    finished()
    return Prepared(finished, compile_seconds)
