"""The command line: what it prints, writes and returns, and how it tells a mistake."""

import json
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import vpmu
from vpmu.cli import main
from vpmu.command_run import Output, choose_designs, run_command
from vpmu.designs import find_design
from vpmu.errors import Interrupted, UserError
from vpmu.kernels.designs.registry import FUNCTIONS, built_in_names
from vpmu.options import Executor, Progress, RunOptions
from vpmu.records import KIND_SAMPLE, RecordWriter
from vpmu.results import DesignResult, RunResult, ThreadRow, read_results, write_results
from vpmu.scenario import Scenario, load_scenario

E5 = "e5-2699v4-linux-5.0"

SCENARIO = """
version = 1
until = "3 s"
[[program]]
name = "p"
cycles = 1_000_000
functions = [{name = "foo", share = 1}]
[[host]]
name = "server"
[[vm]]
name = "guest"
vcpus = 2
count = 3
[[vm.thread]]
name = "p"
[[vm.session]]
tool = "stat"
thread = "p"
events = ["branches"]
"""

CALLGRIND = """# callgrind format
version: 1
creator: callgrind-3.19.0
cmd: ./tiny
positions: line
events: Ir Dr Dw I1mr D1mr D1mw ILmr DLmr DLmw Bc Bcm Bi Bim

ob=(1) tiny
fl=(1) tiny.c
fn=(1) main
3 1000 100 50 1 1 1 1 1 1 100 5 0 0
cfn=(2) foo
calls=10 9
4 9000 900 450 1 1 1 1 1 1 900 45 0 0

fn=(2)
9 9000 900 450 1 1 1 1 1 1 900 45 0 0

totals: 10000 1000 500 2 2 2 2 2 2 1000 50 0 0
"""


@pytest.fixture
def scenario_file(tmp_path: Path):
    path = tmp_path / "s.toml"
    path.write_text(SCENARIO)
    return path


@pytest.fixture
def design_file(tmp_path: Path):
    path = tmp_path / "throwaway.py"
    functions = "\n".join(f"def {name}(s, v, p, index, value, now): ..." for name in FUNCTIONS)
    path.write_text(f'"""A design that was thrown away."""\n{functions}\n')
    return path


def fail(capsys: pytest.CaptureFixture[str], *arguments: object):
    """Run a command that must fail as a user's mistake, and return its line."""
    assert main([str(argument) for argument in arguments]) == 2
    out, err = capsys.readouterr()
    assert out == ""
    assert err.count("\n") == 1
    return err.rstrip("\n")


# -- start -------------------------------------------------------------------------------------------------


def test_help_loads_nothing_heavy():
    # How long it takes is `make bench`'s: start_help.
    code = (
        "import sys\nfrom vpmu.cli import main\nmain(['--help'])\n"
        "heavy = {'numpy', 'numba', 'pyarrow', 'zmq', 'trio', 'rich', 'msgspec', 'distributed'}\n"
        "sys.exit(', '.join(sorted(heavy & set(sys.modules))) or 0)"
    )
    root = Path(vpmu.__file__).parents[1]
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=root)
    assert (done.returncode, done.stderr) == (0, "")
    assert "Run a scenario" in done.stdout


def test_version(capsys: pytest.CaptureFixture[str]):
    assert main(["--version"]) == 0
    assert capsys.readouterr().out == f"vpmu {vpmu.__version__}\n"


def test_without_a_command_the_help_is_shown(capsys: pytest.CaptureFixture[str]):
    assert main([]) == 2
    assert "Commands:" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("arguments", "line"),
    [
        (["runn"], "No such command 'runn'. Did you mean 'run'? (see vpmu --help)"),
        (["run"], "Missing argument 'SCENARIO.toml'. (see vpmu --help)"),
        (["program"], "Missing command. (see vpmu --help)"),
        (["run", "s.toml", "--sed", "1"], "No such option: --sed (see vpmu --help)"),
    ],
)
def test_a_wrong_command_line_is_one_line(
    capsys: pytest.CaptureFixture[str], arguments: list[str], line: str
):
    found = fail(capsys, *arguments)
    assert found.split("Did you")[0].split("(")[0].split("Possible")[0].strip(" .") == (
        line.split("Did you")[0].split("(")[0].strip(" .")
    )
    assert found.endswith("(see vpmu --help)")


