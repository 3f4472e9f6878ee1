"""The convolutional network: a plain script's in torch, torch's in the mirror, and its mistakes are named."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
from flax import linen
from hypothesis import given, settings
from hypothesis import strategies as st
from jax import lax
from safetensors.numpy import save_file
from torch import nn

from fmnist.command import UsageError, parse
from fmnist.data import Dataset
from fmnist.experiment import SIDE, Experiment, StateDict
from fmnist.predictions.model_file import read_model
from fmnist.runs import checkpoints
from fmnist.runs.options import TrainOptions
from fmnist_jax import columns, torch_rng, train
from fmnist_jax.model import ConvolutionalNetwork, from_torch, network, to_torch
from fmnist_jax.port import Mirror
from fmnist_jax.sweep import population
from fmnist_jax.sweep.options import SweepOptions
from fmnist_torch.model import init, to_numpy
from fmnist_torch.reference import references
from parity.exam import judge
from parity.port.held import Held
from tests.conftest import here
from tests.programs.test_mirror import arrays, reference_epoch, start
from tests.programs.test_reference import PostData, our_script, post_script

CHANNELS = [(8, 16), (3, 4, 5), (2, 3, 2, 3)]
"""The third pool meets an odd size, the fourth leaves one pixel."""


def plain_network(experiment: Experiment) -> nn.Module:
    """As the post would write it."""
    layers, before = list[nn.Module](), 1
    for channels in experiment.channels:
        layers += [nn.Conv2d(before, channels, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2)]
        before = channels
    side = SIDE // 2 ** len(experiment.channels)
    return nn.Sequential(*layers, nn.Flatten(), nn.Linear(before * side * side, 10))


@given(
    channels=st.sampled_from(CHANNELS),
    seed=st.integers(0, 2**64 - 1),
    batch_size=st.integers(20, 200),
    lr=st.just(0.05),
)
@settings(max_examples=4, deadline=None)
def test_parameters_and_lines_are_a_plain_script_s(
    dataset: Dataset, channels: tuple[int, ...], seed: int, batch_size: int, lr: float
) -> None:
    experiment = Experiment(network="cnn", channels=channels, batch_size=batch_size, lr=lr, epochs=1, seed=seed)
    training_data = PostData(dataset.train.images[:600], dataset.train.labels[:600])
    test_data = PostData(dataset.test.images[:300], dataset.test.labels[:300])
    theirs, their_lines = post_script(experiment, training_data, test_data, plain_network)
    ours, our_lines = our_script(experiment, training_data, test_data)
    assert our_lines == their_lines
    assert all(torch.equal(*pair) for pair in zip(theirs.parameters(), ours.parameters(), strict=True))


@given(channels=st.lists(st.integers(1, 9), min_size=1, max_size=4).map(tuple), seed=st.integers(0, 2**64 - 1))
@settings(max_examples=30, deadline=None)
def test_the_draw_is_torch_s(channels: tuple[int, ...], seed: int) -> None:
    experiment = Experiment(network="cnn", channels=channels, seed=seed)
    drawn, reference = torch_rng.init(experiment), to_numpy(init(experiment))
    assert list(drawn) == list(reference)
    assert all(np.array_equal(drawn[name], tensor) for name, tensor in reference.items())


@pytest.mark.parametrize("channels", CHANNELS)
@pytest.mark.parametrize("whole", [False, True], ids=["as drawn", "whole numbers"])
def test_products_are_torch_s_convolutions_and_linen_s(
    dataset: Dataset, channels: tuple[int, ...], whole: bool
) -> None:
    """Of whole numbers pools hold equal values that come of different pixels: where their gradient goes shows."""
    experiment = Experiment(network="cnn", channels=channels)
    model = init(experiment).double()
    pixels = torch.tensor(dataset.train.images[:12]).flatten(1).double() / 255
    labels = torch.tensor(dataset.train.labels[:12])
    if whole:
        pixels.round_()
        with torch.no_grad():
            for param in model.parameters():
                param.copy_((param / param.abs().mean()).round())
            model.fc.weight.mul_(0.01)  # type: ignore[union-attr, operator]
    logits = model(pixels)
    torch.nn.functional.cross_entropy(logits, labels).backward()
    expected = {name: param.grad.numpy() for name, param in model.named_parameters() if param.grad is not None}

    def by_linen(params: Any, images: jax.Array) -> Any:
        return ConvolutionalNetwork(channels).apply({"params": params}, images)

    def by_platform(params: Any, images: jax.Array) -> Any:
        return network(experiment)({"params": params}, images)

    with jax.enable_x64(True):
        params, images = from_torch(to_numpy(model)), jnp.asarray(pixels.numpy())
        for logits_of in (columns.logits, by_linen, by_platform):
            np.testing.assert_allclose(jax.jit(logits_of)(params, images), logits.detach(), rtol=0, atol=1e-13)

            def loss(params: Any, logits_of: Callable[..., Any] = logits_of) -> Any:
                return train.cross_entropy(logits_of(params, images), jnp.asarray(labels.numpy())).mean()

            for name, grad in to_torch(jax.jit(jax.grad(loss))(params)).items():
                np.testing.assert_allclose(grad, expected[name], rtol=0, atol=1e-13)


def test_an_epoch_agrees_with_torch(dataset: Dataset) -> None:
    experiment = Experiment(network="cnn", channels=(3, 4, 5), batch_size=60, lr=0.05)
    expected, expected_losses = reference_epoch(experiment, dataset.train, 1000)
    state, losses = train.train_epoch(start(experiment), *arrays(dataset.train, 1000), 60)
    np.testing.assert_allclose(losses, expected_losses, rtol=0, atol=5e-6)
    starting = torch_rng.init(experiment)
    for name, tensor in to_torch(state.params).items():
        np.testing.assert_allclose(tensor - starting[name], expected[name] - starting[name], rtol=0, atol=2e-6)


def test_members_of_a_population_are_runs_of_their_own(dataset: Dataset) -> None:
    experiments = [
        Experiment(network="cnn", channels=(3, 4), lr=lr, seed=seed) for lr, seed in ((0.01, 0), (0.1, 1), (0.1, 2))
    ]
    data = arrays(dataset.train, 640)
    trained, losses = population.train_epoch(population.init(experiments), *data, 64)
    for at, experiment in enumerate(experiments):
        state, own_losses = train.train_epoch(start(experiment), *data, 64)
        np.testing.assert_allclose(losses[at], own_losses, rtol=0, atol=5e-6)
        for name, tensor in to_torch(state.params).items():
            np.testing.assert_allclose(trained.params[name][at], tensor, rtol=0, atol=5e-6)


def test_a_run_that_is_resumed_ends_at_the_same_bits(tmp_path: Path) -> None:
    flags = ("--network", "cnn", "--channels", "2", "--data", "synthetic", "--batch-size", "600")
    for side in ("fmnist_jax", "fmnist_torch"):
        whole, parts = tmp_path / side / "whole", tmp_path / side / "parts"
        for folder, epochs, more in ((whole, "2", ()), (parts, "1", ()), (parts, "2", ("--resume",))):
            done = here(f"{side}.train", *flags, "--epochs", epochs, "--output", str(folder), *more)
            assert done.returncode == 0, done.stderr
        assert (whole / "model.safetensors").read_bytes() == (parts / "model.safetensors").read_bytes()
        assert (whole / "metrics.jsonl").read_bytes() == (parts / "metrics.jsonl").read_bytes()
    experiment, state_dict = read_model(whole / "model.safetensors")
    assert experiment == Experiment(network="cnn", channels=(2,))
    assert list(state_dict) == list(experiment.shapes)
    content = bytearray((whole / "checkpoint.safetensors").read_bytes())
    for place in np.random.default_rng(0).integers(0, len(content), 60):
        content[place] ^= 1
        (tmp_path / "damaged").write_bytes(content)
        with pytest.raises(Exception, match="restore it, or start over"):
            checkpoints.read(tmp_path / "damaged")
        content[place] ^= 1


Change = Callable[[Any], Any]


def planted(
    flatten: Change = lambda x: x.transpose(0, 3, 1, 2),
    kernel: Change = lambda kernel: kernel,
    act: Change = linen.relu,
    pool: Change = lambda x: linen.max_pool(x, (2, 2), strides=(2, 2)),
    operand: Change = lambda x: x,
) -> Callable[[Any, jax.Array], Any]:
    """The mirror's network with another function in some place."""

    def apply(variables: Any, images: jax.Array) -> Any:
        params, x = variables["params"], images.reshape(-1, SIDE, SIDE, 1)
        for layer in (params[f"conv{number}"] for number in range(1, len(params))):
            window, dimensions = operand(kernel(layer["kernel"])), ("NHWC", "HWIO", "NHWC")
            x = lax.conv_general_dilated(
                operand(x), window, (1, 1), "SAME", dimension_numbers=dimensions, precision="highest"
            )
            x = pool(act(x + layer["bias"]))
        return (
            jnp.matmul(flatten(x).reshape(len(images), -1), params["fc"]["kernel"], precision="highest")
            + params["fc"]["bias"]
        )

    return apply


