"""What differs between training and evaluation: running statistics and dropout."""

import contextlib
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from ..reference.program import Reference
from ..reference.rewrite import Call
from .mistake import Diff, Mistake, Subject, argument, calls, modules, program
from .norms import epsilon_of, normalized


def _training(call: Call) -> bool:
    return bool(call["training"]) and call["running_var"] is not None


def _momentum(call: Call) -> float:
    return 0.1 if call["momentum"] is None else float(call["momentum"])


def _remembered(call: Call, shift: float = 0.0, biased: bool = False) -> Any:
    """A training call that remembers another variance."""
    if not call["training"]:
        return call.run()
    x, mean, variance = call["input"].detach(), call["running_mean"], call["running_var"]
    # The graph keeps the running statistics that the call is given.
    moved = {"running_mean": mean.clone(), "running_var": variance.clone()}
    result = call.run(**moved)
    mean.copy_(moved["running_mean"])
    if biased:
        variance.lerp_(x.var((0, *range(2, x.ndim)), correction=0), _momentum(call))
    else:
        variance.copy_(moved["running_var"] + _momentum(call) * shift)
    return result


def _by_batch(call: Call) -> Any:
    """Evaluation by the batch's own statistics."""
    if call["training"]:
        return call.run()
    x = call["input"]
    axes, shape = (0, *range(2, x.ndim)), (1, -1, *(1 for _ in x.shape[2:]))
    mean = x.mean(axes, keepdim=True)
    x = (x - mean) * torch.rsqrt((x - mean).square().mean(axes, keepdim=True) + epsilon_of(call))
    x = x if call["weight"] is None else x * call["weight"].view(shape)
    return x if call["bias"] is None else x + call["bias"].view(shape)


def _by_unbiased(call: Call) -> Any:
    """Training by the variance that is otherwise only remembered."""
    if not call["training"]:
        return call.run()
    count = call["input"].numel() / call["input"].shape[1]
    return normalized(call, lambda variance: torch.rsqrt(variance * (count / (count - 1)) + epsilon_of(call)))


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
KEPT = "partial(nn.Dropout(self.dropout), deterministic=deterministic)"

