"""Layouts: how weights are read, cut into parts and handed over."""

from collections.abc import Iterator
from itertools import permutations
from typing import Any

import numpy as np
import torch

from ..cases import Array, Tensors
from ..reference.rewrite import Call, Site, misread
from .misread import (
    exchanged,
    given_to,
    grouped,
    kernels,
    parameters,
    renamed,
    reordered,
    siblings,
    tensors,
)
from .mistake import Diff, Mistake, Subject, Tries, Try, at, calls, several

CONVOLUTIONS = "conv1d conv2d conv3d conv_transpose1d conv_transpose2d conv_transpose3d"
TRANSPOSED = "conv_transpose1d conv_transpose2d conv_transpose3d"
CHUNKS = ("chunk", "split", "tensor_split", "unbind")


def _swapped(array: Array, _: Any) -> Array:
    return array.swapaxes(0, 1)


def _square(subject: Subject) -> list[str]:
    return [name for name in kernels(subject) if subject.state[name].shape[0] == subject.state[name].shape[1]]


def _reshaped(array: Array, _: Any) -> Array:
    axes = (*range(2, array.ndim), 1, 0)
    return array.reshape([array.shape[axis] for axis in axes]).transpose(np.argsort(axes))


def _reshaped_back(array: Array, _: Any) -> Array:
    return array.transpose((*range(2, array.ndim), 1, 0)).reshape(array.shape)


def _window_transposed(array: Array, _: Any) -> Array:
    return array.transpose((0, 1, *reversed(range(2, array.ndim))))


def _windows(subject: Subject) -> list[str]:
    return [name for name in given_to(subject, *CONVOLUTIONS.split()) if subject.state[name].ndim > 3]


def _transposed_kernel(array: Array, value: str) -> Array:
    array = array if value == "flipped" else array.swapaxes(0, 1)
    return array if value == "in and out swapped" else np.flip(array, tuple(range(2, array.ndim)))


def _channels_last(call: Call) -> Any:
    result = call.run()
    return next(iter(call.arguments.values())).movedim(1, -1).reshape(result.shape)


def _flattens(call: Call) -> bool:
    images = next(iter(call.arguments.values()))
    if not isinstance(images, torch.Tensor) or images.dim() < 3 or images.shape[1] == 1:
        return False
    return call.run().shape == (images.shape[0], images[0].numel()) and images[0, 0].numel() > 1


def _modules_with(subject: Subject, *functions: str) -> frozenset[str]:
    return frozenset(site.module for site in subject.calls if site.function in functions)


def _parts(count: int, recurrent: bool) -> Any:
    """Where a tensor is cut into so many equal parts, in a recurrent cell or elsewhere."""

    def find(subject: Subject) -> Iterator[Site]:
        cells = _modules_with(subject, "sigmoid") & _modules_with(subject, "tanh")
        for site, call in subject.calls.items():
            if site.function in CHUNKS and (site.module in cells) == recurrent:
                parts = call.run()
                if len(parts) == count and len({part.shape for part in parts}) == 1:
                    yield site

    return find


def _in_order(value: str) -> Any:
    """`"1, 0, 2"`: the second part is taken for the first."""
    order = [int(number) for number in value.split(", ")]

    def change(call: Call) -> Any:
        parts = call.run()
        return tuple(parts[at] for at in order)

    return change


def _orders(count: int) -> tuple[str, ...]:
    orders = list(permutations(range(count)))[1:]
    return tuple(", ".join(map(str, order)) for order in orders)


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
    attending = _modules_with(subject, "softmax", "scaled_dot_product_attention", "multi_head_attention_forward")
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


def _summed_biases(subject: Subject) -> Iterator[Try]:
    pairs = {name: name.replace("_ih", "_hh") for name in parameters(subject) if "bias_ih" in name}
    for place, group in grouped(subject, [name for name, other in pairs.items() if other in subject.state]):

        def taken(state: Tensors, group: frozenset[str] = group) -> Tensors:
            sums = {name: state[name] + state[pairs[name]] for name in group}
            return state | sums | {pairs[name]: np.zeros_like(state[pairs[name]]) for name in group}

        yield Try(place, lambda _, taken=taken: misread(taken), size=len(group))  # type: ignore[misc]


def _vectors(subject: Subject) -> list[str]:
    return [name for name, array in subject.state.items() if array.dtype.kind == "f" and array.ndim == 1]


