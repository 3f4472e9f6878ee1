"""Kill runs at random moments and resume them: `python -m tests.tools.crash --kills 200`.

Every chain of kills has to end at the bits, and the metrics, of a run that nobody killed.
"""

import argparse
import multiprocessing
import random
import signal
import sys
import tempfile
import time
from collections.abc import Callable
from multiprocessing.context import ForkServerContext
from pathlib import Path

from fmnist import command

EPOCHS = 6
CHAIN = 5
COMPARED = ("metrics.jsonl", "model.safetensors")


def train(side: str, folder: str, extra: list[str]) -> None:
    """A trainer's command, in this process."""
    module = __import__(f"{side}.train", fromlist=["main"])
    sys.argv = ["train", "--output", folder, *extra]
    sys.stdout = sys.stderr = open("/dev/null", "w")  # noqa: SIM115
    sys.exit(command.run(module.main, module.NAME))


def context() -> ForkServerContext:
    """Processes that need not import torch or JAX each: kills then fall into the run, not into its imports."""
    forks = multiprocessing.get_context("forkserver")
    forks.set_forkserver_preload(["fmnist_torch.train", "fmnist_jax.train", "fmnist.runs.curves"])
    return forks


def state(folder: Path) -> dict[str, object]:
    """What has to be equal to the bit: the files, and the checkpoint's parameters."""
    from fmnist.runs.checkpoints import read

    checkpoint = read(folder / "checkpoint.safetensors")
    state_dict = {name: tensor.tobytes() for name, tensor in checkpoint.state_dict.items()}
    return {name: (folder / name).read_bytes() for name in COMPARED} | {"epoch": checkpoint.epoch, **state_dict}


def chains(side: str, kills: int, epochs: int, seed: int, say: Callable[[str], None]) -> int:
    """Kill runs so many times, at most five times in a row before each is let end; returns how many ends were equal.

    Raises:
        AssertionError: an end was not that of the uninterrupted run.
    """
    forks, choose, equal = context(), random.Random(seed), 0
    with tempfile.TemporaryDirectory() as temporary:

        def run(name: str, *extra: str, seconds: float | None = None) -> int | None:
            process = forks.Process(target=train, args=(side, str(Path(temporary, name)), ["--resume", *extra]))
            process.start()
            process.join(seconds)
            if process.exitcode is None:
                process.kill()
                process.join()
            return process.exitcode

        assert run("whole", "--epochs", str(epochs)) == 0
        began = time.monotonic()
        assert run("timed", "--epochs", str(epochs)) == 0
        duration = time.monotonic() - began
        expected = state(Path(temporary, "whole"))
        assert state(Path(temporary, "timed")) == expected
        done = 0
        while done < kills:
            name = f"chain-{done}"
            for _ in range(min(CHAIN, kills - done)):
                code = run(name, "--epochs", str(epochs), seconds=choose.uniform(0, duration))
                assert code in (0, -signal.SIGKILL), code
                done += 1
            assert run(name, "--epochs", str(epochs)) == 0
            assert state(Path(temporary, name)) == expected, f"{side}: {name} of seed {seed} ended elsewhere"
            equal += 1
            say(f"{side}: {done} of {kills} kills, {equal} chains ended at the same bits")
    return equal


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--kills", type=int, default=200)
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    for side in ("fmnist_jax", "fmnist_torch"):
        chains(side, options.kills, EPOCHS, options.seed, lambda line: print(line, flush=True))


if __name__ == "__main__":
    main()
