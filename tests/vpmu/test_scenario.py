"""Scenario files: what they say, and what is said of each mistake in them."""

import pickle
import re
import tomllib
from decimal import Decimal
from fractions import Fraction
from pathlib import Path

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from vpmu.build import build
from vpmu.errors import UserError
from vpmu.kernels.columns import CONTEXT_CAPACITY
from vpmu.scenario import Scenario, event_groups, load_scenario, parse_scenario
from vpmu.scenario.contexts import EVENTS_PER_CONTEXT
from vpmu.scenario.events import fits
from vpmu.schema import keys_of
from vpmu.units import Duration, Rate, format_duration, parse_duration, parse_exact, parse_rate

DOCS = Path(__file__).parents[2] / "docs" / "scenario.md"

GOOD = """
version = 1
until = "10 s"
seed = 7

[[program]]
name = "ftest"
cycles = 1_000_000
functions = [{name = "foo", share = 0.3, ipc = 1.5, branches = 0.2}, {name = "bar", share = 0.7}]

[[host]]
name = "server"
cpus = 2

[[vm]]
name = "guest"
cpus = [0]
[[vm.thread]]
name = "ftest"
program = "ftest"
work = 1.1
[[vm.thread]]
name = "background"
kind = "sleeper"
wakeups = "150/s"
burst = "50 us"
[[vm.session]]
name = "stat"
tool = "stat"
thread = "ftest"
events = ["branches,cpu-cycles", "{dTLB-load-misses,instructions}:u"]
[[vm.session]]
tool = "record"
cpu = true

[[tool]]
kind = "stat"
events = ["instructions"]
"""


def parse(text: str, *overrides: str, directory: Path | None = None):
    raw = tomllib.loads(text, parse_float=Decimal)
    return parse_scenario(raw, file="s.toml", directory=directory, overrides=list(overrides))


def mistake(*overrides: str, text: str = GOOD):
    with pytest.raises(UserError) as caught:
        parse(text, *overrides)
    line = str(caught.value)
    assert "\n" not in line
    return line


# -- what a good file says ---------------------------------------------------------------------------------


def test_quantities_are_exact_and_in_nanoseconds():
    scenario = parse(GOOD)
    assert scenario.until_ns == 10_000_000_000
    program, background = scenario.vms[0].threads
    assert program.work == Fraction(11, 10)
    assert background.burst_ns == 50_000
    # 150 wake-ups a second are 6,666,666.67 ns apart.
    assert background.wakeups is not None
    assert background.wakeups.interval_ns == 6_666_667
    assert scenario.programs[0].functions[0].rates["branches"] == Fraction(1, 5)


def test_defaults_that_depend_on_other_keys_are_filled_in():
    scenario = parse(GOOD, "host.0.possible_cpus=44")
    host, vm = scenario.hosts[0], scenario.vms[0]
    assert (host.possible_cpus, host.hz, host.gp_counters) == (44, 1000, 4)
    # Linux: 6 ms times 1 + log2(min(CPUs, 8)): 4 on a large host, 1 in a guest of one vCPU.
    assert (host.sched_latency_ns, vm.sched_latency_ns) == (24_000_000, 6_000_000)
    assert (host.min_granularity_ns, vm.min_granularity_ns) == (3_000_000, 750_000)
    assert (vm.host, scenario.tools[0].host, scenario.tools[0].cpus) == ("server", "server", "all")
    record = vm.sessions[1]
    assert (record.name, record.events, record.frequency) == ("record1", ("cpu-cycles",), 4000)


def test_a_given_period_takes_the_default_frequencys_place():
    session = parse(GOOD, "vm.guest.session.1.period=100000").vms[0].sessions[1]
    assert (session.frequency, session.period) == (None, 100_000)


