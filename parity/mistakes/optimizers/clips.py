"""What a program does to its gradients before they are used."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from parity.reference.program import Reference
from parity.reference.rewrite import Rewrite


@dataclass(frozen=True)
class Clip:
    """What a program does to its gradients before they are used."""

    kind: str
    """By `norm` or `maximum` of all of them, of `each tensor`, or `each value`."""
    limit: float

    def __call__(self, grads: Sequence[Tensor], epsilon: float = 1e-6, always: bool = False) -> None:
        """Clips in place; `always` scales gradients up to the limit, too."""
        if self.kind == "each value":
            for grad in grads:
                grad.copy_(grad.clamp(-self.limit, self.limit))
            return
        if self.kind == "each tensor":
            for grad in grads:
                replace(self, kind="norm")([grad], epsilon, always)
            return
        sizes = [grad.abs().max() if self.kind == "maximum" else grad.square().sum() for grad in grads]
        size = torch.stack(sizes).max() if self.kind == "maximum" else torch.stack(sizes).sum().sqrt()
        factor = self.limit / (size + epsilon)
        for grad in grads:
            grad.copy_(grad * (factor if always else factor.clamp(max=1.0)))


def clip_of(reference: Reference) -> Clip | None:
    """What a reference's clip does, by what it does to large gradients; None for what is none of these."""
    if reference.clip is None:
        return None
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        module = reference.module().double()
        told = []
        for spread in (1.0, 3.0):
            params = [param for param in module.parameters() if param.requires_grad]
            for param in params:
                param.grad = 1e6 * torch.randn_like(param) ** int(spread)
            before = torch.cat([param.grad.flatten().clone() for param in params if param.grad is not None])
            reference.clip(module)
            after = torch.cat([param.grad.flatten() for param in params if param.grad is not None])
            told.append((before, after))
    found = []
    for kind in ("each value", "norm", "maximum"):
        limits = [float(after.abs().max() if kind != "norm" else after.norm()) for _, after in told]
        clip = Clip(kind, float(f"{limits[0]:.9g}"))
        for before, after in told:
            clip([again := before.clone()])
            if not torch.allclose(again, after, rtol=1e-6, atol=0):
                break
        else:
            found.append(clip)
    return found[0] if found else None


def clipped(clip: Callable[[list[Tensor]], None] | None) -> Rewrite:
    """A reference that clips its gradients in another way, or not at all."""

    def of(module: Any) -> None:
        assert clip is not None
        with torch.no_grad():
            clip([param.grad for param in module.parameters() if param.grad is not None])

    return lambda reference: replace(reference, clip=None if clip is None else of)
