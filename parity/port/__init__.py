"""What a port is, and how one is made of what people have. Never imports torch."""

from parity.port.adapters import from_equinox, from_functions, from_linen, from_nnx, from_transformers, median_key
from parity.port.layouts import Leaf
from parity.port.protocol import Port

__all__ = [
    "Leaf",
    "Port",
    "from_equinox",
    "from_functions",
    "from_linen",
    "from_nnx",
    "from_transformers",
    "median_key",
]
