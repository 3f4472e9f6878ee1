"""The devices that members are spread over, and how arrays come there and back."""

import contextlib
import os
from typing import Any

import jax
import numpy as np
import psutil
from jax.experimental.multihost_utils import process_allgather
from jax.sharding import Mesh, NamedSharding, PartitionSpec
from numpy.typing import NDArray

from fmnist.data import Dataset
from fmnist_jax import train
from fmnist_jax.sweep.population import Population

MEMBERS = "members"
DeviceSplit = tuple[jax.Array, jax.Array]


def split_cpu() -> None:
    """Make every processor core a device of its own, unless the user has said how many or JAX is already at work.

    A population of 64 takes 20 ms a member and epoch on 2 cores as two devices, and 28 ms as one.
    """
    told = "JAX_NUM_CPU_DEVICES" in os.environ or "device_count" in os.environ.get("XLA_FLAGS", "")
    if not told:
        with contextlib.suppress(RuntimeError):  # a notebook may have used JAX before
            jax.config.update("jax_num_cpu_devices", train.cores())


def find_mesh(name: str) -> Mesh:
    """All devices, over all processes, of the kind that `--device` names, as an axis of members.

    Raises:
        UnavailableError: there is none.
    """
    platform = train.find_device(name).platform
    return Mesh(np.array(jax.devices(platform)), (MEMBERS,))


def describe(mesh: Mesh) -> str:
    """E.g. `8 x cpu`."""
    return f"{mesh.size} x {mesh.devices.flat[0].platform}"


def place_data(dataset: Dataset, mesh: Mesh) -> tuple[DeviceSplit, DeviceSplit]:
    """Training and test images and labels, whole on every device; on a CPU all devices share one copy."""
    here = NamedSharding(mesh.local_mesh, PartitionSpec())

    def everywhere(local: jax.Array) -> jax.Array:
        shards = [shard.data for shard in local.addressable_shards]
        return jax.make_array_from_single_device_arrays(local.shape, NamedSharding(mesh, PartitionSpec()), shards)

    train_data, test_data = (train.place(split, here) for split in (dataset.train, dataset.test))
    placed: tuple[DeviceSplit, DeviceSplit] = jax.tree.map(everywhere, (train_data, test_data))
    return placed


def place_members(population: Population, mesh: Mesh) -> Population:
    """Every device its share of the members, whose number has to be a multiple of the devices'."""
    sharding = NamedSharding(mesh, PartitionSpec(MEMBERS))

    def spread(array: NDArray[Any]) -> jax.Array:
        return jax.make_array_from_callback(array.shape, sharding, lambda index: array[index])

    placed: Population = jax.tree.map(spread, population)
    return placed


def gather(array: jax.Array) -> NDArray[Any]:
    """All of an array, wherever its parts are, in every process."""
    gathered: NDArray[Any] = process_allgather(array, tiled=True)
    return gathered


def free_memory(mesh: Mesh) -> int:
    """Bytes that may be filled on this mesh's devices, the same in every process: four fifths of what is free."""
    stats = [device.memory_stats() for device in mesh.local_devices]
    if all(stats):
        free = jax.process_count() * sum(each["bytes_limit"] - each["bytes_in_use"] for each in stats)
    else:  # processes may share the memory of one machine
        free = psutil.virtual_memory().available
    return int(0.8 * process_allgather(np.float64(free)).min())
