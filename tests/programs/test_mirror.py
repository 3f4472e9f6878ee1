"""The mirror computes what the reference computes."""

import inspect

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
from flax.training.train_state import TrainState
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.numpy import load, save

from fmnist.data import Dataset, Split
from fmnist.experiment import Experiment, StateDict
from fmnist_jax import torch_rng, train
from fmnist_jax.model import from_torch, to_torch
from fmnist_torch import train as reference
from fmnist_torch.model import init

DEVICE = jax.devices()[0]


def start(experiment: Experiment) -> TrainState:
    state: TrainState = jax.device_put(train.init(experiment, from_torch(torch_rng.init(experiment))), DEVICE)
    return state


def arrays(split: Split, count: int) -> tuple[jax.Array, jax.Array]:
    return train.place(Split(split.images[:count], split.labels[:count]), DEVICE)


def reference_epoch(experiment: Experiment, split: Split, count: int) -> tuple[StateDict, np.ndarray]:
    model = init(experiment)
    optimizer = torch.optim.SGD(model.parameters(), lr=experiment.lr)
    images = reference.decode(split.images[:count], torch.device("cpu"))
    losses = reference.train_epoch(model, optimizer, images, torch.tensor(split.labels[:count]), experiment.batch_size)
    return {name: tensor.numpy() for name, tensor in model.state_dict().items()}, losses.numpy()


@given(
    hidden=st.lists(st.integers(1, 40), min_size=1, max_size=3).map(tuple),
    batch_size=st.integers(1, 300),
    count=st.integers(1, 2000),
    seed=st.integers(0, 2**64 - 1),
    softmax_output=st.booleans(),
)
@settings(max_examples=5, deadline=None)
def test_an_epoch_agrees_with_torch(
    dataset: Dataset, hidden: tuple[int, ...], batch_size: int, count: int, seed: int, softmax_output: bool
) -> None:
    experiment = Experiment(hidden=hidden, softmax_output=softmax_output, batch_size=batch_size, lr=0.01, seed=seed)
    expected, expected_losses = reference_epoch(experiment, dataset.train, count)
    state, losses = train.train_epoch(start(experiment), *arrays(dataset.train, count), batch_size)
    assert losses.shape == expected_losses.shape == (experiment.batches(count),)
    np.testing.assert_allclose(losses, expected_losses, rtol=0, atol=5e-6)
    starting = torch_rng.init(experiment)
    for name, tensor in to_torch(state.params).items():
        # Updates, not parameters: those move so little that a program which does nothing would pass.
        update, expected_update = tensor - starting[name], expected[name] - starting[name]
        np.testing.assert_allclose(update, expected_update, rtol=0, atol=1e-5 * max(1, abs(expected_update).max()))


def test_batches_come_in_file_order_and_the_last_one_is_short(dataset: Dataset) -> None:
    experiment = Experiment(batch_size=64)
    images, labels = arrays(dataset.train, 64 * 3 + 32)
    state, by_hand = start(experiment), []
    for begin in range(0, len(labels), 64):
        state, loss = train.train_step(state, train.decode(images[begin : begin + 64]), labels[begin : begin + 64])
        by_hand.append(float(loss))
    after, losses = train.train_epoch(start(experiment), images, labels, 64)
    assert losses.shape == (4,)
    np.testing.assert_allclose(losses, by_hand, rtol=5e-6)
    chex.assert_trees_all_close(after.params, state.params, rtol=0, atol=1e-6)
    swapped = labels.at[jnp.array([0, 100])].set(labels[jnp.array([100, 0])])
    assert not np.allclose(train.train_epoch(start(experiment), images, swapped, 64)[1], by_hand, rtol=5e-6)


@pytest.mark.parametrize("batch_size", [64, 7, 1000, 60_000])
def test_evaluation_is_the_mean_of_the_batch_means(dataset: Dataset, batch_size: int) -> None:
    experiment = Experiment(batch_size=batch_size)
    correct, losses = train.evaluate(start(experiment), *arrays(dataset.test, 1010), batch_size)
    model = init(experiment)
    images = reference.decode(dataset.test.images[:1010], torch.device("cpu"))
    expected = reference.evaluate(model, images, torch.tensor(dataset.test.labels[:1010]), batch_size)
    assert abs(int(correct) - int(expected[0])) <= 1  # an image may lie within rounding of two classes
    assert int(correct) > 1
    np.testing.assert_allclose(losses, expected[1], rtol=5e-6)


def test_each_function_is_traced_once_in_a_run(dataset: Dataset) -> None:
    experiment = Experiment()
    chex.clear_trace_counter()
    once = chex.assert_max_traces(n=1)
    train_epoch, evaluate = (
        jax.jit(once(inspect.unwrap(function)), static_argnames="batch_size")
        for function in (train.train_epoch, train.evaluate)
    )
    state, (images, labels) = start(experiment), arrays(dataset.train, 1000)
    for _ in range(3):
        state, _ = train_epoch(state, images, labels, batch_size=64)
        evaluate(state, images, labels, batch_size=64)


def test_wrong_shapes_and_dtypes_are_refused(dataset: Dataset) -> None:
    state, (images, labels) = start(Experiment()), arrays(dataset.train, 128)
    with pytest.raises(AssertionError):
        train.train_step(state, images, labels)
    with pytest.raises(AssertionError):
        train.train_step(state, train.decode(images), labels[:-1])
    with pytest.raises(AssertionError):
        train.evaluate(state, images.reshape(-1, 784), labels, 64)
    with pytest.raises(AssertionError):
        train.evaluate(state, images.astype(jnp.float32), labels, 64)
    with pytest.raises(AssertionError):
        train.evaluate(state, images, labels.astype(jnp.float32), 64)


def test_tensors_survive_the_way_to_flax_and_back_through_a_file() -> None:
    tensors = torch_rng.init(Experiment(hidden=(16, 7)))
    back = to_torch(jax.device_put(from_torch(tensors)))
    assert all(tensor.flags.c_contiguous for tensor in back.values())
    stored = load(save(back))
    assert list(tensors) == list(back)
    for name, tensor in tensors.items():
        assert np.array_equal(stored[name], tensor)
        assert not np.shares_memory(back[name], tensor)


def test_the_matrix_products_ask_for_full_precision() -> None:
    state = start(Experiment(hidden=(16, 16)))
    images, labels = jnp.zeros((2, 784)), jnp.zeros(2, jnp.int32)
    program = str(jax.make_jaxpr(train.train_step)(state, images, labels))
    # Three layers forward; back, each its kernel's gradient and all but the first their input's.
    assert program.count("dot_general[") == 3 + 3 + 2
    assert program.count("precision=(Precision.HIGHEST, Precision.HIGHEST)") == 8


def test_a_dead_and_a_zero_pre_activation_have_no_gradient() -> None:
    tensors = torch_rng.init(Experiment())
    tensors["fc1.weight"][:8], tensors["fc1.bias"][:8] = 0, 0
    tensors["fc1.bias"][8:] = -1000
    state = train.init(Experiment(lr=1.0), from_torch(tensors))
    after, _ = train.train_step(state, jnp.ones((4, 784)), jnp.arange(4))
    moved = to_torch(after.params)
    assert np.array_equal(moved["fc1.weight"], tensors["fc1.weight"])
    assert np.array_equal(moved["fc1.bias"], tensors["fc1.bias"])
    assert not np.array_equal(moved["fc2.bias"], tensors["fc2.bias"])
