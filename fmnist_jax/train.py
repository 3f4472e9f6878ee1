"""Train the mirror: `python -m fmnist_jax.train`."""

import gc

if __name__ == "__main__":
    gc.disable()  # until command.run: looking for cycles in all that is imported takes 0.1 s

import os
import sys
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import Any

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax.training.train_state import TrainState
from jax import lax

from fmnist import command
from fmnist.data import Split, load_dataset
from fmnist.experiment import CLASSES, PIXELS, SIDE, Experiment
from fmnist.runs.environment import Environment
from fmnist.runs.options import parse_options
from fmnist.runs.run import start
from fmnist_jax import programs, torch_rng
from fmnist_jax.model import Params, from_torch, network, to_torch

NAME = "fmnist_jax.train"


def decode(images: jax.Array) -> jax.Array:
    """Pixels `(n, 784) float32 in [0, 1]` of images `uint8 (n, 28, 28)`: `images / 255`, rounded once.

    As `257 / 65536 + 1 / 255 / 65536` times the image, whose first product is exact: XLA compiles `x / 255` to a
    multiplication by the reciprocal, which is 1 ulp off at 126 of 256 values.
    """
    values = images.reshape(len(images), PIXELS).astype(jnp.float32)
    return values * (257 / 65536) + values * (1 / 255 / 65536)


def place(split: Split, device: jax.Device | jax.sharding.Sharding) -> tuple[jax.Array, jax.Array]:
    """A split's images as they are, and its labels, `(n,) int32`, on a device.

    A batch is decoded in its step: that costs less time than reading four times the bytes from memory.
    """
    arrays = programs.shared(split.images), split.labels.astype(np.int32)
    placed: tuple[jax.Array, jax.Array] = jax.device_put(arrays, device)
    return placed


def cross_entropy(logits: jax.Array, labels: jax.Array) -> jax.Array:
    """`-log(softmax(logits)[label])` of every image, `(batch,)`.

    By a one-hot product: the gradient of picking the label's entry out would be a scatter, which accelerators do not
    add up in the same order every time.
    """
    losses: jax.Array = optax.softmax_cross_entropy(logits, jax.nn.one_hot(labels, CLASSES, dtype=logits.dtype))
    return losses


def init(experiment: Experiment, params: Params) -> TrainState:
    """What training starts from: parameters and the optimizer's state, as one value."""
    state: TrainState = TrainState.create(apply_fn=network(experiment), params=params, tx=optax.sgd(experiment.lr))
    return state


@jax.jit
def train_step(state: TrainState, images: jax.Array, labels: jax.Array) -> tuple[TrainState, jax.Array]:
    """The state after one batch, and the loss, `() float32`, from before the update."""
    _check(images, labels)

    def loss_of(params: Params) -> jax.Array:
        return cross_entropy(state.apply_fn({"params": params}, images), labels).mean()

    loss, grads = jax.value_and_grad(loss_of)(state.params)
    return state.apply_gradients(grads=grads), loss


@partial(jax.jit, static_argnames="batch_size")
def train_epoch(
    state: TrainState, images: jax.Array, labels: jax.Array, batch_size: int
) -> tuple[TrainState, jax.Array]:
    """The state after all batches in order, the short last one too, and their losses, `(steps,) float32`.

    Args:
        images: `(n, 28, 28) uint8`.
    """
    after, losses = scan_batches(train_step, _transposed(state), images, labels, batch_size)
    return _transposed(after).replace(apply_fn=state.apply_fn), losses


@partial(jax.jit, static_argnames="batch_size")
def evaluate(state: TrainState, images: jax.Array, labels: jax.Array, batch_size: int) -> tuple[jax.Array, jax.Array]:
    """How many images are correctly classified, `() int32`, and the mean loss of every batch, `(batches,) float32`.

    Args:
        images: `(n, 28, 28) uint8`.
    """

    def test_step(correct: jax.Array, images: jax.Array, labels: jax.Array) -> tuple[jax.Array, jax.Array]:
        _check(images, labels)
        logits = state.apply_fn({"params": state.params}, images)
        return correct + (logits.argmax(axis=1) == labels).sum(dtype=jnp.int32), cross_entropy(logits, labels).mean()

    correct: jax.Array
    correct, losses = scan_batches(test_step, jnp.zeros((), jnp.int32), images, labels, batch_size)
    return correct, losses


