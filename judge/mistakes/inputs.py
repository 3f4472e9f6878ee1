"""Data and draws: what the numbers mean that go in, how they are resized, and how parameters are drawn."""

from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn

from ..reference.program import Reference
from ..reference.rewrite import Call, Rewrite
from .misread import grouped
from .mistake import Diff, Mistake, Subject, Tries, Try, calls, changed, several
from .resizing import resized

Change = Callable[[Tensor, Any], Tensor]

STATISTICS: dict[str, tuple[tuple[float, ...], tuple[float, ...]]] = {
    "ImageNet's": ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225)),
    "CIFAR-10's": ((0.4914, 0.4822, 0.4465), (0.2470, 0.2435, 0.2616)),
    "CLIP's": ((0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711)),
    "MNIST's": ((0.1307,), (0.3081,)),
    "Fashion-MNIST's": ((0.2860,), (0.3530,)),
}
"""Mean and standard deviation of each channel of pixels in [0, 1], as everybody copies them."""


def _entries(change: Change, when: Callable[[Tensor], bool], values: tuple[Any, ...] = (None,), **fit: Any) -> Tries:
    """An entry of the batch is another one: for the whole program, or for the network alone."""

    def tries(subject: Subject) -> Iterator[Try]:
        def into_network(value: Any) -> Rewrite:
            def given(module: nn.Module, arguments: Any, named: Any) -> Any:
                def other(entry: Any) -> Any:
                    return change(entry, value) if isinstance(entry, Tensor) and when(entry) else entry

                return tuple(map(other, arguments)), {name: other(entry) for name, entry in named.items()}

            return changed([""], lambda module: module.register_forward_pre_hook(given, with_kwargs=True))

        if any(when(torch.from_numpy(array)) for array in subject.reference.batches[0].values()):
            yield Try("what the network is given", into_network, values, **fit)
        for name, array in subject.reference.batches[0].items():
            if when(torch.from_numpy(array)):
                yield Try(
                    f"the batch's {name}",
                    lambda value, name=name: _batch_changed(name, lambda entry: change(entry, value)),  # type: ignore[misc]
                    values,
                    **fit,
                )

    return tries


def _batch_changed(name: str, change: Callable[[Tensor], Tensor]) -> Rewrite:
    def changed_in(batch: Mapping[str, Tensor]) -> dict[str, Tensor]:
        return {key: change(entry) if key == name else entry for key, entry in batch.items()}

    def rewrite(reference: Reference) -> Reference:
        outputs = reference.outputs or (lambda module, batch: module(next(iter(batch.values()))))
        train_epoch, evaluate = reference.train_epoch, reference.evaluate
        return replace(
            reference,
            loss=lambda module, batch: reference.loss(module, changed_in(batch)),
            outputs=lambda module, batch: outputs(module, changed_in(batch)),
            train_epoch=train_epoch
            and (
                lambda module, optimizer, batches: train_epoch(module, optimizer, [changed_in(one) for one in batches])
            ),
            evaluate=evaluate and (lambda module, batches: evaluate(module, [changed_in(one) for one in batches])),
        )

    return rewrite


def _is_real(entry: Tensor) -> bool:
    return entry.dtype.is_floating_point and entry.dim() > 1


def _is_images(entry: Tensor) -> bool:
    return entry.dtype.is_floating_point and entry.dim() == 4


def _is_colour(entry: Tensor) -> bool:
    return _is_images(entry) and entry.shape[1] in (3, 4)


def _is_square(entry: Tensor) -> bool:
    return _is_images(entry) and entry.shape[2] == entry.shape[3]


def _is_rows(entry: Tensor) -> bool:
    return entry.dtype.is_floating_point and entry.dim() == 2


def _is_binary(entry: Tensor) -> bool:
    return entry.dtype.is_floating_point and bool(((entry == 0) | (entry == 1)).all()) and bool((entry == 1).any())


def _is_ids(entry: Tensor) -> bool:
    return not entry.dtype.is_floating_point and entry.dtype != torch.bool and entry.dim() == 2


def _normalised(entry: Tensor, value: str) -> Tensor:
    means, deviations = STATISTICS[value]
    if len(means) not in (1, entry.shape[1]):
        raise ValueError("other channels")
    mean, deviation = (torch.tensor(one, dtype=entry.dtype)[:, None, None] for one in (means, deviations))
    return (entry - mean) / deviation


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


