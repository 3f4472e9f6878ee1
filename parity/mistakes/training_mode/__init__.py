"""What differs between training and evaluation: running statistics and dropout."""

from operator import attrgetter

from parity.mistakes.training_mode import batch_norm, buffers, dropout

MISTAKES = tuple(sorted((*batch_norm.MISTAKES, *buffers.MISTAKES, *dropout.MISTAKES), key=attrgetter("code")))
