"""Which parameters decay."""

import itertools
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from parity.mistakes.mistake import Diff, Mistake, Subject, Tries, Try
from parity.mistakes.optimizers.groups import KINDS, by_name, decay_of, kind_of
from parity.mistakes.optimizers.stepped import Group
from parity.mistakes.tries import program
from parity.reference.program import Reference


def _masked(decay: bool) -> Tries:
    """Parameters of a kind decay in the port alone, or in the reference alone."""

    def tries(subject: Subject) -> Iterator[Try]:
        most, module = decay_of(subject), subject.module
        if not most:
            return
        decays = {id(param): bool(g["weight_decay"]) for g in subject.optimizer.param_groups for param in g["params"]}
        found: dict[str, list[str]] = {}
        for name, param in module.named_parameters():
            if decays.get(id(param)) is (not decay):
                found.setdefault(kind_of(module, name), []).append(name)
        sets: dict[str, list[str]] = {kind: found[kind] for kind in KINDS if kind in found}
        several = [kinds for count in range(2, len(sets)) for kinds in itertools.combinations(sets, count)]
        sets |= {" and ".join(kinds): [name for kind in kinds for name in sets[kind]] for kinds in several}
        every = [name for names in found.values() for name in names]
        sets["all the others"] = every
        for name in every:
            sets[name] = [name]
        told: list[list[str]] = []
        for place, names in sets.items():
            if names and sorted(names) not in told:
                told.append(sorted(names))
                # Where everything decays, to take it from all is no mask.
                if decay or len(names) < len(decays):
                    value = most if decay else 0.0
                    change = lambda name, param, group, names=names, value=value: (  # noqa: E731
                        {"weight_decay": value} if name in names else {}
                    )
                    yield Try(place, lambda _, change=change: by_name(change), size=len(names))  # type: ignore[misc]

    return tries


def _flipped(reference: Reference, _: Any) -> Reference:
    def change(name: str, param: Tensor, group: Group) -> Group:
        return {"weight_decay": 0.0 if group["weight_decay"] else most[0]}

    def optimizer(module: Any) -> torch.optim.Optimizer:
        most[:] = [max(group["weight_decay"] for group in reference.optimizer(module).param_groups)]
        return made(module)

    most: list[float] = []
    flipped = by_name(change)(reference)
    made = flipped.optimizer
    return replace(flipped, optimizer=optimizer)


def _is_masked(subject: Subject) -> bool:
    decays = {bool(group.get("weight_decay")) for group in subject.optimizer.param_groups}
    return decays == {True, False}


MISTAKES = (
    Mistake(
        "O004",
        "decay-of-all-parameters",
        "{place} decay in the port, not in the reference",
        "Biases, scales of norms and often embeddings are exempt from decay in one group of the reference's optimizer; "
        "optax needs a mask for that, and without one decays everything. A mask made by names misses what flax calls "
        "otherwise: `scale` where torch has `weight`, tuples where one looks for dotted strings.",
        (
            Diff("transformer", "weight_decay=0.05, mask=decays", "weight_decay=0.05"),
            Diff("transformer", 're.search("norm|bias",', 're.search("bias",'),
            Diff("decoder", 'lambda path, _: path[-1] == "kernel", params', "lambda path, _: True, params"),
            Diff("decoder", 'path[-1] == "kernel", params', 'path[-1] != "scale", params'),
            Diff("convnet", "optax.add_decayed_weights(1e-2, mask=kernels)", "optax.add_decayed_weights(1e-2)"),
            Diff("regression", "adamax(8e-3, weight_decay=0.0)", "adamax(8e-3, weight_decay=1e-2)"),
        ),
        ("HF#11936", "HF#18273", "HF#12409", "rotobart#25"),
        _masked(True),
    ),
    Mistake(
        "O005",
        "decay-masked",
        "{place} do not decay in the port, in the reference they do",
        "A mask that exempts biases and norms is so common that it is added without looking; torch's `weight_decay` "
        "without groups decays every parameter.",
        (
            Diff(
                "mlp",
                "optax.add_decayed_weights(5e-4)",
                "optax.add_decayed_weights(5e-4, lambda params: jax.tree.map(lambda p: p.ndim > 1, params))",
            ),
            Diff(
                "unet",
                "optax.add_decayed_weights(1e-3)",
                "optax.add_decayed_weights(1e-3, lambda params: jax.tree.map(lambda p: p.ndim > 1, params))",
            ),
            Diff("transformer", 're.search("norm|bias",', 're.search("norm|bias|tokens|positions",'),
            Diff("decoder", 'path[-1] == "kernel", params', 'path[-1] == "kernel" and path[0] != "lm_head", params'),
            Diff("convnet", "lambda leaf: leaf.ndim > 1, params", "lambda leaf: leaf.ndim == 4, params"),
        ),
        ("HF#12087", "torch documentation: SGD, weight_decay"),
        _masked(False),
    ),
    Mistake(
        "O006",
        "decay-mask-flipped",
        "the parameters that decay and those that do not are swapped",
        "A mask says what decays in optax, and in other code what is exempt. The loss still falls; after a zero "
        "gradient biases and norms have moved, kernels have not.",
        (
            Diff(
                "transformer",
                'lambda path, _: not re.search("norm|bias", "/".join(map(str, path)))',
                'lambda path, _: bool(re.search("norm|bias", "/".join(map(str, path))))',
            ),
            Diff("decoder", 'path[-1] == "kernel", params', 'path[-1] != "kernel", params'),
            Diff("convnet", "lambda leaf: leaf.ndim > 1, params", "lambda leaf: leaf.ndim == 1, params"),
            Diff(
                "regression",
                '"heads": adamax(8e-3, weight_decay=0.0), "others": adamax(4e-3, weight_decay=1e-2)',
                '"heads": adamax(8e-3, weight_decay=1e-2), "others": adamax(4e-3, weight_decay=0.0)',
            ),
        ),
        ("HF#11936", "HF#12087"),
        program(_flipped, place="the optimizer", when=_is_masked),
    ),
)
