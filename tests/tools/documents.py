"""What the documents quote of programs, made anew: `python -m tests.tools.documents` puts it into them."""

import argparse
import os
import re
import shutil
import subprocess
import sys
import tempfile
import types
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

ROOT = Path(__file__).parent.parent.parent
EXAMPLES = ROOT / "docs" / "examples"
PAGES = [ROOT / "README.md", *(ROOT / "docs" / f"{name}.md" for name in ("judging", "porting"))]

MISTAKES = {
    "gelu": (", approximate=False", ""),
    "epsilon": ("variance + 1e-5", "variance + 1e-6"),
    "decay": (", mask=decays", ""),
    "clipping": ("    clip_by_global_norm(LIMIT),", "    optax.clip_by_global_norm(LIMIT),"),
    "mean": ("/ asked.sum()", "/ asked.size"),
}
"""Right and wrong in `docs/examples/train_jax.py`."""
OUTPUTS = {"right": (), "gelu": ("gelu",), "draft": ("gelu", "mean", "decay")}
"""What a page calls an output → the mistakes that were made before."""
COLUMNS = {
    "GELU by tanh": "gelu",
    "LayerNorm's ε 1e-6": "epsilon",
    "AdamW decays all": "decay",
    "`optax.clip_by_global_norm`": "clipping",
    "no mistake": None,
}
"""Of the table of common checks."""

Tensors = dict[str, NDArray[Any]]


def excerpts(page: str) -> Iterator[tuple[str, str]]:
    """The files that a page quotes, and what it says they hold."""
    yield from re.findall(r"<!-- (\S+\.py) -->\n```python\n(.*?)```\n", page, re.DOTALL)


def outputs(page: str) -> Iterator[tuple[str, str]]:
    """A page's outputs of the judge, by name."""
    yield from re.findall(r"<!-- output: (\S+) -->\n```\n(.*?)```\n", page, re.DOTALL)


def made(*mistakes: str) -> str:
    """The source of the port in JAX with these mistakes in it."""
    source = (EXAMPLES / "train_jax.py").read_text()
    for mistake in mistakes:
        right, wrong = MISTAKES[mistake]
        if source.count(right) != 1:
            raise ValueError(f"{mistake}: train_jax.py does not hold {right!r} once")
        source = source.replace(right, wrong)
    return source


def judged(name: str, *flags: str) -> str:
    """What the judge says of the example with the mistakes of an output, without the rows that pass."""
    with tempfile.TemporaryDirectory() as folder:
        shutil.copytree(EXAMPLES, folder, dirs_exist_ok=True, ignore=shutil.ignore_patterns("__pycache__"))
        Path(folder, "train_jax.py").write_text(made(*OUTPUTS[name]))
        done = subprocess.run(
            [sys.executable, "-m", "parity", "reference.py", "port.py", "--quick", *flags],
            cwd=folder,
            # With this interpreter as the one that a shell finds, hints call it `python`.
            env={
                **os.environ,
                "PYTHONPATH": str(ROOT),
                "PATH": os.path.dirname(sys.executable) + os.pathsep + os.environ["PATH"],
            },
            capture_output=True,
            text=True,
            check=False,
        )
    if done.returncode != (1 if OUTPUTS[name] else 0):
        raise RuntimeError(done.stderr)
    return "".join(line for line in done.stdout.splitlines(keepends=True) if not line.endswith("pass\n")).lstrip("\n")


def key_lines(output: str) -> list[str]:
    """What is said of a port whatever the processor: what is wrong, why, and the verdict, without digits."""
    lines = output.splitlines()
    kept = [line for line in lines if re.match(r"error|   = (cause|or, equally|with that)|   \|   [+-] ", line)]
    return [re.sub(r"-?[\d.,]+(e[+-]?\d+)?", "#", line) for line in [*kept, lines[-1].partition(":")[0]]]


