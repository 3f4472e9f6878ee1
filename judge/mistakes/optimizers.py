"""Optimizers: weight decay, Adam and its kin, momentum, and what is updated; their clipping and schedules."""

from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from ..reference.program import Reference
from ..reference.rewrite import Rewrite
from . import clipping, rules, schedules
from .mistake import Diff, Mistake, Subject, Tries, Try, program, setting, several
from .rules import Group, Rule, Stepped, by_name, changed, innermost, kind_of, ruled, stepped

ADAM, SGD, RMSPROP, ADAGRAD, ADAMAX = (
    *(torch.optim.Adam, torch.optim.SGD),
    *(torch.optim.RMSprop, torch.optim.Adagrad, torch.optim.Adamax),
)
KINDS = ("biases", "scales of norms", "embeddings", "kernels")


def _is(*kinds: type) -> Callable[[Subject], bool]:
    return lambda subject: isinstance(innermost(subject.optimizer), kinds)


def _by_rule(rule: Rule, *kinds: type) -> Tries:
    """Optimizers of some kinds follow another rule."""
    return program(lambda reference, _: ruled(rule)(reference), place="the optimizer", when=_is(*kinds))


def _decays(decoupled: bool) -> Callable[[Subject], bool]:
    return lambda subject: any(
        group.get("weight_decay") and bool(group.get("decoupled_weight_decay")) is decoupled
        for group in subject.optimizer.param_groups
    )


def _decay(subject: Subject) -> float:
    """The decay of the group that decays."""
    return float(max((group.get("weight_decay") or 0.0 for group in subject.optimizer.param_groups), default=0.0))


def _apart(share: Callable[[Stepped, Group, Any], Any]) -> Rewrite:
    """Decay is taken from the parameter itself, `share` of it for every unit of weight decay."""

    def do(optimizer: Stepped) -> None:
        before = [(param, group, param.clone()) for param, group in optimizer.params()]
        with changed(optimizer, lambda group: {"weight_decay": 0.0}):
            optimizer.inner.step()
        for param, group, old in before:
            if group.get("weight_decay"):
                param.sub_(share(optimizer, group, group["weight_decay"]) * old)

    return stepped(do)


def _first_rates(optimizer: Stepped, group: Group, decay: Any) -> Any:
    """The base learning rate, whatever the schedule says."""
    return group.get("max_lr", group.get("initial_lr", group["lr"])) * decay


def _in_gradient(optimizer: Stepped) -> None:
    for param, group in optimizer.params():
        assert param.grad is not None
        if group.get("weight_decay"):
            param.grad = param.grad + group["weight_decay"] * param
    with changed(optimizer, lambda group: {"weight_decay": 0.0}):
        optimizer.inner.step()


def _weight_decay(subject: Subject) -> Iterator[Try]:
    """Where it decays, it decays otherwise."""
    was = _decay(subject)
    if "weight_decay" not in subject.optimizer.param_groups[0]:
        return

    def rewrite(value: Any) -> Rewrite:
        if not was:
            return by_name(lambda name, param, group: {"weight_decay": value})
        return by_name(lambda name, param, group: {"weight_decay": group["weight_decay"] / was * value})

    values = (0.0, 1e-4, 1e-2, 5e-4, 0.1, 1e-3, 0.05, was / 2)
    yield Try("the optimizer", rewrite, tuple(value for value in values if value != was), "linear", was)


def _masked(decay: bool) -> Tries:
    """Parameters of a kind decay in the port alone, or in the reference alone."""

    def tries(subject: Subject) -> Iterator[Try]:
        most, module = _decay(subject), subject.module
        if not most:
            return
        decays = {id(param): bool(g["weight_decay"]) for g in subject.optimizer.param_groups for param in g["params"]}
        found: dict[str, list[str]] = {}
        for name, param in module.named_parameters():
            if decays.get(id(param)) is (not decay):
                found.setdefault(kind_of(module, name), []).append(name)
        sets: dict[str, list[str]] = {kind: found[kind] for kind in KINDS if kind in found}
        small = ["biases", "scales of norms"]
        if all(kind in sets for kind in small):
            sets["biases and scales of norms"] = [name for kind in small for name in sets[kind]]
        every = [name for names in found.values() for name in names]
        sets["all parameters"] = every
        for name in every:
            sets[name] = [name]
        told: list[list[str]] = []
        for place, names in sets.items():
            if names and sorted(names) not in told:
                told.append(sorted(names))
                # Where everything decays, to take it from all is no mask.
                if decay or len(names) < len(decays):
                    value = most if decay else 0.0
                    change = lambda name, param, group, names=names, value=value: (  # noqa: E731
                        {"weight_decay": value} if name in names else {}
                    )
                    yield Try(place, lambda _, change=change: by_name(change), size=len(names))  # type: ignore[misc]

    return tries


def _flipped(reference: Reference, _: Any) -> Reference:
    def change(name: str, param: Tensor, group: Group) -> Group:
        return {"weight_decay": 0.0 if group["weight_decay"] else most[0]}

    def optimizer(module: Any) -> torch.optim.Optimizer:
        most[:] = [max(group["weight_decay"] for group in reference.optimizer(module).param_groups)]
        return made(module)

    most: list[float] = []
    flipped = by_name(change)(reference)
    made = flipped.optimizer
    return replace(flipped, optimizer=optimizer)


def _is_masked(subject: Subject) -> bool:
    decays = {bool(group.get("weight_decay")) for group in subject.optimizer.param_groups}
    return decays == {True, False}


def _scaled(value: float, index: int | None = None) -> Rewrite:
    """Learning rates times a number: all of them, or one group's."""

    def do(optimizer: Stepped) -> None:
        chosen = [group for at, group in enumerate(optimizer.param_groups) if index in (None, at)]
        with changed(
            optimizer, lambda group: {"lr": group["lr"] * value} if any(group is one for one in chosen) else {}
        ):
            optimizer.inner.step()

    return stepped(do)


