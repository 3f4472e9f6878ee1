"""What a port offers, and its answer to a case, checked. NumPy only."""

import os
import sys
import traceback
from collections.abc import Callable, Mapping
from typing import Any, NoReturn, Protocol

import numpy as np

from parity.cases import OPTIONAL, Answer, Array, Batch, Case, Tensors, put
from parity.errors import PortError, UnavailableError, UsageError, line_of, one_line, told
from parity.port.names import mismatch

State = Any
DROPOUT = ("off", "kept", "median")
REQUIRED = ("load_state_dict", "state_dict", "outputs", "value_and_grad", "train_step")


class Port(Protocol):
    """A port of the reference, in any framework; a module of these functions is one.

    What crosses this border is NumPy; a `State` is the port's own. Names and layouts are those of torch's
    `state_dict`, buffers too: `conv.weight (out, in, 3, 3)`. The floating dtype of the tensors that are loaded,
    float32 or float64, is that of all that is computed from them. What a function was given, and what it has
    returned, stays as it is.

    A port may add `FLOAT64 = False` if it cannot compute in float64, and `DROPOUT = "kept"` if its dropout keeps
    everything and scales by 1/(1-p), where otherwise it has to be off in training mode too; `DROPOUT = "median"` if it
    draws every random number with `parity.port.median_key()`.
    """

    def load_state_dict(self, tensors: Tensors) -> State:
        """A state that holds these parameters and buffers, and a fresh optimizer and schedule."""

    def state_dict(self, state: State) -> Tensors:
        """The parameters and buffers of a state, by the names that were loaded."""

    def outputs(self, state: State, batch: Batch, train: bool) -> Mapping[str, Array]:
        """What the network returns, by name, in order of computing; intermediate values are welcome. A lone array is
        called `output`, as the reference's is."""

    def value_and_grad(self, state: State, batch: Batch) -> tuple[Array, Tensors]:
        """The loss in training mode, `()`, and its gradient by every parameter."""

    def train_step(self, state: State, batch: Batch) -> tuple[State, Array]:
        """The state after one update, and the loss from before it, `()`."""

    # Optional, each of them:

    def init(self, seed: int) -> State:
        """A fresh state, as the reference draws it from this seed."""

    def train_epoch(self, state: State, batches: tuple[Batch, ...]) -> tuple[State, Array]:
        """The state after an update by each batch in order, and their losses `(len(batches),)`."""

    def evaluate(self, state: State, batches: tuple[Batch, ...]) -> Mapping[str, float]:
        """What the program reports of all batches in evaluation mode, by name."""


def answer(port: Any, case: Case) -> Answer:
    """What the port says to a case: the quantities of `CALLS[case.call]`, in memory of their own.

    Raises:
        PortError: a function raised, returned something else than numbers of the right names, shapes and dtypes,
            or wrote into what it had been given or had returned.
    """
    asked = _Asked(port, case)
    with np.errstate(all="ignore"):  # also, what a port tells NumPy of overflows stays with it
        before = asked.state_dict(asked.load_state_dict(case.state)) if case.call == "train_steps" else {}
        found = put(case, asked)
        if before:
            again = asked.load_state_dict(case.state)
            asked.check_same(before, again, "load_state_dict: after training, the same tensors give another state")
        asked.check_untouched()
    return found


