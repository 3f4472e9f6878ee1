"""A PyTorch training program, and its answers to cases: in float32 as it is, or in float64 with errors put in."""

import contextlib
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_flatten_with_path

from parity.cases import Answer, Batch, Case, Tensors
from parity.reference.noise import EXACTLY, Number, Rounding
from parity.reference.rounding import Wide, held, wide, widened
from parity.variations import Program

TorchBatch = dict[str, Tensor]


@dataclass(frozen=True)
class WholeRun:
    """Training as it is meant: epochs over all batches, each followed by an evaluation."""

    batches: Sequence[Batch]
    test_batches: Sequence[Batch]
    epochs: int
    margins: Mapping[str, float]
    """By the names that `evaluate` reports: mean differences between paired seeds that are as good as none."""


@dataclass(frozen=True)
class Layout:
    """How tensors are misread: what is taken for each of them when they are loaded, and what is told in its place."""

    taken: Callable[[Tensors], Tensors]
    told: Callable[[Tensors], Tensors]
    """Of states, and of gradients, which lack the buffers."""


@dataclass(frozen=True)
class Reference:
    """What is ported: a module, its loss, its optimizer, and some of the batches that it is trained on."""

    module: Callable[[], nn.Module]
    """Makes a fresh module from torch's global generator."""
    loss: Callable[[Any, TorchBatch], Tensor]
    """`loss(module, batch)`: () floating, whose gradient is followed."""
    optimizer: Callable[[Any], torch.optim.Optimizer]
    """`optimizer(module)`: the module, not its parameters, for decay often depends on their names."""
    batches: Sequence[Batch]
    """Two or more, `{"images": (64, 784) float32, "labels": (64,) int64}`; a short last one is worth its while."""
    outputs: Callable[[Any, TorchBatch], Any] | None = None
    """`outputs(module, batch)`: a tensor, or any nesting of tensors; by default `module(first entry of the batch)`."""
    scheduler: Callable[[torch.optim.Optimizer], Any] | None = None
    """Stepped after every update."""
    clip: Callable[[Any], None] | None = None
    """`clip(module)`: called between backward and the optimizer's step."""
    train_epoch: Callable[[Any, torch.optim.Optimizer, list[TorchBatch]], Tensor] | None = None
    """`train_epoch(module, optimizer, batches)`: updates it; the losses `(steps,)`, each from before its update."""
    evaluate: Callable[[Any, list[TorchBatch]], Mapping[str, Any]] | None = None
    """`evaluate(module, batches)`: the numbers that the program reports, by name."""
    init: Callable[[int], nn.Module] | None = None
    """`init(seed)`: the module as the program draws it, where a port has to draw the same numbers."""
    cases: Callable[[Program], Iterable[Case]] | None = None
    """Further cases that are worth asking of this program, such as inputs on which a mistake of its kind shows."""
    whole_run: WholeRun | None = None
    """What the stages `trajectory` and `trends` do, with `train_epoch` and `evaluate`."""
    name: str = ""
    layout: Layout | None = None
    """Of a hypothesis about a port: a program reads its own tensors as they are."""


def fresh(reference: Reference, seed: int = 0) -> nn.Module:
    """A module as the program makes it, in the float32 that it asks for."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return reference.module()


def answer(
    reference: Reference,
    case: Case,
    rounding: Rounding | None = EXACTLY,
    rewrite: Callable[[], contextlib.AbstractContextManager[Any]] = contextlib.nullcontext,
) -> Answer:
    """What the program says to a case; float64, or what the program computes in itself where `rounding` is None.

    Args:
        rewrite: a context within which the program is another one.
    """
    context = contextlib.nullcontext() if rounding is None else wide(rounding)
    with torch.random.fork_rng(devices=[]), context, rewrite():
        torch.manual_seed(0)
        if case.call == "init":
            assert reference.init is not None
            drawn = _named("state", reference.init(case.seed).state_dict())
            return {name: _numpy(tensor) for name, tensor in drawn.items()}
        module = reference.module()
        load(module, reference.layout.taken(case.state) if reference.layout else case.state)
        batches = [_tensors(batch, rounding) for batch in case.batches]
        said = {name: _numpy(value) for name, value in _ask(reference, module, case, batches, rounding).items()}
        return _told(reference.layout, said) if reference.layout else said


def _told(layout: Layout, said: Answer) -> Answer:
    groups: dict[str, dict[str, Any]] = {}
    for key, value in said.items():
        kind, _, name = key.rpartition("/")
        groups.setdefault(kind, {})[name] = value
    return {
        f"{kind}/{name}" if kind else name: value
        for kind, group in groups.items()
        for name, value in (layout.told(group) if kind.startswith(("state", "gradients")) else group).items()
    }


def load(module: nn.Module, state: Tensors) -> None:
    """Give a module, wide or not, a state's values."""
    with torch.no_grad():
        for name, tensor in module.state_dict().items():
            values = torch.from_numpy(np.array(state[name]))
            if isinstance(tensor, Wide):
                tensor.held.copy_(values)
            else:
                tensor.copy_(values)


