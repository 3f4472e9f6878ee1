"""What is updated, when, and what is kept for the next update."""

from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from parity.mistakes.mistake import Diff, Mistake, Subject, Try
from parity.mistakes.optimizers import rules
from parity.mistakes.optimizers.groups import KINDS, by_name, kind_of
from parity.mistakes.optimizers.kinds import by_rule
from parity.mistakes.optimizers.mirrors import MLP, UNET
from parity.mistakes.optimizers.stepped import Stepped, innermost, stepped
from parity.mistakes.tries import program, several
from parity.reference.program import Reference
from parity.reference.rewrite import Rewrite


def _only(rate: Callable[[str], bool]) -> Rewrite:
    """A reference that updates only some parameters."""
    return by_name(lambda name, param, group: {} if rate(name) else None)


def _not_updated(subject: Subject) -> Iterator[Try]:
    """A parameter, a module with all in it, a kind of parameters, or all but a module."""
    moved = {id(param) for group in subject.optimizer.param_groups for param in group["params"]}
    names = [name for name, param in subject.module.named_parameters() if id(param) in moved]
    sets: dict[str, frozenset[str]] = {}
    for name in names:
        parts = name.split(".")
        for end in range(1, len(parts) + 1):
            place = ".".join(parts[:end])
            sets[place] = frozenset(one for one in names if f"{one}.".startswith(f"{place}."))
    for kind in KINDS:
        sets[f"all {kind}"] = frozenset(name for name in names if kind_of(subject.module, name) == kind)
    for name in names:
        kind = type(subject.module.get_submodule(name.rpartition(".")[0])).__name__
        sets[f"every {kind}"] = sets.get(f"every {kind}", frozenset()) | {name}
    for place, held in list(sets.items()):
        sets[f"all but {place}"] = frozenset(names) - held
    told: set[frozenset[str]] = {frozenset()}
    for place, held in sets.items():
        if held not in told and len(held) < len(names):
            told.add(held)
            yield Try(place, lambda _, held=held: _only(lambda name: name not in held), size=len(held))  # type: ignore[misc]


def _with_unused(optimizer: Stepped) -> None:
    """A gradient of zero where torch has none."""
    unused = [param for group in optimizer.param_groups for param in group["params"] if param.grad is None]
    for param in unused:
        param.grad = torch.zeros_like(param)
    optimizer.inner.step()
    for param in unused:
        param.grad = None


def _frozen(module: torch.nn.Module, optimizer: torch.optim.Optimizer) -> list[Tensor]:
    """Parameters that training leaves alone."""
    moved = {id(param) for group in optimizer.param_groups for param in group["params"] if param.requires_grad}
    return [param for param in module.parameters() if id(param) not in moved]


def _unfrozen(reference: Reference, _: Any) -> Reference:
    def optimizer(module: Any) -> torch.optim.Optimizer:
        made = reference.optimizer(module)
        known = {id(param) for group in made.param_groups for param in group["params"]}
        frozen = _frozen(module, made)
        for param in frozen:
            param.requires_grad_(True)
        made.param_groups[0]["params"] += [param for param in frozen if id(param) not in known]
        return made

    return replace(reference, optimizer=optimizer)


def _standing(optimizer: Stepped) -> None:
    """No step at all."""


def _late(optimizer: Stepped) -> None:
    """The step before is taken now, this one with the next."""
    before = [(param, param.clone()) for param, _ in optimizer.params()]
    optimizer.inner.step()
    for param, was in before:
        state = optimizer.state[param]
        made, taken = param - was, state.get("taken", torch.zeros_like(param))
        state["taken"] = made
        param.copy_(was + taken)


def _forgetful(reference: Reference, _: Any) -> Reference:
    """Every step is the first one: of the optimizer, and of its schedule."""

    class Still:
        def step(self) -> None:
            pass

    def do(optimizer: Stepped) -> None:
        inner = innermost(optimizer)
        if optimizer.count == 1:
            kept[:] = [
                (param, {name: one.clone() if isinstance(one, Tensor) else one for name, one in state.items()})
                for param, state in inner.state.items()
            ]
        inner.state.clear()
        for param, state in kept:
            inner.state[param] = {name: one.clone() if isinstance(one, Tensor) else one for name, one in state.items()}
        optimizer.inner.step()

    kept: list[tuple[Tensor, dict[str, Any]]] = []
    make = reference.scheduler

    def scheduler(optimizer: torch.optim.Optimizer) -> Still:
        assert make is not None
        make(optimizer)
        return Still()

    return replace(stepped(do)(reference), scheduler=scheduler if make else None)


def _gathered(reference: Reference, value: Any) -> Reference:
    """Gradients of several steps are gathered before the optimizer moves; its schedule counts its moves."""
    count, summed = value

    def optimizer(module: Any) -> torch.optim.Optimizer:
        sums: dict[int, Tensor] = {}

        def do(own: Stepped) -> None:
            for param, _ in own.params():
                assert param.grad is not None
                part = param.grad if summed else param.grad / count
                sums[id(param)] = sums[id(param)] + part if id(param) in sums else part.clone()
            if own.count % count:
                return
            for param, _ in own.params():
                param.grad = sums.pop(id(param))
            if reference.clip is not None:
                reference.clip(module)
            own.inner.step()

        return Stepped(reference.optimizer(module), do)

    make = reference.scheduler

    class Slow:
        def __init__(self, inner: Any) -> None:
            self.inner, self.count = inner, 0

        def step(self) -> None:
            self.count += 1
            if self.count % count == 0:
                self.inner.step()

    def scheduler(own: torch.optim.Optimizer) -> Slow:
        assert make is not None
        return Slow(make(own))

    return replace(reference, optimizer=optimizer, clip=None, scheduler=scheduler if make else None)


