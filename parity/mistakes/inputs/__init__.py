"""Data and draws: what the numbers mean that go in, how they are resized, and how parameters are drawn."""

from operator import attrgetter

from parity.mistakes.inputs import axes, draws, resizing, targets, tokens, values

MISTAKES = tuple(
    sorted(
        (*values.MISTAKES, *axes.MISTAKES, *tokens.MISTAKES, *targets.MISTAKES, *resizing.MISTAKES, *draws.MISTAKES),
        key=attrgetter("code"),
    )
)
