"""Recurrent layers: their gates, their states, and how a sequence becomes one vector."""

from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

from parity.mistakes.mistake import Diff, Mistake, Subject, Tries
from parity.mistakes.tries import Together, calls, together
from parity.reference.opened import recurrent
from parity.reference.rewrite import Call, Site


def _forgets_less(call: Call, value: float) -> Any:
    i, f, g, o = call.run()
    return i, f + value, g, o


def _linear(x: Tensor, hidden: Tensor, weights: Any) -> tuple[Tensor, Tensor]:
    w_ih, w_hh, b_ih, b_hh = weights
    return functional.linear(x, w_ih, b_ih), functional.linear(hidden, w_hh, b_hh)


def _lstm_step(x: Tensor, hidden: Tensor, memory: Tensor, weights: Any) -> tuple[Tensor, Tensor, Tensor]:
    """The memory, the gate of the output, and the output."""
    from_x, from_h = _linear(x, hidden, weights)
    write, keep, content, read = (from_x + from_h).chunk(4, -1)
    memory = keep.sigmoid() * memory + write.sigmoid() * content.tanh()
    return memory, read.sigmoid(), read.sigmoid() * memory.tanh()


def _carry_swapped(x: Tensor, state: Any, *weights: Any) -> tuple[Tensor, ...]:
    memory, _, output = _lstm_step(x, state[1], state[0], weights)
    return output, memory


def _memory_returned(x: Tensor, state: Any, *weights: Any) -> tuple[Tensor, ...]:
    memory, _, output = _lstm_step(x, state[-1], state[1], weights)
    return memory, memory, output


def _not_squashed(x: Tensor, state: Any, *weights: Any) -> tuple[Tensor, ...]:
    memory, read, _ = _lstm_step(x, state[0], state[1], weights)
    return read * memory, memory