def scan_batches(
    step: Callable[[Any, jax.Array, jax.Array], tuple[Any, jax.Array]],
    carry: Any,
    images: jax.Array,
    labels: jax.Array,
    batch_size: int,
) -> tuple[Any, jax.Array]:
    """What becomes of `carry` by a step for each batch in order, the short last one too, and what the steps return.

    Args:
        images: `(n, 28, 28) uint8`; a step is given their pixels.
    """
    chex.assert_shape(images, (len(labels), SIDE, SIDE))
    chex.assert_type(images, jnp.uint8)
    steps, rest = divmod(len(labels), batch_size)

    def next_step(carry: Any, start: jax.Array) -> tuple[Any, jax.Array]:
        batch, targets = (lax.dynamic_slice_in_dim(whole, start, batch_size) for whole in (images, labels))
        return step(carry, decode(batch), targets)

    results = []
    if steps:
        carry, result = lax.scan(next_step, carry, batch_size * jnp.arange(steps))
        results.append(result)
    if rest:
        carry, result = step(carry, decode(images[-rest:]), labels[-rest:])
        results.append(result[None])
    return carry, jnp.concatenate(results)


def _transposed(state: TrainState) -> TrainState:
    """The same state with its kernels as `(out, in)`: so carried, XLA's loop on a CPU takes 33 ms an epoch, not 51."""

    apply = state.apply_fn  # what is kept of a traced function must not hold the values that it was traced with

    def apply_fn(variables: Any, images: jax.Array) -> jax.Array:
        outputs: jax.Array = apply(jax.tree.map(jnp.transpose, variables), images)
        return outputs

    transposed: TrainState = jax.tree.map(jnp.transpose, state).replace(apply_fn=apply_fn)
    return transposed


def _check(images: jax.Array, labels: jax.Array) -> None:
    """Hold shapes and dtypes while a function is traced; nothing of it is left in the compiled program."""
    chex.assert_shape(images, (len(labels), PIXELS))
    chex.assert_type([images, labels], [float, int])


def local_devices() -> list[jax.Device]:
    """JAX's default devices.

    Raises:
        UnavailableError: JAX has none.
    """
    try:
        return jax.devices()
    # RuntimeError is what JAX documents; without CUDA wheels JAX_PLATFORMS=cuda fails an assertion, and plugins raise
    # errors of their own.
    except Exception as error:
        asked_for = jax.config.jax_platforms  # type: ignore[attr-defined]
        where = f": JAX_PLATFORMS={asked_for}, and its plugin is missing or fails" if asked_for else ""
        said = str(error) or "no backend could be initialized"
        raise command.UnavailableError(f"JAX has no device to run on{where} ({said})") from None


def cpu_devices() -> list[jax.Device]:
    """The CPU as JAX's devices; none where JAX_PLATFORMS leaves it out."""
    try:
        return jax.devices("cpu")
    except RuntimeError:
        return []


def find_device(name: str) -> jax.Device:
    """The device of that name; `auto` is JAX's default one.

    Raises:
        UnavailableError: it is not here; the message lists those that are.
    """
    devices = [*local_devices(), *cpu_devices()]
    here = {"auto": devices[0]}
    for device in devices:
        # An NVIDIA GPU is "gpu" to jax.devices and "cuda:0" when printed.
        kinds = (device.platform, str(device).partition(":")[0])
        for alias in (*kinds, *(f"{kind}:{device.id}" for kind in kinds)):
            here.setdefault(alias, device)
    if name not in here:
        raise command.UnavailableError(f"--device {name}: not here; expected one of {', '.join(here)}")
    return here[name]


def cores() -> int:
    """How many processor cores this process may use, which is how many threads XLA starts on a CPU."""
    return len(os.sched_getaffinity(0)) if sys.platform == "linux" else os.cpu_count() or 1


def main() -> None:
    options = parse_options(sys.argv[1:], NAME, "Train the JAX mirror on FashionMNIST.")
    programs.keep()
    experiment = options.experiment
    device = find_device(options.device)
    eager = jax.config.jax_disable_jit  # type: ignore[attr-defined]
    if eager:
        print("JAX_DISABLE_JIT: nothing is compiled; an epoch of 938 steps takes about a minute", file=sys.stderr)
    dataset = load_dataset(options.data)
    environment = Environment("jax", str(device), "highest", cores())
    with start(options, environment, dataset, NAME) as run, ThreadPoolExecutor(1) as pool:
        params = from_torch(run.begin(partial(torch_rng.init, experiment)))
        state = jax.device_put(init(experiment, params), device)
        train_data, test_data = (place(split, device) for split in (dataset.train, dataset.test))

        # The next epoch is trained while this one is evaluated: 4 % of a whole run. Two threads ask for them, for on a
        # CPU what one thread asks for is computed one after the other.
        begin = partial(train_epoch, images=train_data[0], labels=train_data[1], batch_size=experiment.batch_size)
        upcoming = None
        for epoch in run.epochs():
            state, losses = upcoming or begin(state)
            tested = pool.submit(evaluate, state, *test_data, experiment.batch_size)
            run.report_training(epoch, losses)
            upcoming = None if eager or epoch == experiment.epochs else begin(state)
            run.report_test(epoch, *tested.result())
            run.keep(epoch, partial(to_torch, state.params))
        run.finish(to_torch(state.params))


if __name__ == "__main__":
    command.leave(command.run(main, NAME), NAME)
