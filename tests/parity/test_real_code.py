"""What real programs bring: padding, constants, tied, frozen and unused parameters, windows, and large errors."""

import math
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import jax.numpy as jnp
import numpy as np
import optax
import pytest
import torch
from torch import Tensor, nn

from parity import judge
from parity.cases import Batch, Tensors
from parity.errors import PortError
from parity.exam import examine
from parity.port import from_functions
from parity.port.held import Held
from parity.reference.asked import Sitting
from parity.reference.program import Reference, flat
from parity.verdict.report import report
from tests.parity.test_exam import TorchPort

RANDOM = np.random.default_rng(0)


def tokens(count: int = 2, length: int = 12) -> Batch:
    """The last three of the second one are padding."""
    mask = np.ones((count, length), np.int64)
    mask[1, -3:] = 0
    return {"tokens": RANDOM.integers(1, 9, (count, length)), "mask": mask}


class Attending(nn.Module):
    """A layer of attention with rotary positions, a causal mask and padding, as decoders have it."""

    inv_freq: Tensor

    def __init__(self, window: int = 100, base: float = 500.0) -> None:
        super().__init__()
        self.embedding, self.window = nn.Embedding(9, 8), window
        self.query, self.key, self.value = nn.Linear(8, 8), nn.Linear(8, 8), nn.Linear(8, 8)
        self.register_buffer("inv_freq", base ** (-torch.arange(4) / 4), persistent=False)

    def turned(self, x: Tensor) -> Tensor:
        angles = torch.arange(x.shape[1])[:, None] * self.inv_freq
        first, second = x.chunk(2, -1)
        return torch.cat(
            [first * angles.cos() - second * angles.sin(), second * angles.cos() + first * angles.sin()], -1
        )

    def forward(self, batch: Any) -> Tensor:
        x = self.embedding(batch["tokens"])
        scores = self.turned(self.query(x)) @ self.turned(self.key(x)).transpose(1, 2) / math.sqrt(8)
        places = torch.arange(x.shape[1])
        seen = (places <= places[:, None]) & (places > places[:, None] - self.window)
        kept = seen & (batch["mask"] == 1)[:, None, :]
        scores = scores + torch.where(kept, 0.0, torch.finfo(torch.float32).min)
        attended: Tensor = scores.softmax(-1) @ self.value(x)
        return attended


def attending(**options: Any) -> Reference:
    return Reference(
        module=lambda: Attending(**options),
        loss=lambda module, batch: (module(batch) ** 2 * batch["mask"][:, :, None]).mean(),
        optimizer=lambda module: torch.optim.SGD(module.parameters(), lr=0.1),
        batches=[tokens(), tokens()],
        outputs=lambda module, batch: module(batch),
        counts=lambda batch: {"output": batch["mask"] == 1},
    )


class Batched(TorchPort):
    """A port in torch whose module is given the whole batch; its rotary table is float32."""

    FLOAT64 = False

    def outputs(self, state: Any, batch: Any, train: bool) -> Any:
        with torch.no_grad():
            given = {name: torch.from_numpy(np.array(array)) for name, array in batch.items()}
            return {name: one.numpy() for name, one in flat(state[0].train(train)(given)).items()}


def codes(reference: Reference, port: Any, *stages: str) -> list[list[str]]:
    return [
        [one.code for one in group] for group in judge(reference, Held(port), quick=True, stages=stages).explanations
    ]


def test_a_wider_window_is_named_beside_padding() -> None:
    assert codes(attending(window=4), Batched(attending(window=5)), "outputs") == [["F106"]]


def test_a_rotary_base_is_named_though_the_frequencies_are_a_buffer() -> None:
    assert codes(attending(), Batched(attending(base=10000.0)), "outputs") == [["F110"]]


