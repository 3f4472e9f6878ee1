"""Normalizations and the means, deviations and axes that they are made of."""

from operator import attrgetter

from parity.mistakes.layers.norms import epsilons, scales, statistics

MISTAKES = tuple(sorted((*epsilons.MISTAKES, *scales.MISTAKES, *statistics.MISTAKES), key=attrgetter("code")))