def _group_rates(subject: Subject) -> Iterator[Try]:
    groups = subject.optimizer.param_groups
    names = {id(param): name for name, param in subject.module.named_parameters()}
    if len(groups) < 2:
        return
    for index, group in enumerate(groups):
        first = names.get(id(group["params"][0]), "") if group["params"] else ""
        own = [float(other["lr"]) / float(group["lr"]) for other in groups]
        values = tuple(dict.fromkeys(value for value in (*own, 0.1, 10.0, 0.5, 2.0) if value != 1))
        yield Try(
            f"group {index} ({first}, …)",
            lambda value, index=index: _scaled(value, index),  # type: ignore[misc]
            values,
            "log",
            1.0,
        )


FAMILIES: dict[str, tuple[tuple[type, ...], Rule, dict[str, Any]]] = {
    "SGD": ((SGD,), lambda grad, state, group: grad, {}),
    "SGD with momentum 0.9": ((SGD,), rules.velocity, {"momentum": 0.9, "nesterov": False}),
    "Adam": ((ADAM,), rules.adam, {"betas": (0.9, 0.999), "eps": 1e-8}),
    "NAdam": ((torch.optim.NAdam,), rules.nadam, {"betas": (0.9, 0.999), "eps": 1e-8}),
    "Adamax": ((ADAMAX,), rules.adamax, {"betas": (0.9, 0.999), "eps": 1e-8}),
    "RMSprop": ((RMSPROP,), rules.rmsprop(in_root=True), {"alpha": 0.9, "eps": 1e-8, "momentum": 0}),
    "Adagrad": ((ADAGRAD,), rules.adagrad(in_root=True, start=0.1), {"eps": 1e-7, "lr_decay": 0}),
    "Lion": ((), rules.lion, {"betas": (0.9, 0.99), "decoupled_weight_decay": True}),
}


def _swapped(subject: Subject) -> Iterator[Try]:
    """Another optimizer, with optax's defaults; the decay is kept, apart from the gradient or in it, or dropped."""
    own = innermost(subject.optimizer)
    decays: dict[str, dict[str, Any]] = {"": {}}
    if _decay(subject):
        decays = {
            "": {"decoupled_weight_decay": False},
            ", decay apart from the gradient": {"decoupled_weight_decay": True},
            " without decay": {"weight_decay": 0.0},
        }
    rewrites = {
        name + words: ruled(rule, **settings | decay)
        for name, (kinds, rule, settings) in FAMILIES.items()
        if not isinstance(own, kinds)
        for words, decay in decays.items()
    }
    yield Try("the optimizer", lambda value: rewrites[value], tuple(rewrites), was=type(own).__name__)


def _only(rate: Callable[[str], bool]) -> Rewrite:
    """A reference that updates only some parameters."""
    return by_name(lambda name, param, group: {} if rate(name) else None)


def _not_updated(subject: Subject) -> Iterator[Try]:
    """A parameter, a module with all in it, a kind of parameters, or all but a module."""
    moved = {id(param) for group in subject.optimizer.param_groups for param in group["params"]}
    names = [name for name, param in subject.module.named_parameters() if id(param) in moved]
    sets: dict[str, frozenset[str]] = {}
    for name in names:
        parts = name.split(".")
        for end in range(1, len(parts) + 1):
            place = ".".join(parts[:end])
            sets[place] = frozenset(one for one in names if f"{one}.".startswith(f"{place}."))
    for kind in KINDS:
        sets[f"all {kind}"] = frozenset(name for name in names if kind_of(subject.module, name) == kind)
    for name in names:
        kind = type(subject.module.get_submodule(name.rpartition(".")[0])).__name__
        sets[f"every {kind}"] = sets.get(f"every {kind}", frozenset()) | {name}
    for place, held in list(sets.items()):
        sets[f"all but {place}"] = frozenset(names) - held
    told: set[frozenset[str]] = {frozenset()}
    for place, held in sets.items():
        if held not in told and len(held) < len(names):
            told.add(held)
            yield Try(place, lambda _, held=held: _only(lambda name: name not in held), size=len(held))  # type: ignore[misc]


def _standing(optimizer: Stepped) -> None:
    """No step at all."""


def _forgetful(reference: Reference, _: Any) -> Reference:
    """Every step is the first one: of the optimizer, and of its schedule."""

    class Still:
        def step(self) -> None:
            pass

    def do(optimizer: Stepped) -> None:
        inner = innermost(optimizer)
        if optimizer.count == 1:
            kept[:] = [
                (param, {name: one.clone() if isinstance(one, Tensor) else one for name, one in state.items()})
                for param, state in inner.state.items()
            ]
        inner.state.clear()
        for param, state in kept:
            inner.state[param] = {name: one.clone() if isinstance(one, Tensor) else one for name, one in state.items()}
        optimizer.inner.step()

    kept: list[tuple[Tensor, dict[str, Any]]] = []
    make = reference.scheduler

    def scheduler(optimizer: torch.optim.Optimizer) -> Still:
        assert make is not None
        make(optimizer)
        return Still()

    return replace(stepped(do)(reference), scheduler=scheduler if make else None)


def _gathered(reference: Reference, value: Any) -> Reference:
    """Gradients of several steps are gathered before the optimizer moves; its schedule counts its moves."""
    count, summed = value

    def optimizer(module: Any) -> torch.optim.Optimizer:
        sums: dict[int, Tensor] = {}

        def do(own: Stepped) -> None:
            for param, _ in own.params():
                assert param.grad is not None
                part = param.grad if summed else param.grad / count
                sums[id(param)] = sums[id(param)] + part if id(param) in sums else part.clone()
            if own.count % count:
                return
            for param, _ in own.params():
                param.grad = sums.pop(id(param))
            if reference.clip is not None:
                reference.clip(module)
            own.inner.step()

        return Stepped(reference.optimizer(module), do)

    make = reference.scheduler

    class Slow:
        def __init__(self, inner: Any) -> None:
            self.inner, self.count = inner, 0

        def step(self) -> None:
            self.count += 1
            if self.count % count == 0:
                self.inner.step()

    def scheduler(own: torch.optim.Optimizer) -> Slow:
        assert make is not None
        return Slow(make(own))

    return replace(reference, optimizer=optimizer, clip=None, scheduler=scheduler if make else None)


