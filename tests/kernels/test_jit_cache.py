"""Where compiled kernels are kept: the key, the fallback, pruning, and numba's hits in a second process."""

import os
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest

from tests.processes import untraced
from vpmu.kernels import jit_cache

PAUSES = Path(__file__).parents[2] / "examples" / "designs" / "pauses.toml"

MODULES = {
    "callee.py": """
        from vpmu.kernels.jit import U64, kernel

        @kernel
        def add(value: U64) -> U64:
            return value + U64(1)
    """,
    "caller.py": """
        from pathlib import Path

        from vpmu.kernels import jit
        from vpmu.kernels.jit import U64, entry

        jit.add_sources(Path(__file__).with_name("callee.py"))
        from callee import add

        @entry
        def twice(value: U64) -> U64:
            return add(add(value))

        print(int(twice(U64(40))), sum(twice.stats.cache_misses.values()))
    """,
}


def write_modules(folder: Path) -> None:
    for name, text in MODULES.items():
        (folder / name).write_text(textwrap.dedent(text))


def run_caller(folder: Path, **environment: str) -> subprocess.CompletedProcess[str]:
    """Run caller.py in a new process whose caches lie under the folder."""
    kept = {name: os.environ[name] for name in ("PATH", "HOME") if name in os.environ}
    # A .pyc is taken for that of a source of the same length changed within the same second.
    variables = kept | {"XDG_CACHE_HOME": str(folder / "cache"), "PYTHONDONTWRITEBYTECODE": "1"} | environment
    command = [sys.executable, "caller.py"]
    return subprocess.run(command, cwd=folder, env=variables, capture_output=True, text=True, check=True)


def test_second_process_hits_and_a_changed_callee_misses(tmp_path: Path):
    write_modules(tmp_path)
    assert run_caller(tmp_path).stdout.split() == ["42", "1"]
    assert run_caller(tmp_path).stdout.split() == ["42", "0"]

    # numba's own cache would still answer 42: the caller's file is the same.
    callee = tmp_path / "callee.py"
    callee.write_text(callee.read_text().replace("U64(1)", "U64(2)"))
    assert run_caller(tmp_path).stdout.split() == ["44", "1"]


def test_two_states_of_the_sources_have_two_directories(tmp_path: Path):
    write_modules(tmp_path)
    run_caller(tmp_path)
    first = {path.name for path in (tmp_path / "cache/vpmu").iterdir()}
    callee = tmp_path / "callee.py"
    callee.write_text(callee.read_text() + "# another state\n")
    run_caller(tmp_path)
    second = {path.name for path in (tmp_path / "cache/vpmu").iterdir()}
    # jit.py's own key and the key with the callee; then one more for the changed callee.
    assert first < second
    assert len(second) == len(first) + 1


@pytest.mark.parametrize("variable", ["VPMU_CACHE_DIR", "NUMBA_CACHE_DIR"])
def test_a_directory_named_by_the_user_is_used_as_it_is(tmp_path: Path, variable: str):
    write_modules(tmp_path)
    run_caller(tmp_path, **{variable: str(tmp_path / "mine")})
    assert list((tmp_path / "mine").rglob("caller.twice-*.nbi"))
    assert not (tmp_path / "cache").exists()


@pytest.mark.parametrize("variable", ["VPMU_CACHE_DIR", "XDG_CACHE_HOME"])
def test_without_a_writable_directory_it_compiles_and_says_so(tmp_path: Path, variable: str):
    write_modules(tmp_path)
    blocked = tmp_path / "file"
    blocked.write_text("")  # nobody, root included, can make a directory below a file
    scratch = tmp_path / "scratch"
    scratch.mkdir()
    done = run_caller(tmp_path, **{variable: str(blocked / "x"), "TMPDIR": str(scratch)})
    assert done.stdout.split() == ["42", "1"]
    assert f"cannot keep compiled kernels in {blocked / 'x'}" in done.stderr
    assert not list(scratch.iterdir())  # removed at exit


def test_decorating_leaves_numbas_configuration_to_its_other_users(tmp_path: Path):
    write_modules(tmp_path)
    caller = tmp_path / "caller.py"
    caller.write_text(caller.read_text() + "import numba; print(repr(numba.config.CACHE_DIR))\n")
    assert run_caller(tmp_path).stdout.splitlines()[-1] == "''"


