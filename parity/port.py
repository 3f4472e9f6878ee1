"""Port: what a port has to offer to be judged; finding one; and holding it to its word at every call."""

import contextlib
import importlib
import importlib.util
import itertools
import sys
import traceback
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, Protocol, TypeVar

import numpy as np
from numpy.typing import NDArray

from fmnist.command import UnavailableError, UsageError
from fmnist.experiment import CLASSES, PIXELS, Experiment, StateDict

Array = NDArray[Any]
State = Any
Result = TypeVar("Result")

REQUIRED = (
    *("decode", "start", "tensors", "logits", "loss", "gradients"),
    *("train_step", "train_epoch", "evaluate"),
)


class Port(Protocol):
    """A port of the reference, written in anything: what crosses this border is NumPy.

    `StateDict` is a dict by torch's `state_dict` names and layouts: `fc1.weight (16, 784)`, `fc1.bias (16,)`, …. Images
    are `uint8 (n, 28, 28)`, labels `int64 (n,)` in 0..9; decoding is the port's. `State` is the port's own.
    `train_step` and `train_epoch` are given a state up; the other functions leave it as it is.

    A module may leave out `init`, and may add `FLOAT64 = False` if it cannot compute in float64, and
    `use_device(name)` to be moved by `--port-device`.
    """

    def init(self, experiment: Experiment) -> StateDict:
        """The starting parameters of `experiment.seed`, float32."""

    def decode(self, images: Array) -> Array:
        """Pixels, `(n, 784) float32`."""

    def start(self, tensors: StateDict, experiment: Experiment) -> State:
        """A state that holds these parameters. Their dtype, float32 or float64, is that of all that is computed;
        decoded pixels are float32, then cast."""

    def tensors(self, state: State) -> StateDict:
        """The parameters of a state."""

    def logits(self, state: State, images: Array) -> Array:
        """What the network returns, `(n, 10)`: the logits, or with `softmax_output` the softmax of them."""

    def loss(self, state: State, images: Array, labels: Array) -> float:
        """The batch mean of the cross-entropy that takes what the network returns for logits."""

    def gradients(self, state: State, images: Array, labels: Array) -> StateDict:
        """The gradient of that loss by every parameter."""

    def train_step(self, state: State, images: Array, labels: Array) -> tuple[State, float]:
        """The state after one update by this batch, and the loss from before it."""

    def train_epoch(self, state: State, images: Array, labels: Array) -> tuple[State, Array]:
        """The state after all batches of `experiment.batch_size` in order, the short last one too, and the loss of
        each from before its update, `(steps,)`."""

    def evaluate(self, state: State, images: Array, labels: Array) -> tuple[float, float]:
        """The accuracy in [0, 1], and the mean of the batch means of the loss."""


class PortError(UsageError):
    """The port cannot be judged: it lacks something, raised an exception, or returned what is no answer."""


class Misbehaviour(Exception):
    """The port did something to memory that is not its own. The message says what."""


def find(name: str) -> Any:
    """The port of that name: `package.module`, `package.module:attribute` or `path/to/file.py`.

    Raises:
        PortError: there is none, it cannot be imported, or it lacks a function.
    """
    place, _, attribute = name.partition(":")
    try:
        with _guarded():
            port = _import_file(Path(place)) if place.endswith(".py") else importlib.import_module(place)
        for part in filter(None, attribute.split(".")):
            port = getattr(port, part)
    except ModuleNotFoundError as error:
        if error.name is None or not (place == error.name or place.startswith(error.name + ".")):
            traceback.print_exc()
            raise PortError(f"--port {name}: cannot be imported: {error}") from None
        raise PortError(
            f"--port {name}: {error}; expected a module on Python's path, module:attribute, or a file like port.py"
        ) from None
    except OSError as error:
        raise PortError(f"--port {name}: {error.strerror}; expected a Python file") from None
    except AttributeError as error:
        if not attribute:
            traceback.print_exc()
        raise PortError(f"--port {name}: {error}; expected module:attribute") from None
    except (KeyboardInterrupt, UnavailableError):
        raise
    except BaseException as error:
        traceback.print_exc()
        raise PortError(f"--port {name}: cannot be imported: {type(error).__name__}: {error}") from None
    missing = [function for function in REQUIRED if not callable(getattr(port, function, None))]
    if missing:
        raise PortError(f"--port {name}: lacks {', '.join(missing)}; parity/port.py says what a port offers")
    return port