def _ask(
    reference: Reference, module: nn.Module, case: Case, batches: list[TorchBatch], rounding: Rounding | None
) -> dict[str, Any]:
    if case.call == "load":
        return _named("state", module.state_dict())
    if case.call == "outputs":
        return _named("outputs", _outputs(reference, module, batches[0], case.train))
    if case.call == "value_and_grad":
        module.train()
        loss = reference.loss(module, batches[0])
        loss.backward()
        grads = {
            name: torch.zeros_like(param) if param.grad is None else param.grad
            for name, param in module.named_parameters()
            if param.requires_grad
        }
        return {"loss": loss, **_named("gradients", grads)}
    if case.call == "evaluate":
        return _named("evaluate", _evaluate(reference, module, batches))
    optimizer = reference.optimizer(module)
    _let_numbers_err(optimizer, rounding)
    if case.call == "train_steps":
        return _train_steps(reference, module, optimizer, batches)
    assert reference.train_epoch is not None
    if case.call == "train_epoch":
        module.train()
        losses = reference.train_epoch(module, optimizer, batches)
        return {"losses": losses, **_named("state", module.state_dict())}
    test_batches = [_tensors(batch, rounding) for batch in case.test_batches]
    said: dict[str, Any] = {}
    for epoch in range(1, case.epochs + 1):
        module.train()
        said[f"losses/{epoch}"] = _numpy(reference.train_epoch(module, optimizer, batches))
        said |= {name: _numpy(value) for name, value in _named(f"state/{epoch}", module.state_dict()).items()}
        said |= _named(f"evaluate/{epoch}", _evaluate(reference, module, test_batches))
    return said


def _evaluate(reference: Reference, module: nn.Module, batches: list[TorchBatch]) -> Mapping[str, Any]:
    assert reference.evaluate is not None
    module.eval()
    with torch.no_grad():
        return reference.evaluate(module, batches)


def _train_steps(
    reference: Reference, module: nn.Module, optimizer: torch.optim.Optimizer, batches: list[TorchBatch]
) -> dict[str, Any]:
    said: dict[str, Any] = {}
    scheduler = reference.scheduler(optimizer) if reference.scheduler else None
    for step, batch in enumerate(batches, 1):
        module.train()
        optimizer.zero_grad()
        loss = reference.loss(module, batch)
        loss.backward()
        if reference.clip is not None:
            reference.clip(module)
        optimizer.step()
        if scheduler is not None:
            scheduler.step()
        said[f"loss/{step}"] = _numpy(loss)
        said |= {name: _numpy(value) for name, value in _named(f"state/{step}", module.state_dict()).items()}
    return said | _named("outputs", _outputs(reference, module, batches[0], train=False))


def _let_numbers_err(optimizer: torch.optim.Optimizer, rounding: Rounding | None) -> None:
    """Let rates, decays and betas err as numbers in float32 do: 1 - 0.999 loses three digits there."""
    if rounding is None or not rounding.run:
        return
    kept: list[dict[str, Any]] = []

    def before(optimizer: Any, *_: Any) -> None:
        kept[:] = [{name: group[name] for name in group if name != "params"} for group in optimizer.param_groups]
        for group in optimizer.param_groups:
            for name, value in group.items():
                if type(value) is float:
                    group[name] = Number.of(value, rounding)
                elif isinstance(value, tuple) and all(type(number) is float for number in value):
                    group[name] = tuple(Number.of(number, rounding) for number in value)
            if "initial_lr" in group:  # a schedule is a sum that may nearly cancel
                group["lr"] += Number.of(group["initial_lr"], rounding) - group["initial_lr"]

    def after(optimizer: Any, *_: Any) -> None:
        for group, values in zip(optimizer.param_groups, kept, strict=True):
            group.update(values)

    optimizer.register_step_pre_hook(before)
    optimizer.register_step_post_hook(after)


def _outputs(reference: Reference, module: nn.Module, batch: TorchBatch, train: bool) -> dict[str, Tensor]:
    module.train(train)
    with torch.no_grad():
        returned = reference.outputs(module, batch) if reference.outputs else module(next(iter(batch.values())))
    return flat(returned)


def flat(returned: Any) -> dict[str, Tensor]:
    """The tensors of a nested output by their path: `logits`, `hidden_states.2`; a lone tensor is `output`."""
    if isinstance(returned, Tensor):
        return {"output": returned}
    if hasattr(returned, "items"):
        returned = dict(returned.items())
    leaves, _ = tree_flatten_with_path(returned)
    named = {
        ".".join(str(getattr(key, "key", getattr(key, "idx", key))) for key in path): leaf for path, leaf in leaves
    }
    return {name: leaf for name, leaf in named.items() if isinstance(leaf, Tensor)}


def _named(kind: str, tensors: Mapping[str, Any]) -> dict[str, Any]:
    return {f"{kind}/{name}": tensor for name, tensor in tensors.items()}


def _tensors(batch: Batch, rounding: Rounding | None) -> TorchBatch:
    tensors = {name: torch.from_numpy(np.array(array)) for name, array in batch.items()}
    return tensors if rounding is None else {name: widened(tensor) for name, tensor in tensors.items()}


def _numpy(value: Any) -> Any:
    if isinstance(value, np.ndarray):
        return value
    if not isinstance(value, Tensor):
        return np.asarray(value)
    value = held(value)
    value = value.float() if value.dtype in (torch.bfloat16, torch.float16) else value
    return value.cpu().numpy().copy()
