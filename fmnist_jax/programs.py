"""What XLA asks of its host: compiled programs kept between runs, and memory that it need not copy."""

import contextlib
import hashlib
import mmap
import os

import jax
import numpy as np
from numpy._core._multiarray_umath import __cpu_features__ as CPU_FEATURES
from numpy.typing import NDArray

from fmnist.files import cache_folder


def keep() -> None:
    """Let JAX keep what it compiles in the user's cache folder, unless the user has told it where.

    XLA compiles for the very processor that it runs on, and JAX takes a program for any of its kind: a folder that
    several machines share holds a folder for each kind of processor.
    """
    cache = cache_folder()
    if "JAX_COMPILATION_CACHE_DIR" in os.environ or cache is None:
        return
    processor = hashlib.sha256(repr(sorted(CPU_FEATURES.items())).encode()).hexdigest()[:16]
    folder = cache / "programs" / processor
    with contextlib.suppress(OSError):  # a cache that cannot be written costs time, not the run
        folder.mkdir(parents=True, exist_ok=True)
        jax.config.update("jax_compilation_cache_dir", str(folder))
        jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.0)


def shared(images: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """The same images, in memory that all devices of a CPU use as it lies: from where a page begins.

    Not NumPy's own, for which Linux may search half a second for huge pages.
    """
    if images.ctypes.data % mmap.PAGESIZE == 0:
        return images
    copy = np.frombuffer(mmap.mmap(-1, images.nbytes), np.uint8).reshape(images.shape)
    copy[:] = images
    return copy
