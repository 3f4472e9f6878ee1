"""Which target a prediction is compared with."""

from typing import Any

from parity.mistakes.losses.criteria import ERRORS
from parity.mistakes.mistake import Diff, Mistake
from parity.mistakes.tries import calls
from parity.reference.rewrite import Call


def _broadcast(call: Call, _: Any) -> Any:
    size = len(call["input"])
    return call.run(
        input=call["input"].unsqueeze(-1).expand(size, size), target=call["target"].unsqueeze(0).expand(size, size)
    )


def _slices(call: Call) -> tuple[Any, ...]:
    index = call["1"]
    return index if isinstance(index, tuple) else (index,)


def _is_shift(call: Call) -> bool:
    """`[:, :-1]` or `[:, 1:]`, outside of every module."""
    return call.site.module == "loss" and any(
        isinstance(one, slice) and (one.start, one.stop) in ((None, -1), (1, None)) for one in _slices(call)
    )


def _shifted(call: Call, value: str) -> Any:
    other = {
        "not": {(None, -1): slice(None), (1, None): slice(None)},
        "twice": {(None, -1): slice(None, -2), (1, None): slice(2, None)},
        "backwards": {(None, -1): slice(1, None), (1, None): slice(None, -1)},
    }[value]
    index = tuple(other.get((one.start, one.stop), one) if isinstance(one, slice) else one for one in _slices(call))
    return call.function(call["0"], index)


MISTAKES = (
    Mistake(
        "C025",
        "labels-shifted-otherwise",
        "predictions and labels are shifted against each other {value}; the reference shifts them by one",
        "Some models shift labels within, others leave it to the caller: done by both, or by none, the network learns "
        "to predict the token after next or to copy the one it sees. A copy is learnt at once, and its loss is "
        "wonderful.",
        (
            Diff("decoder", 'logits[:, :-1], batch["tokens"][:, 1:]', 'logits, batch["tokens"]'),
            Diff("decoder", 'logits[:, :-1], batch["tokens"][:, 1:]', 'logits[:, :-2], batch["tokens"][:, 2:]'),
            Diff("decoder", 'logits[:, :-1], batch["tokens"][:, 1:]', 'logits[:, 1:], batch["tokens"][:, :-1]'),
        ),
        ("transformers documentation: labels are shifted inside the model",),
        calls("getitem", _shifted, ("not", "twice", "backwards"), when=_is_shift),
    ),
    Mistake(
        "C026",
        "prediction-broadcast",
        "predictions (n, 1) meet targets (n,) at {place}: every one is compared with all",
        "The last layer's output has an axis of length 1 that the targets lack, and both NumPy and JAX broadcast "
        "without a word; torch warns. The network learns the mean of the targets.",
        (
            Diff(
                "regression",
                'optax.huber_loss(predicted["amount"], batch["amount"], delta=0.5)',
                'optax.huber_loss(predicted["amount"][:, None], batch["amount"], delta=0.5)',
            ),
            Diff(
                "regression",
                'weighted_cross_entropy(predicted["event"], batch["event"]).mean()',
                'weighted_cross_entropy(predicted["event"][:, None], batch["event"]).mean()',
            ),
        ),
        ("torch documentation: mse_loss warns of target sizes that differ",),
        calls(f"{ERRORS} binary_cross_entropy_with_logits", _broadcast, when=lambda call: call["input"].ndim == 1),
    ),
)
