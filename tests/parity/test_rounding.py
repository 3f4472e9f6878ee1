"""The reference in float64 on its float32 path, and what rounding does to it."""

import copy
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

from parity.cases import Case
from parity.reference.dropout import Kept, Off
from parity.reference.noise import EXACTLY, Number, Rounding, _hashed
from parity.reference.program import Reference, answer
from parity.reference.rounding import Wide, held, wide, widened


def value(function: Any, *tensors: Tensor, rounding: Rounding = EXACTLY) -> Tensor:
    """What a function of tensors returns, its float32 arguments held in float64."""
    with wide(rounding):
        return held(function(*(Wide(one.double(), torch.float32) for one in tensors)))


def test_a_program_takes_its_float32_path_and_keeps_float64s_digits() -> None:
    seen = []

    def function(x: Tensor) -> Tensor:
        seen.append((x.dtype, x.float().dtype, torch.finfo(x.dtype).min, torch.zeros(2, dtype=torch.float32).dtype))
        return (x / 3).exp()

    result = value(function, torch.ones(4))

    assert seen == [(torch.float32, torch.float32, torch.finfo(torch.float32).min, torch.float32)]
    assert result.dtype == torch.float64
    np.testing.assert_allclose(result, np.exp(1 / 3), rtol=1e-15)


def test_constants_are_not_rounded_to_float32() -> None:
    assert value(lambda x: x * torch.tensor(0.1), torch.ones(1)).item() == 0.1
    assert value(lambda x: x * torch.full((1,), 0.1), torch.ones(1)).item() == 0.1


def test_an_epsilon_is_not_rounded_to_float32_either() -> None:
    x = torch.tensor([1e-3, -2e-3, 3e-3])
    exact = functional.rms_norm(x.double(), (3,), torch.ones(3).double(), 1e-5)
    weighted = value(lambda x: functional.rms_norm(x, (3,), torch.ones(3), 1e-5), x)
    np.testing.assert_allclose(weighted, exact, rtol=1e-15)
    np.testing.assert_allclose(value(lambda x: nn.RMSNorm(3, 1e-5)(x), x), exact, rtol=1e-15)


def test_quotients_of_counts_are_float64_too() -> None:
    assert value(lambda x: x * (torch.arange(1, 4) / 3), torch.ones(3))[0].item() == 1 / 3


def test_draws_are_those_of_the_program() -> None:
    torch.manual_seed(3)
    expected = torch.randn(5)
    torch.manual_seed(3)

    torch.testing.assert_close(
        value(lambda x: torch.randn(5) + x * 0, torch.zeros(5)), expected.double(), rtol=0, atol=0
    )


@pytest.mark.parametrize(
    "function",
    [
        lambda x: x.t().contiguous().view(-1),
        lambda x: x.clone().transpose_(0, 1).reshape(-1),
        lambda x: x.clone().mul_(2).add_(1),
        lambda x: torch.cat([x, x]).split(2)[1],
        lambda x: x.clone().masked_fill_(x > 0, 1.0),
        lambda x: functional.layer_norm(x, x.shape[-1:]),
        lambda x: functional.gelu(x),
        lambda x: functional.scaled_dot_product_attention(x[None], x[None], x[None]),
        lambda x: functional.cross_entropy(x, torch.zeros(len(x), dtype=torch.long), label_smoothing=0.1),
        lambda x: copy.deepcopy(x) + 1,
    ],
)
def test_operations_mean_what_they_do_in_float64(function: Any) -> None:
    x = torch.randn(3, 4, generator=torch.Generator().manual_seed(0))

    torch.testing.assert_close(value(function, x), function(x.double()), rtol=1e-13, atol=1e-13)


def errors(function: Any, *tensors: Tensor, runs: int = 32) -> Tensor:
    """Relative errors that rounding makes, a run a row."""
    exact = value(function, *tensors)
    return torch.stack(
        [(value(function, *tensors, rounding=Rounding(run)) - exact) / exact for run in range(1, runs + 1)]
    )


def test_an_operation_errs_by_at_most_half_a_unit() -> None:
    found = errors(lambda x: x * 1.5 + 0.25, torch.rand(100) + 1)

    assert 2.0**-27 < found.abs().mean() < 2.0**-24
    assert found.abs().max() < 3 * 2.0**-24


def test_equal_values_err_equally() -> None:
    found = errors(lambda x: (x / 3).reshape(-1), torch.full((50, 50), 0.7))

    assert (found == found[:, :1]).all()
    assert found.abs().min() > 0


def test_runs_err_differently() -> None:
    found = errors(torch.exp, torch.rand(20))

    assert len({tuple(row.tolist()) for row in found}) == len(found)


@pytest.mark.parametrize(
    "function",
    [
        lambda x: x @ x.t(),
        lambda x: (x - 1).sum(0),
        lambda x: torch.relu(x) * 0.5,
        lambda x: functional.max_pool2d(x[None, None], 2),
        lambda x: x / 4 + 3,
        lambda x: functional.conv2d(x[None, None], x[None, None, :3, :3]),
    ],
)
def test_where_nothing_rounds_nothing_is_put_in(function: Any) -> None:
    whole = torch.randint(-3, 4, (8, 8), generator=torch.Generator().manual_seed(1)).float()

    assert torch.equal(value(function, whole, rounding=Rounding(1)), value(function, whole))


