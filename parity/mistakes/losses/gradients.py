"""What the gradient goes through, and where it is zero, a half or no number."""

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor

from parity.mistakes.mistake import Diff, Mistake, Subject, Try
from parity.mistakes.tries import calls
from parity.reference.rewrite import Call

MODULES = "embedding linear"


def _half_at_zero(call: Call, _: Any) -> Tensor:
    return torch.maximum(call["input"] if "input" in call.arguments else call["0"], torch.zeros(()))


def _tied(subject: Subject) -> Iterator[Try]:
    """One of the uses of a parameter that has several names is kept from the gradient."""
    named = list(subject.module.named_parameters(remove_duplicate=False))
    tied = {id(one) for name, one in named if any(one is other and name != also for also, other in named)}
    for function in MODULES.split():
        yield from calls(
            function,
            lambda call, _: call.run(weight=call["weight"].detach()),
            when=lambda call: id(call["weight"]) in tied,
        )(subject)


def _constant_statistics(call: Call, _: Any) -> Tensor:
    values = call["input"]
    axes = [axis for axis in range(values.ndim) if axis != 1]
    shape = [-1 if axis == 1 else 1 for axis in range(values.ndim)]
    with torch.no_grad():
        call.run()
        mean, var = values.mean(axes), values.var(axes, unbiased=False)
    eps = 1e-5 if call["eps"] is None else call["eps"]
    normal: Tensor = (values - mean.reshape(shape)) * torch.rsqrt(var + eps).reshape(shape)
    if call["weight"] is not None:
        normal = normal * call["weight"].reshape(shape) + call["bias"].reshape(shape)
    return normal


MISTAKES = (
    Mistake(
        "C028",
        "half-gradient-at-zero",
        "the gradient of the rectifier at {place} is ½ where its input is 0, the reference's is 0",
        "`jnp.maximum(x, 0)` shares the gradient at a tie, jax.nn.relu and torch's relu have 0 there (torch.maximum "
        "has ½, too). Inputs are exactly 0 more often than one thinks: zero padding, zero biases, pixels of a black "
        "border. It shows where a program's own batches, or cases that it adds, have such a tie.",
        (Diff("", 'nn.relu(dense(WIDTH, name="fc1")(x))', 'jnp.maximum(dense(WIDTH, name="fc1")(x), 0)'),),
        ("jax#37821", "jax#2342", "torch#184572"),
        calls("relu", _half_at_zero),
    ),
    Mistake(
        "C029",
        "tied-gradient-once",
        "the gradient does not pass through {place}'s use of a weight that is used twice",
        "A tied embedding is one parameter with two uses, and its gradient the sum of both. A port that copies it, or "
        "stops the gradient of one use, trains a different network that starts the same.",
        (
            Diff(
                "transformer",
                'jnp.einsum("btd,vd->btv", x, embedding,',
                'jnp.einsum("btd,vd->btv", x, jax.lax.stop_gradient(embedding),',
            ),
            Diff("transformer", "x = embedding[tokens]", "x = jax.lax.stop_gradient(embedding)[tokens]"),
        ),
        ("flax documentation: nn.Embed, attend",),
        _tied,
    ),
    Mistake(
        "C030",
        "statistics-without-gradient",
        "the gradient does not pass through the mean and variance of {place}",
        "In training, batch normalisation is differentiated through its statistics, too. A port that computes them "
        "apart, or that normalises by the running ones, loses these terms: outputs and loss agree, the gradient does "
        "not.",
        (
            Diff(
                "convnet",
                "mean, var = x.mean(axes), x.var(axes)",
                "mean, var = jax.lax.stop_gradient((x.mean(axes), x.var(axes)))",
            ),
            Diff(
                "regression",
                "mean, var = x.mean(axis=0), x.var(axis=0)",
                "mean, var = jax.lax.stop_gradient((x.mean(axis=0), x.var(axis=0)))",
            ),
        ),
        ("jax documentation: lax.stop_gradient",),
        calls("batch_norm", _constant_statistics, when=lambda call: bool(call["training"])),
    ),
    Mistake(
        "C031",
        "gradient-not-stopped",
        "the gradient passes through {place}, where the reference detaches",
        "`.detach()` and `torch.no_grad()` leave no trace in the values: targets, teachers and straight-through "
        "estimators have to be wrapped in jax.lax.stop_gradient by hand. The loss agrees, the gradient has a term too "
        "many.",
        (Diff("", "target = jax.lax.stop_gradient(teacher(x))", "target = teacher(x)"),),
        ("jax documentation: lax.stop_gradient",),
        calls("detach", lambda call, _: call["0"]),
    ),
    Mistake(
        "C032",
        "padding-row-trained",
        "the padding's row of {place} gets a gradient, the reference's does not",
        "`padding_idx` of torch's embedding keeps the gradient from one row; flax's Embed has no such argument. Where "
        "what is read at padding never reaches the loss, both agree.",
        (Diff("", "table = table.at[PAD].set(jax.lax.stop_gradient(table[PAD]))", "table = table"),),
        ("torch documentation: Embedding, padding_idx",),
        calls(
            "embedding",
            lambda call, _: call.run(padding_idx=None),
            when=lambda call: call["padding_idx"] not in (None, -1),
        ),
    ),
    Mistake(
        "C033",
        "loss-in-bfloat16",
        "the loss at {place} is computed in bfloat16",
        "Logits that come out of a bfloat16 network go into the log-softmax as they are, where the reference casts "
        "them first. Early in training it hardly matters; when predictions become confident the gradient of the right "
        "class is 0 or a whole unit in the last place. It is caught, but not named: a rewrite in exact arithmetic "
        "cannot round as XLA does.",
        (
            Diff(
                "convnet",
                'integer_labels(logits, batch["labels"]).mean()',
                'integer_labels(logits.astype(jnp.bfloat16), batch["labels"]).mean().astype(logits.dtype)',
            ),
            Diff(
                "decoder",
                'integer_labels(logits[:, :-1], batch["tokens"][:, 1:]).mean()',
                'integer_labels(logits[:, :-1].astype(jnp.bfloat16), batch["tokens"][:, 1:]).mean()'
                ".astype(logits.dtype)",
            ),
        ),
        ("flax#677",),
    ),
    Mistake(
        "C034",
        "gradient-of-a-norm-at-zero",
        "the gradient of a norm at zero is not a number",
        "torch defines the gradient of `.norm()` at 0 as 0, jnp.linalg.norm's is NaN, and `where` does not help, for "
        "the NaN of the branch not taken comes through: the argument has to be replaced before the root. It takes a "
        "row of zeros to see it. It is caught where it occurs, and told as what it is, a NaN.",
        (Diff("", "norm = jnp.sqrt(jnp.where(square > 0, square, 1.0)) * (square > 0)", "norm = jnp.linalg.norm(x)"),),
        ("jax#3058", "jax#21723", "torch#2775"),
    ),
)
