"""What training moves besides parameters: thrown away, moved twice, too late or not at all."""

import contextlib
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from parity.mistakes.mistake import Diff, Mistake, Subject
from parity.mistakes.tries import modules, program
from parity.reference.program import Reference

Buffers = list[tuple[nn.Module, str, Tensor]]


def _buffers(module: nn.Module) -> Buffers:
    return [
        (part, name, buffer)
        for part in module.modules()
        for name, buffer in part._buffers.items()
        if buffer is not None
    ]


def _put(buffers: Buffers) -> None:
    for part, name, buffer in buffers:
        part._buffers[name] = buffer


@contextlib.contextmanager
def _copied(module: nn.Module) -> Iterator[None]:
    """A module's buffers are copies within: a graph may still need the values that they had."""
    _put([(part, name, buffer.clone()) for part, name, buffer in _buffers(module)])
    yield


def _thrown_away(reference: Reference, _: Any) -> Reference:
    def loss(module: nn.Module, batch: Any) -> Tensor:
        before = _buffers(module)
        with _copied(module):
            value = reference.loss(module, batch)
        _put(before)
        return value

    return replace(reference, loss=loss)


def _twice(reference: Reference, _: Any) -> Reference:
    def loss(module: nn.Module, batch: Any) -> Tensor:
        value = reference.loss(module, batch)
        with _copied(module), torch.no_grad():
            reference.loss(module, batch)
        return value

    return replace(reference, loss=loss)


def _evaluating_steps(reference: Reference, _: Any) -> Reference:
    """Steps in evaluation mode, where the loss alone is in training mode."""

    def optimizer(module: nn.Module) -> torch.optim.Optimizer:
        module.is_stepped = True  # type: ignore[assignment]
        return reference.optimizer(module)

    def loss(module: nn.Module, batch: Any) -> Tensor:
        if not getattr(module, "is_stepped", False):
            return reference.loss(module, batch)
        module.eval()
        value = reference.loss(module, batch)
        module.train()
        return value

    return replace(reference, optimizer=optimizer, loss=loss)


def _has_running(subject: Subject) -> bool:
    """Whether training moves any buffers."""
    module, before = subject.module, subject.state
    return any(
        not torch.equal(buffer, torch.as_tensor(before[name]))
        for name, buffer in module.named_buffers()
        if name in before
    )


def _cumulative(part: nn.Module, _: Any) -> None:
    part.momentum = None  # type: ignore[assignment]


def _does_not_count(part: nn.Module, _: Any) -> None:
    inner = part.forward

    def forward(x: Tensor) -> Any:
        before = part._buffers["num_batches_tracked"]
        part._buffers["num_batches_tracked"] = before.clone() if before is not None else None
        result = inner(x)
        part._buffers["num_batches_tracked"] = before
        return result

    part.forward = forward


def _behind(part: nn.Module, _: Any) -> None:
    """A layer that normalizes by what it remembered before it moves on."""
    inner = part.forward

    def forward(*inputs: Any) -> Any:
        if not part.training:
            return inner(*inputs)
        before = [(part, name, buffer) for name, buffer in part._buffers.items() if buffer is not None]
        _put([(part, name, buffer.clone()) for _, name, buffer in before])
        with torch.no_grad():
            inner(*inputs)
        moved = [(part, name, buffer) for name, buffer in part._buffers.items() if buffer is not None]
        _put(before)
        part.training = False
        result = inner(*inputs)
        part.training = True
        _put(moved)
        return result

    part.forward = forward


def _remembers(part: nn.Module) -> bool:
    return any(buffer is not None and buffer.is_floating_point() for buffer in part._buffers.values())


APPLIED = 'logits, batch_stats = apply(variables, batch["images"], train)'
PREDICTED = 'predicted, batch_stats = apply(variables, jnp.asarray(batch["rows"]), train, rng)'