PLANTED: dict[str, dict[str, Change]] = {
    "": {},
    "L003": {"flatten": lambda x: x},
    "L007": {"kernel": lambda kernel: kernel.swapaxes(0, 1)},
    "F034": {"pool": lambda x: linen.avg_pool(x, (2, 2), strides=(2, 2))},
    "F070": {"operand": lambda x: lax.reduce_precision(x, 8, 7)},
}


@pytest.mark.parametrize("code", PLANTED)
def test_a_mistake_that_only_convolutions_have_is_named(dataset: Dataset, code: str) -> None:
    experiment = Experiment(network="cnn", channels=(3, 4), batch_size=6, lr=0.1)
    port = Mirror(experiment)
    port.blank = port.blank.replace(apply_fn=planted(**PLANTED[code]))
    reference = references({"small": experiment}, dataset, 0, 1)["small"]
    verdict = judge(reference, Held(port), quick=True, stages=["outputs"])
    assert [group[0].code for group in verdict.explanations] == ([code] if code else [])
    assert verdict.agrees == (not code)


def loaded(state_dict: StateDict, tmp_path: Path) -> tuple[Experiment, StateDict]:
    save_file(state_dict, tmp_path / "model.safetensors")
    return read_model(tmp_path / "model.safetensors")


def test_a_file_of_somebody_s_sequential_is_read_and_another_network_refused(tmp_path: Path) -> None:
    tensors = torch_rng.init(Experiment(network="cnn", channels=(2, 3)))
    names = [f"{layer}.{kind}" for layer in (0, 3, 7) for kind in ("weight", "bias")]
    experiment, found = loaded(dict(zip(names, tensors.values(), strict=True)), tmp_path)
    assert experiment.channels == (2, 3)
    assert all(np.array_equal(found[name], tensor) for name, tensor in tensors.items())
    wrong = dict(zip(names, tensors.values(), strict=True)) | {"3.weight": np.zeros((3, 2, 5, 5), np.float32)}
    with pytest.raises(Exception, match=r"it holds 3.weight \(3, 2, 5, 5\) where conv 2-3 has conv2.weight"):
        loaded(wrong, tmp_path)


@pytest.mark.parametrize(
    ("flags", "words"),
    [
        ("--network cnn --hidden 4", "--hidden: a CNN has channels"),
        ("--channels 4", "--channels: an MLP has widths"),
        ("--network cnn --channels 1 2 3 4 5", "--channels 1 2 3 4 5: expected one to four"),
        ("--network rnn", "--network rnn: expected mlp or cnn"),
    ],
)
def test_what_says_nothing_of_the_network_is_refused(flags: str, words: str) -> None:
    with pytest.raises(UsageError, match=words):
        parse(TrainOptions, flags.split(), "name", "")
    if "5" not in flags:  # for a sweep these are five networks
        with pytest.raises(UsageError, match=words):
            parse(SweepOptions, flags.split(), "name", "")
