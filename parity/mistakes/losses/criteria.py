"""Calls of torch's losses: which there are, and what they are told."""

from torch import Tensor

from parity.reference.rewrite import Call

MEANS = "cross_entropy nll_loss binary_cross_entropy_with_logits mse_loss l1_loss smooth_l1_loss huber_loss kl_div"
ERRORS = "mse_loss l1_loss smooth_l1_loss huber_loss"


def is_mean(call: Call) -> bool:
    return call["reduction"] in (None, "mean", "batchmean") and call["size_average"] is None


def has_indices(call: Call) -> bool:
    """Whether a cross-entropy's targets are classes, not their probabilities."""
    return not call["target"].is_floating_point()


def is_ignored(call: Call) -> Tensor:
    index = -100 if call["ignore_index"] is None else call["ignore_index"]
    ignored: Tensor = call["target"] == index
    return ignored


def class_axis(call: Call) -> int:
    return 1 if call["input"].ndim > 1 else 0