def test_copies_and_pinning_go_round_robin():
    vm = parse(GOOD, "vm.guest.count=3", "vm.guest.vcpus=2", "vm.guest.cpus=[1, 0]", "host.0.cpus=2").vms[0]
    assert vm.copies() == ("guest.0", "guest.1", "guest.2")
    assert [vm.pinned_cpu(copy, vcpu) for copy in range(3) for vcpu in range(2)] == [1, 0, 1, 0, 1, 0]
    thread = vm.threads[0]
    assert [thread.vcpu_of_copy(copy, vm.vcpus) for copy in range(3)] == [0, 1, 0]
    assert parse(GOOD, 'vm.guest.cpus="float"').vms[0].pinned_cpu(0, 0) is None


def test_a_vm_name_stands_for_its_copies_and_a_copys_name_for_one():
    scenario = parse(GOOD, "vm.guest.count=3")
    vm = scenario.vm("guest")
    assert scenario.vm_copies("guest") == ((vm, 0), (vm, 1), (vm, 2))
    assert scenario.vm_copies("guest.1") == ((vm, 1),)
    assert scenario.vm_copies("guest.3") == ()


def test_events_come_in_groups_with_their_modifiers():
    groups = event_groups(parse(GOOD).vms[0].sessions[0].events)
    assert [[event.name for event in group] for group in groups] == [
        ["branches"],
        ["cpu-cycles"],
        ["dTLB-load-misses:u", "instructions:u"],
    ]
    assert [event.exclude_kernel for event in groups[2]] == [True, True]
    assert event_groups(("cpu/event=0xc4,cmask=1/,cycles:k",))[0][0].config == 0x10000C4


def test_files_are_relative_to_the_scenarios_directory(tmp_path: Path):
    (tmp_path / "p.program.json").write_text("{}")
    (tmp_path / "s.toml").write_text(GOOD)
    program = "program.0={name = 'ftest', file = 'p.program.json'}"
    assert load_scenario(tmp_path / "s.toml", [program]).programs[0].file == str(tmp_path / "p.program.json")


def test_parsing_leaves_the_table_as_it_was():
    raw = tomllib.loads(GOOD)
    before = repr(raw)
    parse_scenario(raw, overrides=["host.0.cpus=1"])
    assert repr(raw) == before


def test_a_scenario_can_be_sent_to_another_process():
    scenario = parse(GOOD)
    copied = pickle.loads(pickle.dumps(scenario))
    assert copied == scenario
    assert type(copied.vms[0].threads[1].wakeups) is Rate


# -- overrides ---------------------------------------------------------------------------------------------


def test_overrides_go_by_index_or_name_and_in_order():
    scenario = parse(GOOD, "host.0.cpus=4", "host.server.cpus=5", "vm.guest.session.stat.interval=100 ms")
    assert scenario.hosts[0].cpus == 5
    assert scenario.vms[0].sessions[0].interval_ns == 100_000_000


def test_an_override_can_make_a_key_and_a_table():
    host = parse(GOOD, "host.0.parameters.life=2", "host.0.watchdog=true").hosts[0]
    assert (host.parameters, host.watchdog) == ({"life": 2}, True)


def test_an_overrides_value_is_toml_or_a_bare_string():
    scenario = parse(GOOD, "title=10 s = long", 'until="3 s"', "vm.0.thread.0.work=0.25")
    assert (scenario.title, scenario.until_ns) == ("10 s = long", 3_000_000_000)
    assert scenario.vms[0].threads[0].work == Fraction(1, 4)


@pytest.mark.parametrize(
    ("override", "line"),
    [
        ("host.0.cpus", '--set: expected key=value, found "host.0.cpus"'),
        ("host..cpus=1", '--set: expected key=value, found "host..cpus=1"'),
        ("host.servr.cpus=1", '--set: key host: no entry "servr"; did you mean "server"? (known: server)'),
        ("vm.guest.session.5.vcpu=1", '--set: key vm[0].session: no entry "5" (known: stat, 1)'),
        ("seed.x=1", '--set: key seed: has no key "x"'),
    ],
)
def test_an_override_that_leads_nowhere_is_named(override: str, line: str):
    assert mistake(override) == line


