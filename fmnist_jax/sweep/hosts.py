"""Several processes, on one machine or on many, as one."""

import json
import os
import socket
import sys
import time
from typing import Any

import jax

from fmnist.command import UnavailableError, UsageError


def join(coordinator: str, processes: int, process: int, settings: str, wait: float) -> None:
    """Make JAX's devices of all processes one set, once all have come to the coordinator, `HOST:PORT`.

    JAX would end the interpreter if some did not come; so they meet here first.

    Args:
        settings: what all have to agree in, in any words.
        wait: seconds until those that are missing are given up.

    Raises:
        UnavailableError: not all came in time, or the coordinator is not to be reached.
        UsageError: a process came twice, or with other settings.
    """
    host, _, port = coordinator.rpartition(":")
    deadline = time.monotonic() + wait
    greeting = {"process": process, "processes": processes, "settings": settings}
    if process == 0:
        _receive(int(port), greeting, deadline, wait)
    else:
        _announce(host, int(port), greeting, deadline, wait)
    # Gloo announces its connections on standard output, where only results belong.
    sys.stdout = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)
    jax.distributed.initialize(coordinator, processes, process, initialization_timeout=int(wait) + 1)


def _receive(port: int, own: dict[str, Any], deadline: float, wait: float) -> None:
    """Let all other processes come, and tell them to go on or why not."""
    here: set[int] = set()
    connections = []
    verdict = ""
    try:
        with socket.create_server(("", port)) as server:
            while not verdict and len(here) < own["processes"] - 1:
                try:
                    server.settimeout(max(0.001, deadline - time.monotonic()))
                    connection, _ = server.accept()
                    connection.settimeout(max(0.001, deadline - time.monotonic()))
                    greeting = json.loads(connection.makefile("r").readline())
                    process = int(greeting["process"])
                except TimeoutError:
                    missing = sorted({*range(1, own["processes"])} - here)
                    verdict = f"process {', '.join(map(str, missing))} of {own['processes']} did not come in {wait:g} s"
                    break
                except (ValueError, TypeError, KeyError, OSError):
                    continue  # somebody else, who tries this port
                if greeting != own | {"process": process}:
                    verdict = f"process {process} was given other flags than process 0"
                elif process in here or process == 0:
                    verdict = f"two processes say that they are --process {process}"
                here.add(process)
                connections.append(connection)
    except (OSError, OverflowError) as error:
        raise UnavailableError(f"--coordinator :{port}: cannot listen there: {error}") from None
    finally:
        for connection in connections:
            with connection:
                connection.sendall(f"{verdict or 'go'}\n".encode())
    _obey(verdict or "go")


def _announce(host: str, port: int, own: dict[str, Any], deadline: float, wait: float) -> None:
    """Come to the coordinator, and wait for what it says."""
    said = ""
    while not said:
        left = deadline - time.monotonic()
        if left <= 0:
            raise UnavailableError(
                f"--coordinator {host}:{port}: process 0 did not answer in {wait:g} s; start it there, or name where "
                "it listens"
            )
        try:
            with socket.create_connection((host, port), timeout=left) as connection:
                connection.sendall(json.dumps(own).encode() + b"\n")
                # The coordinator may wait until its own deadline, which began when it did.
                connection.settimeout(wait + 1)
                said = connection.makefile("r").readline().strip()
        except (OSError, OverflowError):
            time.sleep(0.1)
    _obey(said)


def _obey(verdict: str) -> None:
    if "did not come" in verdict:
        raise UnavailableError(f"{verdict}; start them all, or give a smaller --processes")
    if verdict != "go":
        raise UsageError(f"{verdict}; give all processes the same flags, but each its own --process")
