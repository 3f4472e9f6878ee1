"""Masks: inverted, missing, shifted, with finite numbers, after the softmax."""

import math
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor

from parity.mistakes.attention.scores import blocked, is_causal, masks, remasked, scores, softmaxes
from parity.mistakes.mistake import Diff, Mistake, Subject
from parity.mistakes.tries import at, calls
from parity.reference.rewrite import Call, Site


def _causal(subject: Subject) -> list[Site]:
    return [site for site in masks(subject) if is_causal(subject.calls[site])]


def _shifted_diagonal(mask: Tensor, value: int) -> Tensor:
    padding = mask[..., -1:, :]  # the last query sees all keys but those
    return padding | torch.ones(mask.shape[-2:], dtype=torch.bool).triu(1 + value)


def _window(mask: Tensor, value: Any) -> Tensor:
    padding = mask.diagonal(dim1=-2, dim2=-1).unsqueeze(-2)  # all other positions see themselves
    square = torch.ones(mask.shape[-2:], dtype=torch.bool)
    return padding | square.triu(1) | (square.tril(-value) if value != "none" else False)


def _masked_later(subject: Subject) -> Iterator[Site]:
    found = list(masks(subject))
    yield from found
    inside = {site.module for site in found}
    yield from (site for site, _ in softmaxes(subject) if site.module in inside)


def _mask_after(_: None) -> Callable[[Call], Any]:
    """The mask is kept until the softmax, whose shares it makes zero."""
    kept: list[Tensor] = []

    def act(call: Call) -> Any:
        if call.site.function != "softmax":
            mask = blocked(call)
            kept.append(call["other"] <= -1e3 if mask is None else mask)
            return scores(call) + 0.0
        shares = call.run()
        while kept:
            shares = shares.masked_fill(kept.pop(), 0.0)
        return shares

    return act


def _finite_mask(value: float) -> Callable[[Call], Any]:
    def act(call: Call) -> Any:
        mask = blocked(call)
        return scores(call).masked_fill(call["other"] <= -1e3 if mask is None else mask, value)

    return act


def _padding_ids(call: Call) -> bool:
    return (
        isinstance(call["input"], Tensor) and not call["input"].dtype.is_floating_point and type(call["other"]) is int
    )


