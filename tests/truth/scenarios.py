"""Random scenarios: guests, sessions, overcommit, migrations, releases and host tools, drawn with a
generator that Hypothesis shrinks.
"""

from __future__ import annotations

from random import Random
from typing import Any

from tests.truth.machines import Table, scenario

EVENTS = [
    "branches",
    "cpu-cycles",
    "dTLB-load-misses",
    "instructions",
    "ref-cycles",
    "bus-cycles",
    "branch-misses",
    "cache-misses",
    "l1d_pend_miss.pending",
    "L1-dcache-loads",
    "branches:u",
    "cpu-cycles:k",
    "instructions:u",
    "cpu-cycles:u",
]
GROUPED = ["branches", "cpu-cycles", "instructions", "dTLB-load-misses"]


def random_scenario(r: Random) -> Table:
    """Return a scenario: up to three VMs of one or two vCPUs on up to three physical CPUs, and host tools."""
    cpus = r.choice([1, 1, 2, 3])
    host = {
        "name": "host",
        "cpus": cpus,
        "noise": r.random() < 0.6,
        "watchdog": r.random() < 0.4,
        "hyperthreading": r.random() < 0.7,
        "balance": f"{r.choice([1, 4, 17])} ms",
        "parameters": {"life": r.randint(1, 3)},
        "possible_cpus": r.choice([cpus, 8, 88]),
    }
    vms = [_vm(r, f"vm{number}", cpus) for number in range(r.randint(1, 3))]
    tools = [_tool(r, f"tool{number}", vms) for number in range(r.choice([0, 0, 1, 2]))]
    until = r.choice(["100 ms", "400 ms"])
    return scenario(seed=r.randint(0, 1000), until=until, host=[host], vm=vms, tool=tools)


def _vm(r: Random, name: str, cpus: int) -> Table:
    vcpus = r.randint(1, 2)
    threads = [_thread(r, number, vcpus) for number in range(r.randint(1, 3))]
    names = [thread["name"] for thread in threads]
    return {
        "name": name,
        "vcpus": vcpus,
        "cpus": "float" if r.random() < 0.5 else r.sample(range(cpus), r.randint(1, cpus)),
        "watchdog": r.random() < 0.25,
        "hz": r.choice([100, 250, 1000]),
        "thread": threads,
        "session": [_session(r, number, names) for number in range(r.randint(0, 3))],
    }


def _thread(r: Random, number: int, vcpus: int) -> Table:
    kind = r.choice(["program", "program", "spin", "sleeper"]) if number else "program"
    thread: Table = {"name": f"t{number}", "kind": kind}
    if kind == "program":
        thread |= {"program": r.choice(["loops", "other"]), "work": r.choice([1, 5, 20, 0.3])}
    elif kind == "sleeper":
        rate, burst = r.choice(["150/s", "2000/s", "37/s"]), r.choice(["50 us", "3 us", "400 us"])
        thread |= {"wakeups": rate, "burst": burst, "process": r.choice(["memoryless", "regular"])}
    if r.random() < 0.3:
        thread["start"] = f"{r.randint(1, 9)} ms"
    if r.random() < 0.3:
        thread["vcpu"] = r.randrange(vcpus)
    if r.random() < 0.2:
        thread["count"] = 2
    return thread


def _session(r: Random, number: int, threads: list[Any]) -> Table:
    session: Table = {"name": f"s{number}"}
    session |= {"thread": r.choice(threads)} if r.random() < 0.65 else {"cpu": True}
    if r.random() < 0.55:
        events = [r.choice(EVENTS) for _ in range(r.randint(1, 9))]
        if r.random() < 0.3:
            events = ["{" + ",".join(r.sample(GROUPED, r.randint(2, 3))) + "}", *events[:5]]
        session |= {"tool": "stat", "events": events}
        if r.random() < 0.5:
            session["interval"] = f"{r.randint(1, 20)} ms"
    else:
        session |= {"tool": "record", "events": [r.choice(EVENTS[:8])]}
        if r.random() < 0.5:
            session["frequency"] = r.choice([100, 1000, 4000, 20000])
        else:
            session["period"] = r.choice([1000, 20011, 300_000, 5_000_000])
    session["user_only"] = r.random() < 0.3
    if r.random() < 0.4:
        session["start"] = f"{r.randint(0, 20)} ms"
        if r.random() < 0.6:
            session["stop"] = f"{r.randint(21, 60)} ms"
    return session


def _tool(r: Random, name: str, vms: list[Table]) -> Table:
    tool: Table = {"name": name, "pinned": r.random() < 0.5}
    if r.random() < 0.5:
        tool |= {"kind": "stat", "events": [r.choice(EVENTS[:8]) for _ in range(r.randint(1, 5))]}
    else:
        tool |= {"kind": "record", "events": [r.choice(EVENTS[:5])]}
        tool |= r.choice([{"frequency": 100}, {"frequency": 4000}, {"period": 5000}, {"period": 100_000}])
    tool |= r.choice([{}, {"exclude_guest": False}, {"exclude_guest": False, "exclude_host": True}])
    pinned = [vm["name"] for vm in vms if vm["cpus"] != "float"]
    if pinned and r.random() < 0.4:
        tool["vm"] = r.choice(pinned)
    if r.random() < 0.5:
        tool |= {"start": f"{r.randint(0, 20)} ms", "stop": f"{r.randint(21, 70)} ms"}
    return tool
