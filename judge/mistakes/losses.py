"""losses"""

from .mistake import Mistake

MISTAKES: tuple[Mistake, ...] = ()