# -- mistakes, each in one line ----------------------------------------------------------------------------

FREQUENCY_ON_STAT = "vm.guest.session.0.frequency=99"
KNOWN_THREAD_KINDS = "(known: program, spin, sleeper)"


@pytest.mark.parametrize(
    ("overrides", "line"),
    [
        # keys
        (["hots=1"], 'key hots: unknown key "hots"; did you mean "host"?'
         " (known: version, until, seed, title, calibration, program, host, vm, tool,"
         " template, fleet, event)"),
        (["host.0.profil=1"], 'key host[0].profil: unknown key "profil"; did you mean "profile"?'
         " (known: name, possible_cpus, core_khz, hz, balance, sched_latency, min_granularity,"
         " wakeup_granularity, count, cpus,"
         " profile, hyperthreading, and 6 more)"),
        # types and units
        (["host.0.cpus=two"], 'key host[0].cpus: expected an integer, found "two"'),
        (["host.0.cpus=1.5"], "key host[0].cpus: expected an integer, found 1.5"),
        (["host.0.watchdog=1"], "key host[0].watchdog: expected true or false, found 1"),
        (["host=3"], "key host: expected an array of tables, found 3"),
        (["host.0=3"], "key host[0]: expected a table, found 3"),
        (["host.0.name=3"], "key host[0].name: expected a string, found 3"),
        (["host.0.parameters.life=two"], 'key host[0].parameters.life: expected an integer, found "two"'),
        (["vm.0.cpus=[0, true]"], "key vm[0].cpus[1]: expected an integer, found true"),
        (["vm.0.cpus=all"], 'key vm[0].cpus: unknown value "all" (known: float)'),
        (["until=10"], 'key until: expected a duration with its unit, like "10 ms", found 10'
         " (units: ns, us, ms, s, min)"),
        (["until=10 sec"], 'key until: unknown unit "sec" in duration "10 sec" (units: ns, us, ms, s, min)'),
        (["until=10 Hz"], 'key until: unknown unit "Hz" in duration "10 Hz" (units: ns, us, ms, s, min)'),
        (["until=-1 s"], 'key until: a duration is not negative, found "-1 s"'),
        (["until=0.5 ns"], 'key until: duration "0.5 ns" is not a whole number of nanoseconds'),
        (["until=0 s"], "key until: must be at least 1, found 0"),
        (["vm.0.thread.1.wakeups=150"], 'key vm[0].thread[1].wakeups: expected a rate like "150/s", found 150'
         " (units: /s, /min)"),
        (["vm.0.thread.1.wakeups=150/h"], 'key vm[0].thread[1].wakeups: unknown unit "/h" in rate "150/h"'
         " (units: /s, /min)"),
        (["vm.0.thread.0.work=much"], 'key vm[0].thread[0].work: expected a number, found "much"'),
        (["vm.0.thread.0.kind=sleepr"], 'key vm[0].thread[0].kind: unknown value "sleepr"; did you mean'
         f' "sleeper"? {KNOWN_THREAD_KINDS}'),
        (["until=[1]"], 'key until: expected a duration with its unit, like "10 ms", found an array'
         " (units: ns, us, ms, s, min)"),
        (["until=100000000 min"], 'key until: duration "100000000 min" is too long (at most 2^62 ns)'),
        (["vm.0.thread.1.wakeups=0/s"], "key vm[0].thread[1].wakeups: a rate is above 0/s and at most"
         ' 1000000000/s, found "0/s"'),
        (["vm.0.thread.1.wakeups={}"], 'key vm[0].thread[1].wakeups: expected a rate like "150/s", found a'
         " table (units: /s, /min)"),
        # references
        (["host.0.profile=e5-2699"], 'key host[0].profile: unknown profile "e5-2699"; did you mean'
         ' "e5-2699v4-linux-5.0"? (known: e5-2699v4-linux-5.0)'),
        (["vm.0.host=servr"], 'key vm[0].host: unknown host "servr"; did you mean "server"? (known: server)'),
        (["vm.0.thread.0.program=ftst"], 'key vm[0].thread[0].program: unknown program "ftst"; did you mean'
         ' "ftest"? (known: ftest)'),
        (["vm.0.session.0.thread=ftets"], 'key vm[0].session[0].thread: unknown thread "ftets"; did you mean'
         ' "ftest"? (known: ftest, background)'),
        (["tool.0.vm=gast", "tool.0.cpus=all"], "key tool[0].cpus: either cpus or a vm, not both"),
        (["tool.0.vm=guesd"], 'key tool[0].vm: unknown vm "guesd"; did you mean "guest"? (known: guest)'),
        (["program.0={name='ftest', file='none.json'}"], 'key program[0].file: no such file "none.json"'),
        # events and counters
        (["vm.0.session.0.events=['LLC-loads']"],
         'key vm[0].session[0].events[0]: event "LLC-loads": the model'
         " has no rate for it"),
        (["vm.0.session.0.events=['branches:x']"],
         'key vm[0].session[0].events[0]: event "branches:x": unknown'
         ' modifier "x", allowed are u, k and uk'),
        (["vm.0.session.0.events=['{ref-cycles,ref-cycles}']"], "key vm[0].session[0].events[0]: group"
         ' "{ref-cycles,ref-cycles}" never fits on the counters (4 general-purpose and 3 fixed)'),
        (["tool.0.events=['{branches,branches,branches,branches,branches}']"], "key tool[0].events[0]: group"
         ' "{branches,branches,branches,branches,branches}" never fits on the counters (4 general-purpose'
         ' and 3'
         " fixed)"),
        (["vm.0.session.0.events=['{branches']"], 'key vm[0].session[0].events[0]: not a group of events'
         ' "{branches"'),
        # a context's room: seven counters of a vCPU leave 17 for tools of its thread
        ([f"vm.0.session.0.events={['branches'] * 25}"], 'key vm[0].session[0].events: thread "ftest" would'
         " have 25 events, a perf context here holds 24"),
        ([f"vm.0.session.1.events={['branches'] * 24}", "vm.0.watchdog=true"],
         "key vm[0].session[1].events: vCPU 0 would have 25 events, a perf context here holds 24"),
        ([f"tool.0.events={['branches'] * 25}"], 'key tool[0].events: CPU 0 of "server" would have 25 events,'
         " a perf context here holds 24"),
        (["vm.0.cpus=[0]", f"tool.0={{name='t', kind='stat', vm='guest', events={['branches'] * 18}}}"],
         'key tool[0].events: vCPU 0 of "guest" would have 25 events, a perf context here holds 24'),
        (["vm.0.cpus=float", "tool.0={name='t', kind='stat', vm='guest', events=['branches']}"],
         'key tool[0].vm: the vCPUs of "guest" float: pin them with cpus for a tool to attach'),
        (["calibration={'vm.guest.vcpuz'='x'}"], 'key calibration."vm.guest.vcpuz": no such key in the'
         ' scenario "vcpuz"; did you mean'),
        (["vm.0.session.0.events=[]"], "key vm[0].session[0].events: at least one event is needed"),
        # ranges
        (["seed=-1"], "key seed: must not be negative, found -1"),
        (["host.0.cpus=89"], "key host[0].cpus: must be at most possible_cpus (88), found 89"),
        (["vm.0.cpus=[2]"], 'key vm[0].cpus[0]: host "server" has physical CPUs 0 to 1, found 2'),
        (["vm.0.cpus=[0, 0]"], "key vm[0].cpus[1]: physical CPU 0 appears twice"),
        (["vm.0.cpus=[]"], "key vm[0].cpus: at least one physical CPU is needed"),
        (["vm.0.vcpus=0"], "key vm[0].vcpus: must be at least 1, found 0"),
        (["vm.0.vcpus=-2"], "key vm[0].vcpus: must be at least 1, found -2"),
        (["vm.0.session.1.period=99999999999999999999"], "key vm[0].session[1].period: must be at most"
         " 140737488355327, found 99999999999999999999"),
        (["vm.0.thread.0.work=0"], "key vm[0].thread[0].work: must be above 0, found 0"),
        (["vm.0.thread.0.work=-1.5"], "key vm[0].thread[0].work: must be above 0, found -1.5"),
        (["vm.0.thread.0.nice=20"], "key vm[0].thread[0].nice: must be from -20 to 19, found 20"),
        (["vm.0.thread.0.vcpu=1"], 'key vm[0].thread[0].vcpu: VM "guest" has vCPUs 0 to 0, found 1'),
        (["host.0.parameters.life=-1"], "key host[0].parameters.life: must not be negative, found -1"),
        (["program.0.functions.0.share=0"], "key program[0].functions[0].share: must be above 0, found 0"),
        (["program.0.functions.0.ipc=9"], "key program[0].functions[0].ipc: must be above 0 and at most 8,"
         " found 9"),
        (["vm.0.thread.0.work=0.0000000001"], "key vm[0].thread[0].work: must be at most 10^9 and have at"
         " most 9 decimals"),
        (["vm.0.sched_latency=1 us"], "key vm[0].min_granularity: must be at most 1000, found 750000"),
        (["program.0.functions.0.branches=-1"], "key program[0].functions[0].branches: must be from 0 to 64"
         " events per instruction, found -1"),
        (["vm.0.session.1.frequency=0"], "key vm[0].session[1].frequency: must be at least 1, found 0"),
        (["vm.0.session.1.frequency=100001"], "key vm[0].session[1].frequency: must be at most 100000, found"
         " 100001"),
        # combinations
        (["program.0.file=x.json"], 'key program[0].file: a program needs either "file" or "functions"'),
        (["vm.0.thread.0.burst=1 us"],
         'key vm[0].thread[0].burst: goes with kind "sleeper", this thread is of'
         ' kind "program"'),
        (["vm.0.thread.1.work=2"], 'key vm[0].thread[1].work: a thread of kind "sleeper" has no work to'
         " multiply"),
        (["vm.0.session.0.cpu=true"], "key vm[0].session[0].thread: either a thread or cpu = true, not both"),
        (["vm.0.session.1.cpu=false"], "key vm[0].session[1].thread: a thread or cpu = true is needed"),
        (["vm.0.session.0.vcpu=0"], "key vm[0].session[0].vcpu: goes with cpu = true, a thread's session"
         " follows the thread"),
        ([FREQUENCY_ON_STAT], 'key vm[0].session[0].frequency: "stat" counts, only "record" samples'),
        (["vm.0.session.1.interval=1 s"], 'key vm[0].session[1].interval: goes with tool "stat"'),
        (["vm.0.session.1.period=1", "vm.0.session.1.frequency=1"], "key vm[0].session[1].period: either a"
         " frequency or a period, not both"),
        (["vm.0.session.0.start=1 s", "vm.0.session.0.stop=1 s"], "key vm[0].session[0].stop: must be later"
         " than start"),
        (["tool.0.exclude_host=true"], "key tool[0].exclude_host: with exclude_guest (true unless given)"
         " nothing is left to count"),
        (["tool.0.vcpu=0"], "key tool[0].vcpu: goes with a vm"),
        (["vm.0.thread.1.name=ftest"], 'key vm[0].thread[1].name: appears twice "ftest"'),
        (["vm.0.name=a b"], 'key vm[0].name: expected letters, digits and -_+@, found "a b"'),
        (["version=2"], "key version: scenario version 2 is not supported (known: 1)"),
    ],
)  # fmt: skip
def test_a_mistake_is_one_line_with_its_key(overrides: list[str], line: str):
    found = mistake(*overrides)
    assert (
        found.startswith(f"s.toml: {line}") if line.endswith("did you mean") else found == f"s.toml: {line}"
    )


