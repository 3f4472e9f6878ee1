"""Weight decay: how much, in the gradient or apart from it, and with which learning rate."""

from collections.abc import Callable, Iterator
from typing import Any

from parity.mistakes.mistake import Diff, Mistake, Subject, Try
from parity.mistakes.optimizers.groups import by_name, decay_of
from parity.mistakes.optimizers.mirrors import (
    CONVNET,
    DECODER,
    DECODER_ADAM,
    MLP,
    MLP_RATE,
    REGRESSION,
    REGRESSION_RATE,
    TRANSFORMER,
    UNET,
)
from parity.mistakes.optimizers.stepped import Group, Stepped, changed, stepped
from parity.mistakes.tries import program
from parity.reference.rewrite import Rewrite


def _decays(decoupled: bool) -> Callable[[Subject], bool]:
    return lambda subject: any(
        group.get("weight_decay") and bool(group.get("decoupled_weight_decay")) is decoupled
        for group in subject.optimizer.param_groups
    )


def _apart(share: Callable[[Stepped, Group, Any], Any]) -> Rewrite:
    """Decay is taken from the parameter itself, `share` of it for every unit of weight decay."""

    def do(optimizer: Stepped) -> None:
        before = [(param, group, param.clone()) for param, group in optimizer.params()]
        with changed(optimizer, lambda group: {"weight_decay": 0.0}):
            optimizer.inner.step()
        for param, group, old in before:
            if group.get("weight_decay"):
                param.sub_(share(optimizer, group, group["weight_decay"]) * old)

    return stepped(do)


def _first_rates(optimizer: Stepped, group: Group, decay: Any) -> Any:
    """The base learning rate, whatever the schedule says."""
    return group.get("max_lr", group.get("initial_lr", group["lr"])) * decay


def _in_gradient(optimizer: Stepped) -> None:
    for param, group in optimizer.params():
        assert param.grad is not None
        if group.get("weight_decay"):
            param.grad = param.grad + group["weight_decay"] * param
    with changed(optimizer, lambda group: {"weight_decay": 0.0}):
        optimizer.inner.step()


def _weight_decay(subject: Subject) -> Iterator[Try]:
    """Where it decays, it decays otherwise."""
    was = decay_of(subject)
    if "weight_decay" not in subject.optimizer.param_groups[0]:
        return

    def rewrite(value: Any) -> Rewrite:
        if not was:
            return by_name(lambda name, param, group: {"weight_decay": value})
        return by_name(lambda name, param, group: {"weight_decay": group["weight_decay"] / was * value})

    values = (0.0, 1e-4, 1e-2, 5e-4, 0.1, 1e-3, 0.05, was / 2)
    yield Try("the optimizer", rewrite, tuple(value for value in values if value != was), "linear", was)


