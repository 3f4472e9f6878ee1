"""A reference that is another program: calls of torch that do something else at one place, or at many."""

import functools
import re
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.module import register_module_forward_hook, register_module_forward_pre_hook
from torch.overrides import TorchFunctionMode

from parity.cases import Tensors
from parity.reference.opened import OPENED
from parity.reference.operations import words
from parity.reference.program import Layout, Reference

Rewrite = Callable[[Reference], Reference]

SIGNATURES: dict[str, tuple[str, ...]] = {
    "linear": ("input", "weight", "bias"),
    "conv1d": ("input", "weight", "bias", "stride", "padding", "dilation", "groups"),
    "conv2d": ("input", "weight", "bias", "stride", "padding", "dilation", "groups"),
    "conv3d": ("input", "weight", "bias", "stride", "padding", "dilation", "groups"),
    "conv_transpose1d": ("input", "weight", "bias", "stride", "padding", "output_padding", "groups", "dilation"),
    "conv_transpose2d": ("input", "weight", "bias", "stride", "padding", "output_padding", "groups", "dilation"),
    "layer_norm": ("input", "normalized_shape", "weight", "bias", "eps"),
    "rms_norm": ("input", "normalized_shape", "weight", "eps"),
    "group_norm": ("input", "num_groups", "weight", "bias", "eps"),
    "batch_norm": ("input", "running_mean", "running_var", "weight", "bias", "training", "momentum", "eps"),
    "embedding": ("input", "weight", "padding_idx"),
    "gelu": ("input", "approximate"),
    "leaky_relu": ("input", "negative_slope", "inplace"),
    "elu": ("input", "alpha", "inplace"),
    "softplus": ("input", "beta", "threshold"),
    "softmax": ("input", "dim", "dtype"),
    "log_softmax": ("input", "dim", "dtype"),
    "dropout": ("input", "p", "training", "inplace"),
    "max_pool2d": ("input", "kernel_size", "stride", "padding", "dilation", "ceil_mode"),
    "avg_pool2d": ("input", "kernel_size", "stride", "padding", "ceil_mode", "count_include_pad", "divisor_override"),
    "interpolate": ("input", "size", "scale_factor", "mode", "align_corners"),
    "normalize": ("input", "p", "dim", "eps"),
    "cosine_similarity": ("x1", "x2", "dim", "eps"),
    "scaled_dot_product_attention": ("query", "key", "value", "attn_mask", "dropout_p", "is_causal", "scale"),
    "cross_entropy": (
        *("input", "target", "weight", "size_average", "ignore_index", "reduce"),
        *("reduction", "label_smoothing"),
    ),
    "nll_loss": ("input", "target", "weight", "size_average", "ignore_index", "reduce", "reduction"),
    "binary_cross_entropy_with_logits": (
        *("input", "target", "weight", "size_average", "reduce", "reduction", "pos_weight"),
    ),
    "mse_loss": ("input", "target", "size_average", "reduce", "reduction"),
    "l1_loss": ("input", "target", "size_average", "reduce", "reduction"),
    "smooth_l1_loss": ("input", "target", "size_average", "reduce", "reduction", "beta"),
    "huber_loss": ("input", "target", "reduction", "delta"),
    "kl_div": ("input", "target", "size_average", "reduce", "reduction", "log_target"),
    "multi_head_attention_forward": (
        *("query", "key", "value", "embed_dim_to_check", "num_heads", "in_proj_weight", "in_proj_bias"),
        *("bias_k", "bias_v", "add_zero_attn", "dropout_p", "out_proj_weight", "out_proj_bias"),
    ),
    "matmul": ("input", "other"),
    "rpow": ("exponent", "base"),
    "eq": ("input", "other"),
    "ne": ("input", "other"),
    "add": ("input", "other"),
    "sub": ("input", "other"),
    "mul": ("input", "other"),
    "div": ("input", "other"),
    "pow": ("input", "exponent"),
    "mean": ("input", "dim", "keepdim"),
    "sum": ("input", "dim", "keepdim"),
    "std": ("input", "dim", "unbiased", "keepdim"),
    "var": ("input", "dim", "unbiased", "keepdim"),
    "masked_fill": ("input", "mask", "value"),
    "clamp": ("input", "min", "max"),
    "cat": ("tensors", "dim"),
    **dict.fromkeys(("relu", "silu", "mish", "selu", "relu6", "hardswish", "hardsigmoid"), ("input", "inplace")),
    **dict.fromkeys(("sigmoid", "tanh", "square", "sqrt", "rsqrt", "median"), ("input",)),
    "glu": ("input", "dim"),
    "max_pool1d": ("input", "kernel_size", "stride", "padding", "dilation", "ceil_mode"),
    "avg_pool1d": ("input", "kernel_size", "stride", "padding", "ceil_mode", "count_include_pad"),
    "flatten": ("input", "start_dim", "end_dim"),
    "chunk": ("input", "chunks", "dim"),
    "lerp": ("input", "end", "weight"),
}
_ALIASES = {
    "truediv": "div",
    "itruediv": "div",
    "true_divide": "div",
    "iadd": "add",
    "radd": "add",
    "isub": "sub",
    "imul": "mul",
    "rmul": "mul",
    "multiply": "mul",
    "bmm": "matmul",
    "mm": "matmul",
    "rmatmul": "matmul",
}
_SILENT = words(
    """
    size dim shape device dtype __get__ requires_grad is_floating_point numel stride ndim item get_device is_cuda
    __len__ __hash__ grad requires_grad_ has_torch_function is_sparse layout data_ptr storage
    """
)


