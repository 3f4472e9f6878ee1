"""Right ports under many examinations: `python -m tests.tools.false_alarms --seeds 30` prints the largest shares used.

Each examination has other seeds and other images, over all experiments of the ladder, in float32 and float64. Whole
runs are left out but for `--epochs`, which adds free-running trajectories of so many epochs.
"""

import os

os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")

import argparse
import sys
from collections import defaultdict

from fmnist.data import load_dataset
from parity.checks import CHECKS
from parity.judge import Judge, run_check
from parity.port import Held
from parity.ports import jax_port, torch_port
from parity.ports.numpy_port import numpy_port
from parity.reruns import Reruns
from parity.verdict import Outcome
from parity.whole_runs import WHOLE_RUNS
from tests.parity.ports import plain_port

PORTS = {"jax": jax_port, "plain": plain_port, "numpy": numpy_port(), "torch": torch_port}


def main() -> int:
    parser = argparse.ArgumentParser()
    parser.add_argument("--seeds", type=int, default=30)
    parser.add_argument("--first", type=int, default=0)
    parser.add_argument("--epochs", type=int, default=0)
    parser.add_argument("--ports", nargs="+", default=list(PORTS))
    arguments = parser.parse_args()
    dataset, alarms = load_dataset(), 0
    shares: dict[tuple[str, str], float] = defaultdict(float)
    with Reruns(None, "cpu") as reruns:
        for name in arguments.ports:
            for seed in range(arguments.first, arguments.first + arguments.seeds):
                judge = Judge(
                    Held(PORTS[name], name),
                    Held(torch_port, "the reference"),
                    dataset,
                    reruns,
                    epochs=arguments.epochs or 20,
                    first_seed=seed,
                )
                for check in (*CHECKS, *(WHOLE_RUNS[:2] if arguments.epochs else ())):
                    if check.stage == "init" and not judge.port.has_init:
                        continue
                    outcome = Outcome(check, run_check(judge, check))
                    key = (check.stage, check.name)
                    shares[key] = max(shares[key], outcome.share)
                    for one in outcome.comparisons:
                        if not one.passed:
                            alarms += 1
                            print(
                                f"ALARM {name}, seed {seed}: {one.stage} / {one.check} / {one.case} / {one.tensor}: "
                                f"{one.worst:.3g} of {one.allowed:g}",
                                flush=True,
                            )
                print(f"{name}, examination {seed}: {alarms} alarms", file=sys.stderr, flush=True)
    for (stage, check), share in shares.items():
        print(f"{stage:10}  {check:16}  {100 * share:6.1f} %")
    print(f"{alarms} false alarms")
    return 1 if alarms else 0


if __name__ == "__main__":
    sys.exit(main())
