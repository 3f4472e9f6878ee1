"""Update rules: what the learning rate multiplies, as torch and other libraries compute it."""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from parity.mistakes.optimizers.stepped import Group, Stepped
from parity.mistakes.tries import optimized
from parity.reference.rewrite import Rewrite

State = dict[str, Any]

Rule = Callable[[Tensor, State, Group], Any]
"""`rule(grad, state, group)`: what the learning rate multiplies; `state["step"]` counts from 1."""


def ruled(rule: Rule, **settings: Any) -> Rewrite:
    """A reference whose optimizer follows a rule, with some of its groups' settings changed or added.

    They stay in the groups, where a further rule finds them: two mistakes in one optimizer are both there.
    """

    def do(optimizer: Stepped) -> None:
        for param, group in optimizer.params():
            state, decay = optimizer.state[param], group.get("weight_decay", 0)
            state["step"] = state.get("step", 0) + 1
            assert param.grad is not None
            grad = -param.grad if group.get("maximize") else param.grad
            if decay and group.get("decoupled_weight_decay"):
                param.mul_(1 - group["lr"] * decay)
            elif decay:
                grad = grad + decay * param
            param.sub_(group["lr"] * rule(grad, state, group))

    def change(optimizer: torch.optim.Optimizer) -> torch.optim.Optimizer:
        for group in optimizer.param_groups:
            group.update(settings)
        return Stepped(optimizer, do)

    return optimized(change)


def average(name: str, value: Tensor, decay: Any, state: State, start: float = 0.0) -> Tensor:
    """A moving average that is kept in the state."""
    before = state.get(name, torch.full_like(value, start))
    state[name] = before * decay + value * (1 - decay)
    result: Tensor = state[name]
    return result


def velocity(value: Tensor, state: State, group: Group) -> Any:
    """torch's momentum: a sum that decays."""
    momentum, share = group.get("momentum", 0), 1 - group.get("dampening", 0)
    state["velocity"] = share * value + momentum * state["velocity"] if "velocity" in state else value
    return value + momentum * state["velocity"] if group.get("nesterov") else state["velocity"]


def damped_velocity(value: Tensor, state: State, group: Group) -> Any:
    """An average in place of a sum."""
    moving = average("velocity", value, group["momentum"], state)
    return value * (1 - group["momentum"]) + group["momentum"] * moving if group.get("nesterov") else moving


def rate_in_velocity(value: Tensor, state: State, group: Group) -> Any:
    """The learning rate multiplies what is added to the velocity, not the velocity."""
    return velocity(group["lr"] * value, state, group) / group["lr"]


def moments(grad: Tensor, state: State, group: Group) -> tuple[Tensor, Tensor, Any, Any]:
    """Adam's two averages, and what corrects their start from zero; of the second its largest so far with `amsgrad`,
    of what is corrected with `amsgrad_of_corrected`."""
    beta1, beta2 = group["betas"]
    first, second = average("m", grad, beta1, state), average("v", grad * grad, beta2, state)
    correction1, correction2 = 1 - beta1 ** state["step"], 1 - beta2 ** state["step"]
    if group.get("amsgrad"):
        divisor = correction2 if group.get("amsgrad_of_corrected") else 1
        state["largest"] = torch.maximum(state.get("largest", torch.zeros_like(second)), second / divisor)
        second = state["largest"] * divisor
    return first, second, correction1, correction2


def adam(grad: Tensor, state: State, group: Group) -> Any:
    """Adam; `epsilon` is "within the root" or "before the correction", averages are `uncorrected`."""
    first, second, correction1, correction2 = moments(grad, state, group)
    if group.get("uncorrected"):
        correction1 = correction2 = 1
    if group.get("epsilon") == "within the root":
        return first / correction1 / (second / correction2 + group["eps"]).sqrt()
    if group.get("epsilon") == "before the correction":
        return first / correction1 * correction2**0.5 / (second.sqrt() + group["eps"])
    return first / correction1 / ((second / correction2).sqrt() + group["eps"])


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
    beta1, beta2 = group["betas"]
    before = state.get("largest", torch.zeros_like(grad))
    state["largest"] = torch.maximum(before * beta2, grad.abs() + group["eps"])
    correction = 1 if group.get("uncorrected") else 1 - beta1 ** state["step"]
    return average("m", grad, beta1, state) / state["largest"] / correction


def rmsprop(grad: Tensor, state: State, group: Group) -> Any:
    """RMSprop; `epsilon` is "within the root", `corrected` its mean of squares, which starts from `start`; `gather` is
    what its steps are gathered by."""
    correction = 1 - group["alpha"] ** state["step"] if group.get("corrected") else 1
    square = average("square", grad * grad, group["alpha"], state, group.get("start", 0.0)) / correction
    if group.get("centered"):
        square = square - (average("mean", grad, group["alpha"], state) / correction) ** 2
    gather: Rule = group.get("gather", velocity)
    return gather(grad / _root(square, group), state, group)


def late_rprop(grad: Tensor, state: State, group: Group) -> Any:
    """Rprop as optax has it: it steps by what the step before found, where the gradient has kept its sign."""
    (less, more), (least, most) = group["etas"], group["step_sizes"]
    before = state.get("found", torch.zeros_like(grad))
    sizes = state.get("sizes", torch.full_like(grad, group["lr"]))
    turn = grad * before
    factor = torch.where(turn > 0, more, less)
    state["sizes"] = torch.where(turn == 0, sizes, (sizes * factor).clamp(least, most))
    state["found"] = torch.where(turn < 0, torch.zeros_like(grad), state["sizes"] * torch.sign(grad))
    return torch.where(turn < 0, torch.zeros_like(grad), before) / group["lr"]


def adagrad(grad: Tensor, state: State, group: Group) -> Any:
    """Adagrad; `epsilon` is "within the root"."""
    start = group.get("initial_accumulator_value", 0.0)
    state["sum"] = state.get("sum", torch.full_like(grad, start)) + grad * grad
    return grad / _root(state["sum"], group) / (1 + (state["step"] - 1) * group.get("lr_decay", 0))


def _root(square: Any, group: Group) -> Any:
    within = group.get("epsilon") == "within the root"
    return (square + group["eps"]).sqrt() if within else square.sqrt() + group["eps"]