def test_contexts_are_as_large_as_the_kernels_make_them():
    assert EVENTS_PER_CONTEXT == CONTEXT_CAPACITY


def test_tools_of_bare_hardware_need_room_beside_its_own_sessions():
    overrides = [f"vm.0.session.1.events={['branches'] * 20}", f"tool.0.events={['branches'] * 5}"]
    scenario = parse_scenario(tomllib.loads(GOOD), overrides=overrides)
    build(scenario, "optimized")
    line = (
        "tool: on bare hardware the host's tools are the system's own: vCPU 0 of \"guest\" would have 25"
        " events, a perf context here holds 24"
    )
    with pytest.raises(UserError, match=re.escape(line)):
        build(scenario, "native")


def test_a_session_on_a_thread_with_copies_is_one_on_each():
    vm = parse(GOOD, "vm.0.thread.0.count=2").vms[0]
    assert [(s.name, s.thread) for s in vm.placed_sessions()][:2] == [
        ("stat@ftest.0", "ftest.0"),
        ("stat@ftest.1", "ftest.1"),
    ]
    one = parse(GOOD, "vm.0.thread.0.count=2", "vm.0.session.0.thread=ftest.1").vms[0]
    assert (one.placed_sessions()[0].name, one.placed_sessions()[0].thread) == ("stat", "ftest.1")


