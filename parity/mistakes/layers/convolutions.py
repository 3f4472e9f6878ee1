"""Convolutions and pools: their padding, their kernels, and the order in which their results are flattened."""

import itertools
import math
from collections.abc import Iterator
from typing import Any

import torch
from torch.nn import functional

from parity.mistakes.mistake import Diff, Mistake, Subject, Try
from parity.mistakes.tries import calls
from parity.reference.rewrite import Call, Edit, Site, edited

CONVOLUTIONS = "conv1d conv2d conv3d"
TRANSPOSED = "conv_transpose1d conv_transpose2d conv_transpose3d"
MAX_POOLS, AVERAGE_POOLS = "max_pool1d max_pool2d", "avg_pool1d avg_pool2d"


def _each(value: Any, count: int) -> tuple[Any, ...]:
    return tuple(value) if isinstance(value, tuple | list) else (value,) * count


def _as_same(call: Call, kernel: tuple[int, ...], stride: Any, dilation: Any, fill: float) -> Any:
    """A call whose input is padded as XLA's SAME does: by as little as possible, and more at the end."""
    x = call["input"]
    count = len(kernel)
    pads: list[int] = []
    for size, width, step, gap in zip(
        x.shape[-count:], kernel, _each(stride, count), _each(dilation, count), strict=True
    ):
        total = max((math.ceil(size / step) - 1) * step + (width - 1) * gap + 1 - size, 0)
        pads = [total // 2, total - total // 2, *pads]
    return call.run(input=functional.pad(x, pads, value=fill), padding=0)


def _convolution_same(call: Call) -> Any:
    return _as_same(call, tuple(call["weight"].shape[2:]), call["stride"], call["dilation"] or 1, 0.0)


def _pool_same(call: Call) -> Any:
    count = int(call.site.function[-2])
    fill = -math.inf if call.site.function.startswith("max") else 0.0
    kernel = _each(call["kernel_size"], count)
    return _as_same(call, kernel, call["stride"] or kernel, call["dilation"] or 1, fill)


def _is_padded(call: Call) -> bool:
    padding = call["padding"] or 0
    return isinstance(padding, str) or any(_each(padding, 1))


def _strides(call: Call) -> bool:
    stride = call["kernel_size"] if call["stride"] is None else call["stride"]
    return any(step > 1 for step in _each(1 if stride is None else stride, 1))


def _another_pool(call: Call) -> Any:
    takes_largest, count = call.site.function.startswith("max"), call.site.function[-2:]
    pool = getattr(functional, f"{'avg' if takes_largest else 'max'}_pool{count}")
    return pool(call["input"], call["kernel_size"], call["stride"], call["padding"] or 0)


def _is_halving(call: Call) -> bool:
    stride = call["kernel_size"] if call["stride"] is None else call["stride"]
    return {*_each(call["kernel_size"], 2), *_each(stride, 2)} == {2} and not _is_padded(call)


def _shared(call: Call, how: str) -> Any:
    """torch's own maximum of two and of many share a gradient among equal values."""
    x = call["input"]
    rows, columns = (size // 2 * 2 for size in x.shape[-2:])
    first, second, third, fourth = (x[..., row:rows:2, column:columns:2] for row in (0, 1) for column in (0, 1))
    if how == "by pairs":
        return torch.maximum(torch.maximum(first, second), torch.maximum(third, fourth))
    return torch.stack((first, second, third, fourth)).amax(0)


def _zero_padded(call: Call) -> Any:
    count = int(call.site.function[-2])
    pads = [pad for side in reversed(_each(call["padding"], count)) for pad in (side, side)]
    return call.run(input=functional.pad(call["input"], pads), padding=0)


def _transposed_same(call: Call) -> Any:
    """A transposed convolution cropped as SAME crops it: to the input's size times the stride, at the start first."""
    x, kernel, bias = call["input"], call["weight"].shape[2:], call["bias"]
    full = call.run(padding=0, output_padding=0, bias=None)
    pads: list[int] = []
    for axis, (width, step) in enumerate(zip(kernel, _each(call["stride"], len(kernel)), strict=True), 2):
        before = width - 1 if step > width - 1 else math.ceil((width + step - 2) / 2)
        start = width - 1 - before
        pads = [-start, x.shape[axis] * step - (full.shape[axis] - start), *pads]
    result = functional.pad(full, pads)
    return result if bias is None else result + bias.view(-1, *(1 for _ in kernel))


def _exchanged_strides(subject: Subject) -> Iterator[Try]:
    """Neighbours that differ in their stride: all that are alike at once, then each pair."""
    found = [(site, call) for site, call in subject.calls.items() if site.function in CONVOLUTIONS.split()]
    groups: dict[tuple[str, str], dict[Site, Any]] = {}
    alone: list[dict[Site, Any]] = []
    for (site, call), (after, other) in itertools.pairwise(found):
        strides = [_each(one["stride"] or 1, call["weight"].ndim - 2) for one in (call, other)]
        if strides[0] != strides[1] and site.function == after.function:
            pair = {site: strides[1], after: strides[0]}
            groups.setdefault((site.pattern, after.pattern), {}).update(pair)
            alone.append(pair)
    for changed in (*groups.values(), *(pair for pair in alone if pair not in groups.values())):
        sites = frozenset(changed)
        yield Try(
            subject.where(sites, " and ".join(dict.fromkeys(site.pattern for site in changed))),
            lambda _, sites=sites, changed=changed: edited(
                Edit(sites, lambda call: call.run(stride=changed[call.site]))
            ),  # type: ignore[misc]
            size=len(sites),
        )


MISTAKES = (
    Mistake(
        "F030",
        "convolution-padding-same",
        "{place} is padded as SAME, the reference alike on both sides",
        "padding='SAME' at stride 2 pads an even size by (0, 1) for a kernel of 3 and by (2, 3) for one of 7; torch's "
        "padding=1 or 3 pads both sides. The shapes agree, the picture is shifted by a pixel; strides of 1 and odd "
        "sizes agree altogether. In a ResNet-50 it is enough to change the class.",
        (
            Diff(
                "convnet",
                'conv(8, (3, 3), strides=2, use_bias=False, name="stem")',
                'conv(8, (3, 3), strides=2, padding="SAME", use_bias=False, name="stem")',
            ),
            Diff("unet", 'strides=2, name="down1")', 'strides=2, padding="SAME", name="down1")'),
        ),
        ("flax#2993", "flax#963", "algorithmic-efficiency#231", "tensornets#25", "jax#12659"),
        calls(
            CONVOLUTIONS, lambda call, _: _convolution_same(call), when=lambda call: _strides(call) and _is_padded(call)
        ),
    ),
    Mistake(
        "F031",
        "pool-padding-same",
        "{place} is padded as SAME, the reference alike on both sides",
        "As for convolutions: flax's and Keras's 'SAME' puts the odd one of the padding at the end, torch's padding "
        "is the same on both sides. The shapes agree, and odd sizes agree altogether.",
        (
            Diff(
                "convnet",
                "nn.avg_pool(x, (3, 3), strides=(2, 2), padding=((1, 1), (1, 1)))",
                'nn.avg_pool(x, (3, 3), strides=(2, 2), padding="SAME")',
            ),
        ),
        ("flax#2993", "flax: max_pool, avg_pool, padding"),
        calls(
            f"{MAX_POOLS} {AVERAGE_POOLS}",
            lambda call, _: _pool_same(call),
            when=lambda call: _strides(call) and _is_padded(call),
        ),
    ),
    Mistake(
        "F032",
        "average-pool-counts-padding",
        "whether {place} counts padding in its averages: {value}, in the reference: {was}",
        "torch's AvgPool2d and flax's avg_pool divide by the whole window at the border; PoolFormer, Keras and "
        "count_include_pad=False divide by the pixels that exist. The interior agrees.",
        (
            Diff(
                "convnet",
                "nn.avg_pool(x, (3, 3), strides=(2, 2), padding=((1, 1), (1, 1)))",
                "nn.avg_pool(x, (3, 3), strides=(2, 2), padding=((1, 1), (1, 1)), count_include_pad=False)",
            ),
        ),
        ("flax#2401", "flax#2448", "flax#2451", "flax#1848", "tvm#18487"),
        calls(
            AVERAGE_POOLS,
            lambda call, value: call.run(count_include_pad=value),
            (False, True),
            was=lambda call: call["count_include_pad"] is not False,
            when=_is_padded,
        ),
    ),
    Mistake(
        "F033",
        "max-pool-pads-with-zeros",
        "{place} pads with zeros, the reference with minus infinity",
        "Who pads by hand pads with zeros, and then takes the largest: negative values at the border become 0. After "
        "a ReLU there are none, and nothing is wrong.",
        (
            Diff(
                "",
                "nn.max_pool(x, (3, 3), strides=(2, 2), padding=((1, 1), (1, 1)))",
                "nn.max_pool(jnp.pad(x, ((0, 0), (1, 1), (1, 1), (0, 0))), (3, 3), strides=(2, 2))",
            ),
        ),
        ("torch: MaxPool2d, implicit negative infinity padding",),
        calls(MAX_POOLS, lambda call, _: _zero_padded(call), when=_is_padded),
    ),
    Mistake(
        "F034",
        "another-pool",
        "{place} takes {value} of each window, the reference {was}",
        "Two functions with the same arguments and shapes: an average where the reference takes the largest trains "
        "about as well.",
        (
            Diff("convnet", "nn.max_pool(x,", "nn.avg_pool(x,"),
            Diff("convnet", "nn.avg_pool(x,", "nn.max_pool(x,"),
        ),
        ("flax: avg_pool, max_pool",),
        calls(
            f"{MAX_POOLS} {AVERAGE_POOLS}",
            lambda call, _: _another_pool(call),
            ("the largest", "the mean"),
            was=lambda call: "the largest" if call.site.function.startswith("max") else "the mean",
        ),
    ),
    Mistake(
        "F035",
        "convolution-padding",
        "the padding of {place} is {value}, the reference's is {was}",
        "Equinox's and Keras's convolutions pad with nothing unless told, flax's as SAME; torch's default is nothing, "
        "and most programs pad by 1. Where a pool over the whole image follows, shapes do not tell.",
        (
            Diff("", "nn.Conv(16, (3, 3), padding=1)", 'nn.Conv(16, (3, 3), padding="VALID")'),
            Diff(
                "convnet",
                'conv(8, (3, 3), strides=2, use_bias=False, name="stem")',
                'conv(8, (3, 3), strides=2, padding=2, use_bias=False, name="stem")',
            ),
        ),
        ("equinox: Conv2d, padding", "keras: Conv2D, padding"),
        calls(
            CONVOLUTIONS,
            lambda call, value: call.run(padding=value),
            (0, 1, 2, 3),
            was=lambda call: next(iter(set(_each(call["padding"] or 0, 1))), 0),
        ),
    ),
    Mistake(
        "F036",
        "pool-stride",
        "the stride of {place} is {value}, the reference's is {was}",
        "torch's pools step by their window unless told, flax's by 1. Where a pool over the whole image follows, "
        "shapes do not tell.",
        (Diff("", "nn.max_pool(x, (2, 2), strides=(2, 2))", "nn.max_pool(x, (2, 2))"),),
        ("flax: max_pool, strides", "torch: MaxPool2d, stride"),
        calls(
            f"{MAX_POOLS} {AVERAGE_POOLS}",
            lambda call, value: call.run(stride=value),
            (1, 2, 3),
            was=lambda call: _each(call["kernel_size"] if call["stride"] is None else call["stride"], 1)[0],
        ),
    ),
    Mistake(
        "C036",
        "pool-gradient-shared",
        "the gradient of equal values in a window of {place} is shared {value}, the reference's goes to the first",
        "torch's max pool and flax's send a gradient to the first of the largest values. `.max()` over a reshaped "
        "array shares it, and so does jnp.maximum. Equal values come of equal pixels: black borders, white patches.",
        (
            Diff(
                "",
                "nn.max_pool(x, (2, 2), strides=(2, 2))",
                "x.reshape(n, h // 2, 2, w // 2, 2, c).max((2, 4))",
            ),
        ),
        ("torch: MaxPool2d", "jax: numpy.maximum"),
        calls("max_pool2d", _shared, ("equally", "by pairs"), when=_is_halving),
    ),
    Mistake(
        "F038",
        "transposed-padding-same",
        "the result of {place} is cropped as SAME does, the reference's by its padding",
        "'SAME' with stride 2 and an odd kernel crops at the other end than torch's padding=1, output_padding=1: the "
        "picture is shifted by one pixel, and its shape is right.",
        (Diff("unet", "padding=((1, 2), (1, 2))", 'padding="SAME"'),),
        ("keras#22876", "keras-core#520"),
        calls(TRANSPOSED, lambda call, _: _transposed_same(call)),
    ),
    Mistake(
        "F125",
        "stride-in-another-convolution",
        "{place}: the strides of two convolutions that follow each other are exchanged in the port",
        "A bottleneck halves its image in its first 1×1 convolution or in the 3×3 one after it: papers, torchvision "
        "(V1.5) and configurations differ, and an option that says which is easily ignored. Shapes and parameters are "
        "the same.",
        (
            Diff(
                "",
                "x = conv(width, (1, 1))(x)\n    x = conv(width, (3, 3), strides=2)(x)",
                "x = conv(width, (1, 1), strides=2)(x)\n    x = conv(width, (3, 3))(x)",
            ),
        ),
        ("transformers: ResNet, downsample_in_bottleneck", "torchvision: ResNet V1.5"),
        _exchanged_strides,
    ),
)
