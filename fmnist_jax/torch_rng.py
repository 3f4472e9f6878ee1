"""The parameters that torch draws from a seed, bit for bit, in NumPy and without torch.

torch does not promise its stream for ever: a test compares this with the torch that is installed.
"""

import math
import os
import platform

import numpy as np
from numpy._core._multiarray_umath import __cpu_features__ as CPU_FEATURES
from numpy.typing import NDArray

from fmnist.experiment import Experiment, StateDict


def init(experiment: Experiment) -> StateDict:
    """The starting parameters of `experiment.seed`, float32: each layer's weight row by row, then its bias.

    The engine is mt19937, seeded by the low 32 bits (ATen/core/MT19937RNGEngine.h); the bounds are those of
    `reset_parameters` (torch/nn/modules/linear.py and conv.py) and `kaiming_uniform_` (torch/nn/init.py).
    """
    engine = np.random.RandomState(experiment.seed & 0xFFFFFFFF)
    state_dict = {}
    for name, shape in experiment.shapes.items():
        if name.endswith(".weight"):
            fan_in = math.prod(shape[1:])
            gain = math.sqrt(2 / (1 + math.sqrt(5) ** 2))
            bound = math.sqrt(3) * (gain / math.sqrt(fan_in))
        else:
            bound = 1 / math.sqrt(fan_in)
        state_dict[name] = _uniform(engine, bound, shape)
    return state_dict


def _uniform(engine: np.random.RandomState, bound: float, shape: tuple[int, ...]) -> NDArray[np.float32]:
    """`uniform_(-bound, bound)`: 24 bits of one word each (ATen/core/TransformationHelper.h, uniform_real)."""
    words = engine.randint(0, 2**32, math.prod(shape), dtype=np.uint32)
    unit = (words & np.uint32(2**24 - 1)).astype(np.float32) * np.float32(2**-24)
    limit = np.float32(bound)
    # unit * (limit - -limit) + -limit in one rounding, for 2 * unit - 1 is exact; or in two.
    drawn = (2 * unit - 1) * limit if _torch_fuses() else unit * (limit + limit) - limit
    return drawn.astype(np.float32).reshape(shape)


def _torch_fuses() -> bool:
    """Whether torch's kernels on this machine are compiled to fused multiply-add.

    On x86-64 torch dispatches at run time (ATen/native/DispatchStub.cpp, compute_cpu_capability): by the environment
    variable if it holds a name that it knows, by the processor if not. Elsewhere compilers fuse by default.
    """
    if platform.machine().lower() not in ("x86_64", "amd64"):
        return True
    asked_for = os.environ.get("ATEN_CPU_CAPABILITY")
    if asked_for in ("avx512", "avx2", "default"):
        return asked_for != "default"
    return bool(CPU_FEATURES["AVX2"] and CPU_FEATURES["FMA3"])