def test_an_impossible_event_is_named_with_the_nearest():
    line = mistake("vm.0.session.0.events=['cycles', 'branchez']")
    begins = (
        's.toml: key vm[0].session[0].events[1]: unknown event "branchez"; did you mean "branches"? (known: '
    )
    assert line.startswith(begins)
    assert line.endswith(" more)")


@pytest.mark.parametrize(
    ("removed", "line"),
    [
        ('until = "10 s"', "key until: missing"),
        ("version = 1", "key version: missing (this is version 1)"),
        ('name = "server"', "key host[0].name: missing"),
        ('tool = "stat"', "key vm[0].session[0].tool: missing"),
        ('events = ["instructions"]', "key tool[0].events: missing"),
        ('wakeups = "150/s"', 'key vm[0].thread[1].wakeups: missing (a rate like "150/s")'),
        ('burst = "50 us"', 'key vm[0].thread[1].burst: missing (a duration like "50 us")'),
        ("cycles = 1_000_000", "key program[0].cycles: must be at least 1, found 0"),
    ],
)
def test_a_missing_key_is_named(removed: str, line: str):
    assert removed in GOOD
    assert mistake(text=GOOD.replace(removed, "", 1)) == f"s.toml: {line}"


def test_a_host_must_be_named_where_there_are_several_and_fit():
    two = GOOD + '[[host]]\nname = "other"\n[[tool]]\nhost = "other"\nkind = "record"\nvm = "guest"\n'
    assert mistake(text=two) == "s.toml: key vm[0].host: missing"
    named = ["vm.0.host=server", "tool.0.host=server"]
    line = 's.toml: key tool[1].vm: vm "guest" is on host "server", the tool on "other"'
    assert mistake(*named, text=two) == line
    tool = parse(two, *named, "tool.1.host=server", "tool.1.vcpu=0").tools[1]
    assert (tool.name, tool.cpus, tool.frequency) == ("record1", None, 4000)