def test_key_depends_on_names_texts_and_versions(tmp_path: Path):
    one, two = tmp_path / "one.py", tmp_path / "two.py"
    one.write_text("a")
    two.write_text("b")
    key = jit_cache.source_key([one, two], "0.68")
    assert jit_cache.source_key([two, one], "0.68") == key
    assert jit_cache.source_key([one], "0.68") != key
    assert jit_cache.source_key([one, two], "0.69") != key
    two.write_text("c")
    assert jit_cache.source_key([one, two], "0.68") != key


def make_old_keys(root: Path, count: int) -> list[Path]:
    """Make unheld directories, the first opened longest ago."""
    found = []
    for index in range(count):
        path = root / f"{index:016x}"
        path.mkdir(parents=True)
        (path / jit_cache._LOCK_NAME).touch()
        os.utime(path, (1_000 + index, 1_000 + index))
        found.append(path)
    return found


def test_pruning_keeps_the_newest_and_the_one_in_use(tmp_path: Path):
    old = make_old_keys(tmp_path, 6)
    removed = jit_cache.prune(tmp_path, keep=old[0].name)
    # KEPT_KEYS = 4: the one in use and the three newest; old[1] and old[2] go.
    assert sorted(removed) == old[1:3]
    assert sorted(tmp_path.iterdir()) == [old[0], *old[3:]]


def test_pruning_spares_what_a_live_process_holds(tmp_path: Path):
    old = make_old_keys(tmp_path, 6)
    holder = "import sys; from pathlib import Path; from vpmu.kernels import jit_cache as c\n"
    holder += "c._hold(Path(sys.argv[1])); print('held', flush=True); sys.stdin.read()"
    command = [sys.executable, "-c", holder, str(old[0])]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "held\n"
        os.utime(old[0], (1, 1))
        assert sorted(jit_cache.prune(tmp_path, keep="f" * 16)) == old[1:3]
        process.communicate("")
    os.utime(old[0], (1, 1))
    assert jit_cache.prune(tmp_path, keep="f" * 16) == old[:1]


def test_pruning_touches_nothing_that_is_not_a_cache_of_ours(tmp_path: Path):
    old = make_old_keys(tmp_path, 5)
    (old[0] / jit_cache._LOCK_NAME).unlink()
    os.utime(old[0], (1, 1))
    (tmp_path / "notes").mkdir()
    assert jit_cache.prune(tmp_path, keep="f" * 16) == old[1:2]
    assert (tmp_path / "notes").exists()
    assert old[0].exists()


def test_opening_prunes(tmp_path: Path):
    old = make_old_keys(tmp_path, 5)
    opened = jit_cache.open_cache("f" * 16, tmp_path)
    assert sorted(tmp_path.iterdir()) == [*old[2:], opened]


def test_a_cold_cache_is_filled_once_and_changes_no_byte(tmp_path: Path):
    program = f"""
        import trio
        import vpmu
        from vpmu.execution import compile_all
        from vpmu.kernels import jit

        result = trio.run(lambda: vpmu.run({str(PAUSES)!r}, designs=("legacy", "optimized", "native")))
        entries = compile_all()
        misses = sum(sum(made.stats.cache_misses.values()) for made, _ in jit._entries)
        print(entries, misses, result.digest)
    """
    command = [sys.executable, "-c", textwrap.dedent(program)]
    environment = untraced() | {"VPMU_CACHE_DIR": str(tmp_path)}
    runs = [
        subprocess.run(command, env=environment, capture_output=True, text=True, check=True).stdout.split()
        for _ in range(2)
    ]
    (entries, cold_misses, cold_digest), (_, warm_misses, warm_digest) = runs
    assert int(cold_misses) == int(entries) > 1
    assert int(warm_misses) == 0
    assert warm_digest == cold_digest


def test_a_part_can_still_be_called_from_python():
    from vpmu.kernels.jit import U64, kernel

    @kernel
    def inner(value: U64) -> U64:
        return value + U64(1)

    @kernel
    def outer(value: U64) -> U64:
        return inner(value) + U64(1)

    assert outer(U64(40)) == 42
    # By now the inner one is compiled as a part of the outer, without an entry point of its own.
    assert inner(U64(41)) == 42
    assert outer(U64(1)) == 3
