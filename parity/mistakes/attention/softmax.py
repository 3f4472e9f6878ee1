"""The scale of scores, and the axis of their softmax."""

import math
from collections.abc import Iterator

from parity.mistakes.attention.scores import first_argument, products
from parity.mistakes.mistake import Diff, Mistake, Subject, Try
from parity.mistakes.tries import argument
from parity.reference.rewrite import Edit, edited, places


def _scales(subject: Subject) -> Iterator[Try]:
    """The scores times what a wrong scale makes of a right one."""
    found = list(products(subject))
    for name, group in places(found):
        one = subject.calls[next(site for site in found if site in group)]
        width, heads = float(first_argument(one).shape[-1]), float(one.run().shape[1])
        usual = (math.sqrt(width), 1 / math.sqrt(width), 1 / math.sqrt(heads), 1 / width, math.sqrt(heads), width)
        yield Try(
            subject.where(group, name),
            lambda value, group=group: edited(Edit(group, lambda call: call.run() * value)),  # type: ignore[misc]
            tuple(dict.fromkeys(value for value in usual if value != 1)),
            "log",
            1.0,
            len(group),
        )


MISTAKES = (
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
)
