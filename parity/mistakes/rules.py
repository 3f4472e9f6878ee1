"""Optimizers that step in another way than torch's: what a mistake makes of an update, of a clip, of a schedule."""

import inspect
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn

from parity.mistakes.mistake import optimized
from parity.reference.program import Reference
from parity.reference.rewrite import Rewrite

State = dict[str, Any]
Group = dict[str, Any]
Rule = Callable[[Tensor, State, Group], Any]
"""`rule(grad, state, group)`: what the learning rate multiplies; `state["step"]` counts from 1."""


class Stepped(torch.optim.Optimizer):
    """Another optimizer, with the same groups, that steps as it is told to."""

    def __init__(self, inner: torch.optim.Optimizer, do: Callable[["Stepped"], None]) -> None:
        super().__init__(inner.param_groups, inner.defaults)
        self.inner, self.do, self.count = inner, do, 0

    @torch.no_grad()
    def step(self, closure: Any = None) -> None:  # type: ignore[override]
        self.count += 1
        self.do(self)

    def params(self) -> Iterator[tuple[Tensor, Group]]:
        """Every parameter that has a gradient, with its group."""
        for group in self.param_groups:
            for param in group["params"]:
                if param.grad is not None:
                    yield param, group


def innermost(optimizer: torch.optim.Optimizer) -> torch.optim.Optimizer:
    """torch's own one."""
    return innermost(optimizer.inner) if isinstance(optimizer, Stepped) else optimizer


def stepped(do: Callable[[Stepped], None]) -> Rewrite:
    """A reference whose optimizer steps in another way."""
    return optimized(lambda optimizer: Stepped(optimizer, do))


def ruled(rule: Rule, **settings: Any) -> Rewrite:
    """A reference whose optimizer follows a rule, with some of its group's settings changed."""

    def do(optimizer: Stepped) -> None:
        for param, group in optimizer.params():
            group = group | settings
            state, decay = optimizer.state[param], group.get("weight_decay", 0)
            state["step"] = state.get("step", 0) + 1
            grad = param.grad
            assert grad is not None
            if decay and group.get("decoupled_weight_decay"):
                param.mul_(1 - group["lr"] * decay)
            elif decay:
                grad = grad + decay * param
            param.sub_(group["lr"] * rule(grad, state, group))

    return stepped(do)


@contextmanager
def changed(optimizer: torch.optim.Optimizer, change: Callable[[Group], Group]) -> Iterator[None]:
    """Other settings, for one step."""
    kept = [dict(group) for group in optimizer.param_groups]
    try:
        for group in optimizer.param_groups:
            group.update(change(group))
        yield
    finally:
        for group, before in zip(optimizer.param_groups, kept, strict=True):
            group.update(before)


def average(name: str, value: Tensor, decay: Any, state: State, start: float = 0.0) -> Tensor:
    """A moving average that is kept in the state."""
    before = state.get(name, torch.full_like(value, start))
    state[name] = before * decay + value * (1 - decay)
    result: Tensor = state[name]
    return result


def velocity(value: Tensor, state: State, group: Group) -> Any:
    """torch's momentum: a sum that decays."""
    momentum = group.get("momentum", 0)
    state["velocity"] = value + momentum * state["velocity"] if "velocity" in state else value
    return value + momentum * state["velocity"] if group.get("nesterov") else state["velocity"]


def damped_velocity(value: Tensor, state: State, group: Group) -> Any:
    """An average in place of a sum."""
    moving = average("velocity", value, group["momentum"], state)
    return value * (1 - group["momentum"]) + group["momentum"] * moving if group.get("nesterov") else moving


def rate_in_velocity(value: Tensor, state: State, group: Group) -> Any:
    """The learning rate multiplies what is added to the velocity, not the velocity."""
    return velocity(group["lr"] * value, state, group) / group["lr"]


def moments(grad: Tensor, state: State, group: Group) -> tuple[Tensor, Tensor, Any, Any]:
    """Adam's two averages, and what corrects their start from zero."""
    beta1, beta2 = group["betas"]
    first, second = average("m", grad, beta1, state), average("v", grad * grad, beta2, state)
    return first, second, 1 - beta1 ** state["step"], 1 - beta2 ** state["step"]


def adam(grad: Tensor, state: State, group: Group) -> Any:
    first, second, correction1, correction2 = moments(grad, state, group)
    return first / correction1 / ((second / correction2).sqrt() + group["eps"])


def adam_with_epsilon_in_root(grad: Tensor, state: State, group: Group) -> Any:
    first, second, correction1, correction2 = moments(grad, state, group)
    return first / correction1 / (second / correction2 + group["eps"]).sqrt()


def adam_with_epsilon_before_correction(grad: Tensor, state: State, group: Group) -> Any:
    first, second, correction1, correction2 = moments(grad, state, group)
    return first / correction1 * correction2**0.5 / (second.sqrt() + group["eps"])


def adam_uncorrected(grad: Tensor, state: State, group: Group) -> Any:
    first, second, _, _ = moments(grad, state, group)
    return first / (second.sqrt() + group["eps"])


def nadam(grad: Tensor, state: State, group: Group) -> Any:
    first, second, correction1, correction2 = moments(grad, state, group)
    beta1 = group["betas"][0]
    ahead = beta1 * first / (1 - beta1 ** (state["step"] + 1)) + (1 - beta1) * grad / correction1
    return ahead / ((second / correction2).sqrt() + group["eps"])


