"""What has to hold wherever JAX finds an accelerator; `make accelerator` runs these, and measures."""

from pathlib import Path

import jax
import jax.numpy as jnp
import pytest
from flax import linen

from fmnist.data import Dataset
from fmnist.experiment import Experiment
from fmnist_jax.port import Mirror
from fmnist_torch.reference import references
from parity.exam import judge
from parity.port.held import Held
from parity.verdict.comparison import Verdict
from tests.conftest import command

pytestmark = pytest.mark.accelerator

EXPERIMENTS = {
    "mlp": Experiment(hidden=(64,), batch_size=50, lr=0.05),
    "cnn": Experiment(network="cnn", channels=(3, 4), batch_size=20, lr=0.1),
}


def verdict(dataset: Dataset, port: Mirror, *stages: str) -> Verdict:
    reference = references({"program": port.experiment}, dataset, 0, 1)["program"]
    return judge(reference, Held(port), quick=True, stages=stages or None)


@pytest.mark.parametrize("name", EXPERIMENTS)
def test_the_mirror_agrees(dataset: Dataset, name: str) -> None:
    assert verdict(dataset, Mirror(EXPERIMENTS[name]), "load", "outputs", "loss", "gradients", "step", "epoch").agrees


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
    found = verdict(dataset, port, "outputs")
    assert not found.agrees
    assert [group[0].code for group in found.explanations] == ["F070"]


@pytest.mark.parametrize("network", ["mlp", "cnn"])
def test_two_runs_end_at_the_same_bits(network: str, tmp_path: Path) -> None:
    for run in ("one", "other"):
        flags = ("--network", network, "--epochs", "2", "--data", "synthetic", "--output", str(tmp_path / run))
        assert command("fmnist_jax.train", *flags).returncode == 0
    one, other = ((tmp_path / run / "model.safetensors").read_bytes() for run in ("one", "other"))
    assert one == other
