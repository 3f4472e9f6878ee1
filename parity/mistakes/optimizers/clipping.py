"""Gradient clipping: by what, to what, when, and not at all."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from parity.mistakes.mistake import Diff, Mistake, Subject, Tries, Try
from parity.mistakes.optimizers.clips import Clip, clip_of, clipped
from parity.mistakes.optimizers.stepped import Stepped, changed
from parity.reference.program import Reference
from parity.reference.rewrite import Rewrite


def _clips(
    rewrite: Callable[[Clip, Any], Rewrite],
    values: Sequence[Any] = (None,),
    fit: Any = None,
    when: Callable[[Subject, Clip], bool] = lambda subject, clip: True,
    was: Callable[[Clip], Any] = lambda clip: None,
) -> Tries:
    """A reference that clips does it otherwise."""

    def tries(subject: Subject) -> Iterator[Try]:
        clip = clip_of(subject.reference)
        if clip is not None and when(subject, clip):
            own = was(clip)
            kept = tuple(value for value in values if value is None or value != own)
            yield Try("the gradients", lambda value: rewrite(clip, value), kept, fit, own)

    return tries


def _limits(subject: Subject) -> Iterator[Try]:
    """Other limits: usual ones, and those near the reference's."""
    own = clip_of(subject.reference)
    if own is not None:
        values = (own.limit / 2, own.limit * 2, 1.0, 0.1, 0.5, 5.0, 0.01)
        yield from _clips(
            lambda clip, value: _by(replace(clip, limit=value)), values, "log", was=lambda clip: clip.limit
        )(subject)


def _scales(subject: Subject, clip: Clip) -> bool:
    return clip.kind in ("norm", "maximum")


def _decays_in_gradient(subject: Subject, clip: Clip) -> bool:
    return any(
        group.get("weight_decay") and not group.get("decoupled_weight_decay")
        for group in subject.optimizer.param_groups
    )


def _after_decay(clip: Clip, _: Any) -> Rewrite:
    """Weight decay is added to the gradients, and both are clipped."""

    def do(optimizer: Stepped) -> None:
        params = list(optimizer.params())
        for param, group in params:
            assert param.grad is not None
            param.grad = param.grad + group["weight_decay"] * param
        clip([param.grad for param, _ in params if param.grad is not None])
        with changed(optimizer, lambda group: {"weight_decay": 0.0}):
            optimizer.inner.step()

    return _at_step(do)


def _of_updates(clip: Clip, _: Any) -> Rewrite:
    """What the optimizer adds to parameters is clipped, not the gradients."""

    def do(optimizer: Stepped) -> None:
        before = [(param, param.clone()) for param, _ in optimizer.params()]
        optimizer.inner.step()
        updates = [param - old for param, old in before]
        clip(updates)
        for (param, old), update in zip(before, updates, strict=True):
            param.copy_(old + update)

    return _at_step(do)


def _at_step(do: Callable[[Stepped], None]) -> Rewrite:
    def rewrite(reference: Reference) -> Reference:
        def optimizer(module: Any) -> torch.optim.Optimizer:
            return Stepped(reference.optimizer(module), do)

        return replace(reference, optimizer=optimizer, clip=None)

    return rewrite


def _by(clip: Clip, **how: Any) -> Rewrite:
    def run(grads: list[Tensor]) -> None:
        clip(grads, **how)

    return clipped(run)


_CONVNET = """    clip_by_global_max(0.1),
    optax.add_decayed_weights(1e-2, mask=kernels),"""
_TRANSFORMER = """    clip_by_global_norm(1.0),
    optax.adamw(learning_rate, weight_decay=0.05, mask=decays),"""
_RNN = """    optax.scale_by_rms(decay=0.9, eps=1e-6, eps_in_sqrt=False),
    optax.trace(decay=0.8),  # torch's momentum gathers steps before they meet the learning rate
    optax.scale_by_learning_rate(lambda step: 2e-3 * 0.9**step),"""
_FACTOR = "        factor = jnp.minimum(1.0, limit / (optax.global_norm(updates) + 1e-6))"
_SCALED = f"{_FACTOR}\n        return jax.tree.map(lambda leaf: leaf * factor, updates)"
_EACH = """        def clip(leaf: jax.Array) -> jax.Array:
            return leaf * jnp.minimum(1.0, limit / (jnp.linalg.norm(leaf) + 1e-6))

        return jax.tree.map(clip, updates)"""

