"""Ports made of what people have: functions, modules of flax.linen, nnx and Equinox, Flax classes of transformers."""

from parity.port.adapters.chance import median_key
from parity.port.adapters.equinox import from_equinox
from parity.port.adapters.functions import from_functions
from parity.port.adapters.linen import from_linen
from parity.port.adapters.nnx import from_nnx
from parity.port.adapters.transformers import from_transformers

__all__ = ["from_equinox", "from_functions", "from_linen", "from_nnx", "from_transformers", "median_key"]
