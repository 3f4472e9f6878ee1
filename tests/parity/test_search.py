"""How an explanation is looked for: values that are solved for, settings that stay apart, cases that tell apart."""

import time
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

from parity import judge
from parity.cases import Array
from parity.mistakes.optimizers.groups import by_name
from parity.reference.asked import Sitting
from parity.reference.program import Reference
from parity.verdict.fitting import plain, solve
from parity.verdict.search import Search
from tests.parity.test_exam import Net, TorchPort, reference


@pytest.mark.parametrize("step", [1e-4, 1e-3, 5e-3])
def test_a_value_is_found_though_float32_cannot_tell_it_from_its_neighbours(step: float) -> None:
    def residual(value: float) -> Array:
        exact: Array = (value / 3e-6 - 1) * np.linspace(0.3, 1.7, 50)
        return np.round(exact / step) * step

    found = solve(residual, 1e-6, 1e-5, "log")
    assert found is not None
    assert next(plain(found)) == 3e-6


def test_what_makes_no_difference_is_not_solved_for_but_left_where_it_was() -> None:
    assert solve(lambda value: np.ones(3), 2.0, 1.0, "linear") == 2.0


@pytest.mark.parametrize("changed", ["first.weight", "norm.bias", "last.bias"])
def test_settings_for_one_parameter_stay_its_own(changed: str) -> None:
    rewritten = by_name(lambda name, _, group: {"weight_decay": 0.5} if name == changed else {})(reference())
    module = rewritten.module()
    names = {id(param): name for name, param in module.named_parameters()}
    groups = rewritten.optimizer(module).param_groups
    decays = {names[id(param)]: group.get("weight_decay", 0) for group in groups for param in group["params"]}
    assert decays == {name: 0.5 if name == changed else 0 for name in names.values()}


class WithoutBias(Net):
    def forward(self, x: Tensor) -> Tensor:
        x = self.act(self.batch_norm(self.norm(self.first(x))))
        return functional.linear(x, self.last.weight) + 0 * self.last.bias


def wrong(module: Callable[[], nn.Module]) -> TorchPort:
    right = reference()
    return TorchPort(Reference(module, right.loss, right.optimizer, right.batches))


def test_later_cases_tell_equally_good_explanations_apart() -> None:
    """A bias that is not added and one that is not loaded give the same outputs, and other gradients."""
    stages = ["outputs", "loss", "gradients"]
    alike = judge(reference(), wrong(WithoutBias), quick=True, stages=stages[:1])
    assert {one.code for one in alike.explanations[0]} >= {"F008", "L014"}
    apart = judge(reference(), wrong(WithoutBias), quick=True, stages=stages)
    assert [group[0].code for group in apart.explanations] == ["F008"]
    assert all(one.explained for one in apart.comparisons if not one.passes)
    assert {one.stage for one in apart.comparisons if one.explained} == {"outputs"}, "the rest agrees with it in"


def test_an_explanation_must_not_spoil_what_agreed_before() -> None:
    sitting = Sitting.of(reference(), {}, "float32")
    case = next(one for one in sitting.cases(0, True) if one.name == "shaken, evaluation mode")
    question = sitting.ask(case)
    assert question is not None
    settled = [(question, sitting.answer(case, None))]
    search = Search(sitting, "gradients", (), lambda line: None, time.monotonic() + 60, settled)
    assert search.keeps(lambda program: program)
    assert not search.keeps(lambda program: reference(tanh=True))


def test_a_layer_that_is_small_beside_the_others_is_found_in_the_end() -> None:
    class Large(Net):
        def __init__(self, **options: Any) -> None:
            super().__init__(**options)
            with torch.no_grad():
                self.last.bias.mul_(1e3)

    class Small(Large):
        def forward(self, x: Tensor) -> Tensor:
            x = functional.linear(x, self.first.weight)
            logits: Tensor = self.last(self.act(self.batch_norm(self.norm(x))))
            return logits

    right = reference()
    program = Reference(Large, right.loss, right.optimizer, right.batches)
    verdict = judge(program, wrong(Small), quick=True, stages=["outputs"])
    assert "F008" in {one.code for one in verdict.explanations[0]}


def test_that_both_are_no_numbers_explains_nothing() -> None:
    sitting = Sitting.of(reference(), {}, "float32")
    case = next(one for one in sitting.cases(0, True) if one.call == "value_and_grad")
    question = sitting.ask(case)
    assert question is not None
    nothing = {name: np.full_like(values, np.nan) for name, values in sitting.answer(case, None).items()}
    search = Search(sitting, "loss", [(question, nothing)], lambda line: None, time.monotonic() + 60)
    assert search.weighed(question, nothing, nothing) is None