MISTAKES = (
    Mistake(
        "T006",
        "statistics-thrown-away",
        "running statistics stay as they were: what training makes of them is thrown away",
        "flax returns the new batch_stats beside the output, and a step that does not put them into its state loses "
        "them. Training is the same bit for bit; evaluation normalizes by mean 0 and variance 1.",
        (
            Diff("convnet", 'return logits, updates["batch_stats"]', 'return logits, variables["batch_stats"]'),
            Diff(
                "regression",
                'return predictions, updates["batch_stats"]',
                'return predictions, variables["batch_stats"]',
            ),
        ),
        ("flax#1254", "flax#1250", "flax: Module.apply, mutable"),
        program(_thrown_away, when=_has_running),
    ),
    Mistake(
        "T007",
        "statistics-moved-twice",
        "running statistics move twice in a step",
        "The loss and then the accuracy, a gradient checkpoint, or two losses: every forward pass in training mode "
        "moves the statistics, and the second one's are kept. Training is the same bit for bit.",
        (
            Diff(
                "convnet",
                APPLIED,
                f'{APPLIED}\n    again = {{**variables, "batch_stats": batch_stats}}\n'
                '    _, batch_stats = apply(again, batch["images"], train)',
            ),
            Diff(
                "regression",
                PREDICTED,
                f'{PREDICTED}\n    again = {{**variables, "batch_stats": batch_stats}}\n'
                '    _, batch_stats = apply(again, jnp.asarray(batch["rows"]), train, rng)',
            ),
        ),
        ("flax: Module.apply, mutable", "torch: BatchNorm2d"),
        program(_twice, when=_has_running),
    ),
    Mistake(
        "T008",
        "evaluation-mode-in-steps",
        "steps are made in evaluation mode",
        "A train flag with a default of False, or model.eval() from the last evaluation: the loss is right where it "
        "is tested by itself, and steps normalize by statistics that do not move.",
        (
            Diff("convnet", '"params": params}, batch, train=True)', '"params": params}, batch, train=False)'),
            Diff(
                "regression",
                '"params": params}, batch, train=True, rng=rng)',
                '"params": params}, batch, train=False, rng=rng)',
            ),
        ),
        ("flax: NNX, Module.train and Module.eval", "torch: Module.eval"),
        program(_evaluating_steps, when=_has_running),
    ),
    Mistake(
        "T010",
        "batches-not-counted",
        "{place} does not count its batches",
        "num_batches_tracked has no counterpart in flax, and a converter writes a zero. Only momentum=None makes use "
        "of the number, and whoever goes on training in torch.",
        (
            Diff("convnet", "steps.value += 1", "steps.value += 0"),
            Diff("regression", "steps.value += 1", "steps.value += 0"),
        ),
        ("torch: BatchNorm2d, num_batches_tracked",),
        modules(_does_not_count, lambda part: isinstance(part, _BatchNorm) and part.track_running_stats),
    ),
    Mistake(
        "T011",
        "cumulative-average",
        "{place} remembers the mean over all batches, the reference a moving average",
        "momentum=None means a cumulative average in torch, and no momentum at all elsewhere. The first step shows "
        "it: it takes the whole of the batch's statistics.",
        (
            Diff(
                "convnet",
                "running_mean.value += self.momentum * (mean - running_mean.value)\n"
                "                running_var.value += self.momentum * (var * count / (count - 1) - running_var.value)",
                "running_mean.value += (mean - running_mean.value) / (steps.value + 1)\n"
                "                unbiased = var * count / (count - 1)\n"
                "                running_var.value += (unbiased - running_var.value) / (steps.value + 1)",
            ),
            Diff(
                "regression",
                "running_mean.value += self.momentum * (mean - running_mean.value)\n"
                "                running_var.value += self.momentum * (x.var(axis=0, ddof=1) - running_var.value)",
                "running_mean.value += (mean - running_mean.value) / (steps.value + 1)\n"
                "                running_var.value += (x.var(axis=0, ddof=1) - running_var.value) / (steps.value + 1)",
            ),
        ),
        ("torch: BatchNorm2d, momentum=None",),
        modules(_cumulative, lambda part: isinstance(part, _BatchNorm) and part.momentum is not None),
    ),
    Mistake(
        "T013",
        "statistics-from-before",
        "{place} normalizes by the statistics from before the batch, the reference by those after it",
        "A layer that reads its state at the top and writes it at the end lags one batch behind one that updates "
        "first. In evaluation they are the same.",
        (
            Diff(
                "regression",
                "        if train and not self.is_initializing():\n"
                "            rows = rows.astype(mean.value.dtype)\n"
                "            mean.value += self.momentum * (rows.mean(axis=0) - mean.value)\n"
                "            std.value += self.momentum * (rows.std(axis=0, ddof=1) - std.value)\n"
                "        return (rows - mean.value) / (std.value + self.epsilon)",
                "        normed = (rows - mean.value) / (std.value + self.epsilon)\n"
                "        if train and not self.is_initializing():\n"
                "            rows = rows.astype(mean.value.dtype)\n"
                "            mean.value += self.momentum * (rows.mean(axis=0) - mean.value)\n"
                "            std.value += self.momentum * (rows.std(axis=0, ddof=1) - std.value)\n"
                "        return normed",
            ),
        ),
        ("flax#2631",),
        modules(_behind, _remembers),
    ),
)
