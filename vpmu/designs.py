"""Which vPMU designs there are: modules of ``kernels/designs``, and files that a user names.

They are read, not imported: listing them compiles nothing, and a file that is no design is told before a run
starts.
"""

from __future__ import annotations

import ast
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from vpmu.errors import UserError
from vpmu.kernels.designs.registry import FUNCTIONS, built_in_names

DESIGN_DIRECTORY: Final = Path(__file__).parent / "kernels" / "designs"


@dataclass(frozen=True)
class Design:
    """A design: its name (the module's), where it is, and the first line of its docstring."""

    name: str
    path: Path
    summary: str


def list_designs() -> list[Design]:
    """Return the designs that come with the package, by name."""
    paths = [DESIGN_DIRECTORY / f"{name}.py" for name in built_in_names()]
    return [Design(path.stem, path, _summary(ast.parse(path.read_text(encoding="utf-8")))) for path in paths]


def find_design(name: str, *, file: str = "--design", key: str = "") -> Design:
    """Return the design called `name`, or the one in the file at that path (it ends in ``.py``).

    Raises
    ------
    UserError
        If there is no such design, or the file is none; `file` and `key` say where it was named.
    """
    if name.endswith(".py"):
        return _read_design(Path(name))
    designs = {design.name: design for design in list_designs()}
    if name not in designs:
        raise UserError("unknown design", file=file, key=key, found=name, allowed=designs)
    return designs[name]


def _read_design(path: Path) -> Design:
    try:
        tree = ast.parse(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise UserError(f"cannot read: {error.strerror or error}", file=str(path)) from None
    except (SyntaxError, ValueError) as error:
        raise UserError(f"not a Python module: {error}", file=str(path)) from None
    missing = _missing(tree)
    if missing:
        raise UserError(f"not a design, it lacks {', '.join(missing)}", file=str(path))
    if not path.stem.isidentifier() or path.stem in built_in_names():
        raise UserError("a design's file needs a name of its own that is a Python identifier", file=str(path))
    return Design(path.stem, path, _summary(tree))


def _missing(tree: ast.Module) -> list[str]:
    """Name the functions of a design that a module neither defines, imports nor assigns."""
    names: set[str] = set()
    for node in tree.body:
        if isinstance(node, ast.FunctionDef):
            names.add(node.name)
        elif isinstance(node, ast.ImportFrom):
            names.update(alias.asname or alias.name for alias in node.names)
        elif isinstance(node, ast.Assign):
            names.update(target.id for target in node.targets if isinstance(target, ast.Name))
    return [name for name in FUNCTIONS if name not in names]


def _summary(tree: ast.Module) -> str:
    return (ast.get_docstring(tree) or "").partition("\n")[0].rstrip(".")