def _gru_parts(x: Tensor, hidden: Tensor, weights: Any) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Reset and update, and what inputs and state give to the candidate."""
    from_x, from_h = (part.chunk(3, -1) for part in _linear(x, hidden, weights))
    return (from_x[0] + from_h[0]).sigmoid(), (from_x[1] + from_h[1]).sigmoid(), from_x[2], from_h[2]


def _reset_before(x: Tensor, state: Any, *weights: Any) -> tuple[Tensor, ...]:
    reset, update, from_x, _ = _gru_parts(x, state[0], weights)
    candidate = (from_x + _gru_parts(x, reset * state[0], weights)[3]).tanh()
    return (candidate + update * (state[0] - candidate),)


def _bias_not_reset(x: Tensor, state: Any, *weights: Any) -> tuple[Tensor, ...]:
    reset, update, from_x, from_h = _gru_parts(x, state[0], weights)
    bias = 0 if weights[3] is None else weights[3].chunk(3)[2]
    candidate = (from_x + bias + reset * (from_h - bias)).tanh()
    return (candidate + update * (state[0] - candidate),)


def _update_inverted(x: Tensor, state: Any, *weights: Any) -> tuple[Tensor, ...]:
    reset, update, from_x, from_h = _gru_parts(x, state[0], weights)
    candidate = (from_x + reset * from_h).tanh()
    return (state[0] + update * (candidate - state[0]),)


def _is_padded(call: Call) -> bool:
    """Whether it is a call on padded sequences: input, state, weights, has_biases, …, bidirectional, batch_first."""
    return call.positional == 9 and isinstance(call["3"], bool)


def _layers_of(function: str, cell: Callable[..., Any], states: int) -> Tries:
    network = recurrent(cell, states)
    return calls(
        function,
        lambda call, _: network(*call.arguments.values()),
        when=_is_padded,
    )


def _reversed(call: Call) -> Any:
    values, *rest = call.arguments.values()
    time = 1 if rest[-1] else 0
    output, *ends = call.function(values.flip(time), *rest)
    return output.flip(time), *ends


def _means_over_time(subject: Subject) -> Iterator[tuple[Site, ...]]:
    """A product with a mask of the steps that exist, its sum over them, and a quotient by how many they are."""
    order = list(subject.calls.items())
    for index, (site, call) in enumerate(order):
        if site.function == "mul" and _mask_of(call) is not None:
            after = [(other, later) for other, later in order[index + 1 : index + 6] if other.module == site.module]
            sums = [other for other, _ in after if other.function == "sum"]
            quotients = [other for other, later in after if other.function == "div" and _counts(later["other"])]
            if sums and quotients:
                yield site, sums[0], quotients[0]


def _mask_of(call: Call) -> str | None:
    """Which factor is a mask `(batch, time, 1)`."""
    for name, other in (("other", "input"), ("input", "other")):
        mask, values = call[name], call[other]
        if not (torch.is_tensor(mask) and torch.is_tensor(values)):
            continue
        fits = mask.ndim == values.ndim > 2 and mask.shape[-1] == 1
        if fits and bool(((mask == 0) | (mask == 1)).all()):
            return name
    return None


def _counts(values: Any) -> bool:
    return torch.is_tensor(values) and bool((values == values.round()).all() and (values > 0).all())


def _another_pooling(call: Call, at: int, group: Together, value: str) -> Any:
    if at == 0:
        mask = _mask_of(call)
        group.kept["values"] = call["other" if mask == "input" else "input"]
        return call.run()
    if at == 1:
        group.kept["dim"] = call["dim"]
        return call.run()
    values, dim = group.kept["values"], group.kept["dim"]
    if value == "the last step":
        return values.select(dim, -1)
    if value == "the largest of all steps":
        return values.amax(dim)
    lengths = call["other"].long().reshape(-1, *(1 for _ in values.shape[1:]))
    return values.gather(dim, (lengths - 1).expand(-1, 1, values.shape[-1])).squeeze(dim)


MEAN = "jnp.sum(x * present[..., None], axis=1) / lengths[:, None].astype(x.dtype)"

MISTAKES = (
    Mistake(
        "F082",
        "gru-resets-before-the-product",
        "{place} resets the state before its product with the kernel, the reference the product",
        "The paper's GRU, and Keras's with reset_after=False, multiply the state by the reset gate and then by the "
        "kernel; cuDNN's, torch's and flax's reset the product. Where the gate is the same for all units they agree.",
        (
            Diff("", "jnp.tanh(xn + reset * (h @ kernel + bias))", "jnp.tanh(xn + (reset * h) @ kernel + bias)"),
            Diff(
                "rnn",
                '(xr, xz, xn), (hr, hz, hn) = Gates(3, name="gates")(x, h)\n'
                "        update = nn.sigmoid(xz + hz)\n"
                "        candidate = jnp.tanh(xn + nn.sigmoid(xr + hr) * hn)",
                'gates = Gates(3, name="gates")\n'
                "        (xr, xz, xn), (hr, hz, hn) = gates(x, h)\n"
                "        update = nn.sigmoid(xz + hz)\n"
                "        candidate = jnp.tanh(xn + gates(x, nn.sigmoid(xr + hr) * h)[1][2])",
            ),
        ),
        ("Keras: GRU, reset_after", "torch: GRU"),
        _layers_of("gru", _reset_before, 1),
    ),
    Mistake(
        "F083",
        "gru-update-inverted",
        "{place} takes the update gate's share of the candidate, the reference of the old state",
        "h = z·h + (1 - z)·n in torch and Keras, h = z·n + (1 - z)·h in the paper's first version and many lectures. "
        "Gates near a half make them nearly equal, and training from the start learns the other sign.",
        (Diff("rnn", "(1 - update) * candidate + update * h", "update * candidate + (1 - update) * h"),),
        ("torch: GRU",),
        _layers_of("gru", _update_inverted, 1),
    ),
    Mistake(
        "F084",
        "gru-bias-not-reset",
        "{place} adds the candidate's second bias outside of the reset, the reference inside",
        "torch has two biases for each gate, other frameworks one, and the two are added up in a conversion. That is "
        "right for all gates but the candidate, whose second bias is multiplied by the reset gate.",
        (
            Diff("", "jnp.tanh(xn + reset * (h @ kernel + bias))", "jnp.tanh(xn + bias + reset * (h @ kernel))"),
            Diff(
                "rnn",
                '(xr, xz, xn), (hr, hz, hn) = Gates(3, name="gates")(x, h)\n'
                "        update = nn.sigmoid(xz + hz)\n"
                "        candidate = jnp.tanh(xn + nn.sigmoid(xr + hr) * hn)",
                'gates = Gates(3, name="gates")\n'
                "        (xr, xz, xn), (hr, hz, hn) = gates(x, h)\n"
                "        bias = gates(x, jnp.zeros_like(h))[1][2]\n"
                "        update = nn.sigmoid(xz + hz)\n"
                "        candidate = jnp.tanh(xn + bias + nn.sigmoid(xr + hr) * (hn - bias))",
            ),
        ),
        ("equinox#1003",),
        _layers_of("gru", _bias_not_reset, 1),
    ),
    Mistake(
        "F085",
        "lstm-forget-bias",
        "{place} adds {value} to its forget gate, the reference nothing",
        "Haiku and TensorFlow add 1 to the forget gate in the forward pass, Keras in the initial bias, torch not at "
        "all. Training starts better with it, so that nobody complains.",
        (Diff("rnn", "nn.sigmoid(f) * c", "nn.sigmoid(f + 1) * c"),),
        ("haiku: LSTM", "torch: LSTM"),
        calls(
            "chunk",
            _forgets_less,
            (1.0,),
            "linear",
            when=lambda call: call["chunks"] == 4 and call.site.kind == "_Cell",
        ),
    ),
    Mistake(
        "F086",
        "lstm-output-not-squashed",
        "{place} multiplies its output gate by the memory, the reference by the memory's tanh",
        "One tanh of two is lost in a cell that is written by hand. A small memory is about its own tanh.",
        (Diff("rnn", "nn.sigmoid(o) * jnp.tanh(c)", "nn.sigmoid(o) * c"),),
        ("torch: LSTM",),
        _layers_of("lstm", _not_squashed, 2),
    ),
    Mistake(
        "F088",
        "another-pooling-over-time",
        "at {place} a sequence becomes {value}, in the reference the mean over its steps",
        "hidden[:, -1] is the last step of the padded batch; where sequences differ in length, it is padding's. "
        "Others take the last step of each sequence where the reference takes the mean.",
        (
            Diff("rnn", MEAN, "x[:, -1]"),
            Diff("rnn", MEAN, "x[jnp.arange(x.shape[0]), lengths - 1]"),
        ),
        ("transformers#18478", "torch: nn.utils.rnn.pack_padded_sequence"),
        together(
            _means_over_time,
            _another_pooling,
            ("the last step", "the last step of each", "the largest of all steps"),
        ),
    ),
    Mistake(
        "F089",
        "lstm-returns-its-memory",
        "{place} returns its memory, the reference its output",
        "flax's carry is (c, h), torch's state (h, c), and both have one shape: the wrong one of them goes on to the "
        "next layer.",
        (Diff("rnn", "return (h, c), h", "return (h, c), c"),),
        ("flax: LSTMCell, carry", "torch: LSTM"),
        _layers_of("lstm", _memory_returned, 2),
    ),
    Mistake(
        "F090",
        "lstm-carry-swapped",
        "{place} takes its output for its memory and its memory for its output from one step to the next",
        "flax's carry is (c, h), torch's state (h, c): unpacked in the wrong order, both zero at first, they are "
        "mixed up at every step but the first.",
        (Diff("rnn", "h, c = carry", "c, h = carry"),),
        ("flax: LSTMCell, carry", "torch: LSTM"),
        _layers_of("lstm", _carry_swapped, 2),
    ),
    Mistake(
        "F091",
        "recurrence-reversed",
        "{place} goes from the last step to the first",
        "reverse=True, go_backwards=True, or a direction of a bidirectional layer that is not turned back: a sequence "
        "read backwards has the same shape, and short ones begin with their padding.",
        (Diff("rnn", "in_axes=1, out_axes=1)", "in_axes=1, out_axes=1, reverse=True)"),),
        ("flax: RNN, reverse, keep_order", "Keras: LSTM, go_backwards"),
        calls(
            "lstm gru rnn_tanh",
            lambda call, _: _reversed(call),
            when=lambda call: _is_padded(call) and not call["7"],
        ),
    ),
)
