"""Right ports agree; wrong ones differ where they are wrong, and are told why."""

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

from parity import Reference, judge
from parity.errors import UsageError
from parity.exam import examine
from parity.port.held import Held
from parity.recorded import record
from parity.reference.asked import Sitting
from parity.variations import Program, cases, integers, shake
from parity.verdict import explanation
from parity.verdict.comparison import FACTOR, Verdict, ratios, tolerances


@pytest.fixture(autouse=True)
def short_search(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(explanation, "SECONDS", 12.0)


class Net(nn.Module):
    def __init__(self, epsilon: float = 1e-5, tanh: bool = False, momentum: float = 0.1) -> None:
        super().__init__()
        self.first = nn.Linear(6, 8)
        self.norm = nn.LayerNorm(8, eps=epsilon)
        self.batch_norm = nn.BatchNorm1d(8, momentum=momentum)
        self.act = nn.GELU("tanh" if tanh else "none")
        self.last = nn.Linear(8, 3)

    def forward(self, x: Tensor) -> Tensor:
        logits: Tensor = self.last(self.act(self.batch_norm(self.norm(self.first(x)))))
        return logits


def batches() -> list[dict[str, Any]]:
    random = np.random.default_rng(0)
    return [
        {"x": random.normal(size=(rows, 6)).astype(np.float32), "y": random.integers(0, 3, rows)} for rows in (8, 8, 5)
    ]


def reference(**options: Any) -> Reference:
    return Reference(
        module=lambda: Net(**options),
        loss=lambda module, batch: functional.cross_entropy(module(batch["x"]), batch["y"]),
        optimizer=lambda module: torch.optim.SGD(module.parameters(), lr=0.1, momentum=0.9),
        batches=batches(),
    )


class TorchPort:
    """A port in torch, so that these tests compile nothing."""

    def __init__(self, program: Reference) -> None:
        self.program = program

    def load_state_dict(self, tensors: Any) -> Any:
        module = self.program.module()
        wide = any(tensor.dtype == np.float64 for tensor in tensors.values())
        module = module.double() if wide else module
        module.load_state_dict({name: torch.from_numpy(np.array(tensor)) for name, tensor in tensors.items()})
        return module, self.program.optimizer(module)

    def state_dict(self, state: Any) -> Any:
        return {name: tensor.detach().numpy().copy() for name, tensor in state[0].state_dict().items()}

    def outputs(self, state: Any, batch: Any, train: bool) -> Any:
        state[0].train(train)
        statistics = {name: tensor.clone() for name, tensor in state[0].state_dict().items()}
        with torch.no_grad():
            output = state[0](torch.from_numpy(batch["x"])).numpy()
        state[0].load_state_dict(statistics)
        return {"output": output}

    def value_and_grad(self, state: Any, batch: Any) -> Any:
        module, _ = state
        module.train()
        module.zero_grad()
        loss = self.program.loss(module, {name: torch.from_numpy(array) for name, array in batch.items()})
        loss.backward()
        return loss.detach().numpy(), {name: param.grad.numpy().copy() for name, param in module.named_parameters()}

    def train_step(self, state: Any, batch: Any) -> Any:
        loss, _ = self.value_and_grad(state, batch)
        state[1].step()
        return state, loss


def verdict(port: Reference, change: Callable[[TorchPort], Any] = lambda port: port, **options: Any) -> Any:
    return judge(reference(), Held(change(TorchPort(port))), **options)


def test_a_right_port_agrees_at_every_stage_with_room_to_spare_and_none_to_hide_in() -> None:
    found = verdict(reference())

    assert found.agrees
    assert {one.stage for one in found.comparisons} == {
        "load",
        "outputs",
        "loss",
        "gradients",
        "step",
        "steps",
        "state",
    }
    assert 0.02 < max(one.ratio for one in found.comparisons) < 0.95


def test_an_epsilon_is_solved_for_and_named_with_its_place() -> None:
    found = verdict(reference(epsilon=3e-6), quick=True)

    assert not found.agrees
    assert next(one.stage for one in found.comparisons if not one.passes) == "outputs"
    (told,) = found.explanations[0]
    assert told.name == "layer-norm-epsilon"
    assert told.place.startswith("norm")
    assert "3e-06" in told.message


def test_two_mistakes_at_one_stage_are_both_named() -> None:
    found = verdict(reference(epsilon=1e-6, tanh=True), quick=True)

    assert {one.name for group in found.explanations for one in group} >= {"layer-norm-epsilon", "gelu-by-tanh"}


def test_what_is_explained_stays_in_and_the_rest_is_judged() -> None:
    found = verdict(
        replace(reference(tanh=True), optimizer=lambda module: torch.optim.SGD(module.parameters(), lr=0.1)), quick=True
    )

    assert next(one.stage for one in found.comparisons if not one.passes) == "outputs"
    assert any(one.stage == "steps" and not one.passes for one in found.comparisons)


@pytest.mark.parametrize(
    ("name", "factor", "stage", "float64"),
    [("first.weight", 1.0001, "gradients", False), ("last.bias", 1 + 1e-9, "gradients", True)],
)
def test_a_gradient_that_is_slightly_off_is_noticed(name: str, factor: float, stage: str, float64: bool) -> None:
    class Off(TorchPort):
        FLOAT64 = float64

        def value_and_grad(self, state: Any, batch: Any) -> Any:
            loss, grads = super().value_and_grad(state, batch)
            return loss, grads | {name: (grads[name] * grads[name].dtype.type(factor))}

        def train_step(self, state: Any, batch: Any) -> Any:
            loss, _ = TorchPort.value_and_grad(self, state, batch)
            state[1].step()
            return state, loss

    found = judge(reference(), Held(Off(reference())), quick=True, stages=["gradients"])

    assert {one.quantity for one in found.comparisons if not one.passes} == {f"gradients/{name}"}
    assert {one.stage for one in found.comparisons if not one.passes} == {stage}


def test_running_statistics_are_judged_by_themselves() -> None:
    found = verdict(reference(momentum=0.2), quick=True)

    assert {one.stage for one in found.comparisons if not one.passes} == {"state"}


def test_a_port_in_float32_only_is_not_asked_in_float64() -> None:
    class Float32(TorchPort):
        FLOAT64 = False

    found = judge(reference(), Held(Float32(reference())), quick=True)

    assert found.agrees
    assert not any("float64" in one.case for one in found.comparisons)
    assert any("float64" in line for line in found.not_judged)


def test_nan_where_a_number_is_expected_differs() -> None:
    assert ratios(np.ones(2), np.ones(2), np.array([1.0, np.nan])).tolist() == [0, np.inf]
    assert ratios(np.array([np.nan, np.inf]), np.ones(2), np.array([np.nan, -np.inf])).tolist() == [0, np.inf]


def test_where_no_run_errs_equality_is_asked_for() -> None:
    expected = {"loss": np.array([1.0, 2.0])}

    assert not tolerances(expected, [expected] * 3, None)["loss"].any()
    assert ratios(np.ones(1), np.zeros(1), np.full(1, 1 + 1e-16))[0] == 0
    assert ratios(np.ones(1), np.zeros(1), np.full(1, 1 + 1e-15))[0] == np.inf


def test_the_references_own_error_is_granted() -> None:
    expected, runs, own = np.zeros(4), [{"x": np.full(4, 1e-8)}], {"x": np.full(4, 1e-6)}

    assert tolerances({"x": expected}, runs, own)["x"].min() >= FACTOR * 0.3 * 1e-6 * 0.999


def program() -> Program:
    torch.manual_seed(0)
    state = {name: tensor.numpy().copy() for name, tensor in Net().state_dict().items()}
    names = frozenset(name for name, _ in Net().named_parameters())
    return Program(state, names, frozenset({"batch_norm.running_mean", "batch_norm.running_var"}), {}, tuple(batches()))


def test_a_table_that_is_never_trained_keeps_its_values() -> None:
    held = replace(program(), frozen=frozenset({"first.weight"}))
    states = [case.state for case in cases(held, quick=True) if case.call != "load"]
    assert states
    assert all(np.array_equal(state["first.weight"], held.state["first.weight"]) for state in states)


def test_shaking_leaves_no_special_value_and_no_impossible_one() -> None:
    shaken = shake(program(), np.random.default_rng(0))

    assert (shaken["batch_norm.running_var"] > 0).all()
    for name in ("norm.weight", "norm.bias", "batch_norm.running_mean", "batch_norm.running_var"):
        assert not np.isin(shaken[name], (0, 1)).any()
    assert shaken["batch_norm.num_batches_tracked"] == 0


def test_integers_are_integers() -> None:
    whole = integers(program(), shake(program(), np.random.default_rng(0)))

    assert all((array == np.rint(array)).all() for array in whole.values())
    assert all(np.abs(whole[name]).max() > 0 for name in ("first.weight", "last.weight"))


def test_cases_are_the_same_for_the_same_seed() -> None:
    one, other = (list(cases(program(), seed=3)) for _ in range(2))

    assert [case.name for case in one] == [case.name for case in other]
    assert all((a.state[name] == b.state[name]).all() for a, b in zip(one, other, strict=True) for name in a.state)


class Rounded(TorchPort):
    """A port whose first layer multiplies in bfloat16, or with the operands of TF32."""

    FLOAT64 = False

    def __init__(self, mask: int) -> None:
        def module() -> Net:
            net = Net()
            net.first.register_forward_pre_hook(lambda layer, args: (_cut(args[0], mask),))
            return net

        super().__init__(replace(reference(), module=module))


def _cut(values: Tensor, mask: int) -> Tensor:
    return (values.view(torch.int32) & mask).view(torch.float32)


@pytest.mark.parametrize(("precision", "mask"), [("tf32", -(2**13)), ("bfloat16", -(2**16))])
def test_a_precision_on_purpose_is_judged_as_that_precision(precision: str, mask: int) -> None:
    def agrees(port: TorchPort, precision: str) -> bool:
        held = Held(port)
        sitting = Sitting.of(reference(), held.describe(), precision)
        verdict: Verdict = examine(sitting, held, quick=True, stages=["outputs"], explains=False)
        return verdict.agrees

    assert not agrees(Rounded(mask), "float32")
    assert agrees(Rounded(mask), precision)
    assert not agrees(TorchPort(reference(epsilon=0.1)), precision)


def test_a_failure_is_cut_down_to_the_smallest_case_that_still_fails() -> None:
    left: list[Any] = []
    judge(reference(), TorchPort(reference(tanh=True)), stages=["outputs"], quick=True, on_failure=left.append)
    ((case, said),) = left[0].asked

    assert len(case.batches[0]["x"]) == 1
    assert np.abs(said["actual"]["outputs/output"] - said["expected"]["outputs/output"]).max() > 0
    assert not judge(reference(), TorchPort(reference(tanh=True)), quick=True, stages=["outputs"]).agrees


def test_what_the_smaller_cases_cannot_be_asked_is_not_said_of_the_exam() -> None:
    """Batch normalization refuses a batch of one, to which the failure might have been cut down."""

    class Broken(TorchPort):
        def train_step(self, state: Any, batch: Any) -> Any:
            raise ValueError

    settings: dict[str, Any] = {"stages": ["step"], "quick": True}
    told = judge(reference(), Broken(reference()), on_failure=lambda failure: None, **settings).not_judged

    assert told == judge(reference(), Broken(reference()), **settings).not_judged


UNUSABLE: dict[str, tuple[dict[str, Any], str]] = {
    "no step": (
        {"optimizer": lambda module: torch.optim.SGD(module.parameters(), lr=-1)},
        "train_steps, as given: the reference raises ValueError: Invalid learning rate: -1; and no other case of train",
    ),
    "nan": (
        {"loss": lambda module, batch: functional.cross_entropy(module(batch["x"]), batch["y"]) * torch.nan},
        "value_and_grad, as given: nothing that the reference says is finite; and no other case of value_and_grad",
    ),
    "parameters": ({"optimizer": lambda params: torch.optim.SGD(params)}, "TypeError: 'Net' object is not iterable"),
    "instance": ({"module": Net()}, "the reference's module is a Net, expected a function that makes one"),
    "key": ({"loss": lambda module, batch: batch["z"]}, r"raises KeyError: 'z' \(test_exam\.py:\d+\)"),
    "no dicts": ({"batches": [np.zeros(2)]}, "has batches that are no dicts; expected a list of dicts of arrays"),
    "no batches": ({"batches": []}, "the reference has no batches"),
}


@pytest.mark.parametrize(("changed", "words"), UNUSABLE.values(), ids=UNUSABLE)
def test_a_reference_that_cannot_be_asked_is_no_agreement(changed: dict[str, Any], words: str) -> None:
    with pytest.raises(UsageError, match=words):
        judge(replace(reference(), **changed), TorchPort(reference()), quick=True)
    with pytest.raises(UsageError, match=words):
        record(replace(reference(), **changed), quick=True)


def test_batches_may_be_tensors_and_come_one_by_one() -> None:
    tensors: Any = ({name: torch.from_numpy(array) for name, array in batch.items()} for batch in batches())
    assert judge(replace(reference(), batches=tensors), TorchPort(reference()), quick=True, stages=["loss"]).agrees


def test_agreement_leaves_nothing() -> None:
    judge(
        reference(),
        TorchPort(reference()),
        stages=["outputs"],
        quick=True,
        on_failure=lambda failure: pytest.fail(str(failure)),
    )