MISTAKES = (
    Mistake(
        "T001",
        "batch-norm-momentum",
        "the running statistics of {place} move by {value} of the batch's, the reference's by {was}",
        "torch's momentum is the share of the new batch (0.1), flax's and Keras's that of the old value (0.99): 0.9 "
        "for 0.1 is one inversion away, 0.01 a default. Training is the same bit for bit, evaluation is not; the "
        "statistics follow the last batch or lag behind for hundreds of steps.",
        (
            Diff("convnet", "momentum: float = 0.1", "momentum: float = 0.9"),
            Diff("regression", "momentum: float = 0.1", "momentum: float = 0.01"),
        ),
        (
            "scvi-tools#2309",
            "fastestimator#1201",
            "arl-eegmodels#39",
            "EfficientNet-PyTorch#3",
            "flax: BatchNorm, momentum",
        ),
        argument("batch_norm", "momentum", 0.1, (0.9, 0.01, 0.99, 0.001, 1.0), "linear"),
    ),
    Mistake(
        "T002",
        "moving-average-momentum",
        "the average at {place} moves by {value}, the reference's by {was}",
        "A moving average has a share for the old value and one for the new, and momentum, decay and rate name "
        "either. 0.8 for 0.2 follows the last batch, and only several steps show it.",
        (Diff("regression", "momentum: float = 0.2", "momentum: float = 0.8"),),
        ("torch: Tensor.lerp", "optax: incremental_update"),
        argument("lerp", "weight", None, (0.9, 0.1, 0.8, 0.2, 0.99), "linear"),
    ),
    Mistake(
        "T003",
        "running-variance-biased",
        "{place} remembers the batch's biased variance, the reference the unbiased one",
        "torch normalizes by the biased variance and remembers the unbiased one, n / (n - 1) times as large; flax and "
        "Keras use the biased one for both. With large batches and images nobody sees it; with eight rows the "
        "evaluation is off by seven percent.",
        (
            Diff("convnet", "(var * count / (count - 1) - running_var.value)", "(var - running_var.value)"),
            Diff("regression", "(x.var(axis=0, ddof=1) - running_var.value)", "(var - running_var.value)"),
        ),
        ("pytorch#19902", "pytorch#60528", "pytorch#77427", "tinygrad#807"),
        calls("batch_norm", lambda call, _: _remembered(call, biased=True), when=_training),
    ),
    Mistake(
        "T004",
        "batch-norm-frozen",
        "{place} normalizes by its running statistics in training, too, and does not move them",
        "use_running_average=True, or a train flag that is not handed down. A fresh layer then does nothing at all, "
        "and the network trains without a normalization.",
        (
            Diff("convnet", 'BatchNorm(name="norm")(x, train)', 'BatchNorm(name="norm")(x, False)'),
            Diff("convnet", 'BatchNorm(name="stem_norm")(x, train)', 'BatchNorm(name="stem_norm")(x, False)'),
            Diff("regression", 'use_bias=False, name="in")(x), train)', 'use_bias=False, name="in")(x), False)'),
        ),
        ("flax: BatchNorm, use_running_average", "pytorch#7028"),
        calls("batch_norm", lambda call, _: call.run(training=False), when=_training),
    ),
    Mistake(
        "T005",
        "batch-statistics-in-evaluation",
        "{place} normalizes by the batch's statistics in evaluation, too",
        "train=True is left in an evaluation, or a reference is not put into eval mode. The accuracy is about right; "
        "it depends on which examples come together, and a batch of one gives nonsense.",
        (
            Diff(
                "convnet",
                "mean, var = running_mean.value, running_var.value",
                "mean, var = x.mean(range(x.ndim - 1)), x.var(range(x.ndim - 1))",
            ),
            Diff(
                "regression",
                "mean, var = running_mean.value, running_var.value",
                "mean, var = x.mean(axis=0), x.var(axis=0)",
            ),
        ),
        ("flax: BatchNorm, use_running_average", "eqxvision#73"),
        calls("batch_norm", lambda call, _: _by_batch(call), when=_training),
    ),
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
        "T012",
        "epsilon-remembered",
        "{place} remembers its variance + {value}, the reference without it",
        "The sum of variance and epsilon gets a name, and the running update takes that one. Evaluation then adds the "
        "epsilon twice; it shows where a channel hardly varies.",
        (
            Diff(
                "convnet",
                "(var * count / (count - 1) - running_var",
                "(var * count / (count - 1) + self.epsilon - running_var",
            ),
            Diff(
                "regression",
                "(x.var(axis=0, ddof=1) - running_var",
                "(x.var(axis=0, ddof=1) + self.epsilon - running_var",
            ),
        ),
        ("torch: BatchNorm2d",),
        calls("batch_norm", lambda call, value: _remembered(call, shift=value), (1e-5, 1e-3), "linear", when=_training),
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
    Mistake(
        "T014",
        "dropout-left-in",
        "dropout is on where it has to be off",
        "deterministic=False, or a default of it, in an evaluation. Two evaluations of one state differ, unless the "
        "key is fixed; then they agree with each other, and with nothing else. It is caught by the size of the "
        "difference; which units are dropped is chance, so that it cannot be named yet.",
        (
            Diff(
                "mlp",
                'batch["images"], not train or rng is None, rngs=rngs)',
                'batch["images"], False, rngs={"dropout": jax.random.key(0)})',
            ),
            Diff(
                "transformer",
                "tokens, not train or rng is None, rngs=rngs)",
                'tokens, False, rngs={"dropout": jax.random.key(0)})',
            ),
            Diff(
                "rnn",
                "*inputs, not train or rng is None, rngs=rngs)",
                '*inputs, False, rngs={"dropout": jax.random.key(0)})',
            ),
            Diff(
                "regression",
                "train, not train or rng is None, rngs=rngs,",
                'train, False, rngs={"dropout": jax.random.key(0)},',
            ),
        ),
        ("flax: NNX, Module.train and Module.eval", "flax: Dropout, deterministic"),
    ),
    Mistake(
        "T015",
        "dropout-scales-in-evaluation",
        "with dropout off {place} multiplies by {value}, the reference's leaves values as they are",
        "The paper multiplies by the share that is kept in evaluation, all frameworks divide by it in training. Who "
        "writes dropout by hand after the paper, and loads a network trained the other way, scales every layer twice.",
        (
            Diff("mlp", KEPT, "(lambda x: x * (1 - self.dropout))"),
            Diff("transformer", f"dropout = {KEPT}", "dropout = (lambda x: x * (1 - self.dropout))"),
            Diff("rnn", KEPT, "(lambda x: x * (1 - self.dropout))"),
            Diff("regression", "nn.Dropout(self.dropout)(x, deterministic=deterministic)", "x * (1 - self.dropout)"),
        ),
        ("Srivastava et al. 2014, section 10", "torch: Dropout"),
        calls("dropout", lambda call, value: call.run() * value, (0.9, 0.5, 0.8), "linear", lambda call: 1.0),
    ),
    Mistake(
        "T016",
        "dropout-rate",
        "{place} drops with a rate of {value}, the reference with {was}",
        "The argument is what is dropped in torch and flax, and what is kept in TensorFlow 1 and Haiku's past: 0.9 "
        "for 0.1. It shows in training alone, and takes a port that keeps everything and scales it to be seen.",
        (
            Diff("", "nn.Dropout(0.1)", "nn.Dropout(0.9)"),
            Diff("mlp", "nn.Dropout(self.dropout)", "nn.Dropout(0.5)"),
            Diff("transformer", "dropout = partial(nn.Dropout(self.dropout)", "dropout = partial(nn.Dropout(0.5)"),
            Diff("rnn", "nn.Dropout(self.dropout)", "nn.Dropout(0.5)"),
            Diff("regression", "nn.Dropout(self.dropout)", "nn.Dropout(0.5)"),
        ),
        ("algorithmic-efficiency#753", "algorithmic-efficiency#884", "torch: Dropout, p"),
        argument("dropout", "p", 0.5, (0.5, 0.1, 0.2, 0.9, 0.8), "linear"),
    ),
    Mistake(
        "T017",
        "dropout-forgotten",
        "there is no dropout at {place}, as there is in the reference",
        "Nothing fails without it: evaluation is the same, training is better at first, and the network overfits "
        "later. It takes a port that keeps everything and scales it to be seen.",
        (
            Diff("", "dropout(nn.relu(x))", "nn.relu(x)"),
            Diff("mlp", "dropout(nn.relu(dense(", "(nn.relu(dense("),
            Diff("transformer", "dropout(SelfAttention(", "(SelfAttention("),
            Diff("rnn", "(dropout(mean))", "(mean)"),
            Diff("regression", "x = nn.Dropout(self.dropout)(x, deterministic=deterministic)", "pass"),
        ),
        ("algorithmic-efficiency#677", "invariant-point-attention#7"),
        calls("dropout", lambda call, _: call["input"]),
    ),
    Mistake(
        "T018",
        "batch-norm-by-unbiased-variance",
        "{place} normalizes by the batch's unbiased variance, the reference by the biased one",
        "The unbiased variance belongs into the running statistics, not into the normalization; one variable for both "
        "is wrong in one of them. The ratio is √((n-1)/n), less than a percent for fifty values.",
        (
            Diff(
                "convnet",
                "                steps.value += 1\n        return (x - mean)",
                "                steps.value += 1\n"
                "            var = var * count / (count - 1)\n"
                "        return (x - mean)",
            ),
            Diff(
                "regression",
                "mean, var = x.mean(axis=0), x.var(axis=0)",
                "mean, var = x.mean(axis=0), x.var(axis=0, ddof=1)",
            ),
        ),
        ("pytorch#19902", "pytorch#60528", "tinygrad#779"),
        calls("batch_norm", lambda call, _: _by_unbiased(call), when=_training),
    ),
    Mistake(
        "T019",
        "same-units-dropped",
        "the same units are dropped at every step",
        "A key that is made once, outside of the step, or closed over by jit gives the same mask for ever: a smaller "
        "network is trained. Which units are dropped is chance, so that exams without chance do not see it, and it "
        "cannot be named yet: compare two steps' masks.",
        (
            Diff(
                "",
                "rng=jax.random.fold_in(key, step)",
                "rng=key",
            ),
        ),
        ("axon#423", "flax#2631", "flax#3115"),
    ),
    Mistake(
        "T020",
        "dropout-mask-shared",
        "one mask is used for all heads and examples",
        "flax's attention has broadcast_dropout=True by default: one mask over queries and keys for every head and "
        "example, where torch draws each of them. Which weights are dropped is chance, so that exams without chance "
        "do not see it, and it cannot be named yet.",
        (
            Diff(
                "", "nn.MultiHeadDotProductAttention(4, broadcast_dropout=False)", "nn.MultiHeadDotProductAttention(4)"
            ),
        ),
        ("flax: MultiHeadDotProductAttention, broadcast_dropout",),
    ),
)
