"""Sums, medians and products: a term forgotten, another middle, fewer bits."""

from typing import Any

import torch
from torch import Tensor

from parity.mistakes.layers.norms.scales import parameter_of
from parity.mistakes.mistake import Diff, Mistake
from parity.mistakes.tries import calls
from parity.reference.rewrite import Call

BITS = {"bfloat16": 8, "float16": 11}
OPERANDS = {"TF32": (11, True), "TF32, cut off": (11, False), "bfloat16 as a TPU does": (8, True)}
"""Significant bits of a product's operands, whose sums are kept in float32; rounded, or cut off."""


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
    return rounded(rounded(call.run(**narrow, bias=None)) + rounded(_shift(call)))


def _shift(call: Call) -> Tensor:
    """A bias as it is added to a layer's product."""
    bias: Tensor = call["bias"]
    return bias if call.site.function == "linear" else bias.view(-1, *(1 for _ in call["weight"][0, 0].shape))


def _kept(values: Tensor, bits: int, nearest: bool) -> Tensor:
    mantissa, exponent = torch.frexp(values)
    whole = torch.round(mantissa * 2**bits) if nearest else torch.trunc(mantissa * 2**bits)
    return torch.ldexp(whole / 2**bits, exponent)


class _Coarse(torch.autograd.Function):
    """A product of operands with few bits, on the way back as well."""

    @staticmethod
    def forward(ctx: Any, product: Any, keep: Any, one: Tensor, other: Tensor) -> Tensor:
        ctx.product, ctx.keep = product, keep
        operands = keep(one), keep(other)
        ctx.save_for_backward(*operands)
        result: Tensor = product(*operands)
        return result

    @staticmethod
    def backward(ctx: Any, *grads: Any) -> Any:
        operands = [operand.detach().requires_grad_() for operand in ctx.saved_tensors]
        with torch.enable_grad():
            result = ctx.product(*operands)
        return None, None, *torch.autograd.grad(result, operands, ctx.keep(grads[0]))


def _coarse_product(call: Call, name: str) -> Any:
    names = ("input", "other") if call.site.function == "matmul" else ("input", "weight")
    bits, nearest = OPERANDS[name]
    rest = {} if call.site.function == "matmul" else {"bias": None}
    result: Tensor = _Coarse.apply(
        lambda *operands: call.run(**dict(zip(names, operands, strict=True)), **rest),
        lambda values: _kept(values, bits, nearest),
        *(call[name] for name in names),
    )
    return result if call["bias"] is None else result + _shift(call)


def _is_term(call: Call) -> bool:
    """Whether it is a sum within a network of two values that are computed."""
    terms = (call["input"], call["other"])
    if call.site.module == "loss" or parameter_of(call) is not None:
        return False
    return all(torch.is_tensor(term) and term.is_floating_point() and term.ndim > 1 for term in terms) and all(
        bool(term.isfinite().all() and (term.abs() < 1e9).all()) for term in terms
    )


def _middle(call: Call) -> Any:
    return torch.quantile(call["input"], 0.5)


MISTAKES = (
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
        calls(
            "linear matmul conv1d conv2d",
            lambda call, name: (_narrow_product if name in BITS else _coarse_product)(call, name),
            (*BITS, *OPERANDS),
        ),
    ),
)
