"""Update rules: what the learning rate multiplies, as torch and other libraries compute it."""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from parity.mistakes.optimizers.stepped import Group, Stepped, stepped
from parity.reference.rewrite import Rewrite

State = dict[str, Any]

Rule = Callable[[Tensor, State, Group], Any]
"""`rule(grad, state, group)`: what the learning rate multiplies; `state["step"]` counts from 1."""


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
