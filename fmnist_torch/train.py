"""Train the reference: `python -m fmnist_torch.train`."""

import gc

if __name__ == "__main__":
    gc.disable()  # until command.run: looking for cycles in all that is imported takes 0.1 s

import contextlib
import os
import sys
from collections.abc import Iterator
from functools import partial

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from fmnist import command
from fmnist.data import Split, load_dataset
from fmnist.experiment import Experiment
from fmnist.runs.environment import Environment
from fmnist.runs.options import parse_options
from fmnist.runs.run import start
from fmnist_torch.model import from_numpy, init, to_numpy

NAME = "fmnist_torch.train"

# Multiply-adds of a batch's forward pass from which on torch's threads pay on an idle machine: those of 64 images and
# 128 hidden units. On 2 cores, two threads took 1.1 times as long as one with 16 units, 0.94 with 64, 0.75 with 256;
# beside other work, where each waits for the other, 7 times as long with 16 units and 2 or more with any.
WORTH_THREADS = 64 * 794 * 128


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


@contextlib.contextmanager
def threads(experiment: Experiment) -> Iterator[int]:
    """Let torch use as many CPU threads in the block as pay for the experiment; gives their number.

    One where the products are small, as the post's are, and torch's own number of threads where they are not, or where
    OMP_NUM_THREADS or MKL_NUM_THREADS asks for one. Sums may be added up in another order by more threads: of small
    networks the bits depend on the machine's cores only if they are asked to.
    """
    before = torch.get_num_threads()
    work = experiment.batch_size * experiment.multiplications
    asked_for = {"OMP_NUM_THREADS", "MKL_NUM_THREADS"} & os.environ.keys()
    torch.set_num_threads(before if asked_for or work > WORTH_THREADS else 1)
    try:
        yield torch.get_num_threads()
    finally:
        torch.set_num_threads(before)


def find_device(name: str) -> torch.device:
    """The device of that name; `auto` is the accelerator where there is one, as in the post.

    Convolutions are computed in float32 from then on: on NVIDIA GPUs torch takes TF32 for them by default, as it does
    not for products of matrices (torch.backends.cudnn.allow_tf32, torch.get_float32_matmul_precision).

    Raises:
        UnavailableError: it is not here; the message lists those that are.
    """
    accelerator = torch.accelerator.current_accelerator(check_available=True)
    kinds = [accelerator.type] if accelerator else []
    here = ["cpu", *kinds, *(f"{kind}:{index}" for kind in kinds for index in range(torch.accelerator.device_count()))]
    if name not in ("auto", *here):
        raise command.UnavailableError(f"--device {name}: not here; expected auto or one of {', '.join(here)}")
    device = torch.device([*kinds, "cpu"][0] if name == "auto" else name)
    try:
        torch.zeros(1, device=device)
    # A device may be listed that is busy, or too old for this torch; drivers raise what they like.
    except Exception as error:
        raise command.UnavailableError(f"--device {name}: torch cannot use {device} ({error})") from None
    torch.backends.cudnn.allow_tf32 = False
    return device


def main() -> None:
    options = parse_options(sys.argv[1:], NAME, "Train the PyTorch reference on FashionMNIST.")
    experiment = options.experiment
    device = find_device(options.device)
    dataset = load_dataset(options.data)
    with threads(experiment) as count:
        environment = Environment("torch", str(device), torch.get_float32_matmul_precision(), count)
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
    command.leave(command.run(main, NAME), NAME)
