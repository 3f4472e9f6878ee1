"""Regression losses and divergences: another one, with other settings, the wrong way round."""

from typing import Any

from torch.nn import functional

from parity.mistakes.losses.criteria import ERRORS
from parity.mistakes.mistake import Diff, Mistake
from parity.mistakes.tries import argument, calls, several
from parity.reference.rewrite import Call


def _kl_swapped(call: Call, _: Any) -> Any:
    target = call["target"] if call["log_target"] else call["target"].log()
    return call.run(input=target, target=call["input"].exp(), log_target=False)


def _other_loss(call: Call, value: str) -> Any:
    loss = getattr(functional, {"squared": "mse_loss", "absolute": "l1_loss"}.get(value, "huber_loss"))
    return loss(call["input"], call["target"], reduction=call["reduction"] or "mean")


def _loss_kind(call: Call) -> str:
    return {"mse_loss": "squared", "l1_loss": "absolute"}.get(call.site.function, "Huber's")


def _huber_swapped(call: Call, _: Any) -> Any:
    how, both = call["reduction"] or "mean", (call["input"], call["target"])
    if call.site.function == "huber_loss":
        return functional.smooth_l1_loss(*both, beta=_turn(call, "delta"), reduction=how)
    return functional.huber_loss(*both, delta=_turn(call, "beta"), reduction=how)


def _turn(call: Call, name: str) -> float:
    return 1.0 if call[name] is None else float(call[name])


MISTAKES = (
    Mistake(
        "C013",
        "half-of-the-square",
        "the squared error at {place} is halved",
        "optax.l2_loss is ½(x-y)², torch's mse_loss is (x-y)². Alone, Adam hides the factor; beside other losses it "
        "changes their balance.",
        (
            Diff("unet", "pixels = jnp.mean(error**2)", "pixels = optax.l2_loss(error).mean()"),
            Diff("unet", 'jnp.mean((shrunk - batch["images"]) ** 2)', 'optax.l2_loss(shrunk, batch["images"]).mean()'),
        ),
        ("optax documentation: l2_loss",),
        calls("mse_loss", lambda call, _: call.run() * 0.5),
    ),
    Mistake(
        "C014",
        "other-regression-loss",
        "the error at {place} is {value}, the reference's {was}",
        "The names are close (L1, L2, smooth L1, Huber), and the curves of the losses look alike.",
        (
            Diff("unet", "pixels = jnp.mean(error**2)", "pixels = jnp.mean(jnp.abs(error))"),
            Diff("unet", "0.5 * jnp.mean(jnp.abs(error))", "0.5 * optax.huber_loss(error).mean()"),
        ),
        ("torch documentation: L1Loss, MSELoss, HuberLoss",),
        calls(ERRORS, _other_loss, ("squared", "absolute", "Huber's"), was=_loss_kind),
    ),
    Mistake(
        "C015",
        "huber-delta",
        "the turn from square to line of the loss at {place} is at {value}, the reference's at {was}",
        "optax.huber_loss turns at 1 by default, as does torch's; papers use other values. Errors below both agree.",
        (
            Diff("regression", 'batch["amount"], delta=0.5)', 'batch["amount"])'),
            Diff("regression", 'batch["amount"], delta=0.5)', 'batch["amount"], delta=0.7)'),
        ),
        ("optax documentation: huber_loss",),
        several(
            argument("huber_loss", "delta", 1.0, (1.0, 0.1, 2.0), "log"),
            argument("smooth_l1_loss", "beta", 1.0, (1.0, 0.1, 0.11, 2.0), "log"),
        ),
    ),
    Mistake(
        "C016",
        "huber-for-smooth-l1",
        "the loss at {place} is not divided by its turning point, or is where the reference's is not",
        "torch's smooth_l1_loss is its huber_loss divided by beta. They are the same at 1, which is the default.",
        (
            Diff("regression", 'batch["amount"], delta=2.0).mean() / 2.0', 'batch["amount"], delta=2.0).mean()'),
            Diff("regression", 'batch["amount"], delta=0.5).mean()', 'batch["amount"], delta=0.5).mean() / 0.5'),
        ),
        ("torch documentation: SmoothL1Loss",),
        calls(
            "smooth_l1_loss huber_loss",
            _huber_swapped,
            when=lambda call: _turn(call, "delta" if call.site.function == "huber_loss" else "beta") != 1,
        ),
    ),
    Mistake(
        "C017",
        "divergence-swapped",
        "the arguments of the divergence at {place} are swapped",
        "torch's kl_div takes the prediction's logarithm first and the target second, and computes KL(target ‖ "
        "prediction); formulas and other libraries have the other order. Both are zero at the same place, so training "
        "goes somewhere sensible.",
        (
            Diff(
                "regression",
                'optax.kl_divergence(predicted["mixture"], batch["mixture"])',
                'optax.kl_divergence(jnp.log(batch["mixture"]), jnp.exp(predicted["mixture"]))',
            ),
        ),
        ("mjmjeong/InfoNeRF#10",),
        calls("kl_div", _kl_swapped),
    ),
    Mistake(
        "C018",
        "divergence-averaged-over-elements",
        "the divergence at {place} is reduced by {value}, the reference's by {was}",
        "torch's kl_div averages over all elements unless it is told `batchmean`, with a warning that nobody reads; "
        "optax.kl_divergence sums over the last axis. The factor is the number of classes.",
        (
            Diff(
                "regression",
                'optax.kl_divergence(predicted["mixture"], batch["mixture"]).mean()',
                'jnp.mean(batch["mixture"] * (jnp.log(batch["mixture"]) - predicted["mixture"]))',
            ),
        ),
        ("torch documentation: KLDivLoss, reduction",),
        argument("kl_div", "reduction", "mean", ("mean", "batchmean")),
    ),
)