@dataclass(frozen=True)
class Site:
    """One place in a program where a function of torch is called."""

    function: str
    """`layer_norm`, `matmul`, `add`: without where it was found."""
    module: str
    """The module within whose forward it is: `layers.0.norm1`; `loss` for what is outside of all of them."""
    kind: str
    """That module's class: `LayerNorm`."""
    index: int
    """Which of the calls of this function in one run of that forward."""
    run: int = 0
    """Which of the runs of a module without parameters, that a forward runs several times: a dropout that is shared."""
    line: str = field(default="", compare=False)
    """Where the program's author wrote it: `program.py:31`."""

    @property
    def pattern(self) -> str:
        """The same for the same place in repeated parts: `layers.*.norm1`."""
        return re.sub(r"\b\d+\b", "*", self.module)


@dataclass(frozen=True)
class Call:
    """A call that is about to be made."""

    site: Site
    function: Callable[..., Any]
    arguments: dict[str, Any]
    """By name, where `SIGNATURES` knows them, else by position: `0`, `1`, …"""
    positional: int
    """How many of them were given by position."""

    def __getitem__(self, name: str) -> Any:
        return self.arguments.get(name)

    def run(self, **changed: Any) -> Any:
        """What it returns with some of its arguments changed."""
        arguments = self.arguments | changed
        given = [arguments.pop(name) for name in list(self.arguments)[: self.positional]]
        return self.function(*given, **arguments)


Change = Callable[[Call], Any]
MOST_RUNS = 3


@dataclass(frozen=True)
class Edit:
    """What is done instead at some sites."""

    sites: frozenset[Site]
    change: Change


def edited(edit: Edit) -> Rewrite:
    """The reference with some of its calls replaced, in its loss, its outputs and what is made of them."""

    def rewrite(reference: Reference) -> Reference:
        def within(function: Any) -> Any:
            @functools.wraps(function)
            def run(module: nn.Module, *arguments: Any) -> Any:
                with Calls(module, edit).watching():
                    return function(module, *arguments)

            return run

        outputs = reference.outputs or (lambda module, batch: module(next(iter(batch.values()))))
        return replace(
            reference,
            loss=within(reference.loss),
            outputs=within(outputs),
            train_epoch=reference.train_epoch and within(reference.train_epoch),
            evaluate=reference.evaluate and within(reference.evaluate),
        )

    return rewrite


def misread(taken: Callable[[Tensors], Tensors], told: Callable[[Tensors], Tensors] = lambda state: state) -> Rewrite:
    """The reference with its tensors taken for others when they are loaded; with `told`, given back as they came."""

    def rewrite(reference: Reference) -> Reference:
        inner = reference.layout
        if inner is None:
            return replace(reference, layout=Layout(taken, told))
        layout = Layout(lambda state: inner.taken(taken(state)), lambda state: told(inner.told(state)))
        return replace(reference, layout=layout)

    return rewrite


def chained(*rewrites: Rewrite) -> Rewrite:
    """One after the other."""
    return lambda reference: functools.reduce(lambda result, rewrite: rewrite(result), rewrites, reference)


def sites(reference: Reference, module: nn.Module, batch: dict[str, Tensor]) -> dict[Site, Call]:
    """Every call of a program's loss and outputs on a batch, in order; each with its first arguments."""
    found: dict[Site, Call] = {}
    outputs = reference.outputs or (lambda module, batch: module(next(iter(batch.values()))))
    with torch.random.fork_rng(devices=[]), Calls(module, None, found).watching():
        module.train()
        reference.loss(module, batch)
        with torch.no_grad():
            module.eval()
            outputs(module, batch)
    return found


