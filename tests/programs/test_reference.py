"""The reference computes what the post's script computes, bit for bit."""

import itertools
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn
from torch.utils.data import DataLoader
from torchvision import datasets
from torchvision.transforms import ToTensor

from fmnist.data import Dataset
from fmnist.experiment import Experiment
from fmnist.runs import lines as printed
from fmnist_torch import train
from fmnist_torch.model import init

CPU = torch.device("cpu")


class PostData(datasets.FashionMNIST):  # type: ignore[misc]
    """torchvision's dataset over arrays that are loaded already."""

    def __init__(self, images: np.ndarray, labels: np.ndarray) -> None:
        self.data, self.targets = torch.tensor(images), torch.tensor(labels)
        self.transform, self.target_transform = ToTensor(), None


def post_network(experiment: Experiment) -> nn.Module:
    """The post's network in the quickstart's manner."""
    widths = [28 * 28, *experiment.hidden]
    stack: list[nn.Module] = [nn.Flatten()]
    for fan_in, fan_out in itertools.pairwise(widths):
        stack += [nn.Linear(fan_in, fan_out), nn.ReLU()]
    return nn.Sequential(*stack, nn.Linear(widths[-1], 10), *([nn.Softmax(dim=1)] * experiment.softmax_output))


def post_script(
    experiment: Experiment,
    training_data: PostData,
    test_data: PostData,
    network: Callable[[Experiment], nn.Module] = post_network,
) -> tuple[nn.Module, list[str]]:
    """PyTorch's quickstart in its own manner: the trained model and the lines it prints."""
    train_dataloader: DataLoader[Any] = DataLoader(training_data, batch_size=experiment.batch_size)
    test_dataloader: DataLoader[Any] = DataLoader(test_data, batch_size=experiment.batch_size)
    torch.manual_seed(experiment.seed)
    model = network(experiment)
    loss_fn = nn.CrossEntropyLoss()
    optimizer = torch.optim.SGD(model.parameters(), lr=experiment.lr)
    lines = []
    for t in range(experiment.epochs):
        lines.append(f"Epoch {t + 1}\n-------------------------------")
        size = len(training_data)
        model.train()
        for batch, (X, y) in enumerate(train_dataloader):
            loss = loss_fn(model(X), y)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            if batch % 100 == 0:
                lines.append(f"loss: {loss.item():>7f}  [{(batch + 1) * len(X):>5d}/{size:>5d}]")
        model.eval()
        test_loss, correct = 0.0, 0.0
        with torch.no_grad():
            for X, y in test_dataloader:
                pred = model(X)
                test_loss += loss_fn(pred, y).item()
                correct += (pred.argmax(1) == y).type(torch.float).sum().item()
        test_loss /= len(test_dataloader)
        correct /= len(test_data)
        lines.append(f"Test Error: \n Accuracy: {(100 * correct):>0.1f}%, Avg loss: {test_loss:>8f} \n")
    return model, lines


def our_script(experiment: Experiment, training_data: PostData, test_data: PostData) -> tuple[nn.Module, list[str]]:
    """The same by the functions of `fmnist_torch.train`."""
    model = init(experiment)
    optimizer = torch.optim.SGD(model.parameters(), lr=experiment.lr)
    images, test_images = (train.decode(part.data.numpy(), CPU) for part in (training_data, test_data))
    lines = []
    for epoch in range(1, experiment.epochs + 1):
        losses = train.train_epoch(model, optimizer, images, training_data.targets, experiment.batch_size)
        lines.append(f"Epoch {epoch}\n" + "-" * 31)
        for step in range(0, len(losses), 100):
            lines.append(printed.loss_line(losses[step].item(), step, experiment.batch_size, len(images)))
        correct, losses = train.evaluate(model, test_images, test_data.targets, experiment.batch_size)
        lines.append(
            printed.evaluation_lines(correct.item() / len(test_images), np.mean(losses.double().numpy()).item())
        )
    return model, lines


@given(
    hidden=st.lists(st.integers(1, 40), min_size=1, max_size=3).map(tuple),
    batch_size=st.integers(1, 700),
    lr=st.sampled_from([1e-3, 0.05, 0.3]),
    seed=st.integers(0, 2**64 - 1),
    softmax_output=st.booleans(),
)
@settings(max_examples=8, deadline=None)
def test_parameters_and_lines_are_the_post_s(
    dataset: Dataset, hidden: tuple[int, ...], batch_size: int, lr: float, seed: int, softmax_output: bool
) -> None:
    experiment = Experiment(
        hidden=hidden, softmax_output=softmax_output, batch_size=batch_size, lr=lr, epochs=2, seed=seed
    )
    training_data = PostData(dataset.train.images[:1500], dataset.train.labels[:1500])
    test_data = PostData(dataset.test.images[:1000], dataset.test.labels[:1000])
    post, post_lines = post_script(experiment, training_data, test_data)
    ours, our_lines = our_script(experiment, training_data, test_data)
    assert our_lines == post_lines
    for theirs, mine in zip(post.state_dict().values(), ours.state_dict().values(), strict=True):
        assert torch.equal(theirs, mine)


@pytest.mark.parametrize("batch_size", [597, 60_000, 1, 64])
def test_a_short_last_batch_is_counted_as_the_post_counts_it(batch_size: int) -> None:
    size, seen = 60_000, {}
    for batch, start in enumerate(range(0, size, batch_size)):
        length = len(range(start, min(start + batch_size, size)))
        seen[batch] = f"[{(batch + 1) * length:>5d}/{size:>5d}]"
    assert all(printed.loss_line(1, step, batch_size, size).endswith(seen[step]) for step in seen)


def test_pixels_are_to_tensor_s(dataset: Dataset) -> None:
    ours = train.decode(dataset.test.images[:500], CPU)
    theirs = PostData(dataset.test.images, dataset.test.labels)
    assert torch.equal(ours, torch.stack([theirs[index][0].flatten() for index in range(500)]))


def test_decoded_pixels_are_a_copy() -> None:
    images = np.zeros((2, 28, 28), np.uint8)
    pixels = train.decode(images, CPU)
    images[:] = 255
    assert not pixels.any()