MISTAKES = (
    Mistake(
        "O001",
        "decay-apart-from-gradient",
        "weight decay at {place} is taken from the parameters (as in AdamW), the reference adds it to the gradient",
        "torch's `Adam(weight_decay=…)` is an L2 penalty that goes through the moments; optax has only adamw, whose "
        "decay is not divided by them. With Adam the two are different methods; with SGD and momentum they differ from "
        "the second step on, for torch's decay gathers momentum. The loss and its gradient agree.",
        (
            Diff("convnet", CONVNET, "    optax.adamw(learning_rate, weight_decay=1e-2, mask=kernels),"),
            Diff(
                "mlp",
                MLP,
                f"    optax.trace(decay=0.9, nesterov=True),\n    optax.add_decayed_weights(5e-4),\n    {MLP_RATE}",
            ),
            Diff(
                "unet",
                UNET,
                "    scale_by_adagrad(rate_decay=0.05),\n    optax.add_decayed_weights(1e-3),\n"
                "    optax.scale_by_learning_rate(learning_rate),",
            ),
            Diff(
                "regression",
                REGRESSION,
                "        optax.scale_by_adamax(),\n"
                "        optax.add_decayed_weights(weight_decay),\n"
                f"        optax.scale_by_learning_rate({REGRESSION_RATE}),",
            ),
        ),
        ("optax#417", "torch#13801"),
        program(
            lambda reference, _: _apart(lambda own, group, decay: group["lr"] * decay)(reference),
            place="the optimizer",
            when=_decays(False),
        ),
    ),
    Mistake(
        "O002",
        "decay-in-gradient",
        "weight decay at {place} is added to the gradient (L2), the reference takes it from the parameters (AdamW)",
        "`add_decayed_weights` before `adam` is torch's Adam with weight decay, not its AdamW: the decay is divided by "
        "the root of the second moment like everything else, so that weights of large gradient hardly decay.",
        (
            Diff(
                "transformer",
                TRANSFORMER,
                "    optax.add_decayed_weights(0.05, mask=decays),\n    optax.adam(learning_rate),",
            ),
            Diff("decoder", DECODER, f"    optax.add_decayed_weights(0.1, mask=decays),\n{DECODER_ADAM}"),
        ),
        ("optax#417",),
        program(lambda reference, _: stepped(_in_gradient)(reference), place="the optimizer", when=_decays(True)),
    ),
    Mistake(
        "O003",
        "weight-decay",
        "the weight decay of {place} is {value}, the reference's is {was}",
        "Weight decay was forgotten (0), or is the library's default: optax.adamw decays by 1e-4, torch's AdamW by "
        "1e-2. After one step the difference is below any usual tolerance; after a training it is not.",
        (
            Diff("transformer", "weight_decay=0.05, mask=decays", "mask=decays"),
            Diff("mlp", "optax.add_decayed_weights(5e-4)", "optax.add_decayed_weights(3e-4)"),
            Diff("convnet", "    optax.add_decayed_weights(1e-2, mask=kernels),\n", ""),
            Diff("unet", "optax.add_decayed_weights(1e-3)", "optax.add_decayed_weights(1e-2)"),
            Diff("decoder", "weight_decay=0.1,", "weight_decay=0.01,"),
            Diff("regression", '"others": adamax(4e-3, weight_decay=1e-2)', '"others": adamax(4e-3, weight_decay=0.0)'),
            Diff("rnn", "    optax.clip(0.02),", "    optax.clip(0.02),\n    optax.add_decayed_weights(1e-2),"),
        ),
        ("torch#887", "mlx#473"),
        _weight_decay,
    ),
    Mistake(
        "O007",
        "decay-not-scaled-by-rate",
        "weight decay at {place} is not multiplied by the learning rate",
        "`add_decayed_weights` has to stand before the learning rate in the chain. After it, the decay is as many "
        "times too large as the rate is small, and no schedule lowers it.",
        (
            Diff(
                "transformer",
                TRANSFORMER,
                "    optax.adam(learning_rate),\n    optax.add_decayed_weights(-0.05, mask=decays),",
            ),
            Diff("decoder", DECODER, f"{DECODER_ADAM}\n    optax.add_decayed_weights(-0.1, mask=decays),"),
            Diff(
                "convnet",
                CONVNET,
                "    optax.adam(learning_rate),\n    optax.add_decayed_weights(-1e-2, mask=kernels),",
            ),
            Diff(
                "mlp",
                MLP,
                "    optax.sgd(lambda step: 0.1 * 0.8 ** (step // 2), momentum=0.9, nesterov=True),\n"
                "    optax.add_decayed_weights(-5e-4),",
            ),
        ),
        ("algoperf#809", "optax documentation: add_decayed_weights"),
        program(
            lambda reference, _: _apart(lambda own, group, decay: decay)(reference),
            place="the optimizer",
            when=lambda subject: decay_of(subject) > 0,
        ),
    ),
    Mistake(
        "O008",
        "decay-not-scheduled",
        "weight decay at {place} is multiplied by the base learning rate, the reference's by the scheduled one",
        "The paper on decoupled decay schedules both by one factor, torch multiplies by the learning rate of the step. "
        "A port that takes the constant decays as strongly at the end, and in the warm-up, as at the peak.",
        (
            Diff(
                "transformer",
                TRANSFORMER,
                "    optax.adam(learning_rate),\n    optax.add_decayed_weights(-2e-3 * 0.05, mask=decays),",
            ),
            Diff("decoder", DECODER, f"{DECODER_ADAM}\n    optax.add_decayed_weights(-3e-3 * 0.1, mask=decays),"),
        ),
        ("algoperf#809", "kyleliang919/C-Optim#3"),
        program(
            lambda reference, _: _apart(_first_rates)(reference),
            place="the optimizer",
            when=lambda subject: decay_of(subject) > 0 and subject.reference.scheduler is not None,
        ),
    ),
    Mistake(
        "O009",
        "decay-grows",
        "weight decay at {place} has the wrong sign: weights grow",
        "Whether a decay is added to a gradient or to an update decides its sign, and a chain of optax has both. It is "
        "small enough to go unnoticed until weights are large.",
        (
            Diff("transformer", "weight_decay=0.05, mask=decays", "weight_decay=-0.05, mask=decays"),
            Diff("mlp", "optax.add_decayed_weights(5e-4)", "optax.add_decayed_weights(-5e-4)"),
            Diff(
                "convnet",
                "optax.add_decayed_weights(1e-2, mask=kernels)",
                "optax.add_decayed_weights(-1e-2, mask=kernels)",
            ),
            Diff("unet", "optax.add_decayed_weights(1e-3)", "optax.add_decayed_weights(-1e-3)"),
            Diff("decoder", "weight_decay=0.1,", "weight_decay=-0.1,"),
        ),
        ("optax documentation: add_decayed_weights",),
        program(
            lambda reference, _: by_name(lambda name, param, group: {"weight_decay": -group["weight_decay"]})(
                reference
            ),
            place="the optimizer",
            when=lambda subject: decay_of(subject) > 0,
        ),
    ),
)