@contextlib.contextmanager
def _guarded() -> Iterator[None]:
    """Keep what a port prints off the verdict's lines, and its changes of NumPy's error handling to itself."""
    with contextlib.redirect_stdout(sys.stderr), np.errstate():
        yield


def _import_file(path: Path) -> Any:
    if not path.is_file():
        raise FileNotFoundError(2, "no such file", str(path))
    specification = importlib.util.spec_from_file_location(path.stem, path)
    assert specification is not None
    assert specification.loader is not None
    module = importlib.util.module_from_spec(specification)
    sys.modules.setdefault(path.stem, module)
    sys.path.append(str(path.parent))
    specification.loader.exec_module(module)
    return module


class _Held:
    """A port's state, with the arrays it was started from: those it has to leave alone."""

    def __init__(self, state: State, experiment: Experiment, dtype: Any, given: StateDict) -> None:
        self.state, self.experiment, self.dtype = state, experiment, dtype
        self.given, self.before = given, {name: array.copy() for name, array in given.items()}


class Held:
    """A port whose every answer is checked for names, shapes and dtypes, copied, and kept from others' memory.

    Offers the functions of `Port`. Each call gets arrays of its own.

    Raises:
        PortError: an answer that cannot be judged.
        Misbehaviour: the port wrote into what it was given, or gave it back as its own.
    """

    def __init__(self, port: Any, name: str) -> None:
        self.port, self.name = port, name
        self.has_init = callable(getattr(port, "init", None))
        self.float64 = bool(getattr(port, "FLOAT64", True))

    def init(self, experiment: Experiment) -> StateDict:
        tensors = self._call("init", experiment)
        return self._checked_tensors("init", tensors, experiment, np.float32, {})

    def decode(self, images: Array) -> Array:
        return self._over("decode", images, lambda given: self._call("decode", given), (len(images), PIXELS))

    def start(self, tensors: StateDict, experiment: Experiment) -> _Held:
        given = {name: array.copy() for name, array in tensors.items()}
        dtype = next(iter(tensors.values())).dtype
        before = {name: array.copy() for name, array in given.items()}
        held = _Held(self._call("start", given, experiment), experiment, dtype, given)
        held.before = before
        self._check_given("start", held)
        return held

    def tensors(self, held: _Held) -> StateDict:
        tensors = self._call("tensors", held.state)
        checked = self._checked_tensors("tensors", tensors, held.experiment, held.dtype, held.given)
        self._check_given("tensors", held)
        return checked

    def logits(self, held: _Held, images: Array) -> Array:
        shape = (len(images), CLASSES)
        return self._over("logits", images, lambda given: self._call("logits", held.state, given), shape, held)

    def loss(self, held: _Held, images: Array, labels: Array) -> float:
        return self._on_batch("loss", held, images, labels, self._number)

    def gradients(self, held: _Held, images: Array, labels: Array) -> StateDict:
        def check(name: str, answer: Any) -> StateDict:
            return self._checked_tensors(name, answer, held.experiment, held.dtype, held.given)

        return self._on_batch("gradients", held, images, labels, check)

    def train_step(self, held: _Held, images: Array, labels: Array) -> tuple[_Held, float]:
        state, loss = self._on_batch("train_step", held, images, labels, self._pair)
        held.state = state
        return held, self._number("train_step", loss)

    def train_epoch(self, held: _Held, images: Array, labels: Array) -> tuple[_Held, Array]:
        state, losses = self._on_batch("train_epoch", held, images, labels, self._pair)
        held.state = state
        # How many there are is for the judge to judge: a port that drops a batch is wrong, not unusable.
        is_series = isinstance(losses, np.ndarray) and losses.ndim == 1
        steps = losses.shape if is_series else (held.experiment.batches(len(labels)),)
        return held, self._checked("train_epoch", "losses", losses, steps, held.dtype, {})

    def evaluate(self, held: _Held, images: Array, labels: Array) -> tuple[float, float]:
        accuracy, loss = self._on_batch("evaluate", held, images, labels, self._pair)
        return self._number("evaluate", accuracy), self._number("evaluate", loss)

    def _call(self, function: str, *arguments: Any) -> Any:
        try:
            with _guarded():
                return getattr(self.port, function)(*arguments)
        except KeyboardInterrupt:
            raise
        except BaseException as error:  # a port must not end its judge, least of all with a 0
            traceback.print_exc()
            raise PortError(f"{self.name}: {function} raised {type(error).__name__}: {error}") from None

    def _over(
        self,
        name: str,
        images: Array,
        call: Callable[[Array], Any],
        shape: tuple[int, ...],
        held: _Held | None = None,
    ) -> Array:
        given = np.array(images)
        answer = call(given)
        self._unchanged(name, "images", given, images)
        if held is not None:
            self._check_given(name, held)
        dtype = np.dtype(np.float32) if held is None else held.dtype
        return self._checked(name, "answer", answer, shape, dtype, {"images": given})

    def _on_batch(
        self, name: str, held: _Held, images: Array, labels: Array, check: Callable[[str, Any], Result]
    ) -> Result:
        given_images, given_labels = np.array(images), np.array(labels)
        answer = self._call(name, held.state, given_images, given_labels)
        self._unchanged(name, "images", given_images, images)
        self._unchanged(name, "labels", given_labels, labels)
        self._check_given(name, held)
        return check(name, answer)

    def _check_given(self, name: str, held: _Held) -> None:
        for tensor, array in held.given.items():
            self._unchanged(name, tensor, array, held.before[tensor])

    def _unchanged(self, function: str, what: str, given: Array, before: Array) -> None:
        if not np.array_equal(_bytes(given), _bytes(before)):
            raise Misbehaviour(f"{function} wrote into the {what} that the port was given; it has to copy them")

    def _pair(self, function: str, answer: Any) -> tuple[Any, Any]:
        if not isinstance(answer, tuple) or len(answer) != 2:
            raise PortError(f"{self.name}: {function} returned {_kind(answer)}, expected a pair")
        return answer

    def _number(self, function: str, answer: Any) -> float:
        try:
            number = np.asarray(answer)
        except Exception:  # whatever an object's own conversion raises
            number = np.empty(0)
        if number.shape != () or number.dtype.kind not in "fiu":
            raise PortError(f"{self.name}: {function} returned {_kind(answer)} where a number was expected")
        return float(number)

    def _checked_tensors(
        self, function: str, answer: Any, experiment: Experiment, dtype: Any, given: StateDict
    ) -> StateDict:
        expected = shapes(experiment)
        if not isinstance(answer, dict) or set(answer) != set(expected):
            names = ", ".join(map(str, answer)) if isinstance(answer, dict) else type(answer).__name__
            raise PortError(
                f"{self.name}: {function} returned {names or 'nothing'}, expected a dict of {', '.join(expected)}"
            )
        return {
            name: self._checked(function, name, answer[name], shape, dtype, given) for name, shape in expected.items()
        }

    def _checked(
        self, function: str, what: str, answer: Any, shape: tuple[int, ...], dtype: Any, given: StateDict
    ) -> Array:
        if not isinstance(answer, np.ndarray) or answer.shape != shape or answer.dtype != dtype:
            raise PortError(
                f"{self.name}: {function} returned {_kind(answer)} for {what}, expected a NumPy array "
                f"{np.dtype(dtype)} {shape}"
            )
        for name, array in given.items():
            if np.shares_memory(answer, array):
                raise Misbehaviour(f"{function} returned the memory of the {name} that the port was given, no copy")
        return answer.copy()


def shapes(experiment: Experiment) -> dict[str, tuple[int, ...]]:
    """Names and shapes of an experiment's tensors, in torch's order."""
    result: dict[str, tuple[int, ...]] = {}
    for layer, (fan_in, fan_out) in enumerate(itertools.pairwise(experiment.widths), 1):
        result[f"fc{layer}.weight"] = (fan_out, fan_in)
        result[f"fc{layer}.bias"] = (fan_out,)
    return result


def _bytes(array: Array) -> Array:
    """The bits of an array: equal where NaN is, too."""
    return np.ascontiguousarray(array).reshape(-1).view(np.uint8)


def _kind(answer: Any) -> str:
    if isinstance(answer, np.ndarray):
        return f"an array {answer.dtype} {answer.shape}"
    return f"a tuple of {len(answer)}" if isinstance(answer, tuple) else type(answer).__name__
