"""The house rules hold in this tree, and each check fails on a tree that breaks its rule."""

import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from tests import house

ROOT = Path(__file__).parents[1]
Check = Callable[[Path], list[str]]
CHECKS: list[Check] = [
    house.wrong_way_imports,
    house.bare_imports,
    house.foreign_imports_of_kernels,
    house.sockets_outside_cluster,
    house.undescribed_kernels,
    house.direct_njit,
    house.long_functions,
    house.blanket_ignores,
    house.machine_traces,
]
# Spelled so that this file does not break the rules itself.
IGNORE, NOQA, INDEX, HERE = "# type: ig" + "nore", "# no" + "qa", "--index" + "-url", "/wo" + "rk/main/x"
KERNEL = "from vpmu.kernels.jit import kernel\n\n\n@kernel\ndef f(s: int{}) -> int:\n    {}\n    return s\n"

BROKEN: list[tuple[Check, str, str]] = [
    (house.wrong_way_imports, "kernels/a.py", "import vpmu.actors"),
    (house.wrong_way_imports, "kernels/a.py", "from vpmu import cluster"),
    (house.wrong_way_imports, "kernels/a.py", "from ..actors import mailbox"),
    (house.wrong_way_imports, "kernels/guest/a.py", "from ... import run"),
    (house.wrong_way_imports, "kernels/__init__.py", "from .. import actors"),
    (house.wrong_way_imports, "actors/a.py", "def f():\n    from vpmu.cluster import hub"),
    (house.wrong_way_imports, "actors/a.py", "import vpmu.results"),
    (house.wrong_way_imports, "cluster/a.py", "from vpmu.scenario import Scenario"),
    (house.bare_imports, "vpmu/a.py", "import kernels.engine"),
    (house.bare_imports, "tests/test_a.py", "from actors import vcpu"),
    (house.bare_imports, "cluster/a.py", "from cluster.hub import Hub"),
    (house.foreign_imports_of_kernels, "kernels/a.py", "import trio"),
    (house.foreign_imports_of_kernels, "kernels/designs/a.py", "import os"),
    (house.sockets_outside_cluster, "kernels/a.py", "import socket"),
    (house.sockets_outside_cluster, "actors/a.py", "import zmq"),
    (house.sockets_outside_cluster, "actors/a.py", "from zmq import Context"),
    (house.sockets_outside_cluster, "actors/a.py", "import trio\n\nx = trio.socket.socket"),
    (house.undescribed_kernels, "kernels/a.py", KERNEL.format("", "s += 1")),
    (house.undescribed_kernels, "kernels/a.py", KERNEL.format(", t", '"""Say."""')),
    (house.undescribed_kernels, "kernels/a.py", KERNEL.format("", '"""Say."""').replace(" -> int", "")),
    (house.direct_njit, "kernels/a.py", "from numba import njit"),
    (house.direct_njit, "kernels/a.py", "import numba"),
    (house.long_functions, "actors/a.py", "def f():\n" + "    pass\n" * 80),
    (house.long_functions, "tests/test_a.py", "async def f():\n" + "    pass\n" * 80),
    (house.blanket_ignores, "vpmu/a.py", f"x = 1  {IGNORE}"),
    (house.blanket_ignores, "tests/test_a.py", f"x = 1  {NOQA}"),
    (house.machine_traces, "docs/a.md", f"see {HERE}"),
    (house.machine_traces, "Makefile", f"pip install {INDEX} x"),
]

SOUND: list[tuple[str, str]] = [
    ("kernels/a.py", "import math\n\nimport numpy as np\nfrom vpmu.kernels import b"),
    ("kernels/a.py", KERNEL.format("", '"""Say."""')),
    ("kernels/guest/a.py", "from ..registers import wrap\nfrom . import driver"),
    ("actors/a.py", "import trio\nfrom vpmu.kernels import engine\nfrom .mailbox import Mailbox"),
    ("cluster/a.py", "import zmq\nfrom vpmu.actors import vcpu"),
    ("vpmu/a.py", "from .cluster import hub\nfrom vpmu import kernels"),
    ("vpmu/a.py", f"x = 1  {IGNORE}[attr-defined]\ny = 2  {NOQA}: E501"),
    ("vpmu/a.py", "def f():\n" + "    pass\n" * 79),
    ("docs/a.md", "Kernels do the frame" + "work/s; see docs/work/a.md"),
]


def make_tree(root: Path, name: str, text: str) -> Path:
    for room in house.ROOMS:
        (root / room).mkdir()
    for room in house.ROOMS[:-1]:
        (root / "vpmu" / room).symlink_to(f"../{room}")
    path = root / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text + "\n")
    return root


@pytest.mark.parametrize("check", CHECKS, ids=lambda check: check.__name__)
def test_this_tree_keeps_the_rule(check: Check):
    assert check(ROOT) == []


@pytest.mark.parametrize(("check", "name", "text"), BROKEN)
def test_a_tree_that_breaks_the_rule_is_found(tmp_path: Path, check: Check, name: str, text: str):
    found = check(make_tree(tmp_path, name, text))
    assert len(found) == 1
    assert found[0].startswith(f"{name}:")


@pytest.mark.parametrize(("name", "text"), SOUND)
def test_a_sound_tree_passes_every_check(tmp_path: Path, name: str, text: str):
    tree = make_tree(tmp_path, name, text)
    assert [line for check in CHECKS for line in check(tree)] == []


def test_every_check_is_shown_a_broken_tree():
    assert {check for check, _, _ in BROKEN} == set(CHECKS)


def test_vpmu_links_to_each_room():
    for room in house.ROOMS[:-1]:
        assert (ROOT / "vpmu" / room).readlink() == Path("..", room)


@pytest.mark.parametrize(
    "heavy", ["numba", "numpy", "trio", "rich", "typer", "zmq", "distributed", "pyarrow"]
)
def test_importing_vpmu_loads_nothing_heavy(heavy: str):
    command = f"import sys, vpmu; sys.exit({heavy!r} in sys.modules)"
    assert subprocess.run([sys.executable, "-c", command], check=False).returncode == 0


def test_an_unknown_public_name_is_an_attribute_error():
    import vpmu

    with pytest.raises(AttributeError, match="no attribute 'rum'"):
        _ = vpmu.rum


def test_public_names_are_listed_and_declared():
    import vpmu

    assert set(vpmu.__all__) == {*vpmu._EXPORTS, "__version__"}
    assert set(vpmu.__all__) <= set(dir(vpmu))