def test_a_scenario_without_a_host_is_a_mistake():
    assert mistake(text='version = 1\nuntil = "1 s"') == "s.toml: key host: at least one [[host]] is needed"


@pytest.mark.parametrize(
    ("content", "line"),
    [
        (None, "cannot read: No such file or directory"),
        (b"version = ", "not valid TOML: Invalid value (at end of document)"),
        (b"\xff", "not UTF-8 text (byte 0)"),
    ],
)
def test_an_unreadable_file_is_named(tmp_path: Path, content: bytes | None, line: str):
    path = tmp_path / "s.toml"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(UserError) as caught:
        load_scenario(path)
    assert str(caught.value) == f"{path}: {line}"


# -- quantities --------------------------------------------------------------------------------------------

UNIT_NS = {"ns": 1, "us": 10**3, "ms": 10**6, "s": 10**9, "min": 60 * 10**9}


@given(st.integers(0, 10**7), st.sampled_from(sorted(UNIT_NS)), st.sampled_from(["", " ", "  "]))
def test_a_whole_duration_is_read_exactly(number: int, unit: str, space: str):
    parsed = parse_duration(f"{number}{space}{unit}")
    assert type(parsed) is Duration
    assert parsed == number * UNIT_NS[unit]


@given(st.integers(0, 10**18))
def test_a_duration_survives_writing_and_reading(duration_ns: int):
    assert parse_duration(format_duration(duration_ns)) == duration_ns


