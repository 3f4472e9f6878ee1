"""Momentum: how much, of which kind, and where the learning rate enters."""

from parity.mistakes.mistake import Diff, Mistake
from parity.mistakes.optimizers import rules
from parity.mistakes.optimizers.groups import by_name
from parity.mistakes.optimizers.kinds import RMSPROP, SGD, by_rule, is_kind
from parity.mistakes.optimizers.mirrors import MLP, MLP_RATE, RNN, RNN_RATE
from parity.mistakes.optimizers.rules import ruled
from parity.mistakes.tries import program, setting, several

MISTAKES = (
    Mistake(
        "O020",
        "momentum",
        "the momentum of {place} is {value}, the reference's is {was}",
        "optax.sgd and optax.rmsprop have none unless told. The first step is the same with and without.",
        (
            Diff("mlp", "momentum=0.9, nesterov=True", "momentum=0.8, nesterov=True"),
            Diff("rnn", "optax.trace(decay=0.8)", "optax.trace(decay=0.9)"),
            Diff(
                "rnn",
                "    optax.trace(decay=0.8),  # torch's momentum gathers steps before they meet the learning rate\n",
                "",
            ),
        ),
        ("optax documentation: sgd, momentum",),
        setting("momentum", (0.0, 0.9, 0.99, 0.5), "linear"),
    ),
    Mistake(
        "O021",
        "nesterov",
        "the momentum of {place} is {value}, the reference's is {was}",
        "Nesterov's momentum is a flag that defaults to False everywhere. Its first step is 1 + momentum times as "
        "long.",
        (
            Diff("mlp", "momentum=0.9, nesterov=True", "momentum=0.9"),
            Diff("rnn", "optax.trace(decay=0.8)", "optax.trace(decay=0.8, nesterov=True)"),
        ),
        ("algoperf#362", "torch documentation: SGD, nesterov"),
        several(
            program(
                lambda reference, _: by_name(lambda name, param, group: {"nesterov": not group["nesterov"]})(reference),
                ("of the other kind",),
                place="the optimizer",
                when=lambda subject: is_kind(SGD)(subject) and bool(subject.optimizer.param_groups[0]["momentum"]),
            ),
            program(
                lambda reference, _: ruled(rules.rmsprop, nesterov=True)(reference),
                ("Nesterov's",),
                place="the optimizer",
                was="plain",
                when=lambda subject: is_kind(RMSPROP)(subject) and bool(subject.optimizer.param_groups[0]["momentum"]),
            ),
        ),
    ),
    Mistake(
        "O022",
        "momentum-averaged",
        "the velocity of {place} is an average of gradients, the reference's a sum",
        "torch's momentum adds gradients up (v ← m v + g); some frameworks average them (v ← m v + (1-m) g). The steps "
        "are 1-m times as long, which a learning rate may have been tuned to hide.",
        (Diff("rnn", "optax.trace(decay=0.8)", "optax.ema(0.8, debias=False)"),),
        ("mlx#440", "torch documentation: SGD, dampening"),
        several(by_rule(rules.damped_velocity, SGD), by_rule(rules.rmsprop, RMSPROP, gather=rules.damped_velocity)),
    ),
    Mistake(
        "O023",
        "rate-within-velocity",
        "the learning rate of {place} multiplies what enters the velocity, the reference's what leaves it",
        "Keras, TensorFlow and optax.rmsprop multiply by the learning rate first and gather momentum after. As long as "
        "the rate is constant both agree; when it changes, the old steps keep their old rate.",
        (
            Diff("rnn", RNN, f"    {RNN_RATE}\n    optax.trace(decay=0.8),"),
            Diff(
                "mlp",
                MLP,
                f"    optax.add_decayed_weights(5e-4),\n    {MLP_RATE}\n    optax.trace(decay=0.9, nesterov=True),",
            ),
        ),
        ("torch documentation: SGD differs from Sutskever et al.", "optax documentation: rmsprop, momentum"),
        several(by_rule(rules.rate_in_velocity, SGD), by_rule(rules.rmsprop, RMSPROP, gather=rules.rate_in_velocity)),
    ),
)
