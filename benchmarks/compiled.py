"""The reference with its step compiled, all else the same: `python -m benchmarks.compiled`."""

import gc

if __name__ == "__main__":
    gc.disable()  # as the reference does


import sys

import torch

from fmnist import command
from fmnist_torch import train

NAME = "benchmarks.compiled"
_train_step = train.train_step


def compile_step() -> None:
    """Have `fmnist_torch.train.train_epoch` take steps that `torch.compile` compiles, one program for each shape."""
    train.train_step = torch.compile(_train_step, dynamic=False)


def main() -> None:
    compile_step()
    train.main()


if __name__ == "__main__":
    sys.exit(command.run(main, NAME))
