"""Layouts and names between torch and JAX: a port of plain functions computes what torch computes."""

from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
import torch

from parity.cases import Case, Tensors
from parity.errors import PortError
from parity.port import Leaf, from_functions
from parity.port.adapters.functions import FunctionsPort
from parity.port.held import Held

X = np.random.default_rng(0).normal(size=(2, 8, 8, 6)).astype(np.float32)


def tensors_of(module: torch.nn.Module) -> Tensors:
    return {name: tensor.numpy().copy() for name, tensor in module.state_dict().items()}


def port_of(module: nn.Module, x: Any, stats: bool = False, **options: Any) -> FunctionsPort:
    """A linen module under the mean square of what it returns and SGD."""
    variables = jax.eval_shape(module.init, jax.random.key(0), x)

    if not stats:

        def outputs(params: Any, batch: Any, train: bool) -> Any:
            return {"output": module.apply({"params": params}, batch["x"])}

        def loss(params: Any, batch: Any) -> Any:
            return (outputs(params, batch, True)["output"] ** 2).mean()

        return from_functions(
            outputs=outputs, loss=loss, optimizer=optax.sgd(0.1), params=variables["params"], **options
        )

    def stats_outputs(params: Any, stats: Any, batch: Any, train: bool) -> Any:
        return module.apply({"params": params, "batch_stats": stats}, batch["x"], train, mutable=["batch_stats"])[0]

    def stats_loss(params: Any, stats: Any, batch: Any) -> Any:
        y, new = module.apply({"params": params, "batch_stats": stats}, batch["x"], True, mutable=["batch_stats"])
        return (y**2).mean(), new["batch_stats"]

    return from_functions(
        outputs=stats_outputs,
        loss=stats_loss,
        optimizer=optax.sgd(0.1),
        params=variables["params"],
        stats=variables["batch_stats"],
        **options,
    )


def channels_last(x: torch.Tensor) -> np.ndarray:
    return x.detach().movedim(1, -1).numpy()


def agrees_with_torch(module: torch.nn.Module, port: FunctionsPort, x: np.ndarray, last: bool = True) -> None:
    """The state makes the round trip bit by bit; outputs and gradients are torch's."""
    tensors = tensors_of(module)
    state = port.load_state_dict(tensors)
    back = port.state_dict(state)
    assert list(back) == list(tensors)
    assert all(np.array_equal(back[name], tensors[name]) for name in tensors)
    y = module(torch.tensor(x).movedim(-1, 1) if last else torch.tensor(x))
    expected = channels_last(y) if last else y.detach().numpy()
    np.testing.assert_allclose(port.outputs(state, {"x": x}, False)["output"], expected, rtol=2e-4, atol=2e-5)
    (y**2).mean().backward()
    grads = port.value_and_grad(state, {"x": x})[1]
    for name, param in module.named_parameters():
        assert param.grad is not None
        np.testing.assert_allclose(grads[name], param.grad, rtol=1e-3, atol=1e-5)


@pytest.mark.parametrize("dimensions", [1, 2, 3])
@pytest.mark.parametrize("groups", [1, 2])
def test_convolutions(dimensions: int, groups: int) -> None:
    convolution = (torch.nn.Conv1d, torch.nn.Conv2d, torch.nn.Conv3d)[dimensions - 1]
    module = torch.nn.ModuleDict({"conv": convolution(6, 4, 3, groups=groups, padding="same")})
    x = X.reshape((2, 64, 6) if dimensions == 1 else (2, 8, 8, 6) if dimensions == 2 else (2, 4, 4, 4, 6))

    class Net(nn.Module):
        @nn.compact
        def __call__(self, x: Any) -> Any:
            return nn.Conv(4, (3,) * dimensions, feature_group_count=groups, name="conv")(x)

    module.forward = lambda x: module["conv"](x)
    agrees_with_torch(module, port_of(Net(), x), x)


