"""torch's composite functions in plain calls, so that what happens inside them can be rewritten, too."""

import functools
import inspect
import math
import operator
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

_MULTI_HEAD = inspect.signature(functional.multi_head_attention_forward)


def attention(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attn_mask: Tensor | None = None,
    dropout_p: float = 0.0,
    is_causal: bool = False,
    scale: float | None = None,
    enable_gqa: bool = False,
) -> Tensor:
    """`scaled_dot_product_attention`, as its documentation writes it."""
    if enable_gqa:
        key = key.repeat_interleave(query.shape[-3] // key.shape[-3], -3)
        value = value.repeat_interleave(query.shape[-3] // value.shape[-3], -3)
    scores = torch.matmul(query, key.transpose(-2, -1)) * (1 / math.sqrt(query.shape[-1]) if scale is None else scale)
    if is_causal:
        causal = torch.ones(scores.shape[-2:], dtype=torch.bool).tril()
        scores = scores.masked_fill(~causal, -math.inf)
    if attn_mask is not None:
        scores = scores.masked_fill(~attn_mask, -math.inf) if attn_mask.dtype == torch.bool else scores + attn_mask
    weights = functional.dropout(functional.softmax(scores, dim=-1), dropout_p, dropout_p > 0)
    return torch.matmul(weights, value)


def multi_head_attention(*arguments: Any, **named: Any) -> tuple[Tensor, Tensor | None]:
    """`multi_head_attention_forward` of `(length, batch, width)`, without what few use."""
    given = _MULTI_HEAD.bind(*arguments, **named)
    given.apply_defaults()
    asked = SimpleNamespace(**given.arguments)
    query, num_heads = asked.query, asked.num_heads
    biases = (None, None, None) if asked.in_proj_bias is None else asked.in_proj_bias.chunk(3)
    if asked.use_separate_proj_weight:
        weights = asked.q_proj_weight, asked.k_proj_weight, asked.v_proj_weight
    else:
        weights = asked.in_proj_weight.chunk(3)
    length, batch, width = query.shape

    def heads(values: Tensor, weight: Any, bias: Any) -> Tensor:
        projected = functional.linear(values, weight, bias)
        return projected.reshape(values.shape[0], batch, num_heads, width // num_heads).permute(1, 2, 0, 3)

    q, k, v = (heads(*one) for one in zip((query, asked.key, asked.value), weights, biases, strict=True))
    padding = None if asked.key_padding_mask is None else asked.key_padding_mask[:, None, None, :]
    scores = torch.matmul(q * (1 / math.sqrt(q.shape[-1])), k.transpose(-2, -1))
    masks = [_added(mask, scores) for mask in (asked.attn_mask, padding) if mask is not None]
    if masks:
        scores = scores + functools.reduce(operator.add, masks)
    shares = functional.softmax(scores, dim=-1)
    mixed = torch.matmul(functional.dropout(shares, asked.dropout_p, asked.training), v)
    joined = mixed.permute(2, 0, 1, 3).reshape(length, batch, width)
    result = functional.linear(joined, asked.out_proj_weight, asked.out_proj_bias)
    if not asked.need_weights:
        return result, None
    return result, shares.mean(1) if asked.average_attn_weights else shares


def _added(mask: Tensor, scores: Tensor) -> Tensor:
    """A mask of attention as what is added to the scores `(batch, heads, length, length)`."""
    if mask.dim() == 3:
        mask = mask.reshape(*scores.shape[:2], *mask.shape[1:])
    if mask.dtype != torch.bool:
        return mask
    return torch.zeros(mask.shape, dtype=scores.dtype).masked_fill(mask, -math.inf)


class _Cell(nn.Module):
    """One step of a recurrent layer, as a module: the same places at every step."""

    def __init__(self, cell: Callable[..., Any], label: str) -> None:
        super().__init__()
        self.cell, self.label = cell, label

    def forward(self, *arguments: Any) -> Any:
        return self.cell(*arguments)


def recurrent(cell: Callable[..., Any], states: int) -> Callable[..., Any]:
    """A recurrent network of `cell`, by layers, directions and steps."""

    def run(
        values: Tensor,
        start: Any,
        params: Any,
        has_biases: bool,
        num_layers: int,
        dropout: float,
        train: bool,
        bidirectional: bool,
        batch_first: bool,
    ) -> Any:
        initial = start if states == 2 else (start,)
        values = values.transpose(0, 1) if batch_first else values
        directions, size = (2 if bidirectional else 1), (4 if has_biases else 2)
        finals = []
        for layer in range(num_layers):
            sides = []
            for direction in range(directions):
                at = layer * directions + direction
                weights = [*params[at * size : (at + 1) * size], *(() if has_biases else (None, None))]
                state = tuple(one[at] for one in initial)
                steps, part = [], _Cell(cell, f"layer{layer}" + ("_reverse" if direction else ""))
                order = range(values.shape[0]) if direction == 0 else reversed(range(values.shape[0]))
                for step in order:
                    state = part(values[step], state, *weights)
                    steps.append(state[0])
                sides.append(torch.stack(steps if direction == 0 else steps[::-1]))
                finals.append(state)
            values = sides[0] if directions == 1 else torch.cat(sides, -1)
            if layer < num_layers - 1:
                values = functional.dropout(values, dropout, train)
        ends = tuple(torch.stack([final[at] for final in finals]) for at in range(states))
        return (values.transpose(0, 1) if batch_first else values, *ends)

    return run


def _lstm_cell(x: Tensor, state: Any, w_ih: Tensor, w_hh: Tensor, b_ih: Any, b_hh: Any) -> tuple[Tensor, ...]:
    hidden, memory = state
    gates = functional.linear(x, w_ih, b_ih) + functional.linear(hidden, w_hh, b_hh)
    i, f, g, o = gates.chunk(4, -1)
    memory = torch.sigmoid(f) * memory + torch.sigmoid(i) * torch.tanh(g)
    return torch.sigmoid(o) * torch.tanh(memory), memory


def _gru_cell(x: Tensor, state: Any, w_ih: Tensor, w_hh: Tensor, b_ih: Any, b_hh: Any) -> tuple[Tensor, ...]:
    (hidden,) = state
    ir, iz, in_ = functional.linear(x, w_ih, b_ih).chunk(3, -1)
    hr, hz, hn = functional.linear(hidden, w_hh, b_hh).chunk(3, -1)
    r, z = torch.sigmoid(ir + hr), torch.sigmoid(iz + hz)
    n = torch.tanh(in_ + r * hn)
    return ((1 - z) * n + z * hidden,)


def _rnn_cell(x: Tensor, state: Any, w_ih: Tensor, w_hh: Tensor, b_ih: Any, b_hh: Any) -> tuple[Tensor, ...]:
    return (torch.tanh(functional.linear(x, w_ih, b_ih) + functional.linear(state[0], w_hh, b_hh)),)


OPENED: dict[str, Callable[..., Any]] = {
    "scaled_dot_product_attention": attention,
    "multi_head_attention_forward": multi_head_attention,
    "lstm": recurrent(_lstm_cell, 2),
    "gru": recurrent(_gru_cell, 1),
    "rnn_tanh": recurrent(_rnn_cell, 1),
}