class _Asked:
    """A port as `put` asks it: all that it is given is a copy, all that it returns is copied and checked."""

    def __init__(self, port: Any, case: Case) -> None:
        self.port, self.case = port, case
        self.held: list[tuple[str, Array, Array]] = []
        """What was given or returned, under what name, and what it was then."""
        self.function = ""

    def given(self, batches: tuple[Batch, ...], kind: str) -> tuple[Batch, ...]:
        return tuple(self._copies(batch, f"{{}} of {kind} {at}") for at, batch in enumerate(batches, 1))

    def load_state_dict(self, tensors: Tensors) -> State:
        return self._call("load_state_dict", self._copies(tensors, "the tensor {}"))

    def init(self, seed: int) -> State:
        return self._call("init", seed)

    def state_dict(self, state: State) -> Tensors:
        """By the names of the case's state, where it has any."""
        tensors = self._mapping(self._call("state_dict", state), "state/")
        if self.case.state:
            wrong = mismatch(*({name: one.shape for name, one in each.items()} for each in (self.case.state, tensors)))
            if wrong:
                raise PortError(f"state_dict: {wrong[0]}", wrong[1])
        return {name: tensors[name] for name in (self.case.state or tensors)}

    def outputs(self, state: State, batch: Batch, train: bool) -> Tensors:
        returned = self._call("outputs", state, batch, train)
        lone = hasattr(returned, "__array__") and not isinstance(returned, Mapping)
        return self._mapping({"output": returned} if lone else returned, "outputs/")

    def value_and_grad(self, state: State, batch: Batch) -> tuple[Array, Tensors]:
        """The gradients by names and shapes of the case's state. Which of them are parameters the reference knows."""
        loss, gradients = self._pair("value_and_grad", state, batch)
        loss, tensors = self._array("loss", loss, ()), self._mapping(gradients, "gradients/")
        for name, tensor in tensors.items():
            expected = self.case.state.get(name)
            if expected is None:
                raise PortError(f"value_and_grad: a gradient by {one_line(name)!r}, which is no tensor of the state")
            if tensor.shape != expected.shape:
                self._refuse(f"gradients/{name}", tensor, str(expected.shape))
        return loss, {name: tensors[name] for name in self.case.state if name in tensors}

    def train_step(self, state: State, batch: Batch) -> tuple[State, Array]:
        state, loss = self._pair("train_step", state, batch)
        return state, self._array("loss", loss, ())

    def train_epoch(self, state: State, batches: tuple[Batch, ...]) -> tuple[State, Array]:
        state, losses = self._pair("train_epoch", state, batches)
        return state, self._array("losses", losses, (len(batches),))

    def evaluate(self, state: State, batches: tuple[Batch, ...]) -> Tensors:
        before = self.state_dict(state) if self.case.call == "evaluate" else {}
        reported = self._mapping(self._call("evaluate", state, batches), "evaluate/")
        for name, number in reported.items():
            if number.shape != ():
                self._refuse(f"evaluate/{name}", number, "a number")
        if before:
            self.check_same(
                before, state, "evaluate: the port changed its state, which an evaluation has to leave alone"
            )
        return reported

    def check_same(self, before: Tensors, state: State, wrong: str) -> None:
        """A state is as one was before."""
        for name, tensor in self.state_dict(state).items():
            if not np.array_equal(_bits(tensor), _bits(before[name])):
                raise PortError(f"{wrong}: look at {one_line(name)}")

    def check_untouched(self) -> None:
        """What was given and what was returned is as it was then."""
        for name, array, before in self.held:
            if not np.array_equal(_bits(array), _bits(before)):
                wrote = f"the port wrote into {one_line(name)}; it has to leave that alone: copy it"
                raise PortError(f"{self.case.call}: {wrote}")

    def _copies(self, arrays: Batch, name: str) -> Tensors:
        copies = {key: np.array(array) for key, array in arrays.items()}
        self.held += [(f"{name.format(key)} that it was given", copies[key], arrays[key]) for key in copies]
        return copies

    def _call(self, function: str, *arguments: Any) -> Any:
        self.function = function
        called = getattr(self.port, function, None)
        if not callable(called):
            raise PortError(f"{function}: the port has no such function")
        return guarded(self.port, function, lambda: called(*arguments))

    def _pair(self, function: str, *arguments: Any) -> tuple[Any, Any]:
        value = self._call(function, *arguments)
        if not isinstance(value, tuple | list) or len(value) != 2:
            self._refuse("", value, "a pair")
        return value[0], value[1]

    def _mapping(self, value: Any, prefix: str) -> Tensors:
        if not isinstance(value, Mapping):
            self._refuse("", value, "a dict of name → array")
        tensors = {}
        for name in guarded(self.port, self.function, lambda: list(value)):
            if not isinstance(name, str):
                self._refuse("", name, "names that are strings")
            tensors[name] = self._array(f"{prefix}{name}", value[name])
        return tensors

    def _array(self, name: str, value: Any, shape: tuple[int, ...] | None = None) -> Array:
        """A copy of what was returned, once it is known to be numbers of the case's dtype."""
        if type(value) in (bool, int, float):  # `float(loss)` says nothing of the dtype that it was computed in
            array = np.asarray(value, self.case.dtype if type(value) is float else None)
        elif hasattr(value, "__array__"):
            array = guarded(self.port, self.function, lambda: np.asarray(value))
        else:
            self._refuse(name, value, f"an array of {self.case.dtype}")
        floating = array.dtype.kind == "f" or array.dtype.name == self.case.dtype.name or array.dtype.kind in "cV"
        if array.dtype.kind not in "biufcV" or (floating and array.dtype != self.case.dtype):
            self._refuse(name, array, str(self.case.dtype))
        if shape is not None and array.shape != shape:
            self._refuse(name, array, str(shape))
        copy = np.array(array, order="C")
        self.held.append((f"{name} that it had returned", array, copy))
        return copy

    def _refuse(self, name: str, value: Any, expected: str) -> NoReturn:
        of = f" for {one_line(name)}" if name else ""
        raise PortError(f"{self.function}: the port returned {_kind(value)}{of}, expected {expected}")


