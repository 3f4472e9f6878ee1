"""Parameters and their groups: of which kind they are, and other settings for some of them."""

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn

from parity.mistakes.mistake import Subject
from parity.mistakes.optimizers.stepped import Group, innermost
from parity.reference.program import Reference
from parity.reference.rewrite import Rewrite


def by_name(change: Callable[[str, Tensor, Group], Group | None]) -> Rewrite:
    """A reference whose optimizer has other settings for some parameters, or (None) not those parameters at all."""

    def rewrite(reference: Reference) -> Reference:
        def optimizer(module: Any) -> torch.optim.Optimizer:
            made = reference.optimizer(module)
            names = {id(param): name for name, param in module.named_parameters()}
            groups: list[Group] = []
            for group in made.param_groups:
                parts: list[tuple[Group, Group]] = []
                for param in group["params"]:
                    settings = change(names.get(id(param), ""), param, group)
                    if settings is None:
                        continue
                    part = next((part for other, part in parts if other == settings), None)
                    if part is None:
                        part = group | settings | {"params": []}
                        parts.append((settings, part))
                    part["params"].append(param)
                groups += [part for _, part in parts] or [group | {"params": []}]
            for one in (made, innermost(made)):
                one.param_groups[:] = groups
            return made

        return replace(reference, optimizer=optimizer)

    return rewrite


def kind_of(module: nn.Module, name: str) -> str:
    """`biases`, `scales of norms`, `embeddings` or `kernels`."""
    owner, _, last = name.rpartition(".")
    param = module.get_parameter(name)
    if "bias" in last:
        return "biases"
    if isinstance(module.get_submodule(owner), nn.Embedding):
        return "embeddings"
    return "kernels" if param.ndim > 1 else "scales of norms"


KINDS = ("biases", "scales of norms", "embeddings", "kernels")


def decay_of(subject: Subject) -> float:
    """The decay of the group that decays."""
    return float(max((group.get("weight_decay") or 0.0 for group in subject.optimizer.param_groups), default=0.0))