# -- lists -------------------------------------------------------------------------------------------------


def test_profiles_are_listed_and_shown(capsys: pytest.CaptureFixture[str]):
    assert main(["profiles"]) == 0
    assert E5 in capsys.readouterr().out
    assert main(["profiles", E5]) == 0
    shown = capsys.readouterr().out
    assert "16.9 ms (log-normal, sigma 0.29)" in shown
    assert "calibration: RFC table 2, rdpmcl, optimized; sigma: estimate" in shown


def test_an_unknown_profile_is_one_line(capsys: pytest.CaptureFixture[str]):
    found = fail(capsys, "profiles", "e5-2699v4-linux-6.0")
    assert found == f'unknown profile "e5-2699v4-linux-6.0"; did you mean "{E5}"? (known: {E5})'


def test_designs_are_listed(capsys: pytest.CaptureFixture[str]):
    assert main(["designs"]) == 0
    rows = capsys.readouterr().out.splitlines()[3:]
    names = [row.split()[0] for row in rows if row.startswith("  ") and row[2:3].strip()]
    assert names == list(built_in_names())
    assert {"legacy", "native", "optimized"} <= set(names)


def test_a_file_is_a_design_if_it_defines_what_a_design_does(tmp_path: Path, design_file: Path):
    assert find_design(str(design_file)).summary == "A design that was thrown away"
    less = tmp_path / "less.py"
    less.write_text("from x import set_msr, get_msr as read, rdpmc\nget_msr = read\ndef destroy(): ...\n")
    with pytest.raises(UserError) as caught:
        find_design(str(less))
    missing = [name for name in FUNCTIONS if name not in ("set_msr", "get_msr", "rdpmc", "destroy")]
    assert str(caught.value) == f"{less}: not a design, it lacks {', '.join(missing)}"


@pytest.mark.parametrize(
    ("name", "content", "problem"),
    [
        ("none.py", None, "cannot read: No such file or directory"),
        (
            "legacy.py",
            "\n".join(f"{name} = None" for name in FUNCTIONS),
            "a design's file needs a name of its own that is a Python identifier",
        ),
        ("broken.py", "def (", "not a Python module: invalid syntax (<unknown>, line 1)"),
    ],
)
def test_a_file_that_is_no_design_is_named(tmp_path: Path, name: str, content: str | None, problem: str):
    path = tmp_path / name
    if content is not None:
        path.write_text(content)
    with pytest.raises(UserError) as caught:
        find_design(str(path))
    assert str(caught.value) == f"{path}: {problem}"


# -- scenario check and program ----------------------------------------------------------------------------


def test_a_valid_scenario_is_summed_up(capsys: pytest.CaptureFixture[str], scenario_file: Path):
    assert main(["scenario", "check", str(scenario_file), "--set", "until=2500 ms"]) == 0
    expected = f"{scenario_file}: valid: 1 hosts, 3 VMs, 6 vCPUs, 3 sessions, 0 tools, until 2500 ms\n"
    assert capsys.readouterr().out == expected


@pytest.mark.parametrize(
    ("override", "line"),
    [
        ("hots=1", 'key hots: unknown key "hots"; did you mean "host"?'),
        ("host.0.design=legasy", 'key host[0].design: unknown design "legasy"; did you mean "legacy"?'),
        ("until=3", 'key until: expected a duration with its unit, like "10 ms", found 3'),
        (
            "vm.0.session.0.events=['branchez']",
            'key vm[0].session[0].events[0]: unknown event "branchez"; did',
        ),
    ],
)
def test_a_mistake_in_a_scenario_is_one_line(
    capsys: pytest.CaptureFixture[str], scenario_file: Path, override: str, line: str
):
    assert fail(capsys, "scenario", "check", scenario_file, "--set", override).startswith(
        f"{scenario_file}: {line}"
    )