_MLP = """    optax.add_decayed_weights(5e-4),
    optax.sgd(lambda step: 0.1 * 0.8 ** (step // 2), momentum=0.9, nesterov=True),"""
_MLP_RATE = "optax.scale_by_learning_rate(lambda step: 0.1 * 0.8 ** (step // 2)),"
_RNN_RATE = "optax.scale_by_learning_rate(lambda step: 2e-3 * 0.9**step),"
_RNN = f"""    optax.trace(decay=0.8),  # torch's momentum gathers steps before they meet the learning rate
    {_RNN_RATE}"""
_CONVNET = """    optax.add_decayed_weights(1e-2, mask=kernels),
    optax.adam(learning_rate),"""
_TRANSFORMER = "    optax.adamw(learning_rate, weight_decay=0.05, mask=decays),"
_DECODER = """    optax.inject_hyperparams(optax.adamw, static_args="mask")(
        learning_rate=one_cycle(3e-3 / 25, 3e-3, 3e-3 / 25 / 1e4),
        b1=one_cycle(0.95, 0.85, 0.95),
        b2=0.95,
        weight_decay=0.1,
        mask=decays,
    ),"""
_DECODER_ADAM = """    optax.inject_hyperparams(optax.adam)(
        learning_rate=one_cycle(3e-3 / 25, 3e-3, 3e-3 / 25 / 1e4),
        b1=one_cycle(0.95, 0.85, 0.95),
        b2=0.95,
    ),"""
_UNET = """    optax.add_decayed_weights(1e-3),
    scale_by_adagrad(rate_decay=0.05),
    optax.scale_by_learning_rate(learning_rate),"""
_REGRESSION_RATE = "lambda step: learning_rate * (0.25 + 0.75 * jnp.minimum(step / 3.0, 1.0))"
_REGRESSION = f"""        optax.add_decayed_weights(weight_decay),
        optax.adamax({_REGRESSION_RATE}),"""
_APPLIED = '    params = optax.apply_updates(variables["params"], updates)'
_UPDATED = '    updates, opt_state = optimizer.update(grads, opt_state, variables["params"])'


def _held(*layers: str) -> str:
    held = ", ".join(f'"{layer}": variables["params"]["{layer}"]' for layer in layers)
    return f"{_APPLIED}\n    params = {{**params, {held}}}"


