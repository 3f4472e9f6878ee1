"""Embeddings: positions off by one, and the padding's row."""

from typing import Any

import torch

from parity.mistakes.mistake import Diff, Mistake
from parity.mistakes.tries import calls
from parity.reference.rewrite import Call


def _is_range(call: Call) -> bool:
    """Whether positions 0, 1, 2, … are looked up."""
    rows = call["input"]
    return torch.is_tensor(rows) and bool((rows == torch.arange(rows.shape[-1])).all()) and rows.shape[-1] > 1


def _moved(call: Call, by: int) -> Any:
    rows, length = call["input"] + by, call["weight"].shape[0]
    return call.run(input=torch.where(rows < 0, rows + length, rows).clamp(max=length - 1))


def _without_padding(call: Call, padding: int) -> Any:
    return call.run() * (call["input"] != padding).unsqueeze(-1)


MISTAKES = (
    Mistake(
        "F051",
        "positions-off-by-one",
        "the positions at {place} are {value} further than the reference's",
        "RoBERTa's positions start after the padding's, OPT's at 2, most at 0; a start token that is added or dropped "
        "moves them by one. JAX reads the last row again where torch would raise an index error.",
        (Diff("transformer", "+ positions[: tokens.shape[1]]", "+ positions[jnp.arange(tokens.shape[1]) + 1]"),),
        ("trl#469", "transformers#18388", "jax#1451", "jax#9839"),
        calls("embedding", _moved, (1, -1, 2), when=_is_range),
    ),
    Mistake(
        "F053",
        "padding-embedding-zeroed",
        "the embedding of token {value} is zero at {place}, in the reference it is in the table",
        "Who knows that torch's padding row is zero multiplies by a mask in the port. It is zero at first only: a "
        "loaded table may hold anything there, and torch reads what it holds.",
        (Diff("transformer", "x = embedding[tokens] +", "x = embedding[tokens] * (tokens != PAD)[..., None] +"),),
        ("torch: Embedding, padding_idx", "Keras: Embedding, mask_zero"),
        calls("embedding", _without_padding, (0, 1)),
    ),
)
