"""The guest driver's access sequences, access by access: Linux 5.0, four GP counters, three fixed (pmu-
facts section C).

A line is ``W``, ``R`` or ``P`` (RDPMC), the register in hex, and the word; ``L`` is a write of LVTPC. What
a counter
read is named, so that later lines can use it. Registers: C1+i PMCi, 186+i EVENTSELi, 30A FIXED_CTR1, 38D
FIXED_CTR_CTRL,
38E GLOBAL_STATUS, 38F GLOBAL_CTRL, 390 GLOBAL_OVF_CTRL.
"""

from __future__ import annotations

from itertools import pairwise

import pytest

from tests.truth.machines import Table, accesses, machine, scenario

DESIGNS = ("legacy", "optimized")
STAT = ["branches", "cpu-cycles", "dTLB-load-misses"]
WIDTH = 1 << 48
FIRST = "FFFF80000001"
"""-(2**31 - 1), cut to 48 bits: the longest period that perf programs without full-width writes."""
ALL = "70000000F"
LVTPC = 0x834
OPERATIONS = {1: "R", 2: "W", 3: "P"}

# branches is event C4 umask 0, dTLB-load-misses event 08 umask 1; with USR | OS | INT = 0x130000 and EN =
# 0x400000.
# cpu-cycles is on FIXED_CTR1: field PMI | USR | OS = 0xB, shifted by four.
START = [
    "W 38F 0",
    f"W C1 {FIRST}",
    "W 186 5300C4",
    f"W 30A {FIRST}",
    "R 38D 0",
    "W 38D B0",
    f"W C2 {FIRST}",
    "W 187 530108",
    "L 400",
    f"W 38F {ALL}",
]
STOP = [
    "W 38F 0",
    "W 186 1300C4",
    "P 0 branches",
    "R 38D B0",
    "W 38D 0",
    "P 40000001 cycles",
    "W 187 130108",
    "P 1 misses",
    f"W 38F {ALL}",
]
AGAIN = [
    "W 38F 0",
    "W C1 =branches",
    "W 186 5300C4",
    "W 30A =cycles",
    "R 38D 0",
    "W 38D B0",
    "W C2 =misses",
    "W 187 530108",
    "L 400",
    f"W 38F {ALL}",
]
READ = ["P 0 branches", "P 40000001 cycles", "P 1 misses"]


def guest(
    events: list[str], *, tool: str = "stat", work: float = 20, sleeper: bool = False, **keys: object
) -> Table:
    """Return a scenario of one guest that measures one thread."""
    threads: list[Table] = [{"name": "main", "program": "loops", "work": work}]
    if sleeper:
        beside = {
            "name": "beside",
            "kind": "sleeper",
            "wakeups": "100/s",
            "burst": "50 us",
            "process": "regular",
        }
        threads.append(beside)
    session = {"name": "perf", "tool": tool, "thread": "main", "events": events, **keys}
    return scenario(vm=[{"name": "vm", "cpus": [0], "hz": 250, "thread": threads, "session": [session]}])


def lines(table: Table, design: str) -> list[tuple[str, str, int]]:
    """Run a scenario; return every access as (operation, register, word)."""
    found = []
    for _, operation, register, value, outcome in accesses(machine(table, design)):
        assert outcome == 0
        name = "L" if register == LVTPC and operation == 2 else OPERATIONS[operation]
        found.append((name, f"{register:X}", value))
    return found


def expect(
    found: list[tuple[str, str, int]], wanted: list[str], known: dict[str, int] | None = None
) -> dict[str, int]:
    """Compare accesses with lines; return what the named reads gave, beside those already known."""
    names = dict(known or {})
    assert len(found) == len(wanted), found
    for (operation, register, value), line in zip(found, wanted, strict=True):
        parts = line.split()
        if operation == "L":
            assert (operation, value) == (parts[0], int(parts[1], 16)), line
            continue
        assert (operation, register) == (parts[0], parts[1]), line
        if operation == "P" and not parts[2].startswith("="):
            names[parts[2]] = value
        elif parts[2].startswith("="):
            name, _, less = parts[2][1:].partition("-")
            assert value == (names[name] - int(less or 0)) % WIDTH, line
        else:
            assert value == int(parts[2], 16), line
    return names


def sections(found: list[tuple[str, str, int]]) -> list[list[tuple[str, str, int]]]:
    """Cut accesses at each write of 0 to GLOBAL_CTRL, with which every sequence but a read begins; drop the
    last, cut off at the end.
    """
    starts = [i for i, access in enumerate(found) if access == ("W", "38F", 0)]
    return [found[a:b] for a, b in pairwise(starts)]