def test_a_table_in_float32_is_told_where_only_float64_differs() -> None:
    class Table(Batched):
        FLOAT64 = True

    sitting = Sitting.of(attending(), {}, "float32")
    text = report(examine(sitting, Held(Table(attending())), quick=True, stages=["outputs"], explains=False))
    assert "float32 agrees: what differs is less than its rounding, or something is float32 in the port" in text


class Garbled(Batched):
    """Right where a position counts."""

    def outputs(self, state: Any, batch: Any, train: bool) -> Any:
        output = super().outputs(state, batch, train)["output"]
        return {"output": np.where(batch["mask"][:, :, None] == 1, output, np.nan)}


def test_positions_that_mean_nothing_are_not_compared() -> None:
    verdict = judge(attending(), Held(Garbled(attending())), quick=True)
    assert verdict.agrees
    assert {one.values for one in verdict.comparisons if one.quantity == "outputs/output"} == {(24 - 3) * 8}
    everything = Sitting.of(replace(attending(), counts=None), {"float64": False}, "float32")
    assert not examine(everything, Held(Garbled(attending())), quick=True, explains=False).agrees


class Bottleneck(nn.Module):
    def __init__(self, first: int, second: int) -> None:
        super().__init__()
        self.convs = nn.ModuleList([nn.Conv2d(3, 4, 1, stride=first), nn.Conv2d(4, 4, 3, stride=second, padding=1)])

    def forward(self, x: Tensor) -> Tensor:
        for conv in self.convs:
            x = torch.tanh(conv(x))
        return x


def images(*strides: int) -> Reference:
    return Reference(
        module=lambda: Bottleneck(*strides),
        loss=lambda module, batch: (module(batch["x"]) ** 2).mean(),
        optimizer=lambda module: torch.optim.SGD(module.parameters(), lr=0.1),
        batches=[{"x": RANDOM.normal(size=(2, 3, 8, 8)).astype(np.float32)}],
    )


def test_a_stride_in_another_convolution_is_named() -> None:
    assert codes(images(1, 2), TorchPort(images(2, 1)), "outputs") == [["F125"]]


class Heads(nn.Module):
    """A frozen layer, an unused one, and a head that is tied to the embedding."""

    def __init__(self) -> None:
        super().__init__()
        self.embed, self.frozen, self.unused = nn.Linear(4, 6, bias=False), nn.Linear(6, 6), nn.Linear(2, 2)
        self.head = nn.Linear(4, 6, bias=False)
        self.head.weight = self.embed.weight
        self.frozen.requires_grad_(False)

    def forward(self, x: Tensor) -> Tensor:
        return torch.tanh(self.frozen(self.embed(x))) @ self.head.weight


HEADS = Reference(
    module=Heads,
    loss=lambda module, batch: (module(batch["x"]) ** 2).mean(),
    optimizer=lambda module: torch.optim.AdamW(
        [param for param in module.parameters() if param.requires_grad], lr=0.01, weight_decay=0.1
    ),
    batches=[{"x": RANDOM.normal(size=(5, 4)).astype(np.float32)} for _ in range(2)],
)
TIED = {"head.weight": "embed/kernel"}


def heads(label: Callable[[str], bool], convert: Any = None, names: Any = TIED) -> Any:
    """A port whose optimizer moves some leaves."""
    shapes = {"embed": (4, 6), "frozen": {"kernel": (6, 6), "bias": (6,)}, "unused": {"kernel": (2, 2), "bias": (2,)}}
    params = {
        name: {part: np.zeros(size, np.float32) for part, size in shape.items()}
        if isinstance(shape, dict)
        else {"kernel": np.zeros(shape, np.float32)}
        for name, shape in shapes.items()
    }

    def outputs(params: Any, batch: Any, train: bool) -> Any:
        x = batch["x"] @ params["embed"]["kernel"]
        return jnp.tanh(x @ params["frozen"]["kernel"] + params["frozen"]["bias"]) @ params["embed"]["kernel"].T

    return from_functions(
        outputs=outputs,
        loss=lambda params, batch: (outputs(params, batch, True) ** 2).mean(),
        optimizer=optax.multi_transform(
            {"moved": optax.adamw(0.01, weight_decay=0.1), "held": optax.set_to_zero()},
            {name: "moved" if label(name) else "held" for name in params},
        ),
        params=params,
        **({"convert": convert} if convert else {"names": names}),
    )


