"""The house rules as functions of a source tree: each returns the violations, one line each.

They take the tree's root, so that the tests can show each of them a tree that breaks its rule.
"""

import ast
import os
import re
from collections.abc import Iterator
from pathlib import Path

ROOMS = ("kernels", "actors", "cluster", "vpmu")
"""In the order of imports: a room may import itself and those before it."""

KERNEL_STDLIB = {
    "__future__",
    "collections",
    "dataclasses",
    "enum",
    "functools",
    "itertools",
    "math",
    "typing",
}
KERNEL_EXTRA_STDLIB = {
    "costs.py": {"difflib"},
    "dispatch.py": {"hashlib", "importlib", "os", "sys", "types"},
    "events.py": {"difflib", "re"},
    "jit.py": {"inspect", "pathlib"},
    "jit_cache.py": {
        "atexit",
        "fcntl",
        "hashlib",
        "os",
        "pathlib",
        "re",
        "shutil",
        "sys",
        "tempfile",
        "warnings",
    },
    "registry.py": {"importlib", "pathlib", "sys", "types"},
}
"""What single files of kernels/ may import beyond that, to find files or to suggest a name."""

SOCKET_MODULES = {
    "socket",
    "ssl",
    "asyncio",
    "selectors",
    "socketserver",
    "http",
    "urllib",
    "zmq",
    "distributed",
}
_TRIO_SOCKETS = re.compile(r"trio\.(socket|(open|serve)_(tcp|unix|ssl|listeners)\w*)")
LONGEST_FUNCTION = 80

_IGNORE = re.compile(r"#\s*(?:type:\s*ignore(?!\[[\w, -]+\])|noqa(?!:\s*[A-Z]+[0-9]+))", re.IGNORECASE)
_MACHINE = re.compile(
    r"(?<![\w.\-/])/(?:work|root|home/\w+)/|--(?:extra-)?index-url|--find-links|"
    + "pythonhosted|"
    + r"\bpypi\.\w+/"
)
_TEXT_SUFFIXES = {
    ".cfg",
    ".in",
    ".json",
    ".lock",
    ".md",
    ".py",
    ".sh",
    ".toml",
    ".txt",
    ".yaml",
    ".yml",
    ".c",
    ".h",
    "",
}
_NOT_OURS = {".git", ".hypothesis", ".venv", "__pycache__", "build", "dist", "out", "node_modules"}


def python_files(root: Path, *rooms: str) -> Iterator[Path]:
    """Yield the rooms' modules; vpmu/'s links to the other rooms are not followed."""
    for room in rooms or ROOMS:
        for path in sorted((root / room).rglob("*.py")):
            links = (root / room).joinpath(*path.relative_to(root / room).parts[:1])
            if not links.is_symlink() and not _NOT_OURS.intersection(path.parts[len(root.parts) :]):
                yield path


def module_name(root: Path, path: Path) -> str:
    """Name a room's file as it is imported: kernels/guest/driver.py is vpmu.kernels.guest.driver."""
    parts = path.relative_to(root).with_suffix("").parts
    inner = parts[:-1] if parts[-1] == "__init__" else parts
    return ".".join(inner if inner[0] == "vpmu" else ("vpmu", *inner))


def imports(root: Path, path: Path) -> Iterator[tuple[int, str]]:
    """Yield (line, absolute module) of every import in a file, wherever it stands, relative ones resolved."""
    name = module_name(root, path)
    package = name.split(".") if path.name == "__init__.py" else name.split(".")[:-1]
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            yield from ((node.lineno, alias.name) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            base = package[: len(package) - node.level + 1] if node.level else []
            stem = ".".join([*base, *([node.module] if node.module else [])])
            # `from vpmu import cluster` names a module by its last part.
            yield from ((node.lineno, f"{stem}.{alias.name}") for alias in node.names)


def room_of(module: str) -> str | None:
    """Return the room that an absolute module name belongs to, None for a third party's."""
    parts = module.split(".")
    if parts[0] != "vpmu":
        return None
    return parts[1] if len(parts) > 1 and parts[1] in ROOMS else "vpmu"


def wrong_way_imports(root: Path) -> list[str]:
    """Imports against kernels <- actors <- cluster <- vpmu."""
    found = []
    for path in python_files(root):
        own = room_of(module_name(root, path))
        for line, module in imports(root, path):
            room = room_of(module)
            if room is not None and own is not None and ROOMS.index(room) > ROOMS.index(own):
                found.append(f"{path.relative_to(root)}:{line}: {own} imports {module}")
    return found


def bare_imports(root: Path) -> list[str]:
    """Imports of a room by the name of its folder."""
    rooms = [room for room in (*ROOMS, "tests", "benchmarks", "examples") if (root / room).is_dir()]
    return [
        f"{path.relative_to(root)}:{line}: {module} is vpmu.{module}"
        for path in python_files(root, *rooms)
        for line, module in imports(root, path)
        if module.split(".")[0] in ROOMS[:-1]
    ]


def foreign_imports_of_kernels(root: Path) -> list[str]:
    """What kernels/ imports beyond NumPy, numba and the plain part of the standard library."""
    found = []
    for path in python_files(root, "kernels"):
        allowed = KERNEL_STDLIB | {"numpy", "numba", "vpmu"} | KERNEL_EXTRA_STDLIB.get(path.name, set())
        for line, module in imports(root, path):
            if module.split(".")[0] not in allowed:
                found.append(f"{path.relative_to(root)}:{line}: kernels import {module}")
    return found


def sockets_outside_cluster(root: Path) -> list[str]:
    """Imports by kernels/ and actors/ of anything that opens a socket, trio's own functions included."""
    found = []
    for path in python_files(root, "kernels", "actors"):
        for line, module in imports(root, path):
            if module.split(".")[0] in SOCKET_MODULES or module.startswith("trio.socket"):
                found.append(f"{path.relative_to(root)}:{line}: imports {module}")
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Attribute) and _TRIO_SOCKETS.fullmatch(ast.unparse(node)):
                found.append(f"{path.relative_to(root)}:{node.lineno}: uses {ast.unparse(node)}")  # noqa: PERF401
    return found


