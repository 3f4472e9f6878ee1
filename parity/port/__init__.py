"""What a port is, and how one is made of JAX functions. Never imports torch."""

from parity.port.adapters import from_functions
from parity.port.layouts import Leaf
from parity.port.protocol import Port

__all__ = ["Leaf", "Port", "from_functions"]