@pytest.mark.parametrize("design", DESIGNS)
def test_start_switch_out_and_in(design: str) -> None:
    """C.1 to C.3, C.7: 10, 9 and 10 exits; the rest of a period is carried over, so a counter goes on where
    it was read.
    """
    found = lines(guest(STAT, work=100, sleeper=True), design)
    expect(found[:10], START)
    rest = sections(found[10:])
    assert len(rest) > 6
    for out, back in zip(rest[::2], rest[1::2], strict=False):
        names = expect(out, STOP)
        assert int(FIRST, 16) < names["branches"] < names["cycles"]
        expect(back, AGAIN, names)


@pytest.mark.parametrize("design", DESIGNS)
def test_interval_reads_one_rdpmc_per_active_event(design: str) -> None:
    """C.4: nothing but RDPMC, in the events' order."""
    found = lines(guest(STAT, interval="2 ms"), design)[10:]
    expect(found[:3], READ)
    expect(found[3:6], READ)


@pytest.mark.parametrize("design", DESIGNS)
@pytest.mark.parametrize(
    ("event", "counter", "index", "status"),
    [("branches", "C1", "0", "1"), ("cpu-cycles", "30A", "40000001", "200000000")],
)
def test_pmi_of_one_counter(design: str, event: str, counter: str, index: str, status: str) -> None:
    """C.5: W 4, R 2, P 1, L 1. The counter read says how far it ran past zero: the next period is that much
    shorter.
    """
    pmi = [
        "W 38F 0",
        f"R 38E {status}",
        f"W 390 {status}",
        f"P {index} past",
        f"W {counter} =past-100000",
        "R 38E 0",
        f"W 38F {ALL}",
        "L 400",
    ]
    found = lines(guest([event], tool="record", period=100_000), design)
    taken = [section for section in sections(found)[1:] if ("R", "38E", 0) in section]
    assert len(taken) >= 10
    for section in taken:
        assert 0 <= expect(section, pmi)["past"] < 10_000


@pytest.mark.parametrize("design", DESIGNS)
def test_pmi_of_two_counters(design: str) -> None:
    """C.5: e overflows in one PMI are W 3 + e, P e. Both events overflow at the same branch."""
    table = guest(["branches"], tool="record", period=100_000)
    table["vm"][0]["session"].append(
        {"name": "too", "tool": "record", "thread": "main", "events": ["branches"], "period": 100_000}
    )
    pmi = [
        "W 38F 0",
        "R 38E 3",
        "W 390 3",
        "P 0 first",
        "W C1 =first-100000",
        "P 1 second",
        "W C2 =second-100000",
        "R 38E 0",
        f"W 38F {ALL}",
        "L 400",
    ]
    taken = [section for section in sections(lines(table, design)) if ("R", "38E", 3) in section]
    assert len(taken) >= 10
    for section in taken:
        expect(section, pmi)


@pytest.mark.parametrize("design", DESIGNS)
@pytest.mark.parametrize("event", ["branches", "cpu-cycles"])
def test_throttled_event_is_stopped_in_its_pmi_and_started_at_the_next_tick(design: str, event: str) -> None:
    """B.12, C.5: 400 samples in a tick at HZ=250; the last PMI stops the counter, the tick starts it as it
    is.
    """
    table = guest([event], tool="record", period=3_000, work=40)
    table["host"][0]["noise"] = False
    found = sections(lines(table, design))
    stop, start = (
        (["W 186 1300C4"], ["W 186 5300C4"])
        if event == "branches"
        else (["R 38D B0", "W 38D 0"], ["R 38D 0", "W 38D B0"])
    )
    counter, index, status = ("C1", "0", "1") if event == "branches" else ("30A", "40000001", "200000000")
    pmi = ["W 38F 0", f"R 38E {status}", f"W 390 {status}", f"P {index} past", f"W {counter} =past-3000"]
    pmi += [*stop, "R 38E 0", f"W 38F {ALL}", "L 400"]
    at = next((i for i, section in enumerate(found) if len(section) == len(pmi)), None)
    if (design, event) == ("legacy", "branches"):
        # Each sample costs tens of milliseconds of host perf: no tick sees two.
        assert at is None
        return
    assert at is not None
    expect(found[at], pmi)
    expect(found[at + 1], ["W 38F 0", *start, f"W 38F {ALL}"])


@pytest.mark.parametrize("design", DESIGNS)
def test_record_by_frequency_begins_with_a_period_of_one(design: str) -> None:
    """C.6: the first word is -2, since no shorter period is programmed."""
    found = lines(guest(["cpu-cycles"], tool="record", frequency=4000), design)
    expect(found[:6], ["W 38F 0", "W 30A FFFFFFFFFFFE", "R 38D 0", "W 38D B0", "L 400", f"W 38F {ALL}"])


