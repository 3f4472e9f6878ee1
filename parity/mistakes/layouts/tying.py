"""Parameters with two names: tied by mistake, not tied, or with half of their gradient."""

from collections.abc import Iterator
from typing import Any

from parity.mistakes.layouts.misread import given_to, renamed
from parity.mistakes.mistake import Diff, Mistake, Subject
from parity.mistakes.tries import at
from parity.reference.rewrite import Site


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


MISTAKES = (
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
