"""Attention: scores, masks, positions, heads, and the normalisations and residuals around them."""

import math
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor, nn

from parity.mistakes.layouts import tied_calls
from parity.mistakes.mistake import Diff, Mistake, Subject, Tries, Try, argument, at, calls, changed, modules
from parity.mistakes.scores import attending, blocked, is_causal, masks, products, remasked, scores, softmaxes
from parity.reference.rewrite import Call, Edit, Rewrite, Site, chained, edited, places

CUTS = ("chunk", "split", "tensor_split")


def _first(call: Call) -> Any:
    return next(iter(call.arguments.values()))


def _is_real(values: Tensor) -> bool:
    return values.dtype.is_floating_point


def _is_norm(module: nn.Module) -> bool:
    return "norm" in type(module).__name__.lower()


def _scales(subject: Subject) -> Iterator[Try]:
    """The scores times what a wrong scale makes of a right one."""
    found = list(products(subject))
    for name, group in places(found):
        one = subject.calls[next(site for site in found if site in group)]
        width, heads = float(_first(one).shape[-1]), float(one.run().shape[1])
        usual = (math.sqrt(width), 1 / math.sqrt(width), 1 / math.sqrt(heads), 1 / width, math.sqrt(heads), width)
        yield Try(
            subject.where(group, name),
            lambda value, group=group: edited(Edit(group, lambda call: call.run() * value)),  # type: ignore[misc]
            tuple(dict.fromkeys(value for value in usual if value != 1)),
            "log",
            1.0,
            len(group),
        )


def _causal(subject: Subject) -> list[Site]:
    return [site for site in masks(subject) if is_causal(subject.calls[site])]


def _shifted_diagonal(mask: Tensor, value: int) -> Tensor:
    return torch.ones(mask.shape[-2:], dtype=torch.bool).triu(1 + value)


def _window(mask: Tensor, value: int) -> Tensor:
    return mask | torch.ones(mask.shape[-2:], dtype=torch.bool).tril(-value)


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


def _turns(subject: Subject) -> Iterator[Site]:
    """Cosines and sines of angles in modules that attend, or that have no parameters: positions."""
    both = [{site.module for site in subject.calls if site.function == function} for function in ("cos", "sin")]
    yield from (site for site in subject.calls if site.function in ("cos", "sin") and site.module in both[0] & both[1])


def _sines(subject: Subject) -> Iterator[Site]:
    return (site for site in _turns(subject) if site.function == "sin")


def _unturned(_: None) -> Callable[[Call], Any]:
    def act(call: Call) -> Any:
        angles = call.run()
        return torch.ones_like(angles) if call.site.function == "cos" else torch.zeros_like(angles)

    return act


def _halves(call: Call) -> bool:
    """Whether a call is one of a rotation's in halves."""
    values = _first(call)
    if call.site.function in CUTS:
        parts = call.run()
        shapes = [part.shape for part in parts]
        return len(parts) == 2 and shapes[0] == shapes[1] and shapes[0][:-1] == values.shape[:-1]
    if call.site.function == "repeat":
        return bool(values.dim() == 2 and call.run().shape == (values.shape[0], 2 * values.shape[1]))
    if call.site.function == "cat":
        shapes = [part.shape for part in values]
        return len(values) == 2 and shapes[0] == shapes[1] and bool(call.run().shape[:-1] == shapes[0][:-1])
    return False


def _interleaved(subject: Subject) -> Iterator[Site]:
    turning = {site.module for site in _turns(subject)}
    for site, call in subject.calls.items():
        if site.module in turning and site.function in (*CUTS, "repeat", "cat") and _halves(call):
            yield site


def _pairwise(_: None) -> Callable[[Call], Any]:
    """Neighbours are turned together, where the reference turns the first half with the second."""

    def act(call: Call) -> Any:
        values = _first(call)
        if call.site.function == "repeat":
            return values.repeat_interleave(2, -1)
        if call.site.function == "cat":
            return torch.stack(tuple(values), -1).flatten(-2)
        return values[..., ::2], values[..., 1::2]

    return act


