"""Heads: how keys are shared among them, and how they are put together again."""

from collections.abc import Callable, Iterator
from typing import Any

from torch import Tensor

from parity.mistakes.attention.scores import attending, first_argument
from parity.mistakes.mistake import Diff, Mistake, Subject
from parity.mistakes.tries import at, calls
from parity.reference.rewrite import Call, Site


def _is_real(values: Tensor) -> bool:
    return values.dtype.is_floating_point


def _repeated(call: Call) -> Any:
    values, result = first_argument(call), call.run()
    times = [new // old for new, old in zip(result.shape, values.shape, strict=True)]
    if call.site.function == "repeat_interleave":
        return values.repeat(times)
    dim = next(at for at, number in enumerate(times) if number > 1)
    return values.repeat_interleave(times[dim], dim)


def _repeats(call: Call) -> bool:
    values, result = first_argument(call), call.run()
    if not isinstance(values, Tensor) or values.dim() != result.dim() or values.dim() < 3:
        return False
    grown = [at for at, (new, old) in enumerate(zip(result.shape, values.shape, strict=True)) if new != old]
    return len(grown) == 1 and values.shape[grown[0]] > 1


def _merges(subject: Subject) -> Iterator[Site]:
    """Where heads are put together again: (…, heads, width) to (…, heads × width)."""
    inside = attending(subject)
    for site, call in subject.calls.items():
        values = first_argument(call) if call.arguments else None
        if site.module not in inside or site.function not in ("reshape", "view", "flatten"):
            continue
        if isinstance(values, Tensor) and values.dim() == 4 and values.shape[2] > 1 and _is_real(values):
            together = (*values.shape[:2], values.shape[2] * values.shape[3])
            if call.run().shape == together:
                yield site


def _merged_otherwise(value: str) -> Callable[[Call], Any]:
    def act(call: Call) -> Any:
        values, shape = first_argument(call), call.run().shape
        if value == "width before heads":
            return values.transpose(2, 3).reshape(shape)
        if value == "heads before positions":
            return values.transpose(1, 2).reshape(shape)
        return values.permute(1, 2, 0, 3).reshape(shape[1], shape[0], shape[2]).transpose(0, 1)

    return act


MISTAKES = (
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
)