@pytest.mark.parametrize("design", DESIGNS)
@pytest.mark.parametrize("event", ["branches", "cpu-cycles"])
def test_frequency_tick(design: str, event: str) -> None:
    """C.6, C.7: fixed W 5, R 2, P 1; GP W 5, P 1. The rest of the period goes on, or begins anew if it is
    far too long.
    """
    if event == "branches":
        tick = ["W 38F 0", "W 186 1300C4", "P 0 at", "W C1 =at", "W 186 5300C4", f"W 38F {ALL}"]
    else:
        tick = [
            "W 38F 0",
            "R 38D B0",
            "W 38D 0",
            "P 40000001 at",
            "W 30A =at",
            "R 38D 0",
            "W 38D B0",
            f"W 38F {ALL}",
        ]
    found = sections(lines(guest([event], tool="record", frequency=1000, work=40), design))
    # Under legacy every PMI lasts tens of milliseconds: perf lowers its rate to one sample a tick,
    # and throttles. The tick first starts
    # the stopped counter again, as it is.
    throttled = [tick[0], *(tick[-2:-1] if event == "branches" else tick[-3:-1]), *tick[1:]]
    wanted = throttled if design == "legacy" else tick
    ticks = [section for section in found if len(section) == len(wanted) and ("R", "38E", 0) not in section]
    assert len(ticks) >= 5
    for section in ticks:
        expect(section, wanted)


@pytest.mark.parametrize("design", DESIGNS)
def test_rotation_moves_one_event_to_the_end(design: str) -> None:
    """B.4, B.5: six events for four counters, the timer at 4 ms. The four that were on go out in their
    order; the first moves to
    the end of the list, so 1, 2, 3, 4 come in. 1 to 3 would keep their counters, but 4 never had one: all
    four are placed anew,
    in order, on 0 to 3.
    """  # fmt: skip
    found = sections(lines(guest(["branches"] * 6), design))
    out = [line for i in range(4) for line in (f"W {0x186 + i:X} 1300C4", f"P {i} n{i}")]
    kept = ["=n1", "=n2", "=n3", f"{FIRST}"]
    back = [line for i in range(4) for line in (f"W {0xC1 + i:X} {kept[i]}", f"W {0x186 + i:X} 5300C4")]
    expect(found[1], ["W 38F 0", *out, *back, "L 400", f"W 38F {ALL}"])


@pytest.mark.parametrize("design", DESIGNS)
def test_guest_watchdog_has_the_fixed_counter(design: str) -> None:
    """C.7: the watchdog's pinned cycles are on FIXED_CTR1; the events that need a GP counter come first,
    cycles take what is left.
    """
    table = guest(STAT, start="5 ms", sleeper=True)
    table["vm"][0]["watchdog"] = True
    found = sections(lines(table, design))
    # 22e9 cycles to go: programmed with the longest period.
    expect(found[0], ["W 38F 0", f"W 30A {FIRST}", "R 38D 0", "W 38D B0", "L 400", f"W 38F {ALL}"])
    order = ["C4", "3C", "108"]
    places = {"C4": 0, "108": 1, "3C": 2}
    start = ["W 38F 0"]
    for event in order:
        start += [
            f"W {0xC1 + places[event]:X} {FIRST}",
            f"W {0x186 + places[event]:X} 53{int(event, 16):04X}",
        ]
    expect(found[1], [*start, "L 400", f"W 38F {ALL}"])


@pytest.mark.parametrize("design", DESIGNS)
def test_a_throttled_event_is_not_touched_when_others_come(design: str) -> None:
    """B.6: a running event whose assignment stays is neither stopped nor read. One of the CPU's is
    throttled most of the time, while
    another one, of a thread, comes and goes.
    """  # fmt: skip
    table = guest(["cpu-cycles"], work=40, sleeper=True)
    table["vm"][0]["thread"][1]["wakeups"] = "1000/s"
    table["vm"][0]["session"].append(
        {"name": "cpu", "tool": "record", "cpu": True, "events": ["branches"], "period": 1500}
    )
    found = sections(lines(table, design))
    come = ["W 38F 0", "W 30A =", "R 38D 0", "W 38D B0", "L 400", f"W 38F {ALL}"]
    switches = [
        section for section in found if ("L", "834", 0x400) in section and ("R", "38E", 0) not in section
    ]
    for section in switches[1:]:
        wanted = [line if line[-1] != "=" else f"W 30A {section[1][2]:X}" for line in come]
        expect(section, wanted)
    assert design == "legacy" or len(switches) > 5