def _repeated(call: Call) -> Any:
    values, result = _first(call), call.run()
    times = [new // old for new, old in zip(result.shape, values.shape, strict=True)]
    if call.site.function == "repeat_interleave":
        return values.repeat(times)
    dim = next(at for at, number in enumerate(times) if number > 1)
    return values.repeat_interleave(times[dim], dim)


def _repeats(call: Call) -> bool:
    values, result = _first(call), call.run()
    if not isinstance(values, Tensor) or values.dim() != result.dim() or values.dim() < 3:
        return False
    grown = [at for at, (new, old) in enumerate(zip(result.shape, values.shape, strict=True)) if new != old]
    return len(grown) == 1 and values.shape[grown[0]] > 1


def _merges(subject: Subject) -> Iterator[Site]:
    """Where heads are put together again: (…, heads, width) to (…, heads × width)."""
    inside = attending(subject)
    for site, call in subject.calls.items():
        values = _first(call) if call.arguments else None
        if site.module not in inside or site.function not in ("reshape", "view", "flatten"):
            continue
        if isinstance(values, Tensor) and values.dim() == 4 and values.shape[2] > 1 and _is_real(values):
            together = (*values.shape[:2], values.shape[2] * values.shape[3])
            if call.run().shape == together:
                yield site


def _merged_otherwise(value: str) -> Callable[[Call], Any]:
    def act(call: Call) -> Any:
        values, shape = _first(call), call.run().shape
        if value == "width before heads":
            return values.transpose(2, 3).reshape(shape)
        if value == "heads before positions":
            return values.transpose(1, 2).reshape(shape)
        return values.permute(1, 2, 0, 3).reshape(shape[1], shape[0], shape[2]).transpose(0, 1)

    return act


def _around_norms(rewrite: Callable[[frozenset[Site], list[str]], Rewrite]) -> Tries:
    """Residual sums of what follows a normalisation, each with that normalisation."""

    def tries(subject: Subject) -> Iterator[Try]:
        norms = {name for name, module in subject.module.named_modules() if name and _is_norm(module)}
        before: dict[str, str] = {}
        sums: dict[Site, str] = {}
        for site, call in subject.calls.items():
            if site.module in norms:
                before[site.module.rpartition(".")[0]] = site.module
            elif site.function == "add" and site.module in before and _is_residual(call):
                sums[site] = before.pop(site.module)
        for name, group in places(list(sums)):
            inside = [sums[site] for site in group]
            yield Try(
                subject.where(group, name),
                lambda _, group=group, inside=inside: rewrite(group, inside),  # type: ignore[misc]
                size=len(group),
            )

    return tries


def _is_residual(call: Call) -> bool:
    one, other = call["input"], call["other"]
    return isinstance(one, Tensor) and isinstance(other, Tensor) and one.shape == other.shape and one.dim() > 1


def _from_normed(sums: frozenset[Site], norms: list[str]) -> Rewrite:
    """`normed + f(normed)`."""
    last: list[Tensor] = []

    def note(module: nn.Module, arguments: Any, output: Tensor) -> None:
        last[:] = [arguments[0], output]

    def act(call: Call) -> Any:
        for name in ("input", "other"):
            if last and call[name] is last[0]:
                return call.run(**{name: last[1]})
        return call.run()

    return chained(
        changed(norms, lambda module: module.register_forward_hook(note)),
        edited(Edit(sums, act)),
    )


def _after_sum(sums: frozenset[Site], norms: list[str]) -> Rewrite:
    """`norm(x + f(x))`."""
    last: list[Any] = []

    def act(call: Call) -> Any:
        if last and (call["input"] is last[0] or call["other"] is last[0]):
            return last[1](call.run())
        return call.run()

    def move(module: nn.Module) -> None:
        normalise = module.forward

        def forward(values: Tensor) -> Tensor:
            last[:] = [values, normalise]
            return values

        module.forward = forward

    return chained(changed(norms, move), edited(Edit(sums, act)))


def _unused(module: nn.Module, _: Any) -> None:
    module.register_forward_hook(lambda module, arguments, output: arguments[0])


def _embedded(subject: Subject) -> Iterator[Try]:
    found = [site for site in subject.calls if site.function == "embedding"]
    for name, group in places(found):
        width = float(subject.calls[next(site for site in found if site in group)]["weight"].shape[-1])
        yield Try(
            subject.where(group, name),
            lambda value, group=group: edited(Edit(group, lambda call: call.run() * value)),  # type: ignore[misc]
            (math.sqrt(width), 1 / math.sqrt(width), width),
            "log",
            1.0,
            len(group),
        )


def _tied_outputs(subject: Subject) -> Iterator[Try]:
    found = list(tied_calls("linear")(subject))
    for name, group in places(found):
        width = float(subject.calls[next(iter(group))]["weight"].shape[-1])
        yield Try(
            subject.where(group, name),
            lambda value, group=group: edited(  # type: ignore[misc]
                Edit(group, lambda call: call.run(input=call["input"] * value))
            ),
            (1 / math.sqrt(width), math.sqrt(width), 1 / width),
            "log",
            1.0,
            len(group),
        )


def _pools(subject: Subject) -> Iterator[Site]:
    """A product with a mask of steps, and the quotient by a number of steps, in one module."""
    masked = [site for site, call in subject.calls.items() if site.function == "mul" and _step_mask(call) is not None]
    inside = {site.module for site in masked}
    yield from masked
    for site, call in subject.calls.items():
        other = call["other"]
        counts = isinstance(other, Tensor) and other.dim() > 0 and other.numel() == other.shape[0]
        if site.function == "div" and site.module in inside and counts:
            yield site


def _step_mask(call: Call) -> str | None:
    one, other = call["input"], call["other"]
    if not isinstance(one, Tensor) or not isinstance(other, Tensor) or max(one.dim(), other.dim()) != 3:
        return None
    for name, mask in (("input", other), ("other", one)):
        if mask.shape[-1] == 1 and bool(((mask == 0) | (mask == 1)).all()):
            return name
    return None


def _pooled(value: str) -> Callable[[Call], Any]:
    steps: list[int] = []

    def act(call: Call) -> Any:
        if call.site.function == "mul":
            values = call[_step_mask(call) or "input"]
            steps[:] = [values.shape[1]]
            return values * 1.0 if "sum" in value else call.run()
        return call["input"] / float(steps[0]) if "number" in value and steps else call.run()

    return act


def _padding_ids(call: Call) -> bool:
    return (
        isinstance(call["input"], Tensor) and not call["input"].dtype.is_floating_point and type(call["other"]) is int
    )


MISTAKES: tuple[Mistake, ...] = (
    Mistake(
        "F100",
        "attention-scale",
        "the scores of {place} are × {value} in the port",
        "Scores are divided by the root of the head's width. Left out, they are √width too large; applied to the "
        "queries and again by the attention function, √width too small; taken from the whole width, √heads too "
        "small. T5 has no scale at all, and GPT-2's configuration can switch it off. Attention is softer or sharper "
        "than it should be, and everything still trains.",
        (
            Diff("transformer", " / np.sqrt(width // HEADS)", " / np.sqrt(width)"),
            Diff("transformer", ' precision="highest") / np.sqrt(width // HEADS)', ' precision="highest")'),
            Diff("decoder", " * HEAD_WIDTH**-0.5", " * HEAD_WIDTH**-1.0"),
            Diff("decoder", " * HEAD_WIDTH**-0.5", ""),
        ),
        ("maxtext#2294", "torch: scaled_dot_product_attention"),
        _scales,
    ),
    Mistake(
        "F101",
        "softmax-axis",
        "the softmax of {place} is over axis {value}, the reference's over {was}",
        "Over the queries instead of the keys, or over the batch, a softmax gives shares of the right shape that sum "
        "to one along the wrong axis.",
        (
            Diff(
                "decoder",
                "nn.softmax(jnp.where(causal, scores, -jnp.inf))",
                "nn.softmax(jnp.where(causal, scores, -jnp.inf), axis=-2)",
            ),
            Diff("regression", "nn.log_softmax(mixture)", "nn.log_softmax(mixture, axis=0)"),
        ),
        ("jax: nn.softmax",),
        argument("softmax log_softmax", "dim", -1, (-2, -1, 0, 1)),
    ),
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
        "{place} sees only the last {value} positions in the port, the reference all before it",
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
        at(_causal, remasked(_window), (1, 2, 3, 4, 5, 6, 7, 8, 16, 32, 64)),
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
        "F110",
        "rotary-base",
        "the base of the rotary frequencies of {place} is {value}, the reference's is {was}",
        "10000 in the paper, 500000 in Llama 3, 1000000 in Code Llama and Qwen, another one for each kind of layer in "
        "Gemma 3. Exponents of i/width instead of 2i/width are a base of its root. The first positions agree, and the "
        "error grows with the distance.",
        (
            Diff("decoder", "frequencies = ROPE_BASE **", "frequencies = 500000.0 **"),
            Diff("decoder", "dtype=x.dtype) / width)", "dtype=x.dtype) / (2 * width))"),
        ),
        ("TransformerLens#910", "maxtext#2294"),
        argument("rpow", "base", None, (10000.0, 500000.0, 1000000.0, 100.0, 1e8), "log"),
    ),
    Mistake(
        "F111",
        "rotary-positions-scaled",
        "the rotary angles of {place} are × {value} in the port",
        "Longer contexts are reached by dividing positions, or only the low frequencies, by a factor. A scaling "
        "that is ignored, or applied twice, does nothing to the first position and more to every later one.",
        (
            Diff(
                "decoder",
                "jnp.outer(jnp.arange(length, dtype=x.dtype), ",
                "jnp.outer(jnp.arange(length, dtype=x.dtype) / 4, ",
            ),
        ),
        ("TransformerLens#910", "swiss-ai/Megatron-LM#85"),
        at(
            _turns,
            lambda value: lambda call: call.function(_first(call) * value),
            (0.5, 2.0, 0.25, 0.125, 4.0),
            "linear",
            1.0,
        ),
    ),
    Mistake(
        "F112",
        "rotary-turned-back",
        "the rotary embedding of {place} turns the other way in the port",
        "The sign of the sine decides the direction: exchanged, all angles are negative. The scores of one position "
        "with itself agree, and those of all others are as if keys came later.",
        (
            Diff(
                "decoder",
                "[first * cos - second * sin, second * cos + first * sin]",
                "[first * cos + second * sin, second * cos - first * sin]",
            ),
        ),
        ("TransformerLens#385",),
        at(_sines, lambda _: lambda call: -call.run()),
    ),
    Mistake(
        "F113",
        "rotary-interleaved",
        "the rotary embedding of {place} turns neighbours together in the port, the reference the first half with the "
        "second",
        "GPT-J and the paper turn features 2i and 2i+1 together, GPT-NeoX and Llama as transformers has it features i "
        "and i + width/2. Weights come in either order: taken without the permutation that belongs to them, the first "
        "position is right, and the error grows with the distance.",
        (
            Diff(
                "decoder",
                "first, second = jnp.split(x, 2, axis=-1)\n"
                "    return jnp.concatenate([first * cos - second * sin, second * cos + first * sin], axis=-1)",
                "first, second = x[..., ::2], x[..., 1::2]\n"
                "    return jnp.stack([first * cos - second * sin, second * cos + first * sin], -1).reshape(x.shape)",
            ),
        ),
        ("maxtext#581", "maxtext#2294"),
        at(_interleaved, _pairwise),
    ),
    Mistake(
        "F114",
        "rotary-missing",
        "queries or keys of {place} are not turned in the port",
        "Both have to be turned for their product to depend on the distance. Turned alone, or not at all, position "
        "enters as an absolute one, or not.",
        (
            Diff("decoder", "grouped, rotate(k), precision", "grouped, k, precision"),
            Diff("decoder", "grouped = rotate(q).reshape(", "grouped = q.reshape("),
        ),
        ("maxtext#3112",),
        at(_turns, _unturned),
    ),
    Mistake(
        "F115",
        "grouped-heads-tiled",
        "the keys and values that {place} repeats for its queries are repeated in another order in the port",
        "With fewer heads of keys than of queries, neighbouring queries share one: a, a, b, b, which is "
        "`repeat_interleave` and `jnp.repeat`. `tile`, torch's `repeat`, gives a, b, a, b. With one head of keys, or "
        "as many as of queries, both agree.",
        (
            Diff("", "k = jnp.repeat(k, groups, axis=2)", "k = jnp.tile(k, (1, 1, groups, 1))"),
            Diff(
                "decoder",
                "grouped = rotate(q).reshape(batch, length, KV_HEADS, HEADS // KV_HEADS, HEAD_WIDTH)\n"
                '        scores = jnp.einsum("bqkgd,bskd->bkgqs", grouped, rotate(k), precision="highest")'
                " * HEAD_WIDTH**-0.5\n"
                "        causal = jnp.tril(jnp.ones((length, length), bool))\n"
                "        weights = nn.softmax(jnp.where(causal, scores, -jnp.inf))\n"
                '        attended = jnp.einsum("bkgqs,bskd->bqkgd",',
                "grouped = rotate(q).reshape(batch, length, HEADS // KV_HEADS, KV_HEADS, HEAD_WIDTH)\n"
                '        scores = jnp.einsum("bqgkd,bskd->bkgqs", grouped, rotate(k), precision="highest")'
                " * HEAD_WIDTH**-0.5\n"
                "        causal = jnp.tril(jnp.ones((length, length), bool))\n"
                "        weights = nn.softmax(jnp.where(causal, scores, -jnp.inf))\n"
                '        attended = jnp.einsum("bkgqs,bskd->bqgkd",',
            ),
        ),
        ("torch: repeat_interleave", "numpy: tile"),
        calls("repeat_interleave repeat", lambda call, _: _repeated(call), when=_repeats),
    ),
    Mistake(
        "F116",
        "heads-merged-otherwise",
        "{place} puts its heads together with {value} in the port",
        "What the heads give has to be (batch, length, heads, head width) before it is reshaped to (batch, length, "
        "width). Without the axes exchanged, the reshape gives the same shape and mixes positions with heads.",
        (
            Diff("decoder", '"bkgqs,bskd->bqkgd"', '"bkgqs,bskd->bkgqd"'),
            Diff("transformer", '"bhqk,bkhd->bqhd"', '"bhqk,bkhd->bhqd"'),
            Diff("transformer", '"bhqk,bkhd->bqhd"', '"bhqk,bkhd->bqdh"'),
        ),
        ("torch: nn.MultiheadAttention",),
        at(_merges, _merged_otherwise, ("width before heads", "heads before positions", "heads before batch")),
    ),
    Mistake(
        "F117",
        "residual-from-normed",
        "what is added to {place} is the normalised input in the port, in the reference the input itself",
        "`x = norm(x)` before `x = x + attention(x)` overwrites what the residual needs. Depth is no longer passed by "
        "an identity; small networks train nearly as well.",
        (
            Diff("transformer", "x = x + dropout(SelfAttention", "x = normed + dropout(SelfAttention"),
            Diff("decoder", "return x + Dense(x.shape[-1]", "return normed + Dense(x.shape[-1]"),
            Diff(
                "decoder",
                'x = x + Attention(name="attention")(RMSNorm(name="attention_norm")(x))',
                'x = RMSNorm(name="attention_norm")(x)\n        x = x + Attention(name="attention")(x)',
            ),
        ),
        ("torch: nn.TransformerEncoderLayer, norm_first",),
        _around_norms(_from_normed),
    ),
    Mistake(
        "F118",
        "post-norm",
        "the sum of {place} is normalised after it in the port, its input before it in the reference",
        "The first transformers normalise after each sum, later ones before each part. The parameters are the same, so "
        "that a flag (`norm_first`, `pre_norm`) is all that tells them apart.",
        (
            Diff(
                "transformer",
                'normed = LayerNorm(name="attention_norm")(x)\n'
                '        x = x + dropout(SelfAttention(name="attention")(normed, padding))',
                'x = LayerNorm(name="attention_norm")(x + dropout(SelfAttention(name="attention")(x, padding)))',
            ),
            Diff(
                "decoder",
                'x = x + Attention(name="attention")(RMSNorm(name="attention_norm")(x))',
                'x = RMSNorm(name="attention_norm")(x + Attention(name="attention")(x))',
            ),
        ),
        ("torch: nn.TransformerEncoderLayer, norm_first",),
        _around_norms(_after_sum),
    ),
    Mistake(
        "F119",
        "norm-unused",
        "what {place} computes is not used in the port: its input goes on unnormalised",
        "A last normalisation before the head, or one of queries and keys, is easily left out, or computed and not "
        "assigned. Its parameters load and are told again, and have no gradient.",
        (
            Diff("transformer", 'x = LayerNorm(name="norm")(x)', 'LayerNorm(name="norm")(x)'),
            Diff(
                "decoder",
                'return Dense(VOCABULARY, name="lm_head")(RMSNorm(name="norm")(x))',
                'RMSNorm(name="norm")(x)\n        return Dense(VOCABULARY, name="lm_head")(x)',
            ),
            Diff("decoder", 'normed = RMSNorm(name="mlp_norm")(x)', 'normed, _ = x, RMSNorm(name="mlp_norm")(x)'),
        ),
        ("HF#18273",),
        modules(_unused, lambda module: _is_norm(module) and not isinstance(module, nn.modules.batchnorm._BatchNorm)),
    ),
    Mistake(
        "F120",
        "embedding-scaled",
        "what {place} looks up is × {value} in the port",
        "The first transformers, T5X and Gemma multiply embeddings by the root of their width, BERT and Llama do not; "
        "flax's examples do both. Gemma's factor is rounded to bfloat16 besides.",
        (
            Diff("transformer", "x = embedding[tokens] +", "x = embedding[tokens] * WIDTH**0.5 +"),
            Diff("decoder", 'name="embedding")(tokens)', 'name="embedding")(tokens) * WIDTH**0.5'),
            Diff("rnn", "x = dropout(table[tokens])", "x = dropout(table[tokens] * EMBEDDED**0.5)"),
        ),
        ("litgpt#1031", "HF#29402"),
        _embedded,
    ),
    Mistake(
        "F121",
        "tied-output-scaled",
        "what {place} multiplies with the shared embedding is × {value} in the port",
        "T5 divides by the root of the width before a head that shares the embedding, and does not where the head has "
        "its own weight. Logits are then √width too small or too large, and so is the loss.",
        (
            Diff("transformer", '"btd,vd->btv", x, embedding', '"btd,vd->btv", x / WIDTH**0.5, embedding'),
            Diff("transformer", '"btd,vd->btv", x, embedding', '"btd,vd->btv", x * WIDTH**0.5, embedding'),
        ),
        ("transformers: T5, tie_word_embeddings",),
        _tied_outputs,
    ),
    Mistake(
        "F122",
        "pooled-over-padding",
        "the mean over steps in {place} {value} in the port",
        "A mean over a sequence has to leave padding out of its sum and of the number that it divides by. A plain "
        "`mean` does neither. Batches of one length hide it.",
        (
            Diff(
                "rnn",
                "jnp.sum(x * present[..., None], axis=1) / lengths[:, None].astype(x.dtype)",
                "x.mean(axis=1)",
            ),
            Diff("rnn", "jnp.sum(x * present[..., None], axis=1)", "jnp.sum(x, axis=1)"),
            Diff("rnn", "/ lengths[:, None].astype(x.dtype)", "/ tokens.shape[1]"),
        ),
        ("algoperf#314", "algoperf#318"),
        at(
            _pools,
            _pooled,
            (
                "has padding in its sum and in the number that it divides by",
                "has padding in its sum",
                "is divided by the number of all steps",
            ),
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