_APPLIED = '    params = optax.apply_updates(variables["params"], updates)'
_UPDATED = '    updates, opt_state = optimizer.update(grads, opt_state, variables["params"])'


def _held(*layers: str) -> str:
    held = ", ".join(f'"{layer}": variables["params"]["{layer}"]' for layer in layers)
    return f"{_APPLIED}\n    params = {{**params, {held}}}"


MISTAKES = (
    Mistake(
        "O032",
        "not-updated",
        "{place} is not updated",
        "A mask, a label of `multi_transform`, `stop_gradient` or a filter by names leaves parameters out that the "
        "reference trains; or a module is built twice and only one of them trained. Everything else learns around it.",
        (
            Diff("mlp", _APPLIED, _held("fc1")),
            Diff("convnet", _APPLIED, _held("depthwise")),
            Diff("transformer", _APPLIED, _held("head_bias")),
            Diff("rnn", _APPLIED, _held("embedding")),
            Diff("unet", _APPLIED, _held("up1")),
            Diff("decoder", _APPLIED, _held("embedding")),
            Diff("regression", _APPLIED, _held("amount_head")),
            Diff("mlp", _APPLIED, _held("fc1", "fc2", "fc3")),
            Diff("convnet", _APPLIED, _held("stem_norm", "norm")),
        ),
        ("HF#12409", "optax documentation: multi_transform"),
        _not_updated,
    ),
    Mistake(
        "O033",
        "nothing-updated",
        "no parameter is updated",
        "JAX's arrays do not change in place: what `apply_updates` returns has to be kept. A step that returns its old "
        "parameters runs, and reports plausible losses for ever.",
        tuple(
            Diff(host, f"{_APPLIED}\n", '    params = variables["params"]\n')
            for host in ("mlp", "convnet", "transformer", "rnn", "unet", "decoder", "regression")
        ),
        ("optax documentation: apply_updates",),
        program(lambda reference, _: stepped(_standing)(reference), place="the optimizer"),
    ),
    Mistake(
        "O034",
        "optimizer-state-forgotten",
        "the optimizer's state is not kept: every step is its first one",
        "`update` returns a new state beside the updates. Dropped, momentum never gathers, moments never average, and "
        "a schedule stays at its first learning rate. The first step is right.",
        tuple(
            Diff(host, _UPDATED, _UPDATED.replace("updates, opt_state", "updates, _"))
            for host in ("convnet", "mlp", "transformer", "rnn", "unet", "decoder", "regression")
        ),
        ("optax documentation: GradientTransformation.update",),
        program(_forgetful, place="the optimizer"),
    ),
    Mistake(
        "O035",
        "gradients-gathered",
        "gradients of {value} steps are gathered before the optimizer moves",
        "`optax.MultiSteps` averages over micro-batches and counts updates, not calls: a schedule within it runs k "
        "times slower. `apply_every` sums, and torch's loop sums, too, unless the loss is divided.",
        (
            Diff(
                "mlp",
                f"optimizer = optax.chain(\n{MLP}\n)",
                f"optimizer = optax.MultiSteps(optax.chain(\n{MLP}\n), every_k_schedule=2)",
            ),
            Diff(
                "unet",
                f"optimizer = optax.chain(\n{UNET}\n)",
                f"optimizer = optax.MultiSteps(optax.chain(\n{UNET}\n), every_k_schedule=2)",
            ),
        ),
        ("maxtext#812", "optax documentation: MultiSteps"),
        program(_gathered, ((2, False), (2, True), (3, False), (3, True)), place="the optimizer"),
    ),
    Mistake(
        "O055",
        "unused-parameter-updated",
        "{place} updates parameters that the loss does not use, whose gradient is zero; the reference passes them over",
        "A parameter that a batch does not reach has no gradient in torch, and the optimizer passes it over: it does "
        "not decay, and its moments stay. In JAX every leaf has a gradient; where it is zero AdamW still decays it.",
        (
            Diff(
                "",
                "optax.adamw(rate, weight_decay=0.01, mask=is_used)",
                "optax.adamw(rate, weight_decay=0.01)",
            ),
        ),
        ("torch documentation: Optimizer.zero_grad, set_to_none",),
        program(lambda reference, _: stepped(_with_unused)(reference), place="the optimizer"),
    ),
    Mistake(
        "O056",
        "frozen-parameter-trained",
        "{place} trains parameters too that are frozen in the reference",
        "`requires_grad = False` on an encoder, or an optimizer that is given the head alone, has no counterpart in a "
        "pytree: optax updates all that it is given, unless `multi_transform` or `masked` says otherwise.",
        (
            Diff(
                "",
                'optax.multi_transform({"trained": adam, "frozen": optax.set_to_zero()}, labels)',
                "adam",
            ),
        ),
        ("optax documentation: multi_transform", "torch documentation: Module.requires_grad_"),
        program(
            _unfrozen, place="the optimizer", when=lambda subject: bool(_frozen(subject.module, subject.optimizer))
        ),
    ),
    Mistake(
        "O060",
        "updates-a-step-late",
        "every update is applied one step late, and the first one is nothing",
        "A step that returns the updates of the step before looks like a warm-up; optax.rprop does so (its update "
        "returns what its state held), and so do loops that apply gradients while the next ones are computed.",
        (Diff("", "apply_updates(params, updates)", "apply_updates(params, previous_updates)"),),
        ("optax: scale_by_rprop",),
        several(
            by_rule(rules.late_rprop, torch.optim.Rprop),
            program(lambda reference, _: stepped(_late)(reference), place="the optimizer"),
        ),
    ),
)
