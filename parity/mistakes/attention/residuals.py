"""Residual sums and the normalisations before, after and within them."""

from collections.abc import Callable, Iterator
from typing import Any

from torch import Tensor, nn

from parity.mistakes.mistake import Diff, Mistake, Subject, Tries, Try
from parity.mistakes.tries import changed, modules
from parity.reference.rewrite import Call, Edit, Rewrite, Site, chained, edited, places


def _is_norm(module: nn.Module) -> bool:
    return "norm" in type(module).__name__.lower()


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


MISTAKES = (
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
)
