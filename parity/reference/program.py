"""A PyTorch training program, and its answers to cases: in float32 as it is, or in float64 with errors put in."""

import contextlib
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_flatten_with_path

from parity.cases import Answer, Array, Batch, Case, Tensors, put
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

    taken: Callable[[Tensors], Tensors] = lambda tensors: tensors
    told: Callable[[Tensors], Tensors] = lambda tensors: tensors
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
    counts: Callable[[TorchBatch], Mapping[str, Tensor]] | None = None
    """`counts(batch)`: by the names of outputs, True where one means something: `{"logits": batch["mask"] == 1}`, of
    an output's shape or its first axes. What padded positions hold is not compared."""
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
        return put(case, _Asked(reference, rounding))


def load(module: nn.Module, state: Tensors) -> None:
    """Give a module, wide or not, a state's values."""
    with torch.no_grad():
        for name, tensor in module.state_dict().items():
            (tensor.held if isinstance(tensor, Wide) else tensor).copy_(torch.from_numpy(np.array(state[name])))


class _Asked:
    """The program as `put` asks it, one case: its state is the module, beside which stands the only optimizer."""

    def __init__(self, reference: Reference, rounding: Rounding | None) -> None:
        self.reference, self.rounding = reference, rounding
        self.layout = reference.layout or Layout()

    def given(self, batches: Sequence[Batch], kind: str) -> list[TorchBatch]:
        tensors = [torch_batch(batch) for batch in batches]
        if self.rounding is None:
            return tensors
        return [{name: widened(tensor) for name, tensor in batch.items()} for batch in tensors]

    def init(self, seed: int) -> nn.Module:
        assert self.reference.init is not None
        self.layout = Layout()  # nothing is loaded
        return self.reference.init(seed)

    def load_state_dict(self, tensors: Tensors) -> nn.Module:
        self.module = self.reference.module()
        load(self.module, self.layout.taken(tensors))
        return self.module

    @cached_property
    def optimizer(self) -> torch.optim.Optimizer:
        optimizer = self.reference.optimizer(self.module)
        _let_numbers_err(optimizer, self.rounding)
        return optimizer

    @cached_property
    def scheduler(self) -> Any:
        return self.reference.scheduler(self.optimizer) if self.reference.scheduler else None

    def state_dict(self, module: nn.Module) -> Tensors:
        return self.layout.told(arrays(module.state_dict()))

    def outputs(self, module: nn.Module, batch: TorchBatch, train: bool) -> Tensors:
        module.train(train)
        with torch.no_grad():
            outputs = self.reference.outputs
            return arrays(flat(outputs(module, batch) if outputs else module(next(iter(batch.values())))))

    def value_and_grad(self, module: nn.Module, batch: TorchBatch) -> tuple[Array, Tensors]:
        module.train()
        loss = self.reference.loss(module, batch)
        loss.backward()
        grads = {
            name: torch.zeros_like(param) if param.grad is None else param.grad
            for name, param in module.named_parameters()
            if param.requires_grad
        }
        return array(loss), self.layout.told(arrays(grads))

    def train_step(self, module: nn.Module, batch: TorchBatch) -> tuple[nn.Module, Array]:
        optimizer, scheduler = self.optimizer, self.scheduler
        module.train()
        optimizer.zero_grad()
        loss = self.reference.loss(module, batch)
        loss.backward()
        if self.reference.clip is not None:
            self.reference.clip(module)
        optimizer.step()
        if scheduler is not None:
            scheduler.step()
        return module, array(loss)

    def train_epoch(self, module: nn.Module, batches: list[TorchBatch]) -> tuple[nn.Module, Array]:
        assert self.reference.train_epoch is not None
        module.train()
        return module, array(self.reference.train_epoch(module, self.optimizer, batches))

    def evaluate(self, module: nn.Module, batches: list[TorchBatch]) -> Tensors:
        assert self.reference.evaluate is not None
        module.eval()
        with torch.no_grad():
            return arrays(self.reference.evaluate(module, batches))


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


def torch_batch(batch: Batch) -> TorchBatch:
    """A batch as tensors that share no memory with it."""
    return {name: torch.from_numpy(np.array(array)) for name, array in batch.items()}


def arrays(values: Mapping[str, Any]) -> Tensors:
    """Copies of tensors' values, by name."""
    return {name: array(value) for name, value in values.items()}


def array(value: Any) -> Array:
    """A copy of a tensor's values; half precision as float32, which is what crosses the border."""
    if not isinstance(value, Tensor):
        return np.asarray(value)
    value = held(value).cpu()
    return np.array((value.float() if value.dtype in (torch.bfloat16, torch.float16) else value).numpy())
