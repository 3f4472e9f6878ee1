"""Optimizers: weight decay, Adam and its kin, momentum, and what is updated; their clipping and schedules."""

from operator import attrgetter

from parity.mistakes.optimizers import (
    adagrad,
    adam,
    clipping,
    decay,
    decay_masks,
    defaults,
    kinds,
    learning_rates,
    momentum,
    rmsprop,
    schedules,
    updates,
)

MISTAKES = tuple(
    sorted(
        (
            *decay.MISTAKES,
            *decay_masks.MISTAKES,
            *learning_rates.MISTAKES,
            *kinds.MISTAKES,
            *adam.MISTAKES,
            *momentum.MISTAKES,
            *rmsprop.MISTAKES,
            *adagrad.MISTAKES,
            *defaults.MISTAKES,
            *updates.MISTAKES,
            *clipping.MISTAKES,
            *schedules.MISTAKES,
        ),
        key=attrgetter("code"),
    )
)
