"""Attention: scores, masks, positions, heads, and the normalisations and residuals around them."""

from operator import attrgetter

from parity.mistakes.attention import embeddings, heads, masks, pooling, residuals, rotary, softmax

MISTAKES = tuple(
    sorted(
        (
            *softmax.MISTAKES,
            *masks.MISTAKES,
            *rotary.MISTAKES,
            *heads.MISTAKES,
            *residuals.MISTAKES,
            *embeddings.MISTAKES,
            *pooling.MISTAKES,
        ),
        key=attrgetter("code"),
    )
)
