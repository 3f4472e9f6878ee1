"""What people get wrong when they port a program: one mistake, one place."""

from parity.mistakes import attention, epochs, inputs, layers, layouts, losses, optimizers, training_mode
from parity.mistakes.mistake import Mistake

CATALOGUE: tuple[Mistake, ...] = (
    *layouts.MISTAKES,
    *inputs.MISTAKES,
    *layers.MISTAKES,
    *attention.MISTAKES,
    *training_mode.MISTAKES,
    *losses.MISTAKES,
    *optimizers.MISTAKES,
    *epochs.MISTAKES,
)


def by_code(code: str) -> Mistake | None:
    """The mistake of that code or name."""
    return next((one for one in CATALOGUE if code in (one.code, one.name)), None)
