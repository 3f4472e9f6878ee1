"""Several processes, on one machine or on many, as one."""

import hashlib
import os
import sys

import jax
import numpy as np
from jax.experimental.multihost_utils import process_allgather

from fmnist.command import UnavailableError, UsageError
from fmnist_jax.sweep.options import SweepOptions


def join(name: str, options: SweepOptions) -> None:
    """Make JAX's devices of all processes one set, once all have come to the coordinator.

    JAX's runtime ends the interpreter itself, with words of its own, if some do not come in time.

    Args:
        name: the command's, for the line that says who waits for whom.

    Raises:
        UnavailableError: `--distributed`, and JAX detects no cluster; or the coordinator cannot listen.
    """
    # Gloo announces its connections on standard output, where only results belong.
    sys.stdout = os.fdopen(os.dup(1), "w", encoding=sys.stdout.encoding, errors="backslashreplace")
    os.dup2(2, 1)
    coordinator, processes, process = options.coordinator, options.processes, options.process
    who = "joins the cluster that JAX detects" if options.distributed else f"process {process} of {processes}"
    where = "" if options.distributed else f" meets the others at {coordinator}"
    print(f"{name}: {who}{where}; JAX aborts if not all have come in {options.wait} s", file=sys.stderr, flush=True)
    try:
        if options.distributed:
            jax.distributed.initialize(initialization_timeout=options.wait)
        else:
            jax.distributed.initialize(
                coordinator,
                processes,
                process,
                coordinator_bind_address=coordinator,
                initialization_timeout=options.wait,
            )
    except (RuntimeError, ValueError) as error:
        raise UnavailableError(f"the processes cannot join: {error}") from None


def agree(settings: str) -> None:
    """Make sure that all processes were asked for the same.

    Raises:
        UsageError: they were not; in every one of them.
    """
    digest = np.frombuffer(hashlib.sha256(settings.encode()).digest(), np.uint8)
    if (process_allgather(digest) != digest).any():
        raise UsageError("the processes were given different flags or data; give all the same, but each its --process")
