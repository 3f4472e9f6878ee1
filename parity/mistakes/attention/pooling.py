"""How the steps of a sequence are pooled into one vector."""

from collections.abc import Callable, Iterator
from typing import Any

from torch import Tensor

from parity.mistakes.mistake import Diff, Mistake, Subject
from parity.mistakes.tries import at
from parity.reference.rewrite import Call, Site


def _pools(subject: Subject) -> Iterator[Site]:
    """A product with a mask of steps, and the quotient by a number of steps, in one module."""
    masked = [site for site, call in subject.calls.items() if site.function == "mul" and _step_mask(call) is not None]
    inside = {site.module for site in masked}
    yield from masked
    for site, call in subject.calls.items():
        other = call["other"]
        counts = isinstance(other, Tensor) and other.dim() > 0 and other.numel() == other.shape[0]
        if site.function == "div" and site.module in inside and counts:
            yield site


def _step_mask(call: Call) -> str | None:
    one, other = call["input"], call["other"]
    if not isinstance(one, Tensor) or not isinstance(other, Tensor) or max(one.dim(), other.dim()) != 3:
        return None
    for name, mask in (("input", other), ("other", one)):
        if mask.shape[-1] == 1 and bool(((mask == 0) | (mask == 1)).all()):
            return name
    return None


def _pooled(value: str) -> Callable[[Call], Any]:
    steps: list[int] = []

    def act(call: Call) -> Any:
        if call.site.function == "mul":
            values = call[_step_mask(call) or "input"]
            steps[:] = [values.shape[1]]
            return values * 1.0 if "sum" in value else call.run()
        return call["input"] / float(steps[0]) if "number" in value and steps else call.run()

    return act


MISTAKES = (
    Mistake(
        "F122",
        "pooled-over-padding",
        "the mean over steps in {place} {value} in the port",
        "A mean over a sequence has to leave padding out of its sum and of the number that it divides by. A plain "
        "`mean` does neither. Batches of one length hide it.",
        (
            Diff(
                "rnn",
                "jnp.sum(x * present[..., None], axis=1) / lengths[:, None].astype(x.dtype)",
                "x.mean(axis=1)",
            ),
            Diff("rnn", "jnp.sum(x * present[..., None], axis=1)", "jnp.sum(x, axis=1)"),
            Diff("rnn", "/ lengths[:, None].astype(x.dtype)", "/ tokens.shape[1]"),
        ),
        ("algoperf#314", "algoperf#318"),
        at(
            _pools,
            _pooled,
            (
                "has padding in its sum and in the number that it divides by",
                "has padding in its sum",
                "is divided by the number of all steps",
            ),
        ),
    ),
)