def common_checks() -> dict[str, list[bool]]:
    """Whether usual checks notice the mistakes of `COLUMNS`, in their order."""
    sys.path.insert(0, str(EXAMPLES))
    import train_torch  # type: ignore[import-not-found]

    torch.manual_seed(0)
    batches = list(train_torch.make_batches(10))
    model = train_torch.Sorter().eval()  # without dropout, as a careful comparison is made
    start = _tensors(model.state_dict())
    expected = _run_torch(train_torch, model, batches)
    actual = [_run_jax(mistake, start, batches) for mistake in COLUMNS.values()]

    def far(kinds: str, rtol: float, atol: float) -> list[bool]:
        names = [name for name in expected if name.partition("/")[0] in kinds.split()]
        return [not all(np.allclose(port[name], expected[name], rtol, atol) for name in names) for port in actual]

    return {
        "logits within 1e-3": far("logits", 0, 1e-3),
        "logits, loss and gradients at `assert_close`'s defaults": far("logits loss gradients", 1.3e-6, 1e-5),
        "ten losses within 1e-3": far("losses", 0, 1e-3),
        "parameters after ten steps within 1e-3": far("parameters", 0, 1e-3),
        "parameters after ten steps at `assert_close`'s defaults": far("parameters", 1.3e-6, 1e-5),
    }


def _run_torch(program: Any, model: Any, batches: Any) -> Tensors:
    first, *_ = batches = [{name: torch.from_numpy(array) for name, array in batch.items()} for batch in batches]
    said = {"logits": model(first["tokens"]).detach().numpy()}
    optimizer = program.make_optimizer(model)
    scheduler = program.make_scheduler(optimizer)
    losses: list[float] = []
    for batch in batches:
        optimizer.zero_grad()
        loss = program.loss_of(model, batch)
        loss.backward()
        if not losses:
            said |= {"loss": loss.detach().numpy()}
            said |= {f"gradients/{name}": param.grad.numpy().copy() for name, param in model.named_parameters()}
        program.clip(model)
        optimizer.step()
        scheduler.step()
        losses.append(loss.item())
    return {**said, "losses": np.array(losses), **_tensors(model.state_dict(), "parameters/")}


def _run_jax(mistake: str | None, start: Tensors, batches: Any) -> Tensors:
    program = types.ModuleType("train_jax")
    exec(compile(made(*([mistake] if mistake else [])), "train_jax.py", "exec"), program.__dict__)
    kept = sys.modules.get("train_jax")
    sys.modules["train_jax"] = program
    try:
        shown: dict[str, Any] = {"__name__": "port"}
        exec(compile((EXAMPLES / "port.py").read_text(), str(EXAMPLES / "port.py"), "exec"), shown)
    finally:
        del sys.modules["train_jax"]
        sys.modules |= {"train_jax": kept} if kept else {}
    port, losses = shown["port"], []
    state = port.load_state_dict(start)
    loss, grads = port.value_and_grad(state, batches[0])
    said = {"logits": port.outputs(state, batches[0], False)["output"], "loss": loss}
    said |= {f"gradients/{name}": grad for name, grad in grads.items()}
    for batch in batches:
        state, loss = port.train_step(state, batch)
        losses.append(float(loss))
    return {**said, "losses": np.array(losses), **_tensors(port.state_dict(state), "parameters/")}


def _tensors(state: Any, prefix: str = "") -> Tensors:
    return {f"{prefix}{name}": np.array(tensor) for name, tensor in state.items()}


def table(checks: dict[str, list[bool]]) -> list[str]:
    """The table of common checks as a page has it."""
    lines = [f"| check | {' | '.join(COLUMNS)} |", f"|---|{'---|' * len(COLUMNS)}"]
    for check, noticed in checks.items():
        cells = ["differs" if one else "passes" for one in noticed]
        lines.append(f"| {check} | {' | '.join(cells)} |")
    return lines


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m tests.tools.documents", description=__doc__)
    parser.add_argument("names", nargs="*", help=f"outputs to make: {', '.join(OUTPUTS)}, table; all by default")
    chosen = parser.parse_args().names or [*OUTPUTS, "table"]
    for page in PAGES:
        text = page.read_text()
        for name, _ in outputs(text):
            if name in chosen:
                told = judged(name)
                text = re.sub(
                    rf"(<!-- output: {name} -->\n```\n).*?(```\n)",
                    lambda found, told=told: f"{found[1]}{told}{found[2]}",  # type: ignore[misc]
                    text,
                    flags=re.DOTALL,
                )
        if "<!-- table: common checks -->" in text and "table" in chosen:
            head = "<!-- table: common checks -->\n"
            before, _, after = text.partition(head)
            text = before + head + "\n".join(table(common_checks())) + "\n" + re.sub(r"^(\|.*\n)*", "", after)
        page.write_text(text)


if __name__ == "__main__":
    main()
