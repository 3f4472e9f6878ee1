"""The same with its step under `torch.compile(mode="reduce-overhead")`."""

import torch

from benchmarks.peers.data import Data, Done
from benchmarks.peers.ways import torch_loop


def fit(data: Data, epochs: int, done: Done) -> None:
    torch_loop.fit(data, epochs, done, torch.compile(torch_loop.train_step, mode="reduce-overhead"))
