"""What is flattened, and how rows and features are cut into heads."""

from collections.abc import Iterator
from typing import Any

import numpy as np
import torch

from parity.cases import Array, Tensors
from parity.mistakes.layouts.misread import modules_with
from parity.mistakes.mistake import Diff, Mistake, Subject, Try
from parity.mistakes.tries import at, calls, several
from parity.reference.rewrite import Call, Site, misread


def _channels_last(call: Call) -> Any:
    result = call.run()
    return next(iter(call.arguments.values())).movedim(1, -1).reshape(result.shape)


def _flattens(call: Call) -> bool:
    images = next(iter(call.arguments.values()))
    if not isinstance(images, torch.Tensor) or images.dim() < 3 or images.shape[1] == 1:
        return False
    return call.run().shape == (images.shape[0], images[0].numel()) and images[0, 0].numel() > 1


def _heads_outermost(subject: Subject) -> Iterator[Try]:
    """A packed projection's rows are read as (heads, 3, width), where torch's are (3, heads, width)."""
    heads: dict[str, int] = {}
    for site, call in subject.calls.items():
        if site.function == "multi_head_attention_forward":
            given = [call[name] for name in ("in_proj_weight", "in_proj_bias") if call[name] is not None]
            heads |= {
                name: call["num_heads"]
                for name, own in subject.module.named_parameters()
                for one in given
                if own is one
            }

    def read(state: Tensors, group: frozenset[str], back: bool) -> Tensors:
        def rows(name: str, array: Array) -> Array:
            count = heads[name]
            outer = (3, count) if back else (count, 3)
            cut = array.reshape(*outer, array.shape[0] // 3 // count, *array.shape[1:])
            return np.ascontiguousarray(cut.swapaxes(0, 1).reshape(array.shape))

        return {name: rows(name, array) if name in group else array for name, array in state.items()}

    by_owner: dict[str, list[str]] = {}
    for name in heads:
        by_owner.setdefault(name.rpartition(".")[0], []).append(name)
    for place, owners in [("everywhere", list(by_owner)), *((owner, [owner]) for owner in by_owner)]:
        group = frozenset(name for owner in owners for name in by_owner[owner])
        if group:
            yield Try(
                place,
                lambda _, group=group: misread(  # type: ignore[misc]
                    lambda state: read(state, group, back=False), lambda state: read(state, group, back=True)
                ),
                size=len(group),
            )


def _packed_views(call: Call) -> bool:
    values = next(iter(call.arguments.values()))
    if not isinstance(values, torch.Tensor) or values.dim() != 3:
        return False
    shape = call.run().shape
    return len(shape) == 5 and 3 in shape[2:4] and shape[:2] == values.shape[:2]


def _other_view(call: Call) -> Any:
    values = next(iter(call.arguments.values()))
    *lead, first, second, width = call.run().shape
    return values.reshape(*lead, second, first, width).transpose(-3, -2)


SPLITS = "view reshape unflatten"


def _splits_heads(subject: Subject) -> Iterator[Site]:
    attending = modules_with(subject, "softmax", "scaled_dot_product_attention", "multi_head_attention_forward")
    for site, call in subject.calls.items():
        if site.function in SPLITS.split() and site.module in attending:
            values = next(iter(call.arguments.values()))
            if isinstance(values, torch.Tensor) and values.dim() == 3:
                shape = call.run().shape
                if len(shape) == 4 and shape[:2] == values.shape[:2] and shape[2] > 1:
                    yield site


def _split_otherwise(value: str) -> Any:
    def change(call: Call) -> Any:
        values = next(iter(call.arguments.values()))
        first, second, heads, width = call.run().shape
        if value == "width before heads":
            return values.reshape(first, second, width, heads).transpose(-2, -1)
        if value == "heads before positions":
            return values.reshape(first, heads, second, width).transpose(1, 2)
        return values.transpose(0, 1).reshape(second, heads, first, width).permute(2, 0, 1, 3)

    return change


MISTAKES = (
    Mistake(
        "L003",
        "flatten-channels-last",
        "{place} flattens with the channels last in the port, the reference with the channels first",
        "A linear layer that follows a convolution was trained on features in the order (channels, height, width). "
        "flax's convolutions keep channels last, and flattening what they give puts the same features in another "
        "order. Every layer converts, shapes fit, and only the outputs are wrong.",
        (Diff("convnet", "x = x.transpose(0, 3, 1, 2).reshape(x.shape[0], -1)", "x = x.reshape(x.shape[0], -1)"),),
        ("MMdnn#595", "finn#326", "flax: Migrating from PyTorch, convolutions and fully connected layers"),
        calls("flatten reshape view", lambda call, _: _channels_last(call), when=_flattens),
    ),
    Mistake(
        "L004",
        "packed-projection-heads-first",
        "the packed projection of {place} is cut as (heads, 3, width) in the port, (3, heads, width) in the reference",
        "torch's `in_proj_weight`, and timm's `qkv`, have all queries first, then all keys, then all values. Other "
        "programs, GPT-NeoX and BLOOM among them, put the three of each head together. Both reshape without "
        "complaint; some heads' queries are then others' keys.",
        (
            Diff(
                "transformer",
                "(x).reshape(batch, length, 3, HEADS, width // HEADS)\n"
                "        query, key, value = jnp.moveaxis(packed, 2, 0)",
                "(x).reshape(batch, length, HEADS, 3, width // HEADS)\n"
                "        query, key, value = jnp.moveaxis(packed, 3, 0)",
            ),
        ),
        ("torch: nn.MultiheadAttention, in_proj_weight",),
        several(_heads_outermost, calls(SPLITS, lambda call, _: _other_view(call), when=_packed_views)),
    ),
    Mistake(
        "L005",
        "heads-split-otherwise",
        "{place} is cut into heads with {value} in the port",
        "A projection of width heads × head width is cut by a reshape to (batch, length, heads, head width), and only "
        "then are axes exchanged. Reshaping to (batch, heads, length, head width) at once gives the same shape and "
        "mixes positions with heads; with the head width before the heads each head takes every n-th feature. With "
        "one head, or one position, all agree.",
        (
            Diff(
                "decoder",
                'q = Dense(HEADS * HEAD_WIDTH, name="q_proj")(x).reshape(batch, length, HEADS, HEAD_WIDTH)',
                'q = Dense(HEADS * HEAD_WIDTH, name="q_proj")(x).reshape(batch, HEADS, length, HEAD_WIDTH)'
                ".swapaxes(1, 2)",
            ),
            Diff(
                "decoder",
                'v = Dense(KV_HEADS * HEAD_WIDTH, name="v_proj")(x).reshape(batch, length, KV_HEADS, HEAD_WIDTH)',
                'v = Dense(KV_HEADS * HEAD_WIDTH, name="v_proj")(x).reshape(batch, length, HEAD_WIDTH, KV_HEADS)'
                ".swapaxes(2, 3)",
            ),
            Diff(
                "transformer",
                "(x).reshape(batch, length, 3, HEADS, width // HEADS)",
                "(x).reshape(batch, length, 3, width // HEADS, HEADS).swapaxes(3, 4)",
            ),
        ),
        ("torch: nn.MultiheadAttention",),
        at(_splits_heads, _split_otherwise, ("width before heads", "heads before positions", "heads before batch")),
    ),
)
