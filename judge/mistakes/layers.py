"""Layers and what holds them together: residual connections, embeddings, concatenations, precision."""

from typing import Any

import torch
from torch import Tensor

from ..reference.rewrite import Call
from . import activations, convolutions, norms, recurrent
from .mistake import Diff, Mistake, calls
from .norms import parameter_of

BITS = {"bfloat16": 8, "float16": 11}


class _Rounded(torch.autograd.Function):
    """Values with so many significant bits, and gradients with as many."""

    @staticmethod
    def forward(ctx: Any, values: Tensor, bits: int) -> Tensor:
        ctx.bits = bits
        mantissa, exponent = torch.frexp(values)
        return torch.ldexp(torch.round(mantissa * 2**bits) / 2**bits, exponent)

    @staticmethod
    def backward(ctx: Any, *grads: Any) -> Any:
        return _Rounded.forward(ctx, grads[0], ctx.bits), None


def _narrow_product(call: Call, name: str) -> Any:
    def rounded(values: Tensor) -> Tensor:
        result: Tensor = _Rounded.apply(values, BITS[name])
        return result

    operands = ("input", "other") if call.site.function == "matmul" else ("input", "weight")
    narrow = {operand: rounded(call[operand]) for operand in operands}
    if call["bias"] is None:
        return rounded(call.run(**narrow))
    shift = (
        call["bias"]
        if call.site.function == "linear"
        else call["bias"].view(-1, *(1 for _ in call["weight"][0, 0].shape))
    )
    return rounded(rounded(call.run(**narrow, bias=None)) + rounded(shift))


def _is_term(call: Call) -> bool:
    """Whether it is a sum within a network of two values that are computed."""
    terms = (call["input"], call["other"])
    if call.site.module == "loss" or parameter_of(call) is not None:
        return False
    return all(torch.is_tensor(term) and term.is_floating_point() and term.ndim > 1 for term in terms) and all(
        bool(term.isfinite().all() and (term.abs() < 1e9).all()) for term in terms
    )


def _is_range(call: Call) -> bool:
    """Whether positions 0, 1, 2, … are looked up."""
    rows = call["input"]
    return torch.is_tensor(rows) and bool((rows == torch.arange(rows.shape[-1])).all()) and rows.shape[-1] > 1


def _moved(call: Call, by: int) -> Any:
    rows, length = call["input"] + by, call["weight"].shape[0]
    return call.run(input=torch.where(rows < 0, rows + length, rows).clamp(max=length - 1))


def _without_padding(call: Call, padding: int) -> Any:
    return call.run() * (call["input"] != padding).unsqueeze(-1)


def _middle(call: Call) -> Any:
    return torch.quantile(call["input"], 0.5)


MISTAKES = (
    *norms.MISTAKES,
    *activations.MISTAKES,
    *convolutions.MISTAKES,
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
        (Diff("rnn", "dropout(table[tokens])", "dropout(table[tokens] * (tokens != PAD)[..., None])"),),
        ("torch: Embedding, padding_idx", "Keras: Embedding, mask_zero"),
        calls("embedding", _without_padding, (0, 1)),
    ),
    Mistake(
        "F060",
        "term-forgotten",
        "the {value} term of the sum at {place} is left out",
        "A residual connection, a position embedding or a skip connection is lost in a rewrite. The network trains "
        "all the same, if it is not deep.",
        (
            Diff("decoder", "x = x + Attention(", "x = Attention("),
            Diff("transformer", "x = x + dropout(SelfAttention(", "x = dropout(SelfAttention("),
            Diff("transformer", "x = embedding[tokens] + positions[: tokens.shape[1]]", "x = embedding[tokens]"),
            Diff("unet", "return x + resize(images.astype(x.dtype), *x.shape[1:3])", "return x"),
        ),
        ("He et al. 2015", "torch: nn.TransformerEncoderLayer"),
        calls(
            "add",
            lambda call, value: torch.broadcast_to(
                call["other" if value == "first" else "input"], call.run().shape
            ).clone(),
            ("first", "second"),
            when=_is_term,
        ),
    ),
    Mistake(
        "F065",
        "median-of-even-count",
        "{place} takes the mean of the two values in the middle, the reference the lower one",
        "torch.median of an even number of values is the lower of the two in the middle, jnp.median their mean. Odd "
        "numbers agree.",
        (Diff("", "jnp.sort(x)[(x.size - 1) // 2]", "jnp.median(x)"),),
        ("torch: median", "jax: numpy.median"),
        calls(
            "median", lambda call, _: _middle(call), when=lambda call: call.positional == 1 and len(call.arguments) == 1
        ),
    ),
    Mistake(
        "F070",
        "narrow-product",
        "the product at {place} is computed in {value}",
        "dtype=jnp.bfloat16 on a layer casts its operands and its result; a TPU does so to float32 products by "
        "itself, and recent GPUs use TF32. The result has three digits, and a loose tolerance takes that for "
        "rounding.",
        (
            Diff(
                "mlp",
                'dense(CLASSES, name="head")(x)',
                'dense(CLASSES, name="head", dtype=jnp.bfloat16)(x).astype(x.dtype)',
            ),
        ),
        ("jax#10413", "jax#7010", "jax#18934", "transformers#15754"),
        calls("linear matmul conv1d conv2d", _narrow_product, tuple(BITS)),
    ),
    *recurrent.MISTAKES,
)
