"""safetensors files that carry their own SHA-256: safetensors alone notices no flipped bit."""

import hashlib
import re

import numpy as np
from numpy.typing import NDArray
from safetensors.numpy import save

KEY = "fmnist-parity"
ZEROS = b"0" * 64


def save_signed(tensors: dict[str, NDArray[np.float32]], kind: str, **metadata: str) -> bytes:
    """A safetensors file whose entry `fmnist-parity` says its kind and the SHA-256 of the file with zeros in its place.

    Args:
        metadata: other entries of its header.
    """
    contiguous = {name: np.ascontiguousarray(tensor) for name, tensor in tensors.items()}
    content = save(contiguous, {KEY: f"{kind}, sha256 {ZEROS.decode()}", **metadata})
    signature = hashlib.sha256(content).hexdigest().encode()
    return content.replace(b", sha256 " + ZEROS, b", sha256 " + signature, 1)


def kind_of(content: bytes) -> str | None:
    """The kind that a file says it is of; None for one that says nothing, as others write them.

    Raises:
        ValueError: it is damaged.
    """
    header = content[: 8 + int.from_bytes(content[:8], "little")]
    if b"sha256 " not in header and KEY.encode() not in header:
        return None
    entry = re.search(rb'"%s":"([^"]*), sha256 ([0-9a-f]{64})"' % KEY.encode(), header)
    if entry is None:
        raise ValueError("damaged: its signature cannot be read")
    unsigned = content[: entry.start(2)] + ZEROS + content[entry.end(2) :]
    if hashlib.sha256(unsigned).hexdigest().encode() != entry[2]:
        raise ValueError("damaged: its SHA-256 is not the one that it states")
    return entry[1].decode()
