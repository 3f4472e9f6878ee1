"""RMSprop: its epsilon, its mean of squares, and where that starts."""

from parity.mistakes.mistake import Diff, Mistake
from parity.mistakes.optimizers import rules
from parity.mistakes.optimizers.kinds import IN_ROOT, RMSPROP, by_rule
from parity.mistakes.tries import setting

MISTAKES = (
    Mistake(
        "O024",
        "rmsprop-epsilon-within-root",
        "RMSprop's epsilon is within the root, the reference's is added after it",
        "optax (as TensorFlow 1) adds epsilon within the root unless told `eps_in_sqrt=False`, torch after it. With "
        "the large epsilons that RMSprop is used with, an update can be ten times smaller.",
        (Diff("rnn", "eps=1e-6, eps_in_sqrt=False", "eps=1e-6"),),
        ("optax#532", "optax#595", "torch#23796", "chainer/chainer#4754"),
        by_rule(rules.rmsprop, RMSPROP, **IN_ROOT),
    ),
    Mistake(
        "O025",
        "rmsprop-decay",
        "the decay of {place}'s mean of squares is {value}, the reference's is {was}",
        "torch calls it alpha, 0.99 by default; optax calls it decay, 0.9 by default.",
        (
            Diff("rnn", "optax.scale_by_rms(decay=0.9,", "optax.scale_by_rms(decay=0.99,"),
            Diff("rnn", "optax.scale_by_rms(decay=0.9,", "optax.scale_by_rms(decay=0.93,"),
        ),
        ("optax#532", "optax#595"),
        setting("alpha", (0.9, 0.99, 0.95, 0.999), "linear"),
    ),
    Mistake(
        "O026",
        "rmsprop-started-from-one",
        "RMSprop's mean of squares starts from 1, the reference's from 0",
        "TensorFlow starts it from ones, and optax has `initial_scale` to do the same: the first steps are much "
        "shorter.",
        (Diff("rnn", "eps=1e-6, eps_in_sqrt=False", "eps=1e-6, eps_in_sqrt=False, initial_scale=1.0"),),
        ("optax#595", "jax#1427"),
        by_rule(rules.rmsprop, RMSPROP, start=1.0),
    ),
    Mistake(
        "O027",
        "rmsprop-centered",
        "RMSprop divides by the standard deviation of gradients, the reference by their root mean square",
        "`centered` is a flag in torch and another transformation (`scale_by_stddev`) in optax.",
        (Diff("rnn", "optax.scale_by_rms(decay=0.9,", "optax.scale_by_stddev(decay=0.9,"),),
        ("torch documentation: RMSprop, centered",),
        by_rule(rules.rmsprop, RMSPROP, centered=True),
    ),
    Mistake(
        "O028",
        "rmsprop-corrected",
        "RMSprop's mean of squares is corrected for its start from zero, the reference's is not",
        "A flag of optax that torch lacks: with it RMSprop is Adam without momentum.",
        (Diff("rnn", "eps=1e-6, eps_in_sqrt=False", "eps=1e-6, eps_in_sqrt=False, bias_correction=True"),),
        ("optax documentation: scale_by_rms, bias_correction",),
        by_rule(rules.rmsprop, RMSPROP, corrected=True),
    ),
)