def _shifted_labels(call: Call, value: str) -> Any:
    """`one_hot` of what is no class is a row of zeros; a class that is looked up counts from the end."""
    logits, labels = call["input"], call["target"]
    count = logits.shape[1]
    shifted = labels + int(value[:2])
    if len(value) == 2:
        return call.run(target=shifted % count)
    targets = torch.nn.functional.one_hot(shifted.clamp(0, count - 1), count).to(logits.dtype)
    known = ((shifted >= 0) & (shifted < count)).to(logits.dtype)
    return call.run(target=targets * known[:, None])


def _has_classes(call: Call) -> bool:
    target = call["target"]
    return not target.dtype.is_floating_point and bool((target >= 0).all()) and call["input"].dim() == 2


def _part_of(call: Call, index: int) -> Any:
    given = list(call.arguments.values())[1]
    return given[index] if isinstance(given, tuple) and len(given) > index else None


def _is_next_token(call: Call) -> bool:
    values, part = next(iter(call.arguments.values())), _part_of(call, 1)
    return _is_ids(values) and isinstance(part, slice) and (part.start, part.stop) == (1, None)


def _own_token(call: Call) -> Any:
    return next(iter(call.arguments.values()))[:, :-1]


def _resized(call: Call, value: str) -> Any:
    method, _, antialias = value.partition(", ")
    size = tuple(call.run().shape[2:])
    if method == "aligned":
        return call.run(mode=call["mode"], align_corners=True)
    return resized(call["input"], size, method, antialias == "antialiased")


def _shrinks(call: Call) -> bool:
    return call.run().shape[2] < call["input"].shape[2] and call["mode"] in ("bilinear", "bicubic")


def _smoothed(call: Call) -> Any:
    method = {"bilinear": "linear", "bicubic": "cubic"}[call["mode"]]
    return resized(call["input"], tuple(call.run().shape[2:]), method, antialias=True)


def _draws(change: Callable[[Tensor, Any], Tensor], values: tuple[Any, ...], **fit: Any) -> Tries:
    """Parameters are drawn otherwise, where a port has to draw torch's numbers."""

    def tries(subject: Subject) -> Iterator[Try]:
        draw = subject.reference.init
        if draw is None:
            return
        for place, group in grouped(subject, [name for name, _ in subject.module.named_parameters()]):

            def rewrite(value: Any, group: frozenset[str] = group) -> Rewrite:
                def init(seed: int) -> nn.Module:
                    module = draw(seed)
                    with torch.no_grad():
                        for name, parameter in module.named_parameters():
                            if name in group:
                                parameter.copy_(change(parameter, value))
                    return module

                return lambda reference: replace(reference, init=init)

            yield Try(place, rewrite, values, size=len(group), **fit)

    return tries


def _seeds(subject: Subject) -> Iterator[Try]:
    draw = subject.reference.init
    if draw is None:
        return

    def rewrite(value: str) -> Rewrite:
        def init(seed: int) -> nn.Module:
            return draw(0 if value == "seed 0" else seed + int(value[-2:]))

        return lambda reference: replace(reference, init=init)

    yield Try("the initial draw", rewrite, ("seed 0", "seed +1", "seed -1"))


