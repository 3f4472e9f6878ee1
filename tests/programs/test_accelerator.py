"""What has to hold wherever JAX finds an accelerator; `make accelerator` runs these, and measures."""

from pathlib import Path

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


class OnTheAccelerator(Held):
    """The reference as a port that torch runs on the accelerator; what is expected of it comes from the CPU."""

    def answer(self, case: Case) -> Answer:
        with train.find_device("auto"):
            return super().answer(case)


def verdict(dataset: Dataset, experiment: Experiment, port: Held, *stages: str) -> Verdict:
    reference = references({"program": experiment}, dataset, 0, 1)["program"]
    return judge(reference, port, quick=True, stages=stages)


@pytest.mark.parametrize("name", EXPERIMENTS)
def test_the_mirror_agrees(dataset: Dataset, name: str) -> None:
    assert verdict(dataset, EXPERIMENTS[name], Held(Mirror(EXPERIMENTS[name])), *STAGES).agrees


@pytest.mark.parametrize("name", EXPERIMENTS)
def test_the_reference_there_agrees_with_the_reference_on_the_cpu(dataset: Dataset, name: str) -> None:
    port = OnTheAccelerator(Earlier(torch_port, EXPERIMENTS[name]))
    assert verdict(dataset, EXPERIMENTS[name], port, *STAGES).agrees


def test_convolutions_that_cudnn_computes_in_tf32_are_caught_and_named(
    dataset: Dataset, monkeypatch: pytest.MonkeyPatch
) -> None:
    device = train.find_device("auto")
    if device.type != "cuda" or torch.cuda.get_device_capability(device) < (8, 0):
        pytest.skip("no NVIDIA GPU that has TF32")

    class InTF32(OnTheAccelerator):
        def answer(self, case: Case) -> Answer:
            with device, torch.backends.cudnn.flags(enabled=True, allow_tf32=True):
                return Held.answer(self, case)

    found = verdict(dataset, EXPERIMENTS["cnn"], InTF32(Earlier(torch_port, EXPERIMENTS["cnn"])), "outputs")
    assert not found.agrees
    assert [group[0].code for group in found.explanations] == ["F070"]


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
    found = verdict(dataset, port.experiment, Held(port), "outputs")
    assert not found.agrees
    assert [group[0].code for group in found.explanations] == ["F070"]


@pytest.mark.parametrize("network", ["mlp", "cnn"])
def test_two_runs_end_at_the_same_bits(network: str, tmp_path: Path) -> None:
    for run in ("one", "other"):
        flags = ("--network", network, "--epochs", "2", "--data", "synthetic", "--output", str(tmp_path / run))
        assert command("fmnist_jax.train", *flags).returncode == 0
    one, other = ((tmp_path / run / "model.safetensors").read_bytes() for run in ("one", "other"))
    assert one == other