@given(st.integers(0, 10**9 - 1), st.integers(0, 10**3))
def test_decimals_of_a_second_are_nanoseconds(below: int, seconds: int):
    assert parse_duration(f"{seconds}.{below:09d} s") == seconds * 10**9 + below


@given(st.text(max_size=12))
def test_no_text_makes_the_readers_fail_otherwise_than_by_value_error(text: str):
    for read in (parse_duration, parse_rate, parse_exact):
        try:
            read(text)
        except ValueError:
            continue


@given(st.decimals(min_value=Decimal("-1e6"), max_value=Decimal("1e6"), places=9))
def test_a_decimal_is_exact(number: Decimal):
    assert parse_exact(number) == Fraction(number)


@pytest.mark.parametrize("number", [Decimal("1e999999999"), Decimal("1e-999999999"), "nan", "inf", True])
def test_an_absurd_number_is_refused_at_once(number: object):
    with pytest.raises(ValueError, match=r"out of range|expected a number"):
        parse_exact(number)


# -- counters ----------------------------------------------------------------------------------------------


def fits_by_search(masks: list[int], used: int = 0):
    """Whether there is an assignment at all, by trying every one."""
    if not masks:
        return True
    free = [bit for bit in range(64) if masks[0] >> bit & 1 and not used >> bit & 1]
    return any(fits_by_search(masks[1:], used | 1 << bit) for bit in free)


# Broadwell's masks with 4 general-purpose counters: any, GP2 only, and instructions, cycles, ref-cycles.
MASKS = [0xF, 0x4, 0xF | 1 << 32, 0xF | 1 << 33, 1 << 34]


@given(st.lists(st.sampled_from(MASKS), max_size=8))
def test_a_group_fits_where_an_assignment_exists(masks: list[int]):
    assert fits(masks) == fits_by_search(masks)


# -- documentation -----------------------------------------------------------------------------------------


def structs_below(kind: type[msgspec.Struct]):
    yield kind
    for item in msgspec.structs.fields(kind):
        for part in getattr(item.type, "__args__", ()):
            if isinstance(part, type) and issubclass(part, msgspec.Struct):
                yield from structs_below(part)


def test_every_key_is_documented():
    documented = DOCS.read_text()
    structs = list(structs_below(Scenario))
    assert len(structs) == 15
    for kind in structs:
        for key in keys_of(kind):
            assert f"\n| `{key}` |" in documented, f"{kind.__name__}: {key}"


def test_the_documented_example_is_valid(tmp_path: Path):
    example = DOCS.read_text().split("```toml\n")[1].split("```")[0]
    (tmp_path / "ftest.program.json").write_text("{}")
    scenario = parse(example, directory=tmp_path)
    assert scenario.title == "perf stat on ftest"