MISTAKES = (
    Mistake(
        "O001",
        "decay-apart-from-gradient",
        "weight decay at {place} is taken from the parameters (as in AdamW), the reference adds it to the gradient",
        "torch's `Adam(weight_decay=…)` is an L2 penalty that goes through the moments; optax has only adamw, whose "
        "decay is not divided by them. With Adam the two are different methods; with SGD and momentum they differ from "
        "the second step on, for torch's decay gathers momentum. The loss and its gradient agree.",
        (
            Diff("convnet", _CONVNET, "    optax.adamw(learning_rate, weight_decay=1e-2, mask=kernels),"),
            Diff(
                "mlp",
                _MLP,
                f"    optax.trace(decay=0.9, nesterov=True),\n    optax.add_decayed_weights(5e-4),\n    {_MLP_RATE}",
            ),
            Diff(
                "unet",
                _UNET,
                "    scale_by_adagrad(rate_decay=0.05),\n    optax.add_decayed_weights(1e-3),\n"
                "    optax.scale_by_learning_rate(learning_rate),",
            ),
            Diff(
                "regression",
                _REGRESSION,
                "        optax.scale_by_adamax(),\n"
                "        optax.add_decayed_weights(weight_decay),\n"
                f"        optax.scale_by_learning_rate({_REGRESSION_RATE}),",
            ),
        ),
        ("optax#417", "torch#13801"),
        program(
            lambda reference, _: _apart(lambda own, group, decay: group["lr"] * decay)(reference),
            place="the optimizer",
            when=_decays(False),
        ),
    ),
    Mistake(
        "O002",
        "decay-in-gradient",
        "weight decay at {place} is added to the gradient (L2), the reference takes it from the parameters (AdamW)",
        "`add_decayed_weights` before `adam` is torch's Adam with weight decay, not its AdamW: the decay is divided by "
        "the root of the second moment like everything else, so that weights of large gradient hardly decay.",
        (
            Diff(
                "transformer",
                _TRANSFORMER,
                "    optax.add_decayed_weights(0.05, mask=decays),\n    optax.adam(learning_rate),",
            ),
            Diff("decoder", _DECODER, f"    optax.add_decayed_weights(0.1, mask=decays),\n{_DECODER_ADAM}"),
        ),
        ("optax#417",),
        program(lambda reference, _: stepped(_in_gradient)(reference), place="the optimizer", when=_decays(True)),
    ),
    Mistake(
        "O003",
        "weight-decay",
        "the weight decay of {place} is {value}, the reference's is {was}",
        "Weight decay was forgotten (0), or is the library's default: optax.adamw decays by 1e-4, torch's AdamW by "
        "1e-2. After one step the difference is below any usual tolerance; after a training it is not.",
        (
            Diff("transformer", "weight_decay=0.05, mask=decays", "mask=decays"),
            Diff("mlp", "optax.add_decayed_weights(5e-4)", "optax.add_decayed_weights(3e-4)"),
            Diff("convnet", "    optax.add_decayed_weights(1e-2, mask=kernels),\n", ""),
            Diff("unet", "optax.add_decayed_weights(1e-3)", "optax.add_decayed_weights(1e-2)"),
            Diff("decoder", "weight_decay=0.1,", "weight_decay=0.01,"),
            Diff("regression", '"others": adamax(4e-3, weight_decay=1e-2)', '"others": adamax(4e-3, weight_decay=0.0)'),
            Diff("rnn", "    optax.clip(0.02),", "    optax.clip(0.02),\n    optax.add_decayed_weights(1e-2),"),
        ),
        ("torch#887", "mlx#473"),
        _weight_decay,
    ),
    Mistake(
        "O004",
        "decay-of-all-parameters",
        "{place} decay in the port, not in the reference",
        "Biases, scales of norms and often embeddings are exempt from decay in one group of the reference's optimizer; "
        "optax needs a mask for that, and without one decays everything. A mask made by names misses what flax calls "
        "otherwise: `scale` where torch has `weight`, tuples where one looks for dotted strings.",
        (
            Diff("transformer", "weight_decay=0.05, mask=decays", "weight_decay=0.05"),
            Diff("transformer", 're.search("norm|bias",', 're.search("bias",'),
            Diff("decoder", 'lambda path, _: path[-1] == "kernel", params', "lambda path, _: True, params"),
            Diff("decoder", 'path[-1] == "kernel", params', 'path[-1] != "scale", params'),
            Diff("convnet", "optax.add_decayed_weights(1e-2, mask=kernels)", "optax.add_decayed_weights(1e-2)"),
            Diff("regression", "adamax(8e-3, weight_decay=0.0)", "adamax(8e-3, weight_decay=1e-2)"),
        ),
        ("HF#11936", "HF#18273", "HF#12409", "rotobart#25"),
        _masked(True),
    ),
    Mistake(
        "O005",
        "decay-masked",
        "{place} do not decay in the port, in the reference they do",
        "A mask that exempts biases and norms is so common that it is added without looking; torch's `weight_decay` "
        "without groups decays every parameter.",
        (
            Diff(
                "mlp",
                "optax.add_decayed_weights(5e-4)",
                "optax.add_decayed_weights(5e-4, lambda params: jax.tree.map(lambda p: p.ndim > 1, params))",
            ),
            Diff(
                "unet",
                "optax.add_decayed_weights(1e-3)",
                "optax.add_decayed_weights(1e-3, lambda params: jax.tree.map(lambda p: p.ndim > 1, params))",
            ),
            Diff("transformer", 're.search("norm|bias",', 're.search("norm|bias|tokens|positions",'),
            Diff("decoder", 'path[-1] == "kernel", params', 'path[-1] == "kernel" and path[0] != "lm_head", params'),
            Diff("convnet", "lambda leaf: leaf.ndim > 1, params", "lambda leaf: leaf.ndim == 4, params"),
        ),
        ("HF#12087", "torch documentation: SGD, weight_decay"),
        _masked(False),
    ),
    Mistake(
        "O006",
        "decay-mask-flipped",
        "the parameters that decay and those that do not are swapped",
        "A mask says what decays in optax, and in other code what is exempt. The loss still falls; after a zero "
        "gradient biases and norms have moved, kernels have not.",
        (
            Diff(
                "transformer",
                'lambda path, _: not re.search("norm|bias", "/".join(map(str, path)))',
                'lambda path, _: bool(re.search("norm|bias", "/".join(map(str, path))))',
            ),
            Diff("decoder", 'path[-1] == "kernel", params', 'path[-1] != "kernel", params'),
            Diff("convnet", "lambda leaf: leaf.ndim > 1, params", "lambda leaf: leaf.ndim == 1, params"),
            Diff(
                "regression",
                '"heads": adamax(8e-3, weight_decay=0.0), "others": adamax(4e-3, weight_decay=1e-2)',
                '"heads": adamax(8e-3, weight_decay=1e-2), "others": adamax(4e-3, weight_decay=0.0)',
            ),
        ),
        ("HF#11936", "HF#12087"),
        program(_flipped, place="the optimizer", when=_is_masked),
    ),
    Mistake(
        "O007",
        "decay-not-scaled-by-rate",
        "weight decay at {place} is not multiplied by the learning rate",
        "`add_decayed_weights` has to stand before the learning rate in the chain. After it, the decay is as many "
        "times too large as the rate is small, and no schedule lowers it.",
        (
            Diff(
                "transformer",
                _TRANSFORMER,
                "    optax.adam(learning_rate),\n    optax.add_decayed_weights(-0.05, mask=decays),",
            ),
            Diff("decoder", _DECODER, f"{_DECODER_ADAM}\n    optax.add_decayed_weights(-0.1, mask=decays),"),
            Diff(
                "convnet",
                _CONVNET,
                "    optax.adam(learning_rate),\n    optax.add_decayed_weights(-1e-2, mask=kernels),",
            ),
            Diff(
                "mlp",
                _MLP,
                "    optax.sgd(lambda step: 0.1 * 0.8 ** (step // 2), momentum=0.9, nesterov=True),\n"
                "    optax.add_decayed_weights(-5e-4),",
            ),
        ),
        ("algoperf#809", "optax documentation: add_decayed_weights"),
        program(
            lambda reference, _: _apart(lambda own, group, decay: decay)(reference),
            place="the optimizer",
            when=lambda subject: _decay(subject) > 0,
        ),
    ),
    Mistake(
        "O008",
        "decay-not-scheduled",
        "weight decay at {place} is multiplied by the base learning rate, the reference's by the scheduled one",
        "The paper on decoupled decay schedules both by one factor, torch multiplies by the learning rate of the step. "
        "A port that takes the constant decays as strongly at the end, and in the warm-up, as at the peak.",
        (
            Diff(
                "transformer",
                _TRANSFORMER,
                "    optax.adam(learning_rate),\n    optax.add_decayed_weights(-2e-3 * 0.05, mask=decays),",
            ),
            Diff("decoder", _DECODER, f"{_DECODER_ADAM}\n    optax.add_decayed_weights(-3e-3 * 0.1, mask=decays),"),
        ),
        ("algoperf#809", "kyleliang919/C-Optim#3"),
        program(
            lambda reference, _: _apart(_first_rates)(reference),
            place="the optimizer",
            when=lambda subject: _decay(subject) > 0 and subject.reference.scheduler is not None,
        ),
    ),
    Mistake(
        "O009",
        "decay-grows",
        "weight decay at {place} has the wrong sign: weights grow",
        "Whether a decay is added to a gradient or to an update decides its sign, and a chain of optax has both. It is "
        "small enough to go unnoticed until weights are large.",
        (
            Diff("transformer", "weight_decay=0.05, mask=decays", "weight_decay=-0.05, mask=decays"),
            Diff("mlp", "optax.add_decayed_weights(5e-4)", "optax.add_decayed_weights(-5e-4)"),
            Diff(
                "convnet",
                "optax.add_decayed_weights(1e-2, mask=kernels)",
                "optax.add_decayed_weights(-1e-2, mask=kernels)",
            ),
            Diff("unet", "optax.add_decayed_weights(1e-3)", "optax.add_decayed_weights(-1e-3)"),
            Diff("decoder", "weight_decay=0.1,", "weight_decay=-0.1,"),
        ),
        ("optax documentation: add_decayed_weights",),
        program(
            lambda reference, _: by_name(lambda name, param, group: {"weight_decay": -group["weight_decay"]})(
                reference
            ),
            place="the optimizer",
            when=lambda subject: _decay(subject) > 0,
        ),
    ),
    Mistake(
        "O010",
        "learning-rate",
        "the learning rate is {value} times the reference's",
        "Another number in a config, the rate of another batch size, a default. With Adam the first update is the rate "
        "itself in every element, so that its factor is plain to see.",
        (
            Diff("mlp", "lambda step: 0.1 * 0.8", "lambda step: 0.01 * 0.8"),
            Diff("convnet", "return 3e-3 * 0.3", "return 1e-3 * 0.3"),
            Diff("transformer", "return 2e-3 * jnp.where", "return 3e-3 * jnp.where"),
            Diff("rnn", "lambda step: 2e-3 * 0.9**step", "lambda step: 1e-3 * 0.9**step"),
            Diff(
                "unet",
                "optax.scale_by_learning_rate(learning_rate)",
                "optax.scale_by_learning_rate(lambda step: 0.7 * learning_rate(step))",
            ),
            Diff(
                "decoder",
                "learning_rate=one_cycle(3e-3 / 25, 3e-3, 3e-3 / 25 / 1e4)",
                "learning_rate=one_cycle(6e-3 / 25, 6e-3, 6e-3 / 25 / 1e4)",
            ),
            Diff(
                "regression",
                "optax.adamax(lambda step: learning_rate *",
                "optax.adamax(lambda step: 3 * learning_rate *",
            ),
        ),
        ("mlx#1542",),
        program(lambda reference, value: _scaled(value)(reference), (0.1, 10.0, 0.5, 2.0), "log", "the optimizer", 1.0),
    ),
    Mistake(
        "O011",
        "learning-rate-of-a-group",
        "the learning rate of {place} is {value} times the reference's",
        "Groups of parameters with rates of their own (a head that learns faster, a backbone that hardly moves) need "
        "`multi_transform` or masks in optax; without them all learn at one rate.",
        (
            Diff("regression", '"heads": adamax(8e-3', '"heads": adamax(4e-3'),
            Diff("regression", '"others": adamax(4e-3', '"others": adamax(1e-3'),
        ),
        ("optax documentation: multi_transform",),
        _group_rates,
    ),
    Mistake(
        "O012",
        "gradient-ascent",
        "the update of {place} has the wrong sign",
        "`scale_by_schedule` and `scale` multiply by what they are given, `scale_by_learning_rate` by its negative: "
        "taken for one another, the loss rises. Where the loss is a score to be maximised, the mistake is harder to "
        "see.",
        (
            Diff("rnn", _RNN_RATE, "optax.scale_by_schedule(lambda step: 2e-3 * 0.9**step),"),
            Diff("unet", "optax.scale_by_learning_rate(learning_rate)", "optax.scale_by_schedule(learning_rate)"),
            Diff("mlp", "lambda step: 0.1 * 0.8", "lambda step: -0.1 * 0.8"),
            Diff("convnet", "return 3e-3 * 0.3", "return -3e-3 * 0.3"),
            Diff("transformer", "return 2e-3 * jnp.where", "return -2e-3 * jnp.where"),
        ),
        ("optax documentation: scale_by_learning_rate",),
        program(lambda reference, _: _scaled(-1.0)(reference), place="the optimizer"),
    ),
    Mistake(
        "O013",
        "other-optimizer",
        "the optimizer is {value}, the reference's {was}",
        "Adam is what one types without thinking. Both train; curves differ, and are blamed on seeds.",
        (
            Diff(
                "mlp",
                "optax.sgd(lambda step: 0.1 * 0.8 ** (step // 2), momentum=0.9, nesterov=True)",
                "optax.adam(lambda step: 0.1 * 0.8 ** (step // 2))",
            ),
            Diff("convnet", "optax.adam(learning_rate)", "optax.sgd(learning_rate)"),
            Diff("transformer", _TRANSFORMER, "    optax.lion(learning_rate, weight_decay=0.05, mask=decays),"),
            Diff(
                "rnn",
                "    optax.scale_by_rms(decay=0.9, eps=1e-6, eps_in_sqrt=False),\n    optax.trace(decay=0.8),",
                "    optax.scale_by_adam(),",
            ),
            Diff("unet", "    scale_by_adagrad(rate_decay=0.05),", "    optax.scale_by_rms(),"),
            Diff("regression", f"optax.adamax({_REGRESSION_RATE})", f"optax.adam({_REGRESSION_RATE})"),
            Diff("convnet", "optax.adam(learning_rate)", "optax.nadam(learning_rate)"),
        ),
        ("mlx#1542", "algoperf#925"),
        _swapped,
    ),
    Mistake(
        "O014",
        "optimizer-epsilon",
        "the epsilon of {place} is {value}, the reference's is {was}",
        "Frameworks differ: 1e-8 (torch, optax), 1e-7 (Keras), 1e-6 and 1e-3 (papers); Adagrad and Adadelta have "
        "others again. It matters for parameters of tiny gradients only, late in training or far from the loss, and "
        "nothing shows where gradients are of size 1.",
        (
            Diff("convnet", "optax.adam(learning_rate)", "optax.adam(learning_rate, eps=1e-7)"),
            Diff("transformer", "optax.adamw(learning_rate, ", "optax.adamw(learning_rate, eps=1e-6, "),
            Diff("rnn", "eps=1e-6, eps_in_sqrt=False", "eps=1e-8, eps_in_sqrt=False"),
            Diff("unet", "epsilon: float = 1e-10", "epsilon: float = 1e-7"),
            Diff("decoder", "        b2=0.95,\n", "        b2=0.95,\n        eps=1e-5,\n"),
            Diff("regression", f"optax.adamax({_REGRESSION_RATE})", f"optax.adamax({_REGRESSION_RATE}, eps=3e-7)"),
        ),
        ("algoperf#307", "HF#35504"),
        setting("eps", (1e-7, 1e-8, 1e-6, 1e-5, 1e-10, 1e-3), "log"),
    ),
    Mistake(
        "O015",
        "adam-epsilon-within-root",
        "Adam's epsilon is within the root, the reference's is added after it",
        "√(v + ε) and √v + ε with the same ε are far apart: 1e-8 within the root is 1e-4 outside of it. optax has "
        "both, `eps` and `eps_root`.",
        (
            Diff("convnet", "optax.adam(learning_rate)", "optax.adam(learning_rate, eps=0.0, eps_root=1e-8)"),
            Diff("transformer", "optax.adamw(learning_rate, ", "optax.adamw(learning_rate, eps=0.0, eps_root=1e-8, "),
            Diff("decoder", "        b2=0.95,\n", "        b2=0.95,\n        eps=0.0,\n        eps_root=1e-8,\n"),
        ),
        ("optax documentation: adam, eps_root", "optax#532"),
        _by_rule(rules.adam_with_epsilon_in_root, ADAM),
    ),
    Mistake(
        "O016",
        "adam-epsilon-before-correction",
        "Adam's epsilon is added before the bias correction, the reference's after it",
        "The paper's faster form folds the correction into the learning rate, and TensorFlow follows it: epsilon is "
        "then 1/√(1-β₂ᵗ) times as large, 31.6 times at the first step. Late in training both agree.",
        (
            Diff(
                "convnet",
                "optax.adam(learning_rate)",
                "optax.inject_hyperparams(optax.adam)(learning_rate, "
                "eps=lambda step: 1e-8 / jnp.sqrt(1 - 0.999 ** (step + 1.0)))",
            ),
            Diff(
                "transformer",
                "optax.adamw(learning_rate, weight_decay=0.05, mask=decays)",
                'optax.inject_hyperparams(optax.adamw, static_args="mask")(learning_rate, weight_decay=0.05, '
                "mask=decays, eps=lambda step: 1e-8 / jnp.sqrt(1 - 0.999 ** (step + 1.0)))",
            ),
        ),
        ("torch#22628", "aiqm/torchani#261", "HF#35504", "karpathy/nanochat#304"),
        _by_rule(rules.adam_with_epsilon_before_correction, ADAM),
    ),
    Mistake(
        "O017",
        "bias-correction-missing",
        "the averages of {place} are not corrected for their start from zero",
        "Without the correction Adam's first step is (1-β₁)/√(1-β₂) = 3.16 times as long, Adamax's a tenth. It fades "
        "within some hundred steps, of which the network may not recover.",
        (
            Diff(
                "convnet",
                "optax.adam(learning_rate)",
                "optax.chain(optax.inject_hyperparams(optax.adam)(learning_rate, "
                "eps=lambda step: 1e-8 / jnp.sqrt(1 - 0.999 ** (step + 1.0))),\n"
                "    optax.scale_by_schedule(lambda step: (1 - 0.9 ** (step + 1.0)) / "
                "jnp.sqrt(1 - 0.999 ** (step + 1.0))))",
            ),
            Diff(
                "regression",
                f"optax.adamax({_REGRESSION_RATE})",
                f"optax.adamax({_REGRESSION_RATE}),\n"
                "        optax.scale_by_schedule(lambda step: 1 - 0.9 ** (step + 1.0))",
            ),
        ),
        ("mlx#1640", "mlx#1153", "mlx#1623", "unsloth-zoo#819"),
        several(_by_rule(rules.adam_uncorrected, ADAM), _by_rule(rules.adamax_uncorrected, ADAMAX)),
    ),
    Mistake(
        "O018",
        "beta1",
        "beta1 of {place} is {value}, the reference's is {was}",
        "The decay of the mean of gradients: 0.9 nearly everywhere, 0.5 or 0 for adversarial networks. The first "
        "update is the same whatever it is, so that a test of one step tells nothing.",
        (
            Diff("convnet", "optax.adam(learning_rate)", "optax.adam(learning_rate, b1=0.5)"),
            Diff("transformer", "optax.adamw(learning_rate, ", "optax.adamw(learning_rate, b1=0.8, "),
            Diff("regression", f"optax.adamax({_REGRESSION_RATE})", f"optax.adamax({_REGRESSION_RATE}, b1=0.85)"),
        ),
        ("optax documentation: adam, b1",),
        setting("betas", (0.9, 0.5, 0.95, 0.0), "linear", part=0),
    ),
    Mistake(
        "O019",
        "beta2",
        "beta2 of {place} is {value}, the reference's is {was}",
        "The decay of the mean of squares: 0.999 by default, 0.95 or 0.98 for language models. The first update is the "
        "same whatever it is.",
        (
            Diff("decoder", "        b2=0.95,\n", "        b2=0.999,\n"),
            Diff("convnet", "optax.adam(learning_rate)", "optax.adam(learning_rate, b2=0.99)"),
            Diff("transformer", "optax.adamw(learning_rate, ", "optax.adamw(learning_rate, b2=0.98, "),
            Diff("regression", f"optax.adamax({_REGRESSION_RATE})", f"optax.adamax({_REGRESSION_RATE}, b2=0.9)"),
        ),
        ("optax documentation: adam, b2",),
        setting("betas", (0.999, 0.95, 0.99, 0.98), "linear", part=1),
    ),
    Mistake(
        "O020",
        "momentum",
        "the momentum of {place} is {value}, the reference's is {was}",
        "optax.sgd and optax.rmsprop have none unless told. The first step is the same with and without.",
        (
            Diff("mlp", "momentum=0.9, nesterov=True", "momentum=0.8, nesterov=True"),
            Diff("rnn", "optax.trace(decay=0.8)", "optax.trace(decay=0.9)"),
            Diff(
                "rnn",
                "    optax.trace(decay=0.8),  # torch's momentum gathers steps before they meet the learning rate\n",
                "",
            ),
        ),
        ("optax documentation: sgd, momentum",),
        setting("momentum", (0.0, 0.9, 0.99, 0.5), "linear"),
    ),
    Mistake(
        "O021",
        "nesterov",
        "the momentum of {place} is {value}, the reference's is {was}",
        "Nesterov's momentum is a flag that defaults to False everywhere. Its first step is 1 + momentum times as "
        "long.",
        (
            Diff("mlp", "momentum=0.9, nesterov=True", "momentum=0.9"),
            Diff("rnn", "optax.trace(decay=0.8)", "optax.trace(decay=0.8, nesterov=True)"),
        ),
        ("algoperf#362", "torch documentation: SGD, nesterov"),
        several(
            program(
                lambda reference, _: by_name(lambda name, param, group: {"nesterov": not group["nesterov"]})(reference),
                ("of the other kind",),
                place="the optimizer",
                when=lambda subject: _is(SGD)(subject) and bool(subject.optimizer.param_groups[0]["momentum"]),
            ),
            program(
                lambda reference, _: ruled(rules.rmsprop(), nesterov=True)(reference),
                ("Nesterov's",),
                place="the optimizer",
                was="plain",
                when=lambda subject: _is(RMSPROP)(subject) and bool(subject.optimizer.param_groups[0]["momentum"]),
            ),
        ),
    ),
    Mistake(
        "O022",
        "momentum-averaged",
        "the velocity of {place} is an average of gradients, the reference's a sum",
        "torch's momentum adds gradients up (v ← m v + g); some frameworks average them (v ← m v + (1-m) g). The steps "
        "are 1-m times as long, which a learning rate may have been tuned to hide.",
        (Diff("rnn", "optax.trace(decay=0.8)", "optax.ema(0.8, debias=False)"),),
        ("mlx#440", "torch documentation: SGD, dampening"),
        several(_by_rule(rules.damped_velocity, SGD), _by_rule(rules.rmsprop(gather=rules.damped_velocity), RMSPROP)),
    ),
    Mistake(
        "O023",
        "rate-within-velocity",
        "the learning rate of {place} multiplies what enters the velocity, the reference's what leaves it",
        "Keras, TensorFlow and optax.rmsprop multiply by the learning rate first and gather momentum after. As long as "
        "the rate is constant both agree; when it changes, the old steps keep their old rate.",
        (
            Diff("rnn", _RNN, f"    {_RNN_RATE}\n    optax.trace(decay=0.8),"),
            Diff(
                "mlp",
                _MLP,
                f"    optax.add_decayed_weights(5e-4),\n    {_MLP_RATE}\n    optax.trace(decay=0.9, nesterov=True),",
            ),
        ),
        ("torch documentation: SGD differs from Sutskever et al.", "optax documentation: rmsprop, momentum"),
        several(_by_rule(rules.rate_in_velocity, SGD), _by_rule(rules.rmsprop(gather=rules.rate_in_velocity), RMSPROP)),
    ),
    Mistake(
        "O024",
        "rmsprop-epsilon-within-root",
        "RMSprop's epsilon is within the root, the reference's is added after it",
        "optax (as TensorFlow 1) adds epsilon within the root unless told `eps_in_sqrt=False`, torch after it. With "
        "the large epsilons that RMSprop is used with, an update can be ten times smaller.",
        (Diff("rnn", "eps=1e-6, eps_in_sqrt=False", "eps=1e-6"),),
        ("optax#532", "optax#595", "torch#23796", "chainer/chainer#4754"),
        _by_rule(rules.rmsprop(in_root=True), RMSPROP),
    ),
    Mistake(
        "O025",
        "rmsprop-decay",
        "the decay of {place}'s mean of squares is {value}, the reference's is {was}",
        "torch calls it alpha, 0.99 by default; optax calls it decay, 0.9 by default.",
        (
            Diff("rnn", "optax.scale_by_rms(decay=0.9,", "optax.scale_by_rms(decay=0.99,"),
            Diff("rnn", "optax.scale_by_rms(decay=0.9,", "optax.scale_by_rms(decay=0.93,"),
        ),
        ("optax#532", "optax#595"),
        setting("alpha", (0.9, 0.99, 0.95, 0.999), "linear"),
    ),
    Mistake(
        "O026",
        "rmsprop-started-from-one",
        "RMSprop's mean of squares starts from 1, the reference's from 0",
        "TensorFlow starts it from ones, and optax has `initial_scale` to do the same: the first steps are much "
        "shorter.",
        (Diff("rnn", "eps=1e-6, eps_in_sqrt=False", "eps=1e-6, eps_in_sqrt=False, initial_scale=1.0"),),
        ("optax#595", "jax#1427"),
        _by_rule(rules.rmsprop(start=1.0), RMSPROP),
    ),
    Mistake(
        "O027",
        "rmsprop-centered",
        "RMSprop divides by the standard deviation of gradients, the reference by their root mean square",
        "`centered` is a flag in torch and another transformation (`scale_by_stddev`) in optax.",
        (Diff("rnn", "optax.scale_by_rms(decay=0.9,", "optax.scale_by_stddev(decay=0.9,"),),
        ("torch documentation: RMSprop, centered",),
        _by_rule(rules.rmsprop(centered=True), RMSPROP),
    ),
    Mistake(
        "O028",
        "rmsprop-corrected",
        "RMSprop's mean of squares is corrected for its start from zero, the reference's is not",
        "A flag of optax that torch lacks: with it RMSprop is Adam without momentum.",
        (Diff("rnn", "eps=1e-6, eps_in_sqrt=False", "eps=1e-6, eps_in_sqrt=False, bias_correction=True"),),
        ("optax documentation: scale_by_rms, bias_correction",),
        _by_rule(rules.rmsprop(corrected=True), RMSPROP),
    ),
    Mistake(
        "O029",
        "adagrad-start",
        "Adagrad's sum of squares starts from {value}, the reference's from {was}",
        "optax.adagrad starts from 0.1, as TensorFlow does, torch's from 0: the first steps are shorter.",
        (
            Diff(
                "unet", "jax.tree.map(jnp.zeros_like, params)", "jax.tree.map(lambda p: jnp.full_like(p, 0.1), params)"
            ),
            Diff(
                "unet", "jax.tree.map(jnp.zeros_like, params)", "jax.tree.map(lambda p: jnp.full_like(p, 0.02), params)"
            ),
        ),
        ("optax documentation: adagrad, initial_accumulator_value",),
        program(
            lambda reference, value: ruled(rules.adagrad(start=value))(reference),
            (0.1, 1.0, 0.01),
            "linear",
            "the optimizer",
            0.0,
            _is(ADAGRAD),
        ),
    ),
    Mistake(
        "O030",
        "adagrad-epsilon-within-root",
        "Adagrad's epsilon is within the root, the reference's is added after it",
        "optax adds it within the root, torch after it.",
        (Diff("unet", "(jnp.sqrt(total) + epsilon)", "jnp.sqrt(total + epsilon)"),),
        ("optax documentation: scale_by_rss",),
        _by_rule(rules.adagrad(in_root=True), ADAGRAD),
    ),
    Mistake(
        "O031",
        "adagrad-rate-decay",
        "the decay of {place}'s rate with time is {value}, the reference's is {was}",
        "torch's Adagrad divides the rate by 1 + t · lr_decay, beside any schedule; optax's does not.",
        (
            Diff("unet", "rate = 1 / (1 + state.step * rate_decay)", "rate = 1"),
            Diff("unet", "scale_by_adagrad(rate_decay=0.05)", "scale_by_adagrad(rate_decay=0.07)"),
        ),
        ("torch documentation: Adagrad, lr_decay",),
        setting("lr_decay", (0.0, 0.01, 0.1), "linear"),
    ),
    Mistake(
        "O032",
        "not-updated",
        "{place} is not updated",
        "A mask, a label of `multi_transform`, `stop_gradient` or a filter by names leaves parameters out that the "
        "reference trains; or a module is built twice and only one of them trained. Everything else learns around it.",
        (
            Diff("mlp", _APPLIED, _held("fc1")),
            Diff("convnet", _APPLIED, _held("depthwise")),
            Diff("transformer", _APPLIED, _held("head_bias")),
            Diff("rnn", _APPLIED, _held("embedding")),
            Diff("unet", _APPLIED, _held("up1")),
            Diff("decoder", _APPLIED, _held("embedding")),
            Diff("regression", _APPLIED, _held("amount_head")),
            Diff("mlp", _APPLIED, _held("fc1", "fc2", "fc3")),
            Diff("convnet", _APPLIED, _held("stem_norm", "norm")),
        ),
        ("HF#12409", "optax documentation: multi_transform"),
        _not_updated,
    ),
    Mistake(
        "O033",
        "nothing-updated",
        "no parameter is updated",
        "JAX's arrays do not change in place: what `apply_updates` returns has to be kept. A step that returns its old "
        "parameters runs, and reports plausible losses for ever.",
        tuple(
            Diff(host, f"{_APPLIED}\n", '    params = variables["params"]\n')
            for host in ("mlp", "convnet", "transformer", "rnn", "unet", "decoder", "regression")
        ),
        ("optax documentation: apply_updates",),
        program(lambda reference, _: stepped(_standing)(reference), place="the optimizer"),
    ),
    Mistake(
        "O034",
        "optimizer-state-forgotten",
        "the optimizer's state is not kept: every step is its first one",
        "`update` returns a new state beside the updates. Dropped, momentum never gathers, moments never average, and "
        "a schedule stays at its first learning rate. The first step is right.",
        tuple(
            Diff(host, _UPDATED, _UPDATED.replace("updates, opt_state", "updates, _"))
            for host in ("convnet", "mlp", "transformer", "rnn", "unet", "decoder", "regression")
        ),
        ("optax documentation: GradientTransformation.update",),
        program(_forgetful, place="the optimizer"),
    ),
    Mistake(
        "O035",
        "gradients-gathered",
        "gradients of {value} steps are gathered before the optimizer moves",
        "`optax.MultiSteps` averages over micro-batches and counts updates, not calls: a schedule within it runs k "
        "times slower. `apply_every` sums, and torch's loop sums, too, unless the loss is divided.",
        (
            Diff(
                "mlp",
                f"optimizer = optax.chain(\n{_MLP}\n)",
                f"optimizer = optax.MultiSteps(optax.chain(\n{_MLP}\n), every_k_schedule=2)",
            ),
            Diff(
                "unet",
                f"optimizer = optax.chain(\n{_UNET}\n)",
                f"optimizer = optax.MultiSteps(optax.chain(\n{_UNET}\n), every_k_schedule=2)",
            ),
        ),
        ("maxtext#812", "optax documentation: MultiSteps"),
        program(_gathered, ((2, False), (2, True), (3, False), (3, True)), place="the optimizer"),
    ),
    Mistake(
        "O036",
        "moments-in-bfloat16",
        "the moments of {place} are kept in bfloat16",
        "`mu_dtype` saves memory and loses what is smaller than 1/256 of a moment; parameters in bfloat16 lose updates "
        "altogether. The first step is right. It is caught, but not named: XLA rounds within the product, which a "
        "rewrite in exact arithmetic cannot follow.",
        (
            Diff("convnet", "optax.adam(learning_rate)", "optax.adam(learning_rate, mu_dtype=jnp.bfloat16)"),
            Diff("transformer", "optax.adamw(learning_rate, ", "optax.adamw(learning_rate, mu_dtype=jnp.bfloat16, "),
        ),
        ("TensorAuto/OpenTau#182",),
    ),
    *clipping.MISTAKES,
    *schedules.MISTAKES,
)
