"""Train the reference: `python -m fmnist_torch.train`."""

import sys
from functools import partial

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from fmnist import command
from fmnist.data import Split, load_dataset
from fmnist.runs.environment import Environment
from fmnist.runs.options import parse_options
from fmnist.runs.run import start
from fmnist_torch.model import from_numpy, init, to_numpy

NAME = "fmnist_torch.train"


def decode(images: NDArray[np.uint8], device: torch.device) -> Tensor:
    """Pixels `(n, 784) float32 in [0, 1]` of images `uint8 (n, 28, 28)`.

    The arithmetic of `ToTensor`: torchvision/transforms/functional.py, `to_tensor`.
    """
    return torch.tensor(images).flatten(1).to(torch.float32).div_(255).to(device)


def decode_split(split: Split, device: torch.device) -> tuple[Tensor, Tensor]:
    """A split's pixels and its labels, `(n,) int64`."""
    return decode(split.images, device), torch.tensor(split.labels, device=device)


def train_step(model: nn.Module, optimizer: torch.optim.Optimizer, images: Tensor, labels: Tensor) -> Tensor:
    """Update the model by one batch; returns the loss, `() float32`, from before the update."""
    loss = cross_entropy(model(images), labels)
    optimizer.zero_grad()
    loss.backward()
    optimizer.step()
    return loss.detach()


def train_epoch(
    model: nn.Module, optimizer: torch.optim.Optimizer, images: Tensor, labels: Tensor, batch_size: int
) -> Tensor:
    """Update the model by all batches in order, the short last one too; returns their losses, `(steps,) float32`."""
    model.train()
    losses = []
    for batch in zip(images.split(batch_size), labels.split(batch_size), strict=True):
        losses.append(train_step(model, optimizer, *batch))
    return torch.stack(losses)


@torch.no_grad()
def evaluate(model: nn.Module, images: Tensor, labels: Tensor, batch_size: int) -> tuple[Tensor, Tensor]:
    """How many images are correctly classified, `() int64`, and the mean loss of every batch, `(batches,) float32`."""
    model.eval()
    correct, losses = torch.zeros((), dtype=torch.int64, device=images.device), []
    for batch_images, batch_labels in zip(images.split(batch_size), labels.split(batch_size), strict=True):
        logits = model(batch_images)
        losses.append(cross_entropy(logits, batch_labels))
        correct += (logits.argmax(dim=1) == batch_labels).sum()
    return correct, torch.stack(losses)


def find_device(name: str) -> torch.device:
    """The device of that name; `auto` is the accelerator where there is one, as in the post.

    Raises:
        UnavailableError: it is not here; the message lists those that are.
    """
    accelerator = torch.accelerator.current_accelerator(check_available=True)
    kinds = [accelerator.type] if accelerator else []
    if name == "auto":
        return torch.device(*kinds or ["cpu"])
    here = ["cpu", *kinds, *(f"{kind}:{index}" for kind in kinds for index in range(torch.accelerator.device_count()))]
    if name not in here:
        raise command.UnavailableError(f"--device {name}: not here; expected auto or one of {', '.join(here)}")
    return torch.device(name)


def main() -> None:
    options = parse_options(sys.argv[1:], NAME, "Train the PyTorch reference on FashionMNIST.")
    experiment = options.experiment
    device = find_device(options.device)
    dataset = load_dataset(options.data)
    precision = torch.get_float32_matmul_precision()
    environment = Environment("torch", str(device), precision, torch.get_num_threads())
    with start(options, environment, dataset, NAME) as run:
        model = init(experiment)
        model.load_state_dict(from_numpy(run.begin(partial(to_numpy, model))))
        model.to(device)
        optimizer = torch.optim.SGD(model.parameters(), lr=experiment.lr)
        train_data, test_data = (decode_split(split, device) for split in (dataset.train, dataset.test))

        for epoch in run.epochs():
            losses = train_epoch(model, optimizer, *train_data, experiment.batch_size)
            run.report_training(epoch, losses.cpu())
            correct, losses = evaluate(model, *test_data, experiment.batch_size)
            run.report_test(epoch, correct.cpu(), losses.cpu())
            run.keep(epoch, partial(to_numpy, model))
        run.finish(to_numpy(model))


if __name__ == "__main__":
    sys.exit(command.run(main, NAME))
