"""What a port is, and how one is made of JAX functions. Never imports torch."""

from .adapters import from_functions
from .layouts import Leaf
from .protocol import Port

__all__ = ["Leaf", "Port", "from_functions"]