@pytest.mark.parametrize(
    "function", [lambda x: x / 3, torch.exp, lambda x: (x * 2.0**12 + 0.5) @ (x.t() * 2.0**13 + 0.5)]
)
def test_where_something_rounds_something_is(function: Any) -> None:
    whole = torch.arange(1.0, 65).reshape(8, 8)

    assert not torch.equal(value(function, whole, rounding=Rounding(1)), value(function, whole))


def test_a_masks_largest_number_stays_finite() -> None:
    lowest = torch.finfo(torch.float32).min

    result = value(
        lambda x: torch.softmax(x.masked_fill(x > 0, lowest) * 1.1, -1), torch.randn(4, 4), rounding=Rounding(1)
    )

    assert torch.isfinite(result).all()


def test_numbers_of_an_optimizer_lose_what_float32_loses() -> None:
    found = [float(1 - Number.of(0.999, Rounding(run)) ** 1) / (1 - 0.999) - 1 for run in range(1, 40)]

    assert 1e-6 < np.std(found) < 1e-4


class Tied(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.embedding = nn.Embedding(5, 4)
        self.rnn = nn.LSTM(4, 4, batch_first=True)
        self.gru = nn.GRU(4, 4)
        self.drop = nn.Dropout(0.5)
        self.head = nn.Linear(4, 5, bias=False)
        self.head.weight = self.embedding.weight

    def forward(self, tokens: Tensor) -> Tensor:
        hidden = self.gru(self.rnn(self.embedding(tokens))[0])[0]
        logits: Tensor = self.head(self.drop(functional.dropout(hidden, 0.5, self.training)))
        return logits


def reference() -> Reference:
    tokens = np.arange(10).reshape(2, 5) % 5
    return Reference(
        Tied,
        lambda module, batch: functional.cross_entropy(
            module(batch["tokens"]).flatten(0, 1), batch["tokens"].flatten()
        ),
        lambda module: torch.optim.AdamW(module.parameters(), lr=0.01),
        [{"tokens": tokens}] * 2,
    )


def case(call: Any) -> Case:
    torch.manual_seed(0)
    state = {name: tensor.numpy().copy() for name, tensor in Tied().state_dict().items()}
    return Case("as given", call, state, tuple(reference().batches))


@pytest.mark.parametrize("call", ["outputs", "value_and_grad", "train_steps"])
def test_recurrent_and_tied_parameters_are_as_in_float32(call: Any) -> None:
    wide_answer = answer(reference(), case(call), EXACTLY, Off)
    own = answer(reference(), case(call), None, Off)

    assert wide_answer.keys() == own.keys()
    for name, values in wide_answer.items():
        # Adam makes sign-like steps of gradients near zero: its errors are a share of the step.
        np.testing.assert_allclose(own[name], values, rtol=1e-4, atol=2e-5 if call == "train_steps" else 1e-6)


def test_dropout_off_is_no_dropout_and_kept_scales() -> None:
    linear = Reference(
        lambda: nn.Sequential(nn.Dropout(0.5)),
        lambda module, batch: module(batch["x"]).sum(),
        lambda module: torch.optim.SGD([nn.Parameter(torch.zeros(1))], lr=1),
        [{"x": np.ones((2, 2), np.float32)}],
    )
    asked = Case("as given", "outputs", {}, tuple(linear.batches), train=True)

    assert (answer(linear, asked, EXACTLY, Kept)["outputs/output"] == 2).all()
    assert (answer(linear, asked, None, Kept)["outputs/output"] == 2).all()


def test_errors_go_up_and_down_alike() -> None:
    errors = _hashed(torch.randn(100_000, dtype=torch.float64, generator=torch.Generator().manual_seed(0)), 12345)
    assert -1 <= float(errors.min()) < -0.999
    assert 0.999 < float(errors.max()) <= 1
    assert abs(float(errors.mean())) < 0.01
    assert float(errors.std()) == pytest.approx(1 / 3**0.5, rel=0.02)


def test_memory_that_nobody_wrote_counts_for_nothing_where_its_factor_is_zero() -> None:
    unwritten = torch.full((2, 3, 3), torch.nan)
    a, b = torch.ones(2, 3, 4), torch.ones(2, 4, 3)
    with wide(EXACTLY):
        product = torch.baddbmm(unwritten, a, b, beta=0, alpha=0.5)
        plain = torch.addmm(unwritten[0], a[0], b[0], beta=0)
    assert (held(product) == 2).all()
    assert (held(plain) == 4).all()


def test_operations_in_place_are_made_of_the_overload_that_takes_the_same() -> None:
    with wide(EXACTLY):
        degrees = widened(torch.tensor([4.0, 9.0]))
        assert held(degrees.pow_(-0.5)).tolist() == [1 / 2, 1 / 3]
        assert held(widened(torch.tensor([2.0, 3.0])).pow_(torch.tensor([2.0, 2.0]))).tolist() == [4, 9]


def test_a_module_that_a_program_copies_is_copied_as_it_is() -> None:
    module: Any = torch.nn.BatchNorm1d(3)
    with wide(EXACTLY):
        copied = copy.deepcopy([module, module.running_var])
    variance = copied[1]
    assert variance is not None
    assert type(held(variance)) is torch.Tensor
    assert copied[0].running_var is copied[1]
    assert held(variance).dtype == torch.float64
    assert module.running_var.dtype == torch.float32
