"""Compares every port of the pairs with its program: `python -m tests.pairs.check [PAIR[/PORT] ...]`.

Prints, for each port and precision, the largest relative deviation of outputs, losses, gradients, five training steps
and running statistics. Exits with 1 if one of them exceeds rounding.
"""

import importlib
import sys
from collections.abc import Callable, Iterator, Mapping
from functools import partial
from pathlib import Path
from types import ModuleType
from typing import Any

import jax
import numpy as np
import torch
from torch import nn

Arrays = Mapping[str, np.ndarray]
TOLERANCES = {"float32": 1e-5, "float64": 1e-10}
STEPS = {"float32": 5, "float64": 13}  # float32 drifts apart


def main(patterns: list[str]) -> int:
    """Checks all ports, or those that are named; returns the exit code."""
    code = 0
    for path in sorted(Path(__file__).parent.glob("*/*.py")):
        pair, port = path.parent.name, path.stem
        if port in ("__init__", "program") or (patterns and not {pair, f"{pair}/{port}"} & set(patterns)):
            continue
        program = importlib.import_module(f"tests.pairs.{pair}.program")
        for dtype in TOLERANCES:
            with jax.enable_x64(dtype == "float64"):
                mirror = importlib.import_module(f"tests.pairs.{pair}.{port}")
                deviations = compare(program, mirror, dtype)
            wrong = [name for name, value in deviations.items() if not value <= TOLERANCES[dtype]]
            code = code or int(bool(wrong))
            numbers = " ".join(f"{name} {value:.1e}" for name, value in deviations.items())
            print(f"{pair}/{port} {dtype} {'WRONG: ' + ', '.join(wrong) if wrong else 'right'}: {numbers}", flush=True)
    return code


def compare(program: ModuleType, port: ModuleType, dtype: str) -> dict[str, float]:
    """The largest relative deviations of a port from its program, by what was compared."""
    module = fresh(program, dtype)
    batches = [
        {name: values.astype(dtype) if values.dtype == np.float32 else values for name, values in batch.items()}
        for batch in program.batches()
    ]
    state = snapshot(module)
    variables = port.from_torch(state)
    require(round_trips(port.to_torch(variables), state), "from_torch and to_torch do not round-trip")
    outputs = jax.jit(port.outputs, static_argnums=2)
    differentiate = differentiated(port)
    dropouts = any(isinstance(part, nn.Dropout) for part in module.modules())
    require(dropouts == drops(outputs, variables, batches[0]), "dropout is not where it should be")
    port.train_step(variables, port.optimizer.init(variables["params"]), batches[0], jax.random.key(0))

    deviations = dict.fromkeys(("outputs", "loss", "gradients", "statistics", "stepped_loss", "steps"), 0.0)

    def note(name: str, actual: Arrays, expected: Arrays, width: str = dtype) -> None:
        require(actual.keys() == expected.keys(), f"{name}: {set(actual) ^ set(expected)} is on one side only")
        for key, value in actual.items():
            require(str(value.dtype) in (width, "int32", "int64"), f"{name}: {key} is {value.dtype}")
        deviations[name] = max(deviations[name], *deviation(actual, expected))

    for batch in (batches[0], batches[-1]):
        for train in (False, True):
            module.load_state_dict(tensors(state))
            module.train(train)
            expected = {key: value.numpy(force=True) for key, value in program.outputs(module, tensors(batch)).items()}
            note("outputs", numpy(outputs(variables, batch, train)), expected)
            if (
                dtype == "float64" and batch is batches[0]
            ):  # the images of a data loader are float32, whatever the parameters are
                narrow = {key: v.astype("float32") if v.dtype == np.float64 else v for key, v in batch.items()}
                note("outputs", numpy(outputs(variables, narrow, train)), expected)

            module.load_state_dict(tensors(state))
            module.zero_grad()
            value = program.loss(module, tensors(batch))
            value.backward()
            (actual, batch_stats), grads = differentiate(variables, batch, train)
            note("loss", {"": np.asarray(actual)}, {"": value.numpy(force=True)})
            named = port.to_torch({**variables, "params": grads})
            expected = gradients(module)
            note("gradients", {name: named[name] for name in expected}, expected)
            after = port.to_torch({"params": variables["params"], "batch_stats": batch_stats})
            note("statistics", after, snapshot(module))

    module.load_state_dict(tensors(state))
    module.train()
    optimizer = program.optimizer(module)
    scheduler = program.scheduler(optimizer) if hasattr(program, "scheduler") else None
    opt_state = port.optimizer.init(variables["params"])
    doubtful = {name: np.zeros(value.shape, bool) for name, value in state.items()}
    for step in range(STEPS[dtype]):
        batch = batches[step % len(batches)]
        optimizer.zero_grad()
        value = program.loss(module, tensors(batch))
        value.backward()
        grads = port.to_torch({**variables, "params": differentiate(variables, batch, True)[1]})
        for name, noise in rounding(module, grads).items():
            doubtful[name] |= noise
        if hasattr(program, "clip"):
            program.clip(module)
        optimizer.step()
        if scheduler is not None:
            scheduler.step()
        variables, opt_state, actual = port.train_step(variables, opt_state, batch)
        note("stepped_loss", {"": np.asarray(actual)}, {"": value.numpy(force=True)})
        stepped, expected = port.to_torch(variables), snapshot(module)
        note("steps", {name: np.where(doubtful[name], expected[name], stepped[name]) for name in stepped}, expected)
    return deviations


