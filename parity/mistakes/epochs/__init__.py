"""Epochs and evaluation: which batches, in which order, and what is made of their numbers."""

from operator import attrgetter

from parity.mistakes.epochs import evaluation, training

MISTAKES = tuple(sorted((*training.MISTAKES, *evaluation.MISTAKES), key=attrgetter("code")))
