"""What has to hold wherever JAX finds an accelerator; `make accelerator` runs these, and measures."""

import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import pytest
import torch
from flax import linen

from fmnist.data import Dataset
from fmnist.experiment import Experiment
from fmnist_jax.earlier import Earlier
from fmnist_jax.port import Mirror
from fmnist_torch import train
from fmnist_torch.model import init
from fmnist_torch.reference import references
from parity.cases import Answer, Case
from parity.exam import judge
from parity.port.held import Held
from parity.verdict.comparison import Verdict
from tests.conftest import command
from tests.tools.faults import torch_port

pytestmark = pytest.mark.accelerator

EXPERIMENTS = {
    "mlp": Experiment(hidden=(64,), batch_size=50, lr=0.05),
    "cnn": Experiment(network="cnn", channels=(3, 4), batch_size=20, lr=0.1),
}


STAGES = ("load", "outputs", "loss", "gradients", "step", "epoch")


@dataclass
class TorchThere:
    """The reference as a port that torch runs on a device; what is expected of it comes from the CPU."""

    experiment: Experiment
    device: torch.device
    tf32: bool = False

    def describe(self) -> dict[str, Any]:
        return self._held.describe()

    def answer(self, case: Case) -> Answer:
        with self.device, torch.backends.cudnn.flags(enabled=True, allow_tf32=self.tf32):
            return self._held.answer(case)

    @property
    def _held(self) -> Held:
        return Held(Earlier(torch_port, self.experiment))


def torch_device() -> torch.device:
    """An NVIDIA GPU; in a rehearsal the CPU."""
    device = train.find_device("auto")
    if device.type != "cuda" and "ACCELERATOR_REHEARSAL" not in os.environ:
        pytest.skip(f"torch's device is {device.type}, and no NVIDIA GPU")
    return device


def verdict(dataset: Dataset, experiment: Experiment, port: Any, stages: Sequence[str] = STAGES) -> Verdict:
    reference = references({"program": experiment}, dataset, 0, 1)["program"]
    return judge(reference, port, quick=True, stages=stages)


@pytest.mark.parametrize("name", EXPERIMENTS)
def test_the_mirror_agrees(dataset: Dataset, name: str) -> None:
    assert verdict(dataset, EXPERIMENTS[name], Held(Mirror(EXPERIMENTS[name]))).agrees


@pytest.mark.parametrize("name", EXPERIMENTS)
def test_the_reference_there_agrees_with_the_reference_on_the_cpu(dataset: Dataset, name: str) -> None:
    assert verdict(dataset, EXPERIMENTS[name], TorchThere(EXPERIMENTS[name], torch_device())).agrees


def test_convolutions_in_tf32_are_caught_and_named(dataset: Dataset) -> None:
    experiment, device = EXPERIMENTS["cnn"], torch_device()
    images = train.decode(dataset.train.images[:20], device)
    logits = []
    for tf32 in (False, True):
        with torch.backends.cudnn.flags(enabled=True, allow_tf32=tf32):
            logits.append(init(experiment).to(device)(images))
    if torch.equal(*logits):
        pytest.skip("cuDNN takes no TF32 here, whatever it is allowed")
    found = verdict(dataset, experiment, TorchThere(experiment, device, tf32=True), ["outputs"])
    assert not found.agrees
    # cuDNN may take TF32 for some shapes only: then no single mistake explains all of the cases.
    assert {group[0].code for group in found.explanations} <= {"F070"}


class Careless(linen.Module):
    """The network without `precision="highest"`: TF32 on an NVIDIA GPU."""

    @linen.compact
    def __call__(self, images: jax.Array) -> jax.Array:
        hidden = linen.relu(linen.Dense(64, name="fc1")(images))
        logits: jax.Array = linen.Dense(10, name="fc2")(hidden)
        return logits


def test_products_in_tf32_are_caught_and_named(dataset: Dataset) -> None:
    wide = jax.random.normal(jax.random.key(0), (64, 64))
    if jnp.array_equal(jnp.matmul(wide, wide), jnp.matmul(wide, wide, precision="highest")):
        pytest.skip("products of float32 are exact to float32 here, whatever is asked for")
    port = Mirror(EXPERIMENTS["mlp"])
    port.blank = port.blank.replace(apply_fn=Careless().apply)
    found = verdict(dataset, port.experiment, Held(port), ["outputs"])
    assert not found.agrees
    assert [group[0].code for group in found.explanations] == ["F070"]


@pytest.mark.parametrize("network", ["mlp", "cnn"])
def test_two_runs_end_at_the_same_bits(network: str, tmp_path: Path) -> None:
    for run in ("one", "other"):
        flags = ("--network", network, "--epochs", "2", "--data", "synthetic", "--output", str(tmp_path / run))
        assert command("fmnist_jax.train", *flags).returncode == 0
    one, other = ((tmp_path / run / "model.safetensors").read_bytes() for run in ("one", "other"))
    assert one == other
