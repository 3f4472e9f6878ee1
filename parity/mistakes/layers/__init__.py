"""Layers and what holds them together: residual connections, embeddings, concatenations, precision."""

from parity.mistakes.layers import activations, arithmetic, convolutions, embeddings, norms, recurrent, resizing

MISTAKES = (
    *norms.MISTAKES,
    *activations.MISTAKES,
    *convolutions.MISTAKES,
    *resizing.MISTAKES,
    *embeddings.MISTAKES,
    *arithmetic.MISTAKES,
    *recurrent.MISTAKES,
)
