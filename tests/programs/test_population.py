"""A member of a population is trained as it would be alone."""

import os
import subprocess
import sys
from dataclasses import replace
from typing import Any

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from fmnist.data import Dataset, Split
from fmnist.experiment import PIXELS, SIDE, TRAINING_IMAGES, Experiment
from fmnist_jax import torch_rng, train
from fmnist_jax.model import from_torch, to_torch
from fmnist_jax.sweep import population, training
from fmnist_jax.sweep.population import Population
from tests.conftest import ROOT

DEVICE = jax.devices()[0]
BASE = Experiment(batch_size=64, lr=0.01)
MEMBERS = [
    BASE,
    replace(BASE, seed=2**40 + 5, lr=0.05),
    replace(BASE, seed=1, lr=0.05, softmax_output=True),
]


def arrays(split: Split, count: int) -> tuple[jax.Array, jax.Array]:
    return train.place(Split(split.images[:count], split.labels[:count]), DEVICE)


def member(trained: Population, index: int) -> dict[str, np.ndarray]:
    return {name: np.asarray(values[index]) for name, values in trained.params.items()}


def test_every_member_equals_its_single_run(dataset: Dataset) -> None:
    experiments = [replace(experiment, hidden=(33, 4, 9)) for experiment in MEMBERS]
    batch, test = arrays(dataset.train, 3 * 64 + 32), arrays(dataset.test, 100)
    trained, losses = population.train_epoch(population.init(experiments), *batch, 64)
    correct, test_losses = population.evaluate(trained, *test, 64)
    assert losses.shape == (3, 4)
    for index, experiment in enumerate(experiments):
        alone = train.init(experiment, from_torch(torch_rng.init(experiment)))
        alone, losses_alone = train.train_epoch(alone, *batch, 64)
        correct_alone, test_losses_alone = train.evaluate(alone, *test, 64)
        np.testing.assert_allclose(losses[index], losses_alone, rtol=0, atol=5e-6)
        np.testing.assert_allclose(test_losses[index], test_losses_alone, rtol=0, atol=5e-6)
        assert abs(int(correct[index]) - int(correct_alone)) <= 1  # an image may lie within rounding of two classes
        starting, expected = torch_rng.init(experiment), to_torch(alone.params)
        for name, tensor in member(trained, index).items():
            # Updates, not parameters: members that were never trained would pass.
            update = expected[name] - starting[name]
            assert abs(update).max() > 0
            np.testing.assert_allclose(tensor - starting[name], update, rtol=0, atol=5e-6)


def test_members_do_not_touch_each_other(dataset: Dataset) -> None:
    batch = arrays(dataset.train, 256)
    calm, _ = population.train_epoch(population.init([BASE, replace(BASE, seed=1)]), *batch, 64)
    wild, losses = population.train_epoch(population.init([BASE, replace(BASE, seed=1, lr=1e30)]), *batch, 64)
    assert not np.isfinite(losses[1]).all()
    chex.assert_trees_all_equal(member(calm, 0), member(wild, 0))


def test_the_switch_costs_nothing_where_no_member_has_it() -> None:
    assert population.init([BASE]).softmax_output is None
    assert population.init(MEMBERS).softmax_output.tolist() == [False, False, True]  # type: ignore[union-attr]


def test_the_batches_are_shared_by_all_members() -> None:
    """The first layers of all members are one product with the batch, and no array holds images for each member."""
    images, labels = jnp.zeros((64, SIDE, SIDE), jnp.uint8), jnp.zeros(64, jnp.int32)
    program = jax.jit(population.train_epoch, static_argnums=3).lower(population.init(MEMBERS), images, labels, 64)
    assert f"tensor<3x64x{PIXELS}xf32>" not in program.as_text()
    assert f"tensor<{PIXELS}x64xf32>" in program.as_text()


@pytest.mark.parametrize(
    "experiment",
    [
        Experiment(),
        Experiment(hidden=(4,), batch_size=1),
        Experiment(hidden=(256,)),
        Experiment(hidden=(16, 16), batch_size=1000),
        Experiment(softmax_output=True),
    ],
)
def test_a_member_needs_as_much_memory_as_is_set_aside_for_it(experiment: Experiment) -> None:
    def needed(members: int) -> float:
        """XLA's own count."""
        images = jax.ShapeDtypeStruct((TRAINING_IMAGES, SIDE, SIDE), np.uint8)
        labels = jax.ShapeDtypeStruct((TRAINING_IMAGES,), np.int32)
        trained = population.init([experiment] * members)
        program = population.train_epoch.lower(trained, images, labels, experiment.batch_size).compile()
        used: Any = program.memory_analysis()
        sizes = used.argument_size_in_bytes, used.temp_size_in_bytes, used.output_size_in_bytes
        return float(sum(sizes) - used.alias_size_in_bytes)

    each = (needed(12) - needed(4)) / 8
    assert each <= training.bytes_of(experiment) <= 3 * each


@given(
    members=st.integers(1, 5000),
    devices=st.integers(1, 16),
    memory=st.integers(1, 2**32),
    hidden=st.lists(st.integers(1, 4096), min_size=1, max_size=2).map(tuple),
)
def test_chunks_fit_into_memory_and_are_as_few_as_can_be(
    members: int, devices: int, memory: int, hidden: tuple[int, ...]
) -> None:
    experiment = Experiment(hidden=hidden)
    chunk = training.chunk_size(experiment, members, devices, memory)
    assert chunk % devices == 0
    assert chunk * hidden[0] >= 64 * devices
    least = -(-64 // hidden[0]) * devices
    assert chunk == least or (chunk * training.bytes_of(experiment) <= memory and chunk < members + devices)
    # One chunk less would have to hold more than fits.
    chunks = -(-members // chunk)
    if chunks > 1:
        larger = max(least, -(-members // (chunks - 1) // devices) * devices)
        assert larger * training.bytes_of(experiment) > memory


@pytest.mark.parametrize("place", ["", '"synthetic"'])
def test_devices_of_a_cpu_share_one_copy_of_the_data(place: str, own_cache: object, dataset: Dataset) -> None:
    code = f"""
from fmnist_jax.sweep import devices
from fmnist.data import load_dataset
(images, labels), _ = devices.place_data(load_dataset({place}), devices.find_mesh("cpu"))
shards = images.addressable_shards
print(len(shards), len(set(shard.data.unsafe_buffer_pointer() for shard in shards)))
"""
    done = subprocess.run(
        [sys.executable, "-c", code],
        cwd=ROOT,
        env={**os.environ, "XLA_FLAGS": "--xla_force_host_platform_device_count=8"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.stdout == "8 1\n", done.stderr
