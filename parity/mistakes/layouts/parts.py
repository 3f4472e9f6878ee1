"""The order of the parts that lie in one tensor: gates, queries and keys, what is concatenated."""

from collections.abc import Iterator
from itertools import permutations
from typing import Any

from parity.mistakes.layouts.misread import modules_with
from parity.mistakes.mistake import Diff, Mistake, Subject
from parity.mistakes.tries import at, calls, several
from parity.reference.rewrite import Call, Site

CHUNKS = ("chunk", "split", "tensor_split", "unbind")


def _parts(count: int, recurrent: bool) -> Any:
    """Where a tensor is cut into so many equal parts, in a recurrent cell or elsewhere."""

    def find(subject: Subject) -> Iterator[Site]:
        cells = modules_with(subject, "sigmoid") & modules_with(subject, "tanh")
        for site, call in subject.calls.items():
            if site.function in CHUNKS and (site.module in cells) == recurrent:
                parts = call.run()
                if len(parts) == count and len({part.shape for part in parts}) == 1:
                    yield site

    return find


def _in_order(value: str) -> Any:
    """`"1, 0, 2"`: the second part is taken for the first."""
    order = [int(number) for number in value.split(", ")]

    def change(call: Call) -> Any:
        parts = call.run()
        return tuple(parts[at] for at in order)

    return change


def _orders(count: int) -> tuple[str, ...]:
    orders = list(permutations(range(count)))[1:]
    return tuple(", ".join(map(str, order)) for order in orders)


MISTAKES = (
    Mistake(
        "L013",
        "parts-in-another-order",
        "the parts that {place} cuts a tensor into are taken in the order {value} in the port",
        "Queries, keys and values of one product, a gate and what it gates, the scale and shift of a modulation: what "
        "lies in one tensor is told apart by its order alone, and papers, torch and flax do not agree on it.",
        (
            Diff(
                "transformer",
                "query, key, value = jnp.moveaxis(packed, 2, 0)",
                "key, query, value = jnp.moveaxis(packed, 2, 0)",
            ),
            Diff(
                "transformer",
                "query, key, value = jnp.moveaxis(packed, 2, 0)",
                "value, key, query = jnp.moveaxis(packed, 2, 0)",
            ),
        ),
        ("torch: nn.MultiheadAttention, in_proj_weight", "torch: nn.GLU"),
        several(*(at(_parts(count, recurrent=False), _in_order, _orders(count)) for count in (2, 3))),
    ),
    Mistake(
        "L016",
        "lstm-gate-order",
        "the gates of {place} are taken in the order {value} of torch's input, forget, cell, output",
        "torch, flax and cuDNN stack the gates of an LSTM as input, forget, cell, output; TensorFlow's first cells and "
        "Haiku have the cell second, ONNX the output second. All four have one shape, and the network still computes "
        "something that learns.",
        (
            Diff("rnn", "i, f, g, o = (a + b", "i, g, f, o = (a + b"),
            Diff("rnn", "i, f, g, o = (a + b", "i, o, f, g = (a + b"),
        ),
        ("torch: nn.LSTM", "onnx: LSTM", "haiku: LSTM"),
        at(_parts(4, recurrent=True), _in_order, _orders(4)),
    ),
    Mistake(
        "L017",
        "gru-gate-order",
        "the gates of {place} are taken in the order {value} of torch's reset, update, candidate",
        "torch stacks a GRU's gates as reset, update, candidate; Keras and ONNX have the update first. The two gates "
        "have one shape and both are sigmoids.",
        (Diff("rnn", "(xr, xz, xn), (hr, hz, hn) =", "(xz, xr, xn), (hz, hr, hn) ="),),
        ("torch: nn.GRU", "onnx: GRU"),
        at(_parts(3, recurrent=True), _in_order, _orders(3)),
    ),
    Mistake(
        "L018",
        "concatenated-in-another-order",
        "{place} puts its parts together in the reverse order in the port",
        "The convolution after a skip connection knows its inputs by their place. What comes from below and what "
        "comes from the side often have one number of channels; the two directions of a recurrent layer always have.",
        (
            Diff("unet", "jnp.concatenate([x, middle], axis=-1)", "jnp.concatenate([middle, x], axis=-1)"),
            Diff("unet", "jnp.concatenate([x, fine], axis=-1)", "jnp.concatenate([fine, x], axis=-1)"),
        ),
        ("torch: cat",),
        calls("cat concat concatenate", lambda call, _: call.run(tensors=list(call["tensors"])[::-1])),
    ),
)