@pytest.mark.parametrize("transpose_kernel", [False, True])
def test_transposed_convolutions(transpose_kernel: bool) -> None:
    module = torch.nn.ModuleDict({"up": torch.nn.ConvTranspose2d(6, 4, (2, 3), stride=(2, 3))})
    module.forward = lambda x: module["up"](x)

    class Net(nn.Module):
        @nn.compact
        def __call__(self, x: Any) -> Any:
            size = (2, 3)
            return nn.ConvTranspose(4, size, size, "VALID", transpose_kernel=transpose_kernel, name="up")(x)

    agrees_with_torch(module, port_of(Net(), X), X)


def test_a_square_transposed_convolution_can_be_told_by_hand() -> None:
    module = torch.nn.ModuleDict({"up": torch.nn.ConvTranspose2d(6, 6, 2, stride=2)})
    module.forward = lambda x: module["up"](x)

    class Net(nn.Module):
        @nn.compact
        def __call__(self, x: Any) -> Any:
            return nn.ConvTranspose(6, (2, 2), strides=(2, 2), padding="VALID", name="up")(x)

    leaf = Leaf(
        "up/kernel",
        lambda tensor: tensor.transpose(2, 3, 0, 1)[::-1, ::-1],
        lambda array: array[::-1, ::-1].transpose(2, 3, 0, 1),
    )
    agrees_with_torch(module, port_of(Net(), X, names={"up.weight": leaf}), X)


