"""Schedules: the learning rate of every step."""

from operator import attrgetter

from parity.mistakes.optimizers.schedules import settings, shapes, timing

MISTAKES = tuple(sorted((*timing.MISTAKES, *settings.MISTAKES, *shapes.MISTAKES), key=attrgetter("code")))