def can_answer(offers: Mapping[str, Any], case: Case) -> bool:
    """Whether a port offers what a case asks for."""
    lacks = case.call in OPTIONAL and case.call not in offers.get("offers", ())
    return not lacks and (case.dtype.itemsize == 4 or bool(offers.get("float64", True)))


def guarded(port: Any, function: str, call: Callable[[], Any]) -> Any:
    """What `call` returns.

    Raises:
        PortError: it raised anything at all; says what, and in which line of the port.
        UnavailableError: it raised where JAX has no device to run on.
    """
    try:
        return call()
    except PortError as error:
        raise PortError(f"{function}: {error}", error.hint) from None
    except (KeyboardInterrupt, UsageError):
        raise
    except BaseException as error:  # a port must not end its judge, least of all with a 0
        _check_device()
        trace = "".join(traceback.format_exception(error)[-6:]) if not isinstance(error, RecursionError) else ""
        own = getattr(port, "__file__", None) or getattr(port, "FILE", None)
        raise PortError(f"{function}: the port raised {told(error)}{line_of(error, own)}", trace.strip()) from None


def _check_device() -> None:
    """What is raised where JAX has no device is no port's fault."""
    devices = getattr(sys.modules.get("jax"), "devices", None)
    try:
        if devices is not None:
            devices()
    # Without CUDA wheels JAX_PLATFORMS=cuda fails an assertion, and plugins raise errors of their own.
    except Exception as error:
        asked = os.environ.get("JAX_PLATFORMS")
        where = f": JAX_PLATFORMS={asked}, and its plugin is missing or fails" if asked else ""
        said = str(error) or "no backend could be initialized"
        raise UnavailableError(f"JAX has no device to run the port on{where} ({said})") from None


def _kind(value: Any) -> str:
    if isinstance(value, np.ndarray):
        return f"an array of {value.dtype} {value.shape}"
    if isinstance(value, tuple | list):
        return f"a {type(value).__name__} of {len(value)}"
    return "nothing" if value is None else f"{type(value).__name__} {one_line(repr(value), 60)}"


def _bits(array: Array) -> Array:
    return np.ascontiguousarray(array).reshape(-1).view(np.uint8)