def test_dense_and_norms_and_a_packed_attention() -> None:
    class Torch(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layers = torch.nn.ModuleList([torch.nn.Linear(6, 8), torch.nn.Linear(8, 8)])
            self.norm1 = torch.nn.LayerNorm(8)
            self.attn = torch.nn.MultiheadAttention(8, 2, batch_first=True)
            for _, param in self.named_parameters():
                torch.nn.init.normal_(param, std=0.5)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            x = self.norm1(self.layers[1](self.layers[0](x)))
            attended: torch.Tensor = self.attn(x, x, x, need_weights=False)[0]
            return attended

    class Net(nn.Module):
        @nn.compact
        def __call__(self, x: Any) -> Any:
            x = nn.Dense(8, name="layers_1")(nn.Dense(8, name="layers_0")(x))
            x = nn.LayerNorm(epsilon=1e-5, name="norm1")(x)
            return nn.MultiHeadDotProductAttention(2, name="attn")(x)

    heads = ("query", "key", "value")
    names = {
        "attn.in_proj_weight": tuple(f"attn/{head}/kernel" for head in heads),
        "attn.in_proj_bias": tuple(f"attn/{head}/bias" for head in heads),
        "attn.out_proj.weight": "attn/out/kernel",
        "attn.out_proj.bias": "attn/out/bias",
    }
    torch.manual_seed(0)
    x = X[0]
    agrees_with_torch(Torch(), port_of(Net(), x, names=names), x, last=False)


class Normed(nn.Module):
    @nn.compact
    def __call__(self, x: Any, train: bool = False) -> Any:
        return nn.BatchNorm(not train, momentum=0.9, name="bn")(nn.Dense(4, name="fc")(x))


def test_running_statistics_and_torchs_counter_of_batches_are_state() -> None:
    module = torch.nn.ModuleDict({"fc": torch.nn.Linear(6, 4), "bn": torch.nn.BatchNorm1d(4)})
    x = X[0, 0]
    port = port_of(Normed(), x, stats=True)
    before = tensors_of(module)
    after, _ = port.train_step(port.load_state_dict(before), {"x": x})
    y = module["fc"](torch.tensor(x))
    module["bn"](y)
    found, expected = port.state_dict(after), tensors_of(module)
    np.testing.assert_allclose(found["bn.running_mean"], expected["bn.running_mean"], atol=1e-6)
    assert not np.allclose(found["bn.running_var"], before["bn.running_var"])
    assert found["bn.num_batches_tracked"] == expected["bn.num_batches_tracked"] == 1


def test_float64_in_gives_float64_out_and_float32_stays() -> None:
    port = Held(port_of(Normed(), X[0, 0], stats=True))
    tensors = tensors_of(torch.nn.ModuleDict({"fc": torch.nn.Linear(6, 4), "bn": torch.nn.BatchNorm1d(4)}))
    for dtype in (np.float64, np.float32):
        state = {name: tensor.astype(dtype) if tensor.dtype.kind == "f" else tensor for name, tensor in tensors.items()}
        batch = {"x": X[0, 0].astype(dtype)}
        for call in ("load", "outputs", "value_and_grad", "train_steps"):
            answer = port.answer(Case("", call, state, (batch, batch)))
            assert all(array.dtype == dtype for name, array in answer.items() if "tracked" not in name)


def test_tied_tensors_share_a_leaf_and_constants_need_none() -> None:
    def outputs(params: Any, batch: Any, train: bool) -> Any:
        return {"z": params["embed"]["embedding"][batch["x"]], "a": jnp.ones(())}

    port = from_functions(
        outputs=outputs,
        loss=lambda params, batch: (outputs(params, batch, True)["z"] ** 2).sum(),
        optimizer=optax.sgd(0.1),
        params={"embed": {"embedding": jax.ShapeDtypeStruct((5, 3), jnp.float32)}},
        names={"head.weight": "embed/embedding", "mask": None},
    )
    weight = np.random.default_rng(0).normal(size=(5, 3)).astype(np.float32)
    given: Tensors = {"mask": np.tri(3), "embed.weight": weight, "head.weight": weight}
    state = port.load_state_dict(given)
    assert all(np.array_equal(tensor, given[name]) for name, tensor in port.state_dict(state).items())
    assert list(port.outputs(state, {"x": np.array([1, 2])}, False)) == ["z", "a"]


def test_names_that_no_rule_pairs_are_proposed_with_the_mapping_to_paste() -> None:
    class Net(nn.Module):
        @nn.compact
        def __call__(self, x: Any) -> Any:
            x = nn.Dense(8)(x)
            for _ in range(10):
                x = nn.Dense(8)(x)
            return nn.Dense(4)(nn.LayerNorm()(x))

    names = ["fc_in", *(f"fc{at}" for at in range(10)), "norm", "fc_out"]
    modules = [torch.nn.Linear(6, 8), *(torch.nn.Linear(8, 8) for _ in range(10))]
    module = torch.nn.ModuleDict(
        dict(zip(names, [*modules, torch.nn.LayerNorm(8), torch.nn.Linear(8, 4)], strict=True))
    )
    port = port_of(Net(), X[0, 0])
    with pytest.raises(PortError, match="names are left over: 26 of the reference") as error:
        port.load_state_dict(tensors_of(module))
    pasted: dict[str, Any] = {}
    exec(error.value.hint.split("\n\n")[1], {}, pasted)
    assert pasted["names"]["fc_in.weight"] == "Dense_0/kernel"
    assert pasted["names"]["fc9.weight"] == "Dense_10/kernel"
    assert pasted["names"]["fc_out.bias"] == "Dense_11/bias"
    assert pasted["names"]["norm.weight"] == "LayerNorm_0/scale"
    port_of(Net(), X[0, 0], names=pasted["names"]).load_state_dict(tensors_of(module))


def test_a_name_that_is_no_leaf_is_an_error() -> None:
    with pytest.raises(PortError, match=r"'fc\.weight' is said to be 'fc/weight', which is no leaf"):
        port_of(Normed(), X[0, 0], stats=True, names={"fc.weight": "fc/weight"}).load_state_dict(
            {"fc.weight": np.zeros((4, 6), np.float32)}
        )


def test_an_error_in_the_functions_is_told_with_their_own_line() -> None:
    port = from_functions(
        outputs=lambda params, batch, train: batch["missing"],
        loss=lambda params, batch: batch["missing"],
        optimizer=optax.sgd(0.1),
        params={"w": np.zeros((3, 2), np.float32)},
    )
    case = Case("", "outputs", {"w": np.zeros((2, 3), np.float32)}, ({"x": X},))
    with pytest.raises(PortError, match=r"outputs: the port raised KeyError: 'missing' \(test_adapters.py:\d+\)"):
        Held(port).answer(case)