def test_a_program_is_imported_checked_and_shown(
    capsys: pytest.CaptureFixture[str], tmp_path: Path, scenario_file: Path
):
    profile, program = tmp_path / "callgrind.out.1", tmp_path / "tiny.program.json"
    profile.write_text(CALLGRIND)
    assert main(["program", "import", str(profile), "-o", str(program)]) == 0
    assert capsys.readouterr().out.startswith(f"{program}: 2 functions, ")
    assert main(["program", "show", str(program)]) == 0
    assert "foo" in capsys.readouterr().out
    override = "program.0={name = 'p', file = 'tiny.program.json'}"
    assert main(["scenario", "check", str(scenario_file), "--set", override]) == 0


def test_a_truncated_profile_is_one_line_and_nothing_is_written(
    capsys: pytest.CaptureFixture[str], tmp_path: Path, scenario_file: Path
):
    profile, program = tmp_path / "callgrind.out.1", tmp_path / "tiny.program.json"
    profile.write_text(CALLGRIND[:-30])
    assert fail(capsys, "program", "import", profile, "-o", program).startswith(f"{profile}:")
    assert not program.exists()
    override = f"program.0={{name = 'p', file = '{profile.name}'}}"
    assert fail(capsys, "scenario", "check", scenario_file, "--set", override).startswith(f"{profile}:")


# -- run ---------------------------------------------------------------------------------------------------


def result_of(scenario: Scenario, names: Sequence[str], **more: Any):
    designs = [
        DesignResult(
            design=name,
            digest=f"{index:02x}" * 32,
            until_ns=scenario.until_ns,
            end_ns=10**9,
            threads=[
                ThreadRow(
                    vm="guest",
                    vcpu=0,
                    thread="p",
                    kind="program",
                    finished=True,
                    start_ns=0,
                    end_ns=10**9,
                    run_ns=10**9,
                    cpu_ns=10**9,
                )
            ],
        )
        for index, name in enumerate(names)
    ]
    return RunResult.of(scenario.title, scenario.seed, designs, **more)


async def emulate(scenario: Scenario, options: RunOptions, progress: Progress | None):
    """What `vpmu.execution.execute` does at its edges: progress, records, a result."""
    for name in options.designs:
        if progress is not None:
            progress(name, scenario.until_ns)
        if options.out is not None:
            with RecordWriter(options.out, name, options.keep) as writer:
                writer.append(np.array([[KIND_SAMPLE, 0, 0, 0, 0, 0, 0, 0]], dtype=np.uint64))
    return result_of(scenario, options.designs)


async def stop_after_one(scenario: Scenario, options: RunOptions, progress: Progress | None):
    raise Interrupted(result_of(scenario, options.designs[:1], complete=False, reason="at 1 s"), "at 1 s")


async def stop_at_once(scenario: Scenario, options: RunOptions, progress: Progress | None):
    raise Interrupted


def run_with(execute: Executor, file: Path, **changes: Any):
    arguments: dict[str, Any] = {
        "overrides": [],
        "designs": "legacy",
        "workers": 1,
        "place": "packed",
        "messages": False,
        "out": None,
        "keep": "samples",
        "output": Output(),
    }
    return run_command(str(file), **(arguments | changes), execute=execute)


def test_a_run_prints_tables_and_writes_results(
    capsys: pytest.CaptureFixture[str], tmp_path: Path, scenario_file: Path
):
    out = tmp_path / "out"
    assert run_with(emulate, scenario_file, out=out, overrides=["seed=9"]) == 0
    printed = capsys.readouterr()
    assert "legacy: threads" in printed.out
    assert "1.00 s of virtual time in" in printed.out
    assert printed.err == ""  # no progress where there is no terminal
    assert read_results(out).seed == 9
    assert (out / "legacy" / "samples.parquet").exists()
    timing = json.loads((out / "timing.json").read_text())
    assert (timing["virtual_s"], timing["workers"], timing["mode"]) == (1.0, 1, "kernels")


