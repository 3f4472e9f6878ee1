"""Token ids: shifted, reversed, padded on the other side, without their types."""

from typing import Any

import torch
from torch import Tensor

from parity.mistakes.inputs.entries import entry_as, is_ids
from parity.mistakes.mistake import Diff, Mistake
from parity.mistakes.tries import calls, several
from parity.reference.rewrite import Call


def _padded_left(tokens: Tensor, value: int) -> Tensor:
    """Rows whose last ids are padding, with it moved to their front."""
    length = tokens.shape[1]
    present = (tokens != value).long()
    own = length - present.flip(1).cummax(1).values.flip(1).sum(1)
    return tokens.gather(1, (torch.arange(length) - own[:, None]) % length)


def _shifted_ids(call: Call, value: int) -> Any:
    """Looked up as JAX does it: negative ids count from the end, those past it are the last."""
    ids, size = call["input"] + value, call["weight"].shape[0]
    return call.run(input=torch.where(ids < 0, ids + size, ids.clamp(max=size - 1)))


MISTAKES = (
    Mistake(
        "D007",
        "ids-shifted",
        "the ids that {place} looks up are shifted by {value} in the port",
        "RoBERTa's positions start at 2, BART's table has two rows in front, vocabularies begin with one or with "
        "three special tokens. An id past the end raises in torch; JAX takes the last row, or NaN, without a word.",
        (
            Diff("transformer", "x = embedding[tokens] +", "x = embedding[tokens + 1] +"),
            Diff(
                "transformer",
                "positions[: tokens.shape[1]]",
                "positions[jnp.arange(tokens.shape[1]) + 2]",
            ),
            Diff("rnn", "x = dropout(table[tokens])", "x = dropout(table[tokens - 1])"),
            Diff("decoder", 'name="embedding")(tokens)', 'name="embedding")(tokens - 1)'),
        ),
        ("jax#1451", "jax#9839", "HF#18388"),
        calls("embedding", _shifted_ids, (1, -1, 2, -2, 3)),
    ),
    Mistake(
        "D012",
        "sequence-reversed",
        "{place} is read from its end in the port",
        "A second direction that is not reversed back, or a scan with `reverse=True`.",
        (
            Diff("rnn", "x = dropout(table[tokens])", "x = dropout(table[tokens[:, ::-1]])"),
            Diff("transformer", "x = embedding[tokens] +", "x = embedding[tokens[:, ::-1]] +"),
            Diff("decoder", 'name="embedding")(tokens)', 'name="embedding")(tokens[:, ::-1])'),
        ),
        ("jax: lax.scan, reverse",),
        several(
            entry_as(lambda entry, _: entry.flip(1), is_ids),
            calls(
                "embedding",
                lambda call, _: call.run(input=call["input"].flip(-1)),
                when=lambda call: call["input"].dim() == 2,
            ),
        ),
    ),
    Mistake(
        "D013",
        "padded-on-the-left",
        "{place} is padded on the left in the port, on the right in the reference (id {value})",
        "Decoders are padded on the left to be continued, encoders on the right. Positions and masks have to follow; "
        "rows that are full agree.",
        (
            Diff(
                "rnn",
                "x = dropout(table[tokens])",
                "x = dropout(table[jax.vmap(jnp.roll)(tokens, tokens.shape[1] - lengths)])",
            ),
        ),
        ("trl#469", "HF#18388", "HF#17479"),
        entry_as(_padded_left, is_ids, (0, 1)),
    ),
    Mistake(
        "D021",
        "token-types-missing",
        "no row of token types is added in {place} in the port",
        "BERT adds the embedding of a segment to every token; where all are segment 0, a port that leaves the table "
        "out forgets to add its first row. A table that a port has no leaf for is told as missing.",
        (Diff("", "x = words + positions + types[token_type_ids]", "x = words + positions"),),
        ("transformers: token_type_ids",),
    ),
)