MISTAKES = (
    Mistake(
        "F102",
        "attention-mask-inverted",
        "the mask of {place} is inverted in the port: it attends to what the reference masks",
        "torch's `key_padding_mask` is True where a key is ignored, its `scaled_dot_product_attention` and flax take "
        "True for what is attended to. Rows that are all masked, or that have no padding, then give NaN; with a "
        "finite mask nothing does, and the program attends to nothing but padding.",
        (
            Diff(
                "transformer",
                "jnp.where(padding[:, None, None, :], -jnp.inf, scores)",
                "jnp.where(padding[:, None, None, :], scores, -jnp.inf)",
            ),
        ),
        ("torch: nn.MultiheadAttention, key_padding_mask", "flax: dot_product_attention"),
        at(masks, remasked(lambda mask, _: ~mask)),
    ),
    Mistake(
        "F103",
        "attention-mask-missing",
        "the mask of {place} is not applied in the port",
        "A mask that is computed and not handed on, or handed to an argument that a layer ignores. A decoder then sees "
        "what it is to predict, and its loss falls far too well; an encoder attends to padding, which no batch of "
        "equal lengths shows.",
        (
            Diff(
                "transformer",
                "nn.softmax(jnp.where(padding[:, None, None, :], -jnp.inf, scores))",
                "nn.softmax(scores)",
            ),
            Diff("decoder", "nn.softmax(jnp.where(causal, scores, -jnp.inf))", "nn.softmax(scores)"),
        ),
        ("trl#469",),
        at(masks, remasked(lambda mask, _: None)),
    ),
    Mistake(
        "F104",
        "causal-mask-shifted",
        "the causal mask of {place} is shifted by {value} in the port",
        "`tril(k=1)` lets every position see the next one, which is the answer; `k=-1` keeps it from seeing itself, "
        "leaves the first row nothing to attend to, and makes everything NaN.",
        (
            Diff(
                "decoder",
                "jnp.tril(jnp.ones((length, length), bool))",
                "jnp.tril(jnp.ones((length, length), bool), k=1)",
            ),
        ),
        ("numpy: tril",),
        at(_causal, remasked(_shifted_diagonal), (1, 2)),
    ),
    Mistake(
        "F105",
        "attention-mask-transposed",
        "the mask of {place} is transposed in the port: it masks queries where the reference masks keys",
        "Padding has to be masked as a key; masked as a query its own row is all that changes. `triu` for `tril` is "
        "the same mistake: each position sees only what comes after it. Shapes agree, for scores are square.",
        (
            Diff("transformer", "padding[:, None, None, :]", "padding[:, None, :, None]"),
            Diff("decoder", "jnp.tril(", "jnp.triu("),
        ),
        ("torch: nn.MultiheadAttention, key_padding_mask",),
        at(masks, remasked(lambda mask, _: mask.transpose(-2, -1))),
    ),
    Mistake(
        "F106",
        "sliding-window",
        "{place} attends within a window of {value} in the port, the reference within another one, or within none",
        "Mistral and Gemma attend within a window, in all layers or in every other one. A flag that is ignored, or "
        "set for every layer, shows only in sequences that are longer than the window.",
        (
            Diff(
                "decoder",
                "causal = jnp.tril(jnp.ones((length, length), bool))",
                "causal = jnp.tril(jnp.ones((length, length), bool)) & jnp.tri(length, k=2).T.astype(bool)",
            ),
        ),
        ("maxtext#3112", "maxtext#3832"),
        at(_causal, remasked(_window), (1, 2, 3, 4, 5, 6, 7, 8, 16, 32, 64, "none")),
    ),
    Mistake(
        "F107",
        "mask-after-softmax",
        "the mask of {place} zeroes shares after the softmax in the port, scores before it in the reference",
        "Shares that are zeroed after a softmax no longer sum to one, and what was masked has still taken its part "
        "of the sum. Where nothing is masked all agree.",
        (
            Diff(
                "transformer",
                "nn.softmax(jnp.where(padding[:, None, None, :], -jnp.inf, scores))",
                "jnp.where(padding[:, None, None, :], 0.0, nn.softmax(scores))",
            ),
            Diff(
                "decoder",
                "nn.softmax(jnp.where(causal, scores, -jnp.inf))",
                "jnp.where(causal, nn.softmax(scores), 0.0)",
            ),
        ),
        ("torch: scaled_dot_product_attention",),
        at(_masked_later, _mask_after),
    ),
    Mistake(
        "F108",
        "finite-mask",
        "{place} masks with {value} in the port, the reference with -inf",
        "-1e4 or -1e9 do what -inf does, until a row is masked altogether: torch then gives NaN, a finite mask the "
        "mean of everything. A number that is too small, such as the mask itself added as 0 and 1, masks nothing. In "
        "half precision -1e9 is -inf, and scores beyond 1e4 defeat -1e4.",
        (
            Diff("", "jnp.where(mask, -jnp.inf, scores)", "jnp.where(mask, -1e9, scores)"),
            Diff(
                "transformer",
                "jnp.where(padding[:, None, None, :], -jnp.inf, scores)",
                "jnp.where(padding[:, None, None, :], -1.0, scores)",
            ),
        ),
        ("HF#16058", "torch: finfo"),
        at(masks, _finite_mask, (-1.0, 0.0, -1e4, -1e9, -1e30, -10.0), "linear", -math.inf),
    ),
    Mistake(
        "F109",
        "padding-id",
        "{place} takes the id {value} for padding, the reference {was}",
        "Padding is id 0 in BERT, 1 in RoBERTa, the end of text in GPT. A mask that is made of the wrong id masks "
        "real tokens, or nothing.",
        (Diff("transformer", "(x, tokens == PAD, deterministic)", "(x, tokens == 1, deterministic)"),),
        ("HF#18388", "transformers: pad_token_id"),
        calls(
            "eq ne",
            lambda call, value: call.run(other=value),
            (0, 1, 2, 3, -1, -100),
            was=lambda call: call["other"],
            when=_padding_ids,
        ),
    ),
    Mistake(
        "F123",
        "fully-masked-row",
        "rows of {place} that are masked altogether are NaN on one side only",
        "A softmax of nothing is NaN in torch, zero in a fused attention, the mean of everything with a finite mask. "
        "It takes a batch in which a sequence is all padding to see it, and then it has no rewrite of its own: see "
        "`finite-mask`.",
        (Diff("", "weights = nn.softmax(scores)", "weights = jnp.nan_to_num(nn.softmax(scores))"),),
        ("torch: scaled_dot_product_attention",),
    ),
)