def lion(grad: Tensor, state: State, group: Group) -> Any:
    beta1, beta2 = group["betas"]
    before = state.get("m", torch.zeros_like(grad))
    average("m", grad, beta2, state)
    return torch.sign(before * beta1 + grad * (1 - beta1))


def adamax(grad: Tensor, state: State, group: Group) -> Any:
    return adamax_uncorrected(grad, state, group) / (1 - group["betas"][0] ** state["step"])


def adamax_uncorrected(grad: Tensor, state: State, group: Group) -> Any:
    beta1, beta2 = group["betas"]
    before = state.get("largest", torch.zeros_like(grad))
    state["largest"] = torch.maximum(before * beta2, grad.abs() + group["eps"])
    return average("m", grad, beta1, state) / state["largest"]


def rmsprop(
    in_root: bool = False,
    start: float = 0.0,
    centered: bool = False,
    corrected: bool = False,
    gather: Rule = velocity,
) -> Rule:
    """RMSprop with epsilon within the root or after it, and other choices that libraries make."""

    def rule(grad: Tensor, state: State, group: Group) -> Any:
        correction = 1 - group["alpha"] ** state["step"] if corrected else 1
        square = average("square", grad * grad, group["alpha"], state, start) / correction
        if centered or group.get("centered"):
            square = square - (average("mean", grad, group["alpha"], state) / correction) ** 2
        scale = (square + group["eps"]).sqrt() if in_root else square.sqrt() + group["eps"]
        return gather(grad / scale, state, group)

    return rule


def adagrad(in_root: bool = False, start: float | None = None) -> Rule:
    """Adagrad with epsilon within the root or after it, and another start of its sum."""

    def rule(grad: Tensor, state: State, group: Group) -> Any:
        first = group.get("initial_accumulator_value", 0.0) if start is None else start
        state["sum"] = state.get("sum", torch.full_like(grad, first)) + grad * grad
        scale = (state["sum"] + group["eps"]).sqrt() if in_root else state["sum"].sqrt() + group["eps"]
        return grad / scale / (1 + (state["step"] - 1) * group.get("lr_decay", 0))

    return rule


def by_name(change: Callable[[str, Tensor, Group], Group | None]) -> Rewrite:
    """A reference whose optimizer has other settings for some parameters, or (None) not those parameters at all."""

    def rewrite(reference: Reference) -> Reference:
        def optimizer(module: Any) -> torch.optim.Optimizer:
            made = reference.optimizer(module)
            names = {id(param): name for name, param in module.named_parameters()}
            groups: list[Group] = []
            for group in made.param_groups:
                parts: list[Group] = []
                for param in group["params"]:
                    settings = change(names.get(id(param), ""), param, group)
                    if settings is None:
                        continue
                    part = next((one for one in parts if one == one | settings), None)
                    if part is None:
                        parts.append(group | settings | {"params": []})
                        part = parts[-1]
                    part["params"].append(param)
                groups += parts or [group | {"params": []}]
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


Rates = list[list[float]]
"""The learning rates of all groups, by step."""


class Tabled:
    """A schedule that gives other learning rates, and leaves the rest to the one that it stands for."""

    def __init__(self, inner: Any, optimizer: torch.optim.Optimizer, rates: Rates) -> None:
        self.inner, self.optimizer, self.rates, self.count = inner, optimizer, rates, 0
        self._set()

    def step(self) -> None:
        self.count += 1
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            self.inner.step()
        self._set()

    def _set(self) -> None:
        rates = self.rates[min(self.count, len(self.rates) - 1)]
        for group, rate in zip(self.optimizer.param_groups, rates, strict=True):
            group["lr"] = rate


def rates_of(reference: Reference, module: nn.Module, steps: int = 64) -> Rates:
    """The learning rates of a reference's first steps; all of them the first where nothing is scheduled."""
    optimizer = reference.optimizer(module)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        scheduler = reference.scheduler(optimizer) if reference.scheduler else None
        rates = []
        for _ in range(steps):
            rates.append([float(group["lr"]) for group in optimizer.param_groups])
            if scheduler is not None:
                scheduler.step()
    return rates


def tabled(change: Callable[[Rates], Rates]) -> Rewrite:
    """A reference with other learning rates, made of its own."""

    def rewrite(reference: Reference) -> Reference:
        make = reference.scheduler
        assert make is not None
        rates: list[Rates] = []

        def scheduler(optimizer: torch.optim.Optimizer) -> Tabled:
            if not rates:
                with torch.random.fork_rng(devices=[]):
                    rates.append(change(rates_of(reference, reference.module())))
            return Tabled(make(optimizer), optimizer, rates[0])

        return replace(reference, scheduler=scheduler)

    return rewrite


def rebuilt(**settings: Any) -> Rewrite:
    """A reference whose schedule, one of torch's, is made with other arguments."""

    def rewrite(reference: Reference) -> Reference:
        make = reference.scheduler
        assert make is not None

        def scheduler(optimizer: torch.optim.Optimizer) -> Any:
            own = make(optimizer)
            for group in optimizer.param_groups:
                group["lr"] = group.pop("initial_lr")
            return type(own)(optimizer, **arguments(own) | settings)

        return replace(reference, scheduler=scheduler)

    return rewrite


def arguments(scheduler: Any) -> dict[str, Any]:
    """What a schedule of torch was made with."""
    names = [name for name in inspect.signature(type(scheduler)).parameters if name not in ("optimizer", "last_epoch")]
    return {name: getattr(scheduler, name) for name in names if hasattr(scheduler, name)}