class Calls(TorchFunctionMode):
    """Watches a program's calls: knows the module that each is in, notes it, and does something else where asked."""

    def __init__(self, module: nn.Module, edit: Edit | None, found: dict[Site, Call] | None = None) -> None:
        super().__init__()
        self.names = {id(part): (name, type(part).__name__) for name, part in module.named_modules()}
        self.edit, self.found = edit, found
        self.stack: list[tuple[str, str]] = [("loss", "")]
        self.counts: list[dict[str, int]] = [{}]
        self.runs = [0]
        self.changing = False

    @contextmanager
    def watching(self) -> Iterator[None]:
        """The mode, with hooks on every module's forward."""

        def enter(module: nn.Module, *_: Any) -> None:
            above, within = self.stack[-1][0], self.counts[-1]
            run = within.get(f"run {id(module)}", 0)
            within[f"run {id(module)}"] = run + 1
            # A cell that a loop runs is one place, and so is what runs too often to be told apart.
            self.runs.append(0 if next(module.parameters(), None) is not None else min(run, MOST_RUNS))
            unnamed = f"{above}.{module.label}" if hasattr(module, "label") else above, type(module).__name__
            self.stack.append(self.names.get(id(module), unnamed))
            self.counts.append({})

        def leave(*_: Any) -> None:
            self.stack.pop()
            self.counts.pop()
            self.runs.pop()

        hooks = [register_module_forward_pre_hook(enter), register_module_forward_hook(leave, always_call=True)]
        try:
            with self:
                yield
        finally:
            for hook in hooks:
                hook.remove()

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        name = function_name(func)
        if self.changing or name in _SILENT or name.startswith("_"):
            return func(*args, **kwargs)
        module, kind = self.stack[-1]
        index = self.counts[-1].get(name, 0)
        self.counts[-1][name] = index + 1
        site = Site(name, module, kind, index, self.runs[-1])
        if self.edit is not None and site in self.edit.sites:
            self.changing = True
            try:
                return self.edit.change(_call(site, func, args, kwargs))
            finally:
                self.changing = False
        if self.found is not None and site not in self.found:
            self.found[replace(site, line=_line())] = _call(site, func, args, kwargs)
        if name in OPENED:
            with self:
                return OPENED[name](*args, **kwargs)
        return func(*args, **kwargs)


def _call(site: Site, func: Any, args: Any, kwargs: Any) -> Call:
    names = SIGNATURES.get(site.function, ())
    positional = {names[at] if at < len(names) else str(at): value for at, value in enumerate(args)}
    return Call(site, func, positional | kwargs, len(args))


@functools.cache
def function_name(func: Any) -> str:
    """`layer_norm` for `torch.nn.functional.layer_norm`, `add` for `Tensor.__iadd__`."""
    name = getattr(func, "__name__", str(func))
    if name.startswith("__") and name != "__get__":
        name = name.strip("_")
    elif not name.startswith("_"):
        name = name.rstrip("_")
    return _ALIASES.get(name, name)


def _line() -> str:
    """The line outside of torch and this package that a call comes from."""
    frame = sys._getframe(2)
    while frame is not None:
        path = frame.f_code.co_filename
        if "torch" not in Path(path).parts and not path.startswith(str(Path(__file__).parents[1])):
            return f"{Path(path).name}:{frame.f_lineno}"
        frame = frame.f_back  # type: ignore[assignment]
    return ""


def places(found: Sequence[Site]) -> Iterator[tuple[str, frozenset[Site]]]:
    """Sets of sites to try, and what to call them: all of them, those of a kind, each alone."""
    told: set[frozenset[Site]] = set()
    groups: dict[str, list[Site]] = {}
    for site in found:
        groups.setdefault(f"every {site.kind or 'call'}", []).append(site)
        groups.setdefault(site.pattern, []).append(site)
        groups.setdefault(f"{site.pattern}#{site.index}", []).append(site)
        groups.setdefault(f"{site.pattern}#{site.index}.{site.run}", []).append(site)
    for name, group in (("everywhere", list(found)), *groups.items(), *((site.module, [site]) for site in found)):
        key = frozenset(group)
        if key and key not in told:
            told.add(key)
            yield group[0].module if len(key) == 1 else name.partition("#")[0], key
