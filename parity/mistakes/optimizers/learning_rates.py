"""Learning rates: another one, of all parameters or of a group, or with the other sign."""

from collections.abc import Iterator

from parity.mistakes.mistake import Diff, Mistake, Subject, Try
from parity.mistakes.optimizers.mirrors import RNN_RATE
from parity.mistakes.optimizers.stepped import Stepped, changed, stepped
from parity.mistakes.tries import program
from parity.reference.rewrite import Rewrite


def _scaled(value: float, index: int | None = None) -> Rewrite:
    """Learning rates times a number: all of them, or one group's."""

    def do(optimizer: Stepped) -> None:
        chosen = [group for at, group in enumerate(optimizer.param_groups) if index in (None, at)]
        with changed(
            optimizer, lambda group: {"lr": group["lr"] * value} if any(group is one for one in chosen) else {}
        ):
            optimizer.inner.step()

    return stepped(do)


def _group_rates(subject: Subject) -> Iterator[Try]:
    groups = subject.optimizer.param_groups
    names = {id(param): name for name, param in subject.module.named_parameters()}
    if len(groups) < 2:
        return
    for index, group in enumerate(groups):
        first = names.get(id(group["params"][0]), "") if group["params"] else ""
        own = [float(other["lr"]) / float(group["lr"]) for other in groups]
        values = tuple(dict.fromkeys(value for value in (*own, 0.1, 10.0, 0.5, 2.0) if value != 1))
        yield Try(
            f"group {index} ({first}, …)",
            lambda value, index=index: _scaled(value, index),  # type: ignore[misc]
            values,
            "log",
            1.0,
        )


MISTAKES = (
    Mistake(
        "O010",
        "learning-rate",
        "the learning rate is {value} times the reference's",
        "Another number in a config, the rate of another batch size, a default. With Adam the first update is the rate "
        "itself in every element, so that its factor is plain to see.",
        (
            Diff("mlp", "lambda step: 0.1 * 0.8", "lambda step: 0.01 * 0.8"),
            Diff("convnet", "return 3e-3 * 0.3", "return 1e-3 * 0.3"),
            Diff("transformer", "return 2e-3 * jnp.where", "return 3e-3 * jnp.where"),
            Diff("rnn", "lambda step: 2e-3 * 0.9**step", "lambda step: 1e-3 * 0.9**step"),
            Diff(
                "unet",
                "optax.scale_by_learning_rate(learning_rate)",
                "optax.scale_by_learning_rate(lambda step: 0.7 * learning_rate(step))",
            ),
            Diff(
                "decoder",
                "learning_rate=one_cycle(3e-3 / 25, 3e-3, 3e-3 / 25 / 1e4)",
                "learning_rate=one_cycle(6e-3 / 25, 6e-3, 6e-3 / 25 / 1e4)",
            ),
            Diff(
                "regression",
                "optax.adamax(lambda step: learning_rate *",
                "optax.adamax(lambda step: 3 * learning_rate *",
            ),
        ),
        ("mlx#1542",),
        program(lambda reference, value: _scaled(value)(reference), (0.1, 10.0, 0.5, 2.0), "log", "the optimizer", 1.0),
    ),
    Mistake(
        "O011",
        "learning-rate-of-a-group",
        "the learning rate of {place} is {value} times the reference's",
        "Groups of parameters with rates of their own (a head that learns faster, a backbone that hardly moves) need "
        "`multi_transform` or masks in optax; without them all learn at one rate.",
        (
            Diff("regression", '"heads": adamax(8e-3', '"heads": adamax(4e-3'),
            Diff("regression", '"others": adamax(4e-3', '"others": adamax(1e-3'),
        ),
        ("optax documentation: multi_transform",),
        _group_rates,
    ),
    Mistake(
        "O012",
        "gradient-ascent",
        "the update of {place} has the wrong sign",
        "`scale_by_schedule` and `scale` multiply by what they are given, `scale_by_learning_rate` by its negative: "
        "taken for one another, the loss rises. Where the loss is a score to be maximised, the mistake is harder to "
        "see.",
        (
            Diff("rnn", RNN_RATE, "optax.scale_by_schedule(lambda step: 2e-3 * 0.9**step),"),
            Diff("unet", "optax.scale_by_learning_rate(learning_rate)", "optax.scale_by_schedule(learning_rate)"),
            Diff("mlp", "lambda step: 0.1 * 0.8", "lambda step: -0.1 * 0.8"),
            Diff("convnet", "return 3e-3 * 0.3", "return -3e-3 * 0.3"),
            Diff("transformer", "return 2e-3 * jnp.where", "return -2e-3 * jnp.where"),
        ),
        ("optax documentation: scale_by_learning_rate",),
        program(lambda reference, _: _scaled(-1.0)(reference), place="the optimizer"),
    ),
)
