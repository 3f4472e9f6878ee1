"""Turns of the sides that are written in JAX."""

import functools
import math
import os
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from benchmarks.raw import read_training
from benchmarks.sides import Environment, Prepared, Setting
from fmnist.data import Split
from fmnist_jax import torch_rng, train
from fmnist_jax.model import from_torch
from fmnist_jax.sweep import population as populations


def environment(_: str) -> Environment:
    """Where either side runs, and the accelerator's memory that it took at most."""
    device = jax.devices()[0]
    name = "cpu" if device.platform == "cpu" else str(device.device_kind)
    return Environment(name, _cores(), (device.memory_stats() or {}).get("peak_bytes_in_use"))


def one_model(folder: Path, setting: Setting) -> Prepared:
    """The mirror's epoch."""
    experiment, device = setting.experiment, jax.devices()[0]
    state = jax.device_put(train.init(experiment, from_torch(torch_rng.init(experiment))), device)
    return _prepared(train.train_epoch, state, folder, setting, device)


def population(folder: Path, setting: Setting) -> Prepared:
    """The epoch of a population whose members differ in their seeds, shared among the devices."""
    experiments = [replace(setting.experiment, seed=seed) for seed in range(setting.members)]
    devices = _devices()[: math.gcd(setting.members, len(_devices()))]
    mesh = Mesh(np.array(devices), ("members",))
    members = jax.device_put(populations.init(experiments), NamedSharding(mesh, PartitionSpec("members")))
    return _prepared(populations.train_epoch, members, folder, setting, NamedSharding(mesh, PartitionSpec()))


def _prepared(epoch: Any, state: Any, folder: Path, setting: Setting, place: Any) -> Prepared:
    """Compile `epoch` for a state and the setting's images; a first turn warms it up."""
    images, labels = read_training(folder)
    batches = train.place(Split(images[: setting.images], labels[: setting.images]), place)
    start = time.perf_counter()
    program = epoch.lower(state, *batches, setting.batch_size).compile()
    compile_seconds = time.perf_counter() - start

    def turn() -> None:
        nonlocal state
        state, _ = jax.block_until_ready(program(state, *batches))

    turn()
    return Prepared(turn, compile_seconds)


@functools.cache
def _devices() -> list[jax.Device]:
    """All devices; of a CPU, one for each core, for a program of its own uses hardly more than one."""
    jax.config.update("jax_num_cpu_devices", _cores())
    return jax.devices()


def _cores() -> int:
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