MISTAKES: tuple[Mistake, ...] = (
    Mistake(
        "D001",
        "inputs-scaled",
        "{place} is × {value} in the port",
        "Pixels are 0 to 255, 0 to 1 or -1 to 1, and each library's loader has a habit of its own. A network with "
        "batch normalisation after its first layer hides the factor altogether; others are some percents worse.",
        (
            Diff("convnet", "jnp.transpose(images, (0, 2, 3, 1))", "jnp.transpose(images / 255.0, (0, 2, 3, 1))"),
            Diff("mlp", "x = images.reshape(images.shape[0], -1)", "x = images.reshape(images.shape[0], -1) / 255.0"),
            Diff(
                "unet",
                'jnp.transpose(batch["images"], (0, 2, 3, 1))',
                'jnp.transpose(batch["images"] * 2.0, (0, 2, 3, 1))',
            ),
        ),
        ("HF#20430", "DALI#2966"),
        _entries(lambda entry, value: entry * value, _is_real, (1 / 255, 2.0, 0.5, 255.0), fit="linear", was=1.0),
    ),
    Mistake(
        "D002",
        "inputs-to-minus-one",
        "{place} is mapped from [0, 1] to [-1, 1] in the port, and not in the reference",
        "Inception, ViT in JAX and most generators take pixels in [-1, 1], torchvision's networks take them "
        "normalised by mean and deviation. The relation of the two is affine, and the network works with either, "
        "some percents worse.",
        (
            Diff("convnet", "jnp.transpose(images, (0, 2, 3, 1))", "jnp.transpose(images * 2 - 1, (0, 2, 3, 1))"),
            Diff("mlp", "x = images.reshape(images.shape[0], -1)", "x = images.reshape(images.shape[0], -1) * 2 - 1"),
        ),
        ("HF#20430",),
        _entries(lambda entry, _: entry * 2 - 1, _is_real),
    ),
    Mistake(
        "D003",
        "inputs-normalised-again",
        "{place} is normalised by {value} mean and deviation in the port, and not in the reference",
        "A data pipeline that normalises, and a model that normalises what it is given: each is right alone. The "
        "network sees inputs that are shifted and four times as large.",
        (
            Diff(
                "convnet",
                "jnp.transpose(images, (0, 2, 3, 1))",
                "(jnp.transpose(images, (0, 2, 3, 1)) - jnp.array([0.485, 0.456, 0.406]))"
                " / jnp.array([0.229, 0.224, 0.225])",
            ),
            Diff(
                "mlp",
                "x = images.reshape(images.shape[0], -1)",
                "x = (images.reshape(images.shape[0], -1) - 0.2860) / 0.3530",
            ),
        ),
        ("algoperf#114", "torchvision: transforms.Normalize"),
        _entries(_normalised, _is_images, tuple(STATISTICS)),
    ),
    Mistake(
        "D004",
        "channels-reversed",
        "the channels of {place} are reversed in the port: blue comes first",
        "OpenCV reads blue, green, red. A trained network loses a few percents and no more, for it knows objects by "
        "their shape.",
        (Diff("convnet", "jnp.transpose(images, (0, 2, 3, 1))", "jnp.transpose(images[:, ::-1], (0, 2, 3, 1))"),),
        ("DALI#2966", "opencv: imread"),
        _entries(lambda entry, _: torch.cat([entry[:, :3].flip(1), entry[:, 3:]], 1), _is_colour),
    ),
    Mistake(
        "D005",
        "image-axes-exchanged",
        "height and width of {place} are exchanged in the port",
        "From (batch, channels, height, width) one comes to channels last by (0, 2, 3, 1); `.T`, or (0, 3, 2, 1), "
        "mirrors each image at its diagonal. Square images fit.",
        (
            Diff(
                "mlp",
                "x = images.reshape(images.shape[0], -1)",
                "x = images.swapaxes(2, 3).reshape(images.shape[0], -1)",
            ),
            Diff(
                "unet", 'jnp.transpose(batch["images"], (0, 2, 3, 1))', 'jnp.transpose(batch["images"], (0, 3, 2, 1))'
            ),
        ),
        ("jax: numpy.transpose",),
        _entries(lambda entry, _: entry.transpose(2, 3), _is_square),
    ),
    Mistake(
        "D006",
        "images-mirrored",
        "{place} is {value} in the port",
        "Some formats and plots have their origin at the bottom; an augmentation may be left on for evaluation.",
        (
            Diff("convnet", "jnp.transpose(images, (0, 2, 3, 1))", "jnp.transpose(images[:, :, ::-1], (0, 2, 3, 1))"),
            Diff(
                "mlp", "x = images.reshape(images.shape[0], -1)", "x = images[..., ::-1].reshape(images.shape[0], -1)"
            ),
        ),
        ("numpy: flip",),
        _entries(
            lambda entry, value: entry.flip(2 if value == "upside down" else 3), _is_images, ("upside down", "mirrored")
        ),
    ),
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
        "D008",
        "classes-shifted",
        "the classes that {place} is given are shifted by {value} in the port",
        "Files count classes from 1, some have a background as class 0. `one_hot` of what is no class is a row of "
        "zeros, and the loss of such an example nothing, or what smoothing leaves.",
        (
            Diff(
                "convnet",
                'integer_labels(logits, batch["labels"])',
                'integer_labels(logits, batch["labels"] - 1)',
            ),
            Diff("mlp", 'jax.nn.one_hot(batch["labels"], CLASSES', 'jax.nn.one_hot(batch["labels"] - 1, CLASSES'),
        ),
        ("jax: nn.one_hot",),
        calls(
            "cross_entropy",
            _shifted_labels,
            ("-1", "+1", "-1 (those outside have none)", "+1 (those outside have none)"),
            when=_has_classes,
        ),
    ),
    Mistake(
        "D009",
        "labels-not-shifted",
        "{place} has the token itself to predict in the port, in the reference the next one",
        "A language model's labels are its inputs one step later. Some libraries shift inside of the loss and some "
        "want it done before. A model that is to predict what it sees gets a loss near zero in no time.",
        (Diff("decoder", 'batch["tokens"][:, 1:]', 'batch["tokens"][:, :-1]'),),
        ("transformers: labels are shifted inside the model",),
        calls("getitem", lambda call, _: _own_token(call), when=_is_next_token),
    ),
    Mistake(
        "D010",
        "targets-inverted",
        "{place} has 0 and 1 exchanged in the port",
        "Which of two classes is the positive one is a convention of the data; inverted masks are the same mistake.",
        (
            Diff(
                "regression",
                'weighted_cross_entropy(predicted["event"], batch["event"])',
                'weighted_cross_entropy(predicted["event"], 1 - batch["event"])',
            ),
        ),
        ("torch: binary_cross_entropy_with_logits",),
        _entries(lambda entry, _: 1 - entry, _is_binary),
    ),
    Mistake(
        "D011",
        "columns-reversed",
        "the columns of {place} are in reverse order in the port",
        "Coordinates are (x, y) in one library and (row, column) in another, boxes (x, y) or (y, x), quaternions have "
        "the real part first or last. Order is all that tells columns apart.",
        (
            Diff(
                "regression",
                'Standardize(name="standardize")(rows, train)',
                'Standardize(name="standardize")(rows[:, ::-1], train)',
            ),
        ),
        ("tensorflow: image.crop_and_resize",),
        _entries(lambda entry, _: entry.flip(1), _is_rows),
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
            _entries(lambda entry, _: entry.flip(1), _is_ids),
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
        _entries(_padded_left, _is_ids, (0, 1)),
    ),
    Mistake(
        "D014",
        "resize-antialiased",
        "{place} smooths before it makes images smaller in the port, and the reference does not",
        "`jax.image.resize` smooths by default where it shrinks, torch's `interpolate` does not unless it is told to, "
        "and Pillow always does. Enlarged images agree. Loaders that differ in it cost a pretrained network percents.",
        (Diff("unet", "antialias=False", "antialias=True"),),
        ("DALI#2966", "DALI#400", "jax: image.resize", "torch: nn.functional.interpolate"),
        calls("interpolate", lambda call, _: _smoothed(call), when=_shrinks),
    ),
    Mistake(
        "D015",
        "resize-kernel",
        "{place} interpolates by a {value} kernel in the port, the reference by a {was} one",
        "Nearest, bilinear, bicubic: a word in another place of the configuration. Even the same word differs: JAX's "
        "cubic kernel has a = -0.5, torch's -0.75; torch's `nearest` rounds down, JAX's takes the nearest. A constant "
        "image agrees under all of them.",
        (
            Diff("unet", '(x, shape, "bilinear", antialias=False', '(x, shape, "cubic", antialias=False'),
            Diff("unet", '(x, shape, "bilinear", antialias=False', '(x, shape, "nearest", antialias=False'),
            Diff("unet", '(x, shape, "bilinear", antialias=False', '(x, shape, "lanczos3"'),
        ),
        ("jax#15768", "jax#11206", "HF#20430"),
        calls(
            "interpolate",
            _resized,
            ("cubic", "nearest", "linear", "lanczos3", "cubic, antialiased", "lanczos3, antialiased"),
            was=lambda call: call["mode"],
        ),
    ),
    Mistake(
        "D016",
        "resize-aligned-corners",
        "{place} aligns the corners in the port, and not in the reference",
        "With `align_corners=True` the first and the last pixel stay where they are; without, pixels are squares with "
        "their centre in the middle. The difference is largest at the edge and nothing in the middle.",
        (
            Diff(
                "unet",
                'resized: jax.Array = jax.image.resize(x, shape, "bilinear", antialias=False, precision="highest")',
                "scale = jnp.array([(height - 1) / (x.shape[1] - 1), (width - 1) / (x.shape[2] - 1)], x.dtype)\n"
                "    resized: jax.Array = jax.image.scale_and_translate(\n"
                '        x, shape, (1, 2), scale, 0.5 - 0.5 * scale, "bilinear", antialias=False, precision="highest"\n'
                "    )",
            ),
        ),
        ("torch: nn.functional.interpolate, align_corners",),
        calls(
            "interpolate",
            lambda call, _: torch.nn.functional.interpolate(
                call["input"], tuple(call.run().shape[2:]), mode=call["mode"], align_corners=True
            ),
            when=lambda call: call["mode"] in ("bilinear", "bicubic", "linear") and not call["align_corners"],
        ),
    ),
    Mistake(
        "D017",
        "init-scaled",
        "the draw of {place} is × {value} in the port",
        "Fan in or fan out, a gain that is left out or squared, a bound taken for a deviation: all are a factor. "
        "torch's Linear draws uniformly within 1/√fan_in, which has a deviation of 0.577/√fan_in; flax's "
        "lecun_normal has 1/√fan_in; an embedding has 1 in torch and 1/√width in flax.",
        (
            Diff("", "bound = 1 / math.sqrt(fan_in)", "bound = math.sqrt(3 / fan_in)"),
            Diff(
                "",
                "nn.Embed(vocabulary, width, embedding_init=nn.initializers.normal(1.0))",
                "nn.Embed(vocabulary, width)",
            ),
        ),
        ("jax#4862", "flax#215", "ppo_jax#2", "torch: nn.Linear"),
        _draws(
            lambda tensor, value: tensor * value,
            (3**0.5, 3**-0.5, 6**0.5, 2**0.5, 2**-0.5, 0.5, 2.0),
            fit="linear",
            was=1.0,
        ),
    ),
    Mistake(
        "D018",
        "init-constant",
        "{place} starts at {value} in the port, and is drawn in the reference",
        "flax's biases start at zero, torch's are drawn within 1/√fan_in. One step later nothing tells any more.",
        (Diff("", "bias_init=uniform(1 / math.sqrt(fan_in))", "bias_init=nn.initializers.zeros"),),
        ("jax#4862", "equinox#1143", "torch: nn.Linear"),
        _draws(lambda tensor, value: torch.full_like(tensor, value), (0.0, 1.0)),
    ),
    Mistake(
        "D019",
        "seed-of-another-draw",
        "the port draws what the reference draws with {value}",
        "A seed that is used for data first, or added to a rank, draws other numbers of the right distribution.",
        (Diff("", "params = init(seed)", "params = init(seed + 1)"),),
        ("torch: manual_seed",),
        _seeds,
    ),
    Mistake(
        "D020",
        "init-distribution",
        "{place} is drawn from another distribution in the port",
        "torch's `trunc_normal_(std)` cuts at -2 and 2, which for a deviation of 0.02 is no cut at all; JAX cuts at "
        "two deviations, and its `truncated_normal` has 0.88 of the deviation that it is told unless it is rescaled. "
        "Kaiming's normal and uniform draws have one deviation and other tails. Where a port need not draw torch's "
        "numbers only statistics can tell, and there is no rewrite.",
        (Diff("", "jax.random.normal(rng, shape) * std", "jax.random.truncated_normal(rng, -2, 2, shape) * std"),),
        ("algoperf#819", "flax#4091", "timm#1286", "timm#1283", "HF#19305"),
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
    Mistake(
        "D022",
        "window-symmetric",
        "the window of the Fourier transform of {place} is symmetric in the port, periodic in the reference",
        "`torch.hann_window` is periodic, NumPy's and SciPy's `hann` symmetric by default: one sample apart, a "
        "percent in every frame. Made in a constructor the window is a buffer, and is told as one.",
        (Diff("", "window = scipy.signal.get_window('hann', length)", "window = numpy.hanning(length)"),),
        ("torch: hann_window", "scipy: signal.get_window"),
    ),
)
