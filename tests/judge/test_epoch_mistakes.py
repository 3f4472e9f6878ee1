"""What a mistake in an epoch, or in an evaluation, makes of a reference; torch alone."""

from collections.abc import Mapping
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from judge.mistakes import by_code
from judge.mistakes.mistake import Subject
from judge.reference.program import Reference

RNG = np.random.default_rng(0)
SIZES = (4, 4, 2)
BATCHES: list[dict[str, Any]] = [
    {"x": RNG.normal(size=(size, 3)).astype(np.float32), "y": RNG.integers(2, size=size)} for size in SIZES
]


def module() -> nn.Module:
    return nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4), nn.ReLU(), nn.Linear(4, 2))


def loss(module: Any, batch: Mapping[str, Tensor]) -> Tensor:
    return nn.functional.cross_entropy(module(batch["x"]), batch["y"])


def train_epoch(module: Any, optimizer: torch.optim.Optimizer, batches: list[dict[str, Tensor]]) -> Tensor:
    losses = []
    module.train()
    for batch in batches:
        optimizer.zero_grad()
        value = loss(module, batch)
        value.backward()
        optimizer.step()
        losses.append(value.detach())
    return torch.stack(losses)


def evaluate(module: Any, batches: list[dict[str, Tensor]]) -> dict[str, float]:
    module.eval()
    total = sum(float(loss(module, batch)) * len(batch["y"]) for batch in batches)
    return {"loss": total / sum(len(batch["y"]) for batch in batches)}


def adam(module: Any) -> torch.optim.Optimizer:
    return torch.optim.Adam(module.parameters(), lr=0.1)


REFERENCE = Reference(module, loss, adam, BATCHES, train_epoch=train_epoch, evaluate=evaluate)


def mistaken(code: str, value: Any = None) -> Reference:
    """The reference with a mistake in it."""
    mistake = by_code(code)
    assert mistake is not None
    assert mistake.tries is not None
    (attempt,) = mistake.tries(Subject(REFERENCE, module(), {}, {}))
    assert value in attempt.values
    return attempt.rewrite(value)(REFERENCE)


def trained(reference: Reference, given: list[Any]) -> tuple[Tensor, list[Tensor]]:
    torch.manual_seed(0)
    net = module()
    assert reference.train_epoch is not None
    losses = reference.train_epoch(net, adam(net), given)
    return losses.detach(), [param.detach() for param in net.parameters()]


def evaluated(reference: Reference, given: list[Any]) -> float:
    torch.manual_seed(0)
    net = module()
    assert reference.evaluate is not None
    with torch.no_grad():
        return float(reference.evaluate(net, given)["loss"])


def tensors() -> list[dict[str, Tensor]]:
    return [{name: torch.from_numpy(array) for name, array in batch.items()} for batch in BATCHES]


def same(one: list[Tensor], other: list[Tensor]) -> bool:
    return all(torch.equal(a, b) for a, b in zip(one, other, strict=True))


def test_a_dropped_short_batch_is_an_epoch_of_the_full_ones() -> None:
    losses, params = trained(mistaken("E001"), tensors())
    expected, others = trained(REFERENCE, tensors()[:2])
    assert torch.equal(losses, expected)
    assert same(params, others)


@pytest.mark.parametrize(
    ("value", "added"),
    [("zeros", None), ("its own examples", [0, 1]), ("its last example", [1, 1]), ("the first batch's examples", 0)],
)
def test_a_padded_short_batch_has_the_size_of_the_others(value: str, added: Any) -> None:
    first, second, last = tensors()
    more = {
        name: torch.zeros_like(tensor) if added is None else first[name][:2] if added == 0 else tensor[added]
        for name, tensor in last.items()
    }
    filled = {name: torch.cat([tensor, more[name]]) for name, tensor in last.items()}
    losses, params = trained(mistaken("E002", value), tensors())
    expected, others = trained(REFERENCE, [first, second, filled])
    assert torch.equal(losses, expected)
    assert same(params, others)
    assert evaluated(mistaken("E011", value), tensors()) == evaluated(REFERENCE, [first, second, filled])


def test_batches_come_in_another_order() -> None:
    losses, _ = trained(mistaken("E003", "the other way round"), tensors())
    assert torch.equal(losses, trained(REFERENCE, tensors()[::-1])[0])


def test_a_lost_last_update_changes_no_loss() -> None:
    losses, params = trained(mistaken("E004"), tensors())
    assert torch.equal(losses, trained(REFERENCE, tensors())[0])
    short, before = trained(REFERENCE, tensors()[:2])
    assert len(short) == 2
    assert same(params, before)


def test_losses_after_the_update_are_those_of_the_new_parameters() -> None:
    losses, params = trained(mistaken("E005"), tensors())
    assert same(params, trained(REFERENCE, tensors())[1])
    torch.manual_seed(0)
    net = module()
    optimizer = adam(net)
    for batch, seen in zip(tensors(), losses, strict=True):
        train_epoch(net, optimizer, [batch])
        assert torch.equal(loss(net, batch), seen)


def test_running_means_end_in_the_mean() -> None:
    losses, _ = trained(mistaken("E006"), tensors())
    expected, _ = trained(REFERENCE, tensors())
    assert losses[0] == expected[0]
    assert torch.isclose(losses[-1], expected.mean())


def test_an_optimizer_that_begins_anew_takes_first_steps_only() -> None:
    _, params = trained(mistaken("E007"), tensors())
    torch.manual_seed(0)
    net = module()
    for batch in tensors():
        train_epoch(net, adam(net), [batch])
    assert same(params, [param.detach() for param in net.parameters()])


def test_a_mean_of_batch_means_weighs_the_short_batch_like_the_others() -> None:
    alone = [evaluated(REFERENCE, [batch]) for batch in tensors()]
    assert evaluated(mistaken("E008", "alike"), tensors()) == pytest.approx(sum(alone) / 3)
    weighed = evaluated(mistaken("E008", "as many as its examples"), tensors())
    assert weighed == pytest.approx(evaluated(REFERENCE, tensors()))


def test_an_evaluation_in_training_mode_uses_the_statistics_of_its_batches() -> None:
    def still_training(net: Any, given: list[Any]) -> dict[str, float]:
        net.train()
        return {"loss": sum(float(loss(net, batch)) * len(batch["y"]) for batch in given) / sum(SIZES)}

    expected = evaluated(Reference(module, loss, adam, BATCHES, evaluate=still_training), tensors())
    assert evaluated(mistaken("E009"), tensors()) == pytest.approx(expected)
    assert expected != pytest.approx(evaluated(REFERENCE, tensors()))


def test_an_evaluation_without_the_short_batch_is_one_of_the_full_ones() -> None:
    assert evaluated(mistaken("E010"), tensors()) == evaluated(REFERENCE, tensors()[:2])
    assert evaluated(mistaken("E012", "the last"), tensors()) == evaluated(REFERENCE, tensors()[2:])


def test_nothing_is_tried_where_there_is_no_epoch_and_no_short_batch() -> None:
    bare = Reference(module, loss, adam, BATCHES)
    even = Reference(module, loss, adam, BATCHES[:2], train_epoch=train_epoch, evaluate=evaluate)
    for code in ("E001", "E002", "E008", "E010", "E011"):
        mistake = by_code(code)
        assert mistake is not None
        assert mistake.tries is not None
        assert not list(mistake.tries(Subject(bare, module(), {}, {})))
        assert not list(mistake.tries(Subject(even, module(), {}, {})))