def _tied(subject: Subject) -> frozenset[str]:
    return given_to(subject, "embedding", "getitem") & given_to(subject, "linear", "matmul", "einsum")


def tied_calls(*functions: str) -> Any:
    def find(subject: Subject) -> Iterator[Site]:
        own = dict(subject.module.named_parameters())
        storages = {own[name].untyped_storage().data_ptr() for name in _tied(subject)}
        for site, call in subject.calls.items():
            weight = call["weight"]
            if site.function in functions and weight is not None and weight.untyped_storage().data_ptr() in storages:
                yield site

    return find


def _same_shape(subject: Subject) -> Iterator[tuple[str, dict[str, str]]]:
    """A product's weight is read from a table of the same shape."""
    tables, shapes = given_to(subject, "embedding"), {name: array.shape for name, array in subject.state.items()}
    for name in given_to(subject, "linear") - tables:
        for table in tables:
            if shapes[name] == shapes[table]:
                yield f"{name}, read from {table}", {name: table}


def _tensors(which: Any, change: Any, back: Any = None, values: tuple[Any, ...] = (None,)) -> Tries:
    return tensors(change, back, which, values)


MISTAKES: tuple[Mistake, ...] = (
    Mistake(
        "L001",
        "kernel-not-transposed",
        "the kernel of {place} is not transposed: the port reads (out, in) as (in, out)",
        "torch keeps a linear layer's weight as (out, in) and multiplies by its transpose; flax's kernel is (in, out). "
        "Converters transpose where shapes do not fit, so that every square layer is loaded as it stands. Shapes, "
        "parameter counts and losses at the start of a training all look right; only the outputs of the same weights "
        "tell.",
        (
            Diff(
                "decoder",
                'return tensor.T if path[-1] == "kernel" else tensor',
                "return tensor if tensor.shape == _.shape else tensor.T",
            ),
            Diff(
                "transformer",
                'return tensor.T if path[-1] == "kernel" else tensor',
                "return tensor if tensor.shape == _.shape else tensor.T",
            ),
            Diff(
                "mlp",
                '"kernel": jnp.asarray(state_dict[f"{name}.weight"].T),',
                '"kernel": jnp.asarray(state_dict[f"{name}.weight"].T if layer in ("fc1", "head") else '
                'state_dict[f"{name}.weight"]),',
            ),
            Diff(
                "regression",
                '{"kernel": tensors[f"{name}.weight"].T} for layer',
                '{"kernel": tensors[f"{name}.weight"].T if layer != "gate" else tensors[f"{name}.weight"]} for layer',
            ),
        ),
        ("flax: Migrating from PyTorch, fully connected layers",),
        _tensors(
            lambda subject: [name for name in _square(subject) if subject.state[name].ndim == 2], _swapped, _swapped
        ),
    ),
    Mistake(
        "L002",
        "kernel-reshaped",
        "the kernel of {place} is reshaped where its axes have to be transposed",
        "`reshape` gives the shape that is asked for and keeps the numbers in their old order, so that every weight "
        "ends at another place. Nothing but the outputs of the same weights can tell: shapes, mean and deviation of "
        "each tensor are right.",
        (
            Diff(
                "mlp",
                'jnp.asarray(state_dict[f"{name}.weight"].T)',
                'jnp.asarray(state_dict[f"{name}.weight"].reshape(state_dict[f"{name}.weight"].shape[::-1]))',
            ),
            Diff(
                "convnet",
                '{"kernel": tensors[f"{name}.weight"].transpose(2, 3, 1, 0)}',
                '{"kernel": tensors[w := f"{name}.weight"].reshape(tensors[w].shape[2:] + tensors[w].shape[1::-1])}',
            ),
            Diff("unet", "weight.transpose(2, 3, 1, 0)}", "weight.reshape(weight.shape[2:] + weight.shape[1::-1])}"),
            Diff("decoder", "return tensor.T if path[-1]", "return tensor.reshape(tensor.shape[::-1]) if path[-1]"),
            Diff("transformer", "return tensor.T if path[-1]", "return tensor.reshape(tensor.shape[::-1]) if path[-1]"),
            Diff(
                "rnn",
                '"kernel": tensors[f"{name}.weight_{side}_{suffix}"].T,',
                '"kernel": tensors[w := f"{name}.weight_{side}_{suffix}"].reshape(tensors[w].shape[::-1]),',
            ),
            Diff(
                "regression",
                '{"kernel": tensors[f"{name}.weight"].T} for layer',
                '{"kernel": tensors[w := f"{name}.weight"].reshape(tensors[w].shape[::-1])} for layer',
            ),
        ),
        ("jax-ai-stack#208", "numpy: reshape"),
        _tensors(kernels, _reshaped, _reshaped_back),
    ),
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
    Mistake(
        "L006",
        "kernel-channels-swapped",
        "inputs and outputs of the kernel of {place} are exchanged in the port",
        "flax's convolution kernel is (height, width, in, out), torch's weight (out, in, height, width), and that of a "
        "transposed convolution (in, out, height, width). Where a layer has as many channels out as in, exchanging "
        "the two passes every check of shapes.",
        (
            Diff(
                "unet",
                "weight.transpose(2, 3, 1, 0)}",
                "weight.transpose((2, 3, 0, 1) if weight.shape[0] == weight.shape[1] else (2, 3, 1, 0))}",
            ),
        ),
        ("flax: Migrating from PyTorch, convolutions",),
        _tensors(
            lambda subject: [name for name in _square(subject) if subject.state[name].ndim > 2], _swapped, _swapped
        ),
    ),
    Mistake(
        "L007",
        "kernel-window-transposed",
        "the window of the kernel of {place} is transposed: height and width are exchanged in the port",
        "`.T` of a weight (out, in, height, width) reverses all four axes: (width, height, in, out), which has the "
        "right shape for every square window. Features are then looked for on their side; images that are nearly "
        "symmetric hide it from an accuracy.",
        (
            Diff(
                "convnet",
                '{"kernel": tensors[f"{name}.weight"].transpose(2, 3, 1, 0)}',
                '{"kernel": tensors[f"{name}.weight"].T}',
            ),
            Diff("unet", "weight.transpose(2, 3, 1, 0)}", "weight.T}"),
        ),
        ("numpy: ndarray.T", "flax: Migrating from PyTorch, convolutions"),
        _tensors(_windows, _window_transposed, _window_transposed),
    ),
    Mistake(
        "L008",
        "transposed-convolution-kernel",
        "the kernel of the transposed convolution {place} is taken with its window or channels {value}",
        "torch's transposed convolution is the gradient of a convolution; flax's `ConvTranspose` is a convolution of "
        "the stretched input, unless `transpose_kernel=True`. Between them the window is mirrored and the two channel "
        "axes are exchanged. With one pixel set to 1 the answer is the mirrored kernel.",
        (
            Diff(
                "unet",
                'x = ConvTranspose(CHANNELS, (3, 3), padding=((1, 2), (1, 2)), name="up1")(x)',
                'x = ConvTranspose(CHANNELS, (3, 3), padding=((1, 2), (1, 2)), transpose_kernel=False, name="up1")(x)',
            ),
        ),
        ("flax#1872", "flax#3137", "jax#11252", "flax: Migrating from PyTorch, transposed convolutions"),
        _tensors(
            lambda subject: given_to(subject, *TRANSPOSED.split()),
            _transposed_kernel,
            _transposed_kernel,
            ("flipped", "in and out swapped", "flipped and swapped"),
        ),
    ),
    Mistake(
        "L009",
        "kernel-flipped",
        "the kernel of {place} is flipped in the port: it convolves where the reference correlates",
        "Every framework's convolution is a correlation: no kernel is flipped. Kernels that come from SciPy, or are "
        "written for `jnp.convolve`, are.",
        (
            Diff(
                "convnet",
                '{"kernel": tensors[f"{name}.weight"].transpose(2, 3, 1, 0)}',
                '{"kernel": tensors[f"{name}.weight"].transpose(2, 3, 1, 0)[::-1, ::-1]}',
            ),
            Diff("unet", "weight.transpose(2, 3, 1, 0)}", "weight.transpose(2, 3, 1, 0)[::-1, ::-1]}"),
        ),
        ("torch: nn.Conv2d, cross-correlation", "scipy: signal.convolve"),
        _tensors(
            lambda subject: [name for name in given_to(subject, *CONVOLUTIONS.split()) if subject.state[name].ndim > 2],
            lambda array, _: np.flip(array, tuple(range(2, array.ndim))),
            lambda array, _: np.flip(array, tuple(range(2, array.ndim))),
        ),
    ),
    Mistake(
        "L010",
        "modules-exchanged",
        "{place} have each other's parameters in the port",
        "Two layers of one shape next to each other, such as a gate and what it gates, or the two normalisations of a "
        "block, can be exchanged by a single wrong name. Everything loads, and a training from the start would not "
        "even notice.",
        (
            Diff(
                "decoder",
                'gate, up = Dense(GATED, name="gate_proj")(normed), Dense(GATED, name="up_proj")(normed)',
                'up, gate = Dense(GATED, name="gate_proj")(normed), Dense(GATED, name="up_proj")(normed)',
            ),
            Diff("mlp", '"fc2": "features.4", "fc3": "features.7"', '"fc2": "features.7", "fc3": "features.4"'),
            Diff(
                "regression",
                'nn.sigmoid(Dense(WIDTH, name="gate")(x)) * jnp.tanh(Dense(WIDTH, name="candidate")(x))',
                'nn.sigmoid(Dense(WIDTH, name="candidate")(x)) * jnp.tanh(Dense(WIDTH, name="gate")(x))',
            ),
            Diff(
                "transformer",
                'name="attention_norm")(x)\n'
                '        x = x + dropout(SelfAttention(name="attention")(normed, padding))\n'
                '        hidden = nn.gelu(Dense(4 * WIDTH, name="mlp_in")(LayerNorm(name="mlp_norm")(x))',
                'name="mlp_norm")(x)\n'
                '        x = x + dropout(SelfAttention(name="attention")(normed, padding))\n'
                '        hidden = nn.gelu(Dense(4 * WIDTH, name="mlp_in")(LayerNorm(name="attention_norm")(x))',
            ),
        ),
        ("HF#12545",),
        renamed(siblings),
    ),
    Mistake(
        "L011",
        "tensors-exchanged",
        "{place} are exchanged in the port",
        "A normalisation's scale and bias, its running mean and variance, the two products of a recurrent layer: "
        "tensors of one shape that only their names tell apart. In a fresh program scale and variance are 1, bias and "
        "mean 0, and the exchange shows at once; where both have been trained it shows in the outputs alone.",
        (
            Diff(
                "convnet",
                '{"scale": tensors[f"{name}.weight"], "bias": tensors[f"{name}.bias"]}',
                '{"scale": tensors[f"{name}.bias"], "bias": tensors[f"{name}.weight"]}',
            ),
            Diff(
                "convnet",
                '"mean": tensors[f"{name}.running_mean"],\n            "var": tensors[f"{name}.running_var"],',
                '"mean": tensors[f"{name}.running_var"],\n            "var": tensors[f"{name}.running_mean"],',
            ),
            Diff(
                "regression",
                '{"scale": tensors["trunk.1.weight"], "bias": tensors["trunk.1.bias"]}',
                '{"scale": tensors["trunk.1.bias"], "bias": tensors["trunk.1.weight"]}',
            ),
            Diff(
                "rnn",
                '(xr, xz, xn), (hr, hz, hn) = Gates(3, name="gates")(x, h)',
                '(hr, hz, hn), (xr, xz, xn) = Gates(3, name="gates")(h, x)',
            ),
        ),
        ("torch: nn.BatchNorm2d", "torch: nn.GRU"),
        renamed(exchanged),
    ),
    Mistake(
        "L012",
        "layers-in-another-order",
        "the layers of {place} are in another order in the port",
        "Names sorted as text put layer 10 before layer 2, and a list that is filled from its end is reversed. All "
        "layers have one shape, so that nothing but the outputs can tell.",
        (
            Diff(
                "decoder", 'DecoderLayer(name=f"layers_{layer}")', 'DecoderLayer(name=f"layers_{LAYERS - 1 - layer}")'
            ),
            Diff(
                "transformer",
                'name=f"layer{layer}")(x, tokens == PAD',
                'name=f"layer{LAYERS - 1 - layer}")(x, tokens == PAD',
            ),
        ),
        ("python: sorted",),
        renamed(
            lambda subject: (one for order in (lambda names: names[::-1], sorted) for one in reordered(subject, order))
        ),
    ),
    Mistake(
        "L013",
        "parts-in-another-order",
        "the parts that {place} cuts a tensor into are taken in the order {value} in the port",
        "Queries, keys and values of one product, a gate and what it gates, the scale and shift of a modulation: what "
        "lies in one tensor is told apart by its order alone, and papers, torch and flax do not agree on it.",
        (
            Diff(
                "transformer",
                "query, key, value = jnp.moveaxis(packed, 2, 0)",
                "key, query, value = jnp.moveaxis(packed, 2, 0)",
            ),
            Diff(
                "transformer",
                "query, key, value = jnp.moveaxis(packed, 2, 0)",
                "value, key, query = jnp.moveaxis(packed, 2, 0)",
            ),
        ),
        ("torch: nn.MultiheadAttention, in_proj_weight", "torch: nn.GLU"),
        several(*(at(_parts(count, recurrent=False), _in_order, _orders(count)) for count in (2, 3))),
    ),
    Mistake(
        "L014",
        "tensor-not-loaded",
        "{place} is not loaded: the port leaves it at {value}",
        "A name that no rule of a converter matches keeps what the program was made with: biases and running means 0, "
        "scales and running variances 1. Libraries warn of it in a line among hundreds. Straight after a fresh "
        "start the tensors are what they should be, so that a test with fresh weights passes.",
        (
            Diff("convnet", '= tensors["grouped.bias"]', '= jnp.zeros_like(tensors["grouped.bias"])'),
            Diff(
                "convnet",
                '"var": tensors[f"{name}.running_var"]',
                '"var": jnp.ones_like(tensors[f"{name}.running_var"])',
            ),
            Diff(
                "convnet",
                '"mean": tensors[f"{name}.running_mean"]',
                '"mean": jnp.zeros_like(tensors[f"{name}.running_mean"])',
            ),
            Diff(
                "regression",
                'params[layer]["bias"] = tensors[f"{name}.bias"]',
                'params[layer]["bias"] = jnp.zeros_like(tensors[f"{name}.bias"])',
            ),
            Diff(
                "regression",
                '"std": tensors["standardize.std"]',
                '"std": jnp.ones_like(tensors["standardize.std"])',
            ),
            Diff(
                "mlp",
                'jnp.asarray(state_dict[f"{name}.bias"])',
                'jnp.zeros_like(state_dict[f"{name}.bias"])',
            ),
            Diff("unet", 'branch[last]["bias"] = bias', 'branch[last]["bias"] = jnp.zeros_like(bias)'),
            Diff(
                "rnn",
                '"bias": tensors[f"{name}.bias_{side}_{suffix}"],',
                '"bias": jnp.zeros_like(tensors[f"{name}.bias_{side}_{suffix}"]),',
            ),
        ),
        ("HF#20934", "HF#12545"),
        _tensors(_vectors, lambda array, value: np.full_like(array, value), None, (0.0, 1.0)),
    ),
    Mistake(
        "L015",
        "recurrent-biases-summed",
        "the two biases of {place} are summed into one in the port, and the other is zero",
        "torch's recurrent layers have a bias for the input's product and one for the state's. They are added, so one "
        "is enough: in an LSTM. A GRU resets the state's product with its bias before it is added, so the candidate "
        "needs both. The sum also learns half as fast as two biases do.",
        (
            Diff(
                "rnn",
                '"bias": tensors[f"{name}.bias_{side}_{suffix}"],',
                '"bias": tensors[b := f"{name}.bias_ih_{suffix}"] + tensors[f"{name}.bias_hh_{suffix}"] '
                'if side == "ih" else 0 * tensors[f"{name}.bias_hh_{suffix}"],',
            ),
        ),
        ("equinox#1003", "torch: nn.GRU"),
        _summed_biases,
    ),
    Mistake(
        "L016",
        "lstm-gate-order",
        "the gates of {place} are taken in the order {value} of torch's input, forget, cell, output",
        "torch, flax and cuDNN stack the gates of an LSTM as input, forget, cell, output; TensorFlow's first cells and "
        "Haiku have the cell second, ONNX the output second. All four have one shape, and the network still computes "
        "something that learns.",
        (
            Diff("rnn", "i, f, g, o = (a + b", "i, g, f, o = (a + b"),
            Diff("rnn", "i, f, g, o = (a + b", "i, o, f, g = (a + b"),
        ),
        ("torch: nn.LSTM", "onnx: LSTM", "haiku: LSTM"),
        at(_parts(4, recurrent=True), _in_order, _orders(4)),
    ),
    Mistake(
        "L017",
        "gru-gate-order",
        "the gates of {place} are taken in the order {value} of torch's reset, update, candidate",
        "torch stacks a GRU's gates as reset, update, candidate; Keras and ONNX have the update first. The two gates "
        "have one shape and both are sigmoids.",
        (Diff("rnn", "(xr, xz, xn), (hr, hz, hn) =", "(xz, xr, xn), (hz, hr, hn) ="),),
        ("torch: nn.GRU", "onnx: GRU"),
        at(_parts(3, recurrent=True), _in_order, _orders(3)),
    ),
    Mistake(
        "L018",
        "concatenated-in-another-order",
        "{place} puts its parts together in the reverse order in the port",
        "The convolution after a skip connection knows its inputs by their place. What comes from below and what "
        "comes from the side often have one number of channels; the two directions of a recurrent layer always have.",
        (
            Diff("unet", "jnp.concatenate([x, middle], axis=-1)", "jnp.concatenate([middle, x], axis=-1)"),
            Diff("unet", "jnp.concatenate([x, fine], axis=-1)", "jnp.concatenate([fine, x], axis=-1)"),
        ),
        ("torch: cat",),
        calls("cat concat concatenate", lambda call, _: call.run(tensors=list(call["tensors"])[::-1])),
    ),
    Mistake(
        "L019",
        "tied-gradient-lost",
        "the gradient of {place} does not reach the shared parameter in the port",
        "Where an embedding is the output's weight, too, its gradient has two parts. A copy of it, made when the "
        "weights were loaded, or a `stop_gradient`, loses one of them: loss and outputs are right, and the embedding "
        "learns from one side only.",
        (
            Diff(
                "transformer",
                'jnp.einsum("btd,vd->btv", x, embedding, ',
                'jnp.einsum("btd,vd->btv", x, jax.lax.stop_gradient(embedding), ',
            ),
            Diff("transformer", "x = embedding[tokens] +", "x = jax.lax.stop_gradient(embedding)[tokens] +"),
        ),
        ("flax: Embed.attend",),
        at(tied_calls("linear", "embedding"), lambda _: lambda call: call.run(weight=call["weight"].detach())),
    ),
    Mistake(
        "L020",
        "tied-by-mistake",
        "{place}, in the port: two parameters are made one",
        "Libraries tie the output's weight to the embedding unless a configuration says otherwise, and converters that "
        "find no `lm_head` take the embedding. Where the reference has two, its own is lost.",
        (
            Diff(
                "decoder",
                "tensor = jnp.asarray(state_dict[torch_name(path)])",
                'tensor = jnp.asarray(state_dict[torch_name(path).replace("lm_head", "embedding")])',
            ),
        ),
        ("transformers: tie_word_embeddings",),
        renamed(_same_shape, both=False),
    ),
    Mistake(
        "L021",
        "tensor-left-random",
        "{place} is drawn anew instead of loaded",
        "A name that does not match is drawn anew without a word: two loads of one file then disagree with each "
        "other. The numbers are nobody's, so that this is seen when the state is told again, but has no rewrite.",
        (
            Diff(
                "decoder",
                "tensor = jnp.asarray(state_dict[torch_name(path)])",
                "tensor = jnp.asarray(state_dict[torch_name(path)])\n"
                '        if "down_proj" in path:\n'
                "            tensor = 0.1 * jax.random.normal(jax.random.key(0), tensor.shape, tensor.dtype)",
            ),
            Diff(
                "mlp",
                'jnp.asarray(state_dict[f"{name}.bias"]),',
                'jnp.asarray(state_dict[f"{name}.bias"]) if layer != "head" else 0.1 * jnp.cos(jnp.arange(CLASSES)),',
            ),
        ),
        ("HF#20934", "HF#12545"),
    ),
    Mistake(
        "L022",
        "not-tied",
        "{place} is two parameters in the port and one in the reference",
        "After a conversion by name an embedding and the output's weight are two arrays of equal numbers, each with "
        "its own gradient and optimizer state; after one step they are no longer equal. A port that tells only one "
        "of them is found by its gradient (`tied-gradient-lost`); one that tells both has no rewrite.",
        (Diff("", "return embedding.attend(x)", 'return nn.Dense(VOCABULARY, name="lm_head")(x)'),),
        ("transformers: tie_word_embeddings", "flax: Embed.attend"),
    ),
)
