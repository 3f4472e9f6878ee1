"""Shows the program in PyTorch to parity."""

from train_torch import Sorter, clip, loss_of, make_batches, make_optimizer, make_scheduler

import parity

reference = parity.Reference(
    module=Sorter,
    loss=loss_of,
    optimizer=make_optimizer,
    scheduler=make_scheduler,
    clip=clip,
    batches=[*make_batches(2, size=8), *make_batches(1, size=3)],
    name="sorter",
)
