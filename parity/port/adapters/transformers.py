"""A port made of a Flax class of Hugging Face's transformers, with its own conversion of weights."""

import inspect
from collections.abc import Callable
from typing import Any

from parity.cases import Tensors
from parity.port.adapters.chance import median_key
from parity.port.adapters.functions import FunctionsPort, of_module


def from_transformers(
    model: Any, optimizer: Any, *, loss: Callable[[Any, Any], Any], rename: Callable[[str], str] = str, **options: Any
) -> FunctionsPort:
    """A port of a `FlaxPreTrainedModel` and an optax optimizer; its numbers are float32, as the model's.

    The model is given those arrays of a batch that its `__call__` has arguments for. Weights are converted as
    `from_pretrained(..., from_pt=True)` does.

    Args:
        loss: `loss(outputs, batch)`, `()`; `outputs` is the model's own output class.
        rename: torch's name → the name that the conversion knows it by, where that knows the name of another version.
        options: further arguments of every call, such as `output_hidden_states=True`.
    """
    import jax
    from transformers.modeling_flax_pytorch_utils import convert_pytorch_state_dict_to_flax

    arguments = inspect.signature(model.__call__).parameters
    collections = "batch_stats" in model.params
    params = model.params["params"] if collections else model.params
    stats = {"batch_stats": model.params["batch_stats"]} if collections else {}

    def apply(params: Any, stats: Any, batch: Any, train: bool) -> tuple[Any, Any]:
        given = {name: array for name, array in batch.items() if name in arguments}
        mode = {"train": train} if "train" in arguments else {"deterministic": not train}
        key = {"dropout_rng": median_key()} if train and "dropout_rng" in arguments else {}
        held = {"params": params, **stats} if collections else params
        found = model(**given, params=held, return_dict=True, **mode, **key, **options)
        outputs, new = found if collections and train else (found, stats)
        return outputs, {name: new[name] for name in stats}

    def convert(tensors: Tensors) -> Any:
        named = {rename(name): tensor for name, tensor in tensors.items()}
        found = convert_pytorch_state_dict_to_flax(named, model)
        kinds = {"batch_stats": found["batch_stats"]} if collections else {}
        return {"params": found["params"] if collections else found, "stats": kinds}

    kept = jax.eval_shape(lambda: stats)
    port = of_module(apply, loss, optimizer, params=params, stats=kept, convert=convert, float64=False)
    port.REMARKS = (f"at their defaults, so that a port may ignore them: {', '.join(_at_default(model.config))}",)
    return port


def _at_default(config: Any) -> list[str]:
    """Options of a model's configuration that nobody set: a port that ignores them agrees until somebody does."""
    usual = type(config)().to_dict()
    own = inspect.signature(type(config).__init__).parameters
    return [name for name, value in config.to_dict().items() if name in own and value == usual.get(name)]