def functions(tree: ast.AST) -> Iterator[ast.FunctionDef | ast.AsyncFunctionDef]:
    """Yield every function and method of a module."""
    return (node for node in ast.walk(tree) if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef))


def is_kernel(function: ast.FunctionDef | ast.AsyncFunctionDef) -> bool:
    """Tell whether @kernel, @entry, @njit or a relative decorates a function."""
    names = (ast.unparse(decorator).split("(")[0].split(".")[-1] for decorator in function.decorator_list)
    return any(name in {"kernel", "entry", "njit", "jit"} for name in names)


def undescribed_kernels(root: Path) -> list[str]:
    """Kernels without a docstring, or with a parameter or a return that has no annotation."""
    found = []
    for path in python_files(root):
        for function in filter(is_kernel, functions(ast.parse(path.read_text()))):
            where = f"{path.relative_to(root)}:{function.lineno}: {function.name}"
            if ast.get_docstring(function) is None:
                found.append(f"{where} has no docstring")
            arguments = function.args
            every = [
                *arguments.posonlyargs,
                *arguments.args,
                *arguments.kwonlyargs,
                arguments.vararg,
                arguments.kwarg,
            ]
            bare = [
                argument.arg for argument in every if argument is not None and argument.annotation is None
            ]
            if bare or function.returns is None:
                found.append(f"{where} is not annotated: {', '.join(bare) or 'return'}")
    return found


def direct_njit(root: Path) -> list[str]:
    """Functions compiled past @kernel: other options, and a cache that misses changes in callees."""
    return [
        f"{path.relative_to(root)}:{line}: compile with vpmu.kernels.jit.kernel"
        for path in python_files(root)
        if path.name != "jit.py" and path.parts[-2:] != ("machine", "compiled.py")
        for line, module in imports(root, path)
        if module in {"numba", "numba.njit", "numba.jit", "numba.core.config", "numba.config"}
    ]


def long_functions(root: Path) -> list[str]:
    """Functions over the limit, docstring and decorators included."""
    found = []
    for path in python_files(root, *(room for room in (*ROOMS, "tests") if (root / room).is_dir())):
        for function in functions(ast.parse(path.read_text())):
            lines = (function.end_lineno or function.lineno) - function.lineno + 1
            if lines > LONGEST_FUNCTION:
                found.append(f"{path.relative_to(root)}:{function.lineno}: {function.name} has {lines} lines")
    return found


def blanket_ignores(root: Path) -> list[str]:
    """Comments that silence every rule of a line and not a named one."""
    rooms = [room for room in (*ROOMS, "tests", "benchmarks", "examples") if (root / room).is_dir()]
    return [
        f"{path.relative_to(root)}:{number}: {line.strip()}"
        for path in python_files(root, *rooms)
        for number, line in enumerate(path.read_text().splitlines(), 1)
        if _IGNORE.search(line)
    ]


def machine_traces(root: Path) -> list[str]:
    """Paths of one machine, and lines that bind the project to one package index."""
    found = []
    for path in text_files(root):
        for number, line in enumerate(path.read_text(errors="replace").splitlines(), 1):
            if _MACHINE.search(line):
                found.append(f"{path.relative_to(root)}:{number}: {line.strip()[:100]}")
    return found


def text_files(root: Path) -> Iterator[Path]:
    """Yield the files that a commit would hold, as far as names tell, this file excepted."""
    for folder, folders, names in os.walk(root):  # links to folders are not followed
        folders[:] = sorted(name for name in folders if not _is_left_over(name))
        for path in (Path(folder, name) for name in sorted(names)):
            ours = path.suffix in _TEXT_SUFFIXES and not path.name.startswith(".coverage")
            if ours and path.resolve() != Path(__file__).resolve() and path.stat().st_size < 1_000_000:
                yield path


def _is_left_over(folder: str) -> bool:
    return folder in _NOT_OURS or folder.endswith(("_cache", ".egg-info"))
