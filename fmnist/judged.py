"""The experiments that parity judges: the post's, and others that a port of the program has to do as well."""

from fmnist.experiment import Experiment

JUDGED = {
    "784-4-10": Experiment(hidden=(4,), lr=0.05, batch_size=50),
    "784-16-16-10": Experiment(hidden=(16, 16), lr=1.0, batch_size=7),
    "784-64-32-16-10": Experiment(hidden=(64, 32, 16), lr=0.1, batch_size=100),
    "784-16-10 softmax": Experiment(softmax_output=True, lr=0.5),
    "784-16-10": Experiment(),
}
"""By name. The post's comes last, for its whole runs are what takes time."""

ACCURACY_MARGIN = 0.001
"""Ten of 10,000 test images: less than a third of what another seed changes."""
LOSS_MARGIN = 0.001
"""What a reader of the post's log would call the same number."""
