"""Epochs of training: which batches, in which order, and which losses they give."""

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from parity.mistakes.epochs.batches import FILLINGS, Batches, full_batches, has_short, padded
from parity.mistakes.mistake import Diff, Mistake, Subject, Tries
from parity.mistakes.optimizers.stepped import Stepped
from parity.mistakes.tries import program
from parity.reference.program import Reference


def _trained(
    change: Callable[[Any, Any, Batches, Any, Callable[..., Tensor]], Tensor],
    values: tuple[Any, ...] = (None,),
    when: Callable[[Subject], bool] = lambda subject: True,
) -> Tries:
    """An epoch that does something else: `change(module, optimizer, batches, value, train_epoch)`."""

    def rewrite(reference: Reference, value: Any) -> Reference:
        own = reference.train_epoch
        assert own is not None
        return replace(
            reference, train_epoch=lambda module, optimizer, given: change(module, optimizer, given, value, own)
        )

    return program(
        rewrite,
        values,
        place="the epoch",
        when=lambda subject: subject.reference.train_epoch is not None and when(subject),
    )


ORDERS: dict[str, Callable[[Batches], Batches]] = {
    "the other way round": lambda given: given[::-1],
    "with the last first": lambda given: [given[-1], *given[:-1]],
    "with the first last": lambda given: [*given[1:], given[0]],
}


def _last_update_lost(module: Any, optimizer: Any, given: Batches, value: Any, own: Callable[..., Tensor]) -> Tensor:
    def do(stepped: Stepped) -> None:
        if stepped.count < len(given):
            stepped.inner.step()

    return own(module, Stepped(optimizer, do), given)


def _in_order(reference: Reference, _: Any) -> Reference:
    """The losses after the updates: those of the same batches once more."""
    own = reference.train_epoch
    assert own is not None

    def train_epoch(module: Any, optimizer: torch.optim.Optimizer, given: Batches) -> Tensor:
        after: list[Tensor] = []

        def do(stepped: Stepped) -> None:
            stepped.inner.step()
            after.append(reference.loss(module, given[stepped.count - 1]))

        own(module, Stepped(optimizer, do), given)
        return torch.stack(after)

    return replace(reference, train_epoch=train_epoch)


def _reset(module: Any, optimizer: Any, given: Batches, value: Any, own: Callable[..., Tensor]) -> Tensor:
    """The optimizer begins anew with every batch."""

    def do(stepped: Stepped) -> None:
        stepped.inner.state.clear()
        stepped.inner.step()

    return own(module, Stepped(optimizer, do), given)


MISTAKES = (
    Mistake(
        "E001",
        "short-batch-dropped",
        "the last batch of {place} is not trained on where it is short",
        "`drop_remainder=True`, or `len(data) // batch_size` steps, keep shapes static for jit and lose the remainder "
        "of every epoch. Data sets of round numbers have none. Where losses are compared their number differs, too.",
        (Diff("", "steps = -(-len(images) // BATCH)", "steps = len(images) // BATCH"),),
        ("flax#262", "tensorflow documentation: Dataset.batch, drop_remainder"),
        _trained(lambda module, optimizer, given, _, own: own(module, optimizer, full_batches(given)), when=has_short),
    ),
    Mistake(
        "E002",
        "short-batch-padded",
        "the last batch of {place} is filled up with {value}, which count",
        "Static shapes again: a batch that is padded for jit needs a mask in its loss, or what was added is trained "
        "on.",
        (Diff("", "loss = jnp.sum(losses * mask) / jnp.sum(mask)", "loss = jnp.mean(losses)"),),
        ("flax#262", "flax documentation: full eval"),
        _trained(
            lambda module, optimizer, given, value, own: own(module, optimizer, padded(given, value)),
            FILLINGS,
            has_short,
        ),
    ),
    Mistake(
        "E003",
        "batches-in-another-order",
        "the batches of {place} come {value}",
        "A loader that shuffles by itself, a permutation that is drawn again, an iterator that was advanced by a peek. "
        "Orders that are drawn at random are caught, but not named.",
        (Diff("", "for batch in batches:", "for batch in rng.permutation(batches):"),),
        ("torch documentation: DataLoader, shuffle",),
        _trained(
            lambda module, optimizer, given, value, own: own(module, optimizer, ORDERS[value](given)), tuple(ORDERS)
        ),
    ),
    Mistake(
        "E004",
        "last-update-lost",
        "the update of the last batch of {place} is lost",
        "A scan that returns the carry from before its last step, a checkpoint that is taken before the update, a loop "
        "that is one short: everything but the final parameters is right.",
        (
            Diff(
                "",
                "params, losses = jax.lax.scan(step, params, batches)",
                "params, losses = jax.lax.scan(step, params, batches[:-1])",
            ),
        ),
        ("sd-jax#6", "jax documentation: lax.scan"),
        _trained(_last_update_lost),
    ),
    Mistake(
        "E005",
        "loss-after-update",
        "the losses of {place} are computed after the update, the reference's before it",
        "`value_and_grad` gives the loss from before the update, at no cost. A loss that is computed once more with "
        "the new parameters is lower, and twice as dear; training is the same.",
        (
            Diff(
                "",
                "loss, grads = jax.value_and_grad(loss_fn)(params, batch)",
                "grads = jax.grad(loss_fn)(params, batch)\n    params = update(params, grads)\n"
                "    loss = loss_fn(params, batch)",
            ),
        ),
        ("jax documentation: value_and_grad", "spd#699"),
        program(_in_order, place="the epoch", when=lambda subject: subject.reference.train_epoch is not None),
    ),
    Mistake(
        "E006",
        "running-mean-of-losses",
        "the losses of {place} are means over all steps so far",
        "Progress bars show a running mean, and it is what gets logged. Curves are smoother and late.",
        (Diff("", "losses.append(loss)", "losses.append((sum(losses_so_far) + loss) / step)"),),
        ("keras documentation: metrics are averaged over an epoch",),
        _trained(
            lambda module, optimizer, given, _, own: (
                (losses := own(module, optimizer, given)).cumsum(0)
                / torch.arange(1, len(losses) + 1, dtype=losses.dtype)
            )
        ),
    ),
    Mistake(
        "E007",
        "optimizer-state-reset",
        "the optimizer of {place} begins anew with every batch",
        "`optimizer.init(params)` within the loop: moments and momentum are those of a first step for ever.",
        (
            Diff(
                "",
                "opt_state = optimizer.init(params)\nfor batch in batches:",
                "for batch in batches:\n    opt_state = optimizer.init(params)",
            ),
        ),
        ("sd-jax#5", "optax documentation: GradientTransformation.init"),
        _trained(_reset),
    ),
    Mistake(
        "E013",
        "schedule-stepped-per-epoch",
        "the schedule of an epoch is stepped once, the reference's after every update",
        "A schedule in optax counts updates; a torch loop may step it by the epoch. Between two epochs one is a "
        "staircase, the other a slope. It is caught in an epoch's updates, but not named there, for an epoch's "
        "schedule is the program's own affair; where the reference has its `scheduler`, `schedule-not-followed` names "
        "it.",
        (Diff("", "optax.adam(schedule)", "optax.adam(lambda count: schedule(count // steps_per_epoch))"),),
        ("mlx#1623",),
    ),
)
