"""Losses: what is summed, over what, with which weights; and what the gradient goes through."""

from operator import attrgetter

from parity.mistakes.losses import cross_entropy, gradients, reductions, regression, targets, terms, weights

MISTAKES = tuple(
    sorted(
        (
            *reductions.MISTAKES,
            *cross_entropy.MISTAKES,
            *regression.MISTAKES,
            *weights.MISTAKES,
            *terms.MISTAKES,
            *targets.MISTAKES,
            *gradients.MISTAKES,
        ),
        key=attrgetter("code"),
    )
)
