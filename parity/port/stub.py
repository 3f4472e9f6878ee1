"""What `python -m parity new port.py` writes: every function of a port, with what it has to return."""

import inspect
import textwrap

from parity.cases import OPTIONAL
from parity.port.protocol import REQUIRED, Port

_HEAD = '''"""{purpose}

Judge it: python -m parity REFERENCE.py {name}

{rules}

Plain JAX functions and an optax optimizer need none of this: `port = parity.port.from_functions(...)`.
"""
'''


def stub(name: str) -> str:
    """The text of a port that raises NotImplementedError everywhere; optional functions are comments."""
    purpose, _, rules = inspect.getdoc(Port).partition("\n\n")  # type: ignore[union-attr]
    parts = [_HEAD.format(purpose=purpose, name=name, rules=rules)]
    parts += [_function(function) for function in REQUIRED]
    parts.append("# Optional; remove the `# ` to offer one.\n")
    parts += [
        textwrap.indent(_function(function), "# ", lambda _: True).replace("# \n", "#\n") for function in OPTIONAL
    ]
    return "\n\n".join(part.rstrip() for part in parts) + "\n"


def _function(name: str) -> str:
    function = getattr(Port, name)
    parameters = ", ".join([*inspect.signature(function).parameters][1:])
    doc = textwrap.indent(inspect.getdoc(function) or "", "    ").strip()
    return f'def {name}({parameters}):\n    """{doc}"""\n    raise NotImplementedError\n'
