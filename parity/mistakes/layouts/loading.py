"""Which tensor is loaded where: exchanged with another, summed with it, not at all."""

from collections.abc import Iterator

import numpy as np

from parity.cases import Tensors
from parity.mistakes.layouts.misread import exchanged, grouped, parameters, read_as, renamed, reordered, siblings
from parity.mistakes.mistake import Diff, Mistake, Subject, Try
from parity.reference.rewrite import misread


def _summed_biases(subject: Subject) -> Iterator[Try]:
    pairs = {name: name.replace("_ih", "_hh") for name in parameters(subject) if "bias_ih" in name}
    for place, group in grouped(subject, [name for name, other in pairs.items() if other in subject.state]):

        def taken(state: Tensors, group: frozenset[str] = group) -> Tensors:
            sums = {name: state[name] + state[pairs[name]] for name in group}
            return state | sums | {pairs[name]: np.zeros_like(state[pairs[name]]) for name in group}

        yield Try(place, lambda _, taken=taken: misread(taken), size=len(group))  # type: ignore[misc]


def _vectors(subject: Subject) -> list[str]:
    return [name for name, array in subject.state.items() if array.dtype.kind == "f" and array.ndim == 1]


MISTAKES = (
    Mistake(
        "L010",
        "modules-exchanged",
        "{place} have each other's parameters in the port",
        "Two layers of one shape next to each other, such as a gate and what it gates, or the two normalisations of a "
        "block, can be exchanged by a single wrong name. Everything loads, and a training from the start would not "
        "even notice.",
        (
            Diff(
                "decoder",
                'gate, up = Dense(GATED, name="gate_proj")(normed), Dense(GATED, name="up_proj")(normed)',
                'up, gate = Dense(GATED, name="gate_proj")(normed), Dense(GATED, name="up_proj")(normed)',
            ),
            Diff("mlp", '"fc2": "features.4", "fc3": "features.7"', '"fc2": "features.7", "fc3": "features.4"'),
            Diff(
                "regression",
                'nn.sigmoid(Dense(WIDTH, name="gate")(x)) * jnp.tanh(Dense(WIDTH, name="candidate")(x))',
                'nn.sigmoid(Dense(WIDTH, name="candidate")(x)) * jnp.tanh(Dense(WIDTH, name="gate")(x))',
            ),
            Diff(
                "transformer",
                'name="attention_norm")(x)\n'
                '        x = x + dropout(SelfAttention(name="attention")(normed, padding))\n'
                '        hidden = nn.gelu(Dense(4 * WIDTH, name="mlp_in")(LayerNorm(name="mlp_norm")(x))',
                'name="mlp_norm")(x)\n'
                '        x = x + dropout(SelfAttention(name="attention")(normed, padding))\n'
                '        hidden = nn.gelu(Dense(4 * WIDTH, name="mlp_in")(LayerNorm(name="attention_norm")(x))',
            ),
        ),
        ("HF#12545",),
        renamed(siblings),
    ),
    Mistake(
        "L011",
        "tensors-exchanged",
        "{place} are exchanged in the port",
        "A normalisation's scale and bias, its running mean and variance, the two products of a recurrent layer: "
        "tensors of one shape that only their names tell apart. In a fresh program scale and variance are 1, bias and "
        "mean 0, and the exchange shows at once; where both have been trained it shows in the outputs alone.",
        (
            Diff(
                "convnet",
                '{"scale": tensors[f"{name}.weight"], "bias": tensors[f"{name}.bias"]}',
                '{"scale": tensors[f"{name}.bias"], "bias": tensors[f"{name}.weight"]}',
            ),
            Diff(
                "convnet",
                '"mean": tensors[f"{name}.running_mean"],\n            "var": tensors[f"{name}.running_var"],',
                '"mean": tensors[f"{name}.running_var"],\n            "var": tensors[f"{name}.running_mean"],',
            ),
            Diff(
                "regression",
                '{"scale": tensors["trunk.1.weight"], "bias": tensors["trunk.1.bias"]}',
                '{"scale": tensors["trunk.1.bias"], "bias": tensors["trunk.1.weight"]}',
            ),
            Diff(
                "rnn",
                '(xr, xz, xn), (hr, hz, hn) = Gates(3, name="gates")(x, h)',
                '(hr, hz, hn), (xr, xz, xn) = Gates(3, name="gates")(h, x)',
            ),
        ),
        ("torch: nn.BatchNorm2d", "torch: nn.GRU"),
        renamed(exchanged),
    ),
    Mistake(
        "L012",
        "layers-in-another-order",
        "the layers of {place} are in another order in the port",
        "Names sorted as text put layer 10 before layer 2, and a list that is filled from its end is reversed. All "
        "layers have one shape, so that nothing but the outputs can tell.",
        (
            Diff(
                "decoder", 'DecoderLayer(name=f"layers_{layer}")', 'DecoderLayer(name=f"layers_{LAYERS - 1 - layer}")'
            ),
            Diff(
                "transformer",
                'name=f"layer{layer}")(x, tokens == PAD',
                'name=f"layer{LAYERS - 1 - layer}")(x, tokens == PAD',
            ),
        ),
        ("python: sorted",),
        renamed(
            lambda subject: (one for order in (lambda names: names[::-1], sorted) for one in reordered(subject, order))
        ),
    ),
    Mistake(
        "L014",
        "tensor-not-loaded",
        "{place} is not loaded: the port leaves it at {value}",
        "A name that no rule of a converter matches keeps what the program was made with: biases and running means 0, "
        "scales and running variances 1. Libraries warn of it in a line among hundreds. Straight after a fresh "
        "start the tensors are what they should be, so that a test with fresh weights passes.",
        (
            Diff("convnet", '= tensors["grouped.bias"]', '= jnp.zeros_like(tensors["grouped.bias"])'),
            Diff(
                "convnet",
                '"var": tensors[f"{name}.running_var"]',
                '"var": jnp.ones_like(tensors[f"{name}.running_var"])',
            ),
            Diff(
                "convnet",
                '"mean": tensors[f"{name}.running_mean"]',
                '"mean": jnp.zeros_like(tensors[f"{name}.running_mean"])',
            ),
            Diff(
                "regression",
                'params[layer]["bias"] = tensors[f"{name}.bias"]',
                'params[layer]["bias"] = jnp.zeros_like(tensors[f"{name}.bias"])',
            ),
            Diff(
                "regression",
                '"std": tensors["standardize.std"]',
                '"std": jnp.ones_like(tensors["standardize.std"])',
            ),
            Diff(
                "mlp",
                'jnp.asarray(state_dict[f"{name}.bias"])',
                'jnp.zeros_like(state_dict[f"{name}.bias"])',
            ),
            Diff("unet", 'branch[last]["bias"] = bias', 'branch[last]["bias"] = jnp.zeros_like(bias)'),
            Diff(
                "rnn",
                '"bias": tensors[f"{name}.bias_{side}_{suffix}"],',
                '"bias": jnp.zeros_like(tensors[f"{name}.bias_{side}_{suffix}"]),',
            ),
        ),
        ("HF#20934", "HF#12545"),
        read_as(_vectors, lambda array, value: np.full_like(array, value), None, (0.0, 1.0)),
    ),
    Mistake(
        "L015",
        "recurrent-biases-summed",
        "the two biases of {place} are summed into one in the port, and the other is zero",
        "torch's recurrent layers have a bias for the input's product and one for the state's. They are added, so one "
        "is enough: in an LSTM. A GRU resets the state's product with its bias before it is added, so the candidate "
        "needs both. The sum also learns half as fast as two biases do.",
        (
            Diff(
                "rnn",
                '"bias": tensors[f"{name}.bias_{side}_{suffix}"],',
                '"bias": tensors[b := f"{name}.bias_ih_{suffix}"] + tensors[f"{name}.bias_hh_{suffix}"] '
                'if side == "ih" else 0 * tensors[f"{name}.bias_hh_{suffix}"],',
            ),
        ),
        ("equinox#1003", "torch: nn.GRU"),
        _summed_biases,
    ),
    Mistake(
        "L021",
        "tensor-left-random",
        "{place} is drawn anew instead of loaded",
        "A name that does not match is drawn anew without a word: two loads of one file then disagree with each "
        "other. The numbers are nobody's, so that this is seen when the state is told again, but has no rewrite.",
        (
            Diff(
                "decoder",
                "tensor = jnp.asarray(state_dict[torch_name(path)])",
                "tensor = jnp.asarray(state_dict[torch_name(path)])\n"
                '        if "down_proj" in path:\n'
                "            tensor = 0.1 * jax.random.normal(jax.random.key(0), tensor.shape, tensor.dtype)",
            ),
            Diff(
                "mlp",
                'jnp.asarray(state_dict[f"{name}.bias"]),',
                'jnp.asarray(state_dict[f"{name}.bias"]) if layer != "head" else 0.1 * jnp.cos(jnp.arange(CLASSES)),',
            ),
        ),
        ("HF#20934", "HF#12545"),
    ),
)
