"""The scales of embeddings and of the outputs that are tied to them."""

import math
from collections.abc import Iterator

from parity.mistakes.layouts.tying import tied_calls
from parity.mistakes.mistake import Diff, Mistake, Subject, Try
from parity.reference.rewrite import Edit, edited, places


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


MISTAKES = (
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
)
