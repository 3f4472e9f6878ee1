"""Many models of one architecture, trained as one program on the same batches."""

from collections.abc import Sequence
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax.training.train_state import TrainState
from numpy.typing import NDArray

from fmnist.experiment import Experiment
from fmnist_jax import torch_rng, train
from fmnist_jax.model import convolutional_logits, from_torch

Array = jax.Array | NDArray[Any]


class Population(NamedTuple):
    """What members differ in, with an axis of members in front: `(members, …)`."""

    params: dict[str, Array]
    """By torch's names and layouts: `fc1.weight (members, 16, 784) float32`, …"""

    lr: Array
    """`(members,) float32`"""

    softmax_output: Array | None
    """`(members,) bool`; None where no member has one, for the switch costs all of them a fifth of the time."""


def init(experiments: Sequence[Experiment]) -> Population:
    """Members that start as the runs of these experiments, which may differ in `seed`, `lr` and `softmax_output`."""
    draws = {seed: torch_rng.init(experiment) for seed, experiment in {each.seed: each for each in experiments}.items()}
    softmax_output = np.array([each.softmax_output for each in experiments])
    return Population(
        jax.tree.map(lambda *members: np.stack(members), *(draws[each.seed] for each in experiments)),
        np.array([each.lr for each in experiments], np.float32),
        softmax_output if softmax_output.any() else None,
    )


@partial(jax.jit, static_argnames="batch_size", donate_argnames="population")
def train_epoch(
    population: Population, images: jax.Array, labels: jax.Array, batch_size: int
) -> tuple[Population, jax.Array]:
    """The members after all batches in order, and their losses, `(members, steps) float32`."""

    @jax.vmap
    def train_member(member: Population) -> tuple[Any, jax.Array]:
        state, losses = train.scan_batches(train.train_step, _state(member), images, labels, batch_size)
        return state.params, losses

    params, losses = train_member(population)
    return population._replace(params=params), losses


@partial(jax.jit, static_argnames="batch_size")
def evaluate(
    population: Population, images: jax.Array, labels: jax.Array, batch_size: int
) -> tuple[jax.Array, jax.Array]:
    """How many images are correctly classified, `(members,) int32`, and mean losses, `(members, batches) float32`."""
    results: tuple[jax.Array, jax.Array] = jax.vmap(
        lambda member: train.evaluate(_state(member), images, labels, batch_size)
    )(population)
    return results


def _state(member: Population) -> TrainState:
    """What a run of its own would train: a step takes the traced values for settings like any others."""

    def apply_fn(variables: dict[str, Any], images: jax.Array) -> jax.Array:
        params = variables["params"]
        is_convolutional = "conv1.weight" in params
        logits = convolutional_logits(from_torch(params), images) if is_convolutional else _logits(params, images)
        return (
            logits
            if member.softmax_output is None
            else jnp.where(member.softmax_output, jax.nn.softmax(logits), logits)
        )

    state: TrainState = TrainState.create(apply_fn=apply_fn, params=member.params, tx=optax.sgd(member.lr))
    return state


def _logits(params: dict[str, Any], images: jax.Array) -> jax.Array:
    """`fmnist_jax.model.ShallowNetwork` on images that stand in columns.

    With images in rows, as `nn.Dense` has them, the products of 64 members take XLA 1.4 times as long on a CPU.
    """
    layers = len(params) // 2
    columns = images.T
    for layer in range(1, layers + 1):
        if layer > 1:
            columns = jax.nn.relu(columns)
        weight, bias = params[f"fc{layer}.weight"], params[f"fc{layer}.bias"]
        columns = jnp.matmul(weight, columns, precision="highest") + bias[:, None]
    return columns.T
