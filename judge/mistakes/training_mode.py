"""training_mode"""

from .mistake import Mistake

MISTAKES: tuple[Mistake, ...] = ()