def fresh(program: ModuleType, dtype: str) -> nn.Module:
    """The program's module without dropout and with no parameter or statistic at a special value."""
    torch.manual_seed(0)
    module: nn.Module = program.module()
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.add_(0.05 * torch.randn_like(parameter))
        for name, buffer in module.named_buffers():
            buffer.add_(3 if name.endswith("num_batches_tracked") else 0.5 * torch.rand_like(buffer))
    for part in module.modules():
        if isinstance(part, nn.Dropout):
            part.p = 0.0
    return module.double() if dtype == "float64" else module


def differentiated(port: ModuleType) -> Callable[..., Any]:
    """A port's loss, statistics and gradients, of variables, a batch and whether to train."""

    def loss(params: Any, variables: Any, batch: Arrays, train: bool) -> Any:
        return port.loss({**variables, "params": params}, batch, train)

    @partial(jax.jit, static_argnums=2)
    def differentiate(variables: Any, batch: Arrays, train: bool) -> Any:
        return jax.value_and_grad(loss, has_aux=True)(variables["params"], variables, batch, train)

    return differentiate


def drops(outputs: Callable[..., Any], variables: Any, batch: Arrays) -> bool:
    """Whether a key changes the outputs in training; it must not in evaluation."""
    key = jax.random.key(0)
    quiet, dropped = (numpy(outputs(variables, batch, True, rng)) for rng in (None, key))
    evaluated, still = (numpy(outputs(variables, batch, False, rng)) for rng in (None, key))
    require(max(deviation(evaluated, still)) == 0, "drops out in evaluation")
    return max(deviation(quiet, dropped)) > 1e-3


def deviation(actual: Arrays, expected: Arrays) -> Iterator[float]:
    """The largest difference of every array, relative to its largest element or, if more, 0.001 of all arrays'."""
    floor = 1e-3 * max((float(np.abs(value).max()) for value in expected.values()), default=0.0)
    for name, value in expected.items():
        require(actual[name].shape == value.shape, f"{name} is {actual[name].shape}, not {value.shape}")
        difference = np.abs(np.asarray(actual[name], np.float64) - np.asarray(value, np.float64)).max()
        yield float(difference / max(np.abs(value).max(), floor, 1e-300))


def rounding(module: nn.Module, actual: Arrays) -> dict[str, np.ndarray]:
    """Where gradients are nothing but rounding, as an attention's keys' biases' are: Adam divides that by itself."""
    expected = gradients(module)
    limit = 64 * max(np.finfo(grad.dtype).eps * np.abs(grad).max() for grad in expected.values())
    return {name: (actual[name] != grad) & (np.abs(grad) < limit) for name, grad in expected.items()}


def gradients(module: nn.Module) -> dict[str, np.ndarray]:
    """torch's gradients, a shared parameter's under each of its names."""
    named = module.named_parameters(remove_duplicate=False)
    return {name: parameter.grad.numpy() for name, parameter in named if parameter.grad is not None}


def round_trips(actual: Arrays, expected: Arrays) -> bool:
    return actual.keys() == expected.keys() and all(
        actual[name].dtype == value.dtype and np.array_equal(actual[name], value) for name, value in expected.items()
    )


def snapshot(module: nn.Module) -> dict[str, np.ndarray]:
    return {name: np.array(tensor.numpy(force=True)) for name, tensor in module.state_dict().items()}


def tensors(arrays: Arrays) -> dict[str, torch.Tensor]:
    return {name: torch.tensor(array) for name, array in arrays.items()}


def numpy(arrays: Mapping[str, Any]) -> dict[str, np.ndarray]:
    return {name: np.asarray(array) for name, array in arrays.items()}


def require(condition: bool, message: str) -> None:
    if not condition:
        raise SystemExit(message)


if __name__ == "__main__":
    torch.set_num_threads(1)
    sys.exit(main(sys.argv[1:]))