MISTAKES = (
    Mistake(
        "O037",
        "clipping-missing",
        "{place} are not clipped, the reference's are",
        "`clip_grad_norm_` is a line of the training loop, not of the model or the optimizer, and is lost when the "
        "loop is rewritten. As long as gradients are small nothing shows; with Adam, which divides their size out, "
        "hardly ever.",
        (
            Diff("transformer", "    clip_by_global_norm(1.0),\n", ""),
            Diff("decoder", "    clip_by_global_norm(0.5),\n", ""),
            Diff("convnet", "    clip_by_global_max(0.1),\n", ""),
            Diff("rnn", "    optax.clip(0.02),\n", ""),
        ),
        ("algoperf#809",),
        _clips(lambda clip, _: clipped(None)),
    ),
    Mistake(
        "O038",
        "clipping-limit",
        "{place} are clipped at {value}, the reference's at {was}",
        "A limit of another config. Where gradients stay below both nothing shows.",
        (
            Diff("transformer", "clip_by_global_norm(1.0),", "clip_by_global_norm(0.3),"),
            Diff("decoder", "clip_by_global_norm(0.5),", "clip_by_global_norm(1.0),"),
            Diff("convnet", "clip_by_global_max(0.1),", "clip_by_global_max(0.05),"),
            Diff("rnn", "optax.clip(0.02),", "optax.clip(0.01),"),
        ),
        ("optax documentation: clip_by_global_norm",),
        _limits,
    ),
    Mistake(
        "O039",
        "clipping-by-other-measure",
        "{place} are clipped by {value}, the reference's by {was}",
        "optax.clip clamps every element, clip_by_global_norm scales all by one factor, and torch has "
        "`clip_grad_value_` and `clip_grad_norm_` with any norm, the infinite one, too. Clamping turns the gradient's "
        "direction. In terms of a test that looks at one layer, norms of one tensor and of all are easily confused.",
        (
            Diff("transformer", "clip_by_global_norm(1.0),", "optax.clip(1.0),"),
            Diff("convnet", "clip_by_global_max(0.1),", "optax.clip(0.1),"),
            Diff("rnn", "optax.clip(0.02),", "optax.clip_by_global_norm(0.02),"),
            Diff("decoder", "clip_by_global_norm(0.5),", "optax.clip(0.5),"),
            Diff("transformer", _SCALED, _EACH),
            Diff("decoder", _SCALED, _EACH),
            Diff("convnet", "clip_by_global_max(0.1),", "optax.clip_by_global_norm(0.1),"),
        ),
        ("optax documentation: clip, clip_by_global_norm", "torch documentation: clip_grad_norm_"),
        _clips(
            lambda clip, value: _by(replace(clip, kind=value), epsilon=0.0 if value == "norm" else 1e-6),
            ("each value", "norm", "maximum", "each tensor"),
            was=lambda clip: clip.kind,
        ),
    ),
    Mistake(
        "O040",
        "clipping-without-epsilon",
        "the norm by which {place} are scaled has {value} added, the reference's 1e-06",
        "torch divides by the norm + 1e-6, optax by the norm. The relative difference is 1e-6 over the norm, the same "
        "in all tensors, which matters where the limit is small, and where two runs are to agree to the last digits.",
        (
            Diff("transformer", "clip_by_global_norm(1.0),", "optax.clip_by_global_norm(1.0),"),
            Diff("decoder", "clip_by_global_norm(0.5),", "optax.clip_by_global_norm(0.5),"),
            Diff("convnet", "(largest + 1e-6)", "largest"),
        ),
        ("spd#643", "spd#645", "spd#821"),
        _clips(lambda clip, value: _by(clip, epsilon=value), (0.0,), when=_scales),
    ),
    Mistake(
        "O041",
        "clipping-also-enlarges",
        "{place} are scaled to the limit even where they are smaller",
        "Without `min(1, …)` gradients are normalised, not clipped: as long as they are larger than the limit both "
        "agree.",
        (
            Diff("transformer", _FACTOR, "        factor = limit / (optax.global_norm(updates) + 1e-6)"),
            Diff("decoder", _FACTOR, "        factor = limit / (optax.global_norm(updates) + 1e-6)"),
        ),
        ("optax documentation: normalize_by_update_norm",),
        _clips(lambda clip, _: _by(clip, always=True), when=_scales),
    ),
    Mistake(
        "O042",
        "clipping-after-decay",
        "{place} are clipped after weight decay was added to them, the reference's before",
        "The order of a chain decides. torch clips what backward gives, and its optimizer adds the decay after that.",
        (
            Diff(
                "convnet",
                _CONVNET,
                "    optax.add_decayed_weights(1e-2, mask=kernels),\n    clip_by_global_max(0.1),",
            ),
        ),
        ("kyleliang919/C-Optim#3", "optax documentation: chain"),
        _clips(_after_decay, when=_decays_in_gradient),
    ),
    Mistake(
        "O043",
        "updates-clipped",
        "the updates are clipped, not {place}",
        "Clipping at the end of a chain limits what is added to the parameters. An update of Adam is nearly always "
        "below such a limit, so that it is as if nothing were clipped.",
        (
            Diff(
                "transformer",
                _TRANSFORMER,
                "    optax.adamw(learning_rate, weight_decay=0.05, mask=decays),\n    clip_by_global_norm(1.0),",
            ),
            Diff(
                "rnn",
                f"    optax.clip(0.02),\n{_RNN}",
                f"{_RNN}\n    optax.clip(0.02),",
            ),
        ),
        ("optax documentation: chain",),
        _clips(_of_updates),
    ),
)