def test_a_frozen_a_tied_and_an_unused_parameter_are_no_alarm() -> None:
    assert judge(HEADS, Held(heads(lambda name: name == "embed")), quick=True).agrees


def test_an_unused_parameter_that_decays_and_a_frozen_one_that_moves_are_named() -> None:
    assert codes(HEADS, heads(lambda name: name != "frozen"), "step") == [["O055"]]
    assert codes(HEADS, heads(lambda name: name != "unused"), "step") == [["O056"]]


def converted(tensors: Tensors) -> Any:
    """As somebody's script does it, who knows nothing of names by rule."""
    return {
        "embed": {"kernel": tensors["embed.weight"].T},
        **{
            name: {"kernel": tensors[f"{name}.weight"].T, "bias": tensors[f"{name}.bias"]}
            for name in ("frozen", "unused")
        },
    }


def test_a_conversion_of_ones_own_is_learned_and_tied_names_follow() -> None:
    assert judge(HEADS, Held(heads(lambda name: name == "embed", converted)), quick=True).agrees


def test_a_tied_name_is_proposed_with_its_leaf() -> None:
    port = heads(lambda name: True, names={})
    with pytest.raises(PortError, match=r"names are left over: 1 of the reference \(head.weight\)") as raised:
        port.load_state_dict({name: tensor.numpy() for name, tensor in Heads().state_dict().items()})
    assert '"head.weight": "embed/kernel",  # (6, 4), as embed.weight' in raised.value.hint


def test_a_conversion_that_changes_numbers_is_told() -> None:
    def halved(tensors: Tensors) -> Any:
        found = converted(tensors)
        return {**found, "embed": {"kernel": found["embed"]["kernel"] / 2}}

    port = heads(lambda name: True, halved)
    with pytest.raises(PortError, match="convert: changes the numbers of embed/kernel; it may only move them"):
        port.load_state_dict({name: tensor.numpy() for name, tensor in Heads().state_dict().items()})


class Deep(nn.Module):
    """Chaotic: every layer stretches what the one before it erred by."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.ModuleList(nn.Linear(8, 8) for _ in range(16))

    def forward(self, x: Tensor) -> Tensor:
        for layer in self.layers:
            x = torch.sin(3 * layer(x))
        return x


def test_gradients_that_err_by_a_percent_for_good_reason_are_no_alarm() -> None:
    def outputs(params: Any, batch: Any, train: bool) -> Any:
        x = batch["x"]
        for layer in range(16):
            x = jnp.sin(3 * (x @ params[f"layers_{layer}"]["kernel"] + params[f"layers_{layer}"]["bias"]))
        return x

    leaves = {"kernel": np.zeros((8, 8), np.float32), "bias": np.zeros(8, np.float32)}
    port = from_functions(
        outputs=outputs,
        loss=lambda params, batch: (outputs(params, batch, True) ** 2).mean(),
        optimizer=optax.sgd(1e-6),
        params={f"layers_{layer}": leaves for layer in range(16)},
    )
    reference = Reference(
        module=Deep,
        loss=lambda module, batch: (module(batch["x"]) ** 2).mean(),
        optimizer=lambda module: torch.optim.SGD(module.parameters(), lr=1e-6),
        batches=[{"x": RANDOM.normal(size=(3, 8)).astype(np.float32)}],
    )
    verdict = judge(reference, Held(port), quick=True, stages=["gradients"])
    assert verdict.agrees
    errors = [
        one.tolerance / abs(one.expected) for one in verdict.comparisons if one.stage == "gradients" and one.expected
    ]
    assert max(errors) > 1e-2
