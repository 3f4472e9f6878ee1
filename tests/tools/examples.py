"""The examples with models of transformers, judged: `python -m tests.tools.examples`, in an environment that has it.

Writes what is said of each beside it, `docs/examples/bert.txt`, and fails where it is not what is expected.
"""

import os
import subprocess
import sys
from pathlib import Path

EXAMPLES = Path("docs/examples")
EXPECTED = {"bert": "agrees", "gpt2": "error[F100]", "resnet": "error[T003]"}
"""What is said of each, so that a model or a judge that changes is noticed."""


def main() -> int:
    wrong = 0
    for name, expected in EXPECTED.items():
        sides = [f"{EXAMPLES}/{name}.py:{side}" for side in ("reference", "port")]
        print(f"python -m parity {' '.join(sides)} --quick", flush=True)
        environment = os.environ | {"TRANSFORMERS_VERBOSITY": "error"}
        command = [sys.executable, "-m", "parity", *sides, "--quick"]
        said = subprocess.run(command, env=environment, stdout=subprocess.PIPE, text=True, check=False).stdout
        said = said.replace(sys.executable, "python")
        (EXAMPLES / f"{name}.txt").write_text(said)
        print(said.splitlines()[-1] if said else "it said nothing")
        if expected not in said:
            wrong += 1
            print(f"{name}: {expected!r} was expected; see {EXAMPLES / name}.txt")
    return min(wrong, 1)


if __name__ == "__main__":
    sys.exit(main())