def test_json_is_the_summary_and_quiet_prints_nothing(
    capsys: pytest.CaptureFixture[str], tmp_path: Path, scenario_file: Path
):
    run_with(emulate, scenario_file, out=tmp_path / "out", output=Output(as_json=True))
    assert capsys.readouterr().out == (tmp_path / "out" / "summary.json").read_text()
    run_with(emulate, scenario_file, output=Output(quiet=True))
    assert capsys.readouterr() == ("", "")


def test_progress_is_shown_where_asked_for(capsys: pytest.CaptureFixture[str], scenario_file: Path):
    run_with(emulate, scenario_file, output=Output(quiet=True, progress=True))
    printed = capsys.readouterr()
    assert printed.out == ""
    assert "legacy" in printed.err
    assert "3.00 s" in printed.err


def test_ctrl_c_keeps_what_is_complete_and_says_what_is_missing(
    capsys: pytest.CaptureFixture[str], tmp_path: Path, scenario_file: Path
):
    out = tmp_path / "out"
    assert run_with(stop_after_one, scenario_file, out=out) == 130
    result = read_results(out)
    assert (result.complete, result.reason, list(result.designs)) == (False, "at 1 s", ["legacy"])
    assert capsys.readouterr().err == "interrupted: at 1 s\n"
    assert run_with(stop_at_once, scenario_file, out=tmp_path / "none") == 130
    assert not (tmp_path / "none").exists()


def test_designs_are_those_asked_for_or_the_hosts_own(scenario_file: Path, design_file: Path):
    plain = load_scenario(scenario_file)
    own = load_scenario(scenario_file, ["host.0.design=legacy"])
    assert choose_designs(plain, None, "s.toml") == ("legacy", "optimized")
    assert choose_designs(own, None, "s.toml") == ("legacy",)
    assert choose_designs(plain, f"legacy, {design_file}", "s.toml") == ("legacy", str(design_file))


@pytest.mark.parametrize(
    ("option", "value", "line"),
    [
        ("--design", "legacyy", '--design: unknown design "legacyy"; did you mean "legacy"?'),
        ("--design", "legacy,legacy", '--design: named twice "legacy"'),
        (
            "--place",
            "packd",
            '--place: unknown placement "packd"; did you mean "packed"?',
        ),
        ("--keep", "sample", '--keep: unknown choice "sample"; did you mean "samples"?'),
        ("--seed", "-1", "{file}: key seed: must not be negative, found -1"),
        ("--until", "3", "{file}: key until: expected a duration with its unit"),
        ("--set", "vm.0.vcpu=2", '{file}: key vm[0].vcpu: unknown key "vcpu"; did you mean "vcpus"?'),
        ("--workers", "0", "Invalid value for '--workers': "),
        ("--out", "{file}", '--out: not a directory "{file}"'),
    ],
)
def test_a_wrong_option_is_one_line_and_nothing_is_written(
    capsys: pytest.CaptureFixture[str],
    tmp_path: Path,
    scenario_file: Path,
    option: str,
    value: str,
    line: str,
):
    value, line = value.format(file=scenario_file), line.format(file=scenario_file)
    before = sorted(tmp_path.rglob("*"))
    assert fail(capsys, "run", scenario_file, "--design", "legacy", option, value).startswith(line)
    assert sorted(tmp_path.rglob("*")) == before


# -- compare -----------------------------------------------------------------------------------------------


def test_compare_tells_same_from_different_by_its_status(
    capsys: pytest.CaptureFixture[str], tmp_path: Path, scenario_file: Path
):
    scenario = load_scenario(scenario_file)
    for name, designs in (("a", ["x"]), ("b", ["x"]), ("c", ["x", "y"])):
        write_results(tmp_path / name, result_of(scenario, designs))
    assert main(["compare", str(tmp_path / "a"), str(tmp_path / "b")]) == 0
    assert capsys.readouterr().out == f"same results, digest {'00' * 32}\n"
    assert main(["compare", str(tmp_path / "a"), str(tmp_path / "c")]) == 1
    assert "guest 0 p" in capsys.readouterr().out
    assert fail(capsys, "compare", tmp_path / "a", tmp_path / "d") == (
        f"{tmp_path / 'd' / 'summary.json'}: cannot read: No such file or directory"
    )
