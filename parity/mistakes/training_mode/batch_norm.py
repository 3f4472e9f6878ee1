"""Batch normalisation: which statistics it uses, and which it remembers."""

from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from parity.mistakes.layers.norms.formula import epsilon_of, normalized
from parity.mistakes.mistake import Diff, Mistake
from parity.mistakes.tries import argument, calls, modules, several
from parity.reference.rewrite import Call


def _training(call: Call) -> bool:
    return bool(call["training"]) and call["running_var"] is not None


def _is_no_layer(call: Call) -> bool:
    return _training(call) and "BatchNorm" not in call.site.kind


def _stays_in_evaluation(part: nn.Module, _: Any) -> None:
    part.eval()
    part.train = lambda mode=True: part  # type: ignore[method-assign]


def _debiases(part: nn.Module, _: Any) -> None:
    inner, own = part.forward, cast(_BatchNorm, part)

    def forward(x: Tensor) -> Any:
        mean, variance = own.running_mean, own.running_var
        if own.training or mean is None or variance is None or not own.num_batches_tracked:
            return inner(x)
        share = 1 - (1 - (0.1 if own.momentum is None else own.momentum)) ** int(own.num_batches_tracked)
        try:
            own.running_mean, own.running_var = mean / share, variance / share
            return inner(x)
        finally:
            own.running_mean, own.running_var = mean, variance

    part.forward = forward


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
    moved: Tensor = x if call["bias"] is None else x + call["bias"].view(shape)
    return moved


def _by_unbiased(call: Call) -> Any:
    """Training by the variance that is otherwise only remembered."""
    if not call["training"]:
        return call.run()
    count = call["input"].numel() / call["input"].shape[1]
    return normalized(call, lambda variance: torch.rsqrt(variance * (count / (count - 1)) + epsilon_of(call)))


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
        "average += momentum * (new - average) gives the new value a share of momentum; average = decay * average + "
        "(1 - decay) * new the old one a share of decay. Copied from one to the other, 0.2 becomes 0.8. The wrong "
        "share follows the last batch, and only several steps show it.",
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
        several(
            modules(_stays_in_evaluation, lambda part: isinstance(part, _BatchNorm) and part.track_running_stats),
            calls("batch_norm", lambda call, _: call.run(training=False), when=_is_no_layer),
        ),
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
        "T021",
        "batch-norm-debiased",
        "{place} divides its running statistics by 1 - (1 - momentum)^steps in evaluation, the reference takes them as "
        "they are",
        "Equinox's BatchNorm in its mode 'batch' starts its averages at zero and corrects for that, as Adam does; "
        "torch's start at a mean of 0 and a variance of 1, and are not corrected.",
        (
            Diff(
                "",
                "mean, var = running_mean, running_var",
                "mean, var = running_mean / (1 - 0.9**steps), running_var / (1 - 0.9**steps)",
            ),
        ),
        ("equinox: BatchNorm, mode",),
        modules(_debiases, lambda part: isinstance(part, _BatchNorm) and part.track_running_stats),
    ),
)
