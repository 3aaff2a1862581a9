"""Who breaks the rules is cut off where it was granted last, with a reason; nobody else notices."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import Any

import pytest
import trio

from tests.remote.hosts import (
    DESIGNS,
    EVENTSEL0,
    GLOBAL_CTRL,
    Raw,
    alone,
    halt,
    hashes,
    limit,
    program,
    raw_guest,
    remote,
    scenario,
    write,
)
from vpmu.cluster.guests import messages as say
from vpmu.cluster.guests import wire
from vpmu.cluster.guests.desk import MAX_AHEAD
from vpmu.cluster.guests.messages import Grant, Reason, Refused, Retired
from vpmu.cluster.guests.serve import Patience
from vpmu.scenario import Scenario
from vpmu.serving import Hosted

LEFT = 1_000
STALL = Patience(stall_s=3)
Sin = Callable[[Raw], Awaitable[object]]


def neighbours() -> Scenario:
    """Return a scenario: g0 is a remote guest; one program shares its physical CPU, two do not."""
    return scenario(remote("g0", 0), program("near", 0), program("far", 1), program("farther", 2))


def user(events: int) -> tuple[Retired, ...]:
    return (Retired(1, 2, events),)


async def garbage(guest: Raw) -> None:
    await guest.send_bytes(b"not a frame, but long enough to have a header")


async def ran_backwards(guest: Raw) -> None:
    await guest.send(write(guest.grant.now_ns - 1, GLOBAL_CTRL, 0))


async def ran_beyond(guest: Raw) -> None:
    await guest.send(say.Report(guest.grant.limit_ns + 1, Reason.LIMIT))


async def retired_too_much(guest: Raw) -> None:
    await guest.send(say.Report(guest.grant.now_ns + 1, Reason.OVERFLOW, user(LEFT + 1)))


async def kept_an_overflow_quiet(guest: Raw) -> None:
    report = write(guest.grant.now_ns + 1, GLOBAL_CTRL, 0)
    await guest.send(report._replace(retired=user(LEFT)))


async def claimed_an_overflow(guest: Raw) -> None:
    await guest.send(say.Report(guest.grant.now_ns + 1, Reason.OVERFLOW, user(LEFT - 1)))


async def ran_too_fast(guest: Raw) -> None:
    # 2.8 GHz: 1 us is 2,800 cycles, and 2.8 more may be left from before.
    await guest.send(write(guest.grant.now_ns + 1_000, 0, 0)._replace(retired=(Retired(0, 2, 2_803),)))


async def stopped_for_nothing(guest: Raw) -> None:
    await guest.send(say.Report(guest.grant.limit_ns - 1, Reason.LIMIT))


async def accessed_at_the_limit(guest: Raw) -> None:
    await guest.send(write(guest.grant.limit_ns, GLOBAL_CTRL, 0))


async def skipped_a_number(guest: Raw) -> None:
    guest.sequence += 1
    await guest.send(halt(guest.grant))


async def said_hello_again(guest: Raw) -> None:
    await guest.send(say.Hello("g0"))


async def started_again(guest: Raw) -> None:
    await guest.send(say.Start())


async def emulated_something_odd(guest: Raw) -> None:
    report = say.Report(guest.grant.now_ns, Reason.ACCESS, (), say.Operation.EMULATED, 4, 0, 1)
    await guest.send(report)


async def vanished(guest: Raw) -> None:
    guest.transport.close()


async def stalled(guest: Raw) -> None:
    await trio.sleep(STALL.stall_s)


SINS: list[tuple[Sin, str]] = [
    (garbage, "bad magic b'not '"),
    (ran_backwards, "ran backwards: from"),
    (ran_beyond, "beyond its limit of"),
    (retired_too_much, "no watched counter has come to its end"),
    (kept_an_overflow_quiet, "the overflow of kind 1 ends a stretch"),
    (claimed_an_overflow, "no watched counter has come to its end"),
    (ran_too_fast, "2803 cycles in 1000 ns, at 2800000 kHz"),
    (stopped_for_nothing, "LIMIT at"),
    (accessed_at_the_limit, "ACCESS at"),
    (skipped_a_number, "frame number 9, expected 8"),
    (said_hello_again, "Hello, which is not due"),
    (started_again, "Start, which is not due"),
    (emulated_something_odd, "an emulated instruction that retires 0x4"),
    (vanished, "its connection is gone"),
    (stalled, "said nothing for 3 s"),
]


async def behave(guest: Raw) -> None:
    """Count user instructions up to an overflow that is near, and be somewhere in a window."""
    await guest.begin()
    await guest.count_user_instructions(LEFT)
    while guest.grant.now_ns < 5_000_000:
        await guest.send(limit(guest.grant))
    await guest.send(write(guest.grant.now_ns + 777, EVENTSEL0 + 1, 0))
    # HELLO, START, four WRMSRs, and at least one LIMIT and one more WRMSR.
    guest.sequence, numbered = 8, guest.sequence
    guest.sequence = numbered


async def run_with(sin: Sin, design: str = "optimized") -> tuple[Hosted, Raw, int]:
    """Run a host whose guest behaves for a while; return it, the guest, and its last grant's begin."""
    with trio.fail_after(60):
        async with raw_guest(neighbours(), design, STALL) as (host, guest):
            await behave(guest)
            granted_ns = guest.grant.now_ns
            await sin(guest)
    return host, guest, granted_ns


async def halt_for_ever(guest: Raw) -> None:
    """Halt, and halt again whenever there is a grant, to the run's end."""
    answer: say.Answer = guest.grant
    while isinstance(answer, Grant):
        answer = await guest.send(halt(guest.grant))


@pytest.fixture(scope="module")
def well_behaved() -> dict[str, Any]:
    """Return what a run comes to in which the guest halts for ever where others are cut off."""
    host, _, _ = trio.run(run_with, halt_for_ever)
    result = host.result()
    assert result.cut_off == []
    return {"hashes": hashes(host), "digest": result.digest, "counters": result.counters}


@pytest.mark.parametrize(("sin", "reason"), SINS, ids=[sin.__name__ for sin, _ in SINS])
async def test_who_misbehaves_is_cut_off_and_harms_nobody(
    sin: Sin, reason: str, well_behaved: dict[str, Any], autojump_clock: trio.testing.MockClock
):
    host, guest, granted_ns = await run_with(sin)
    (row,) = host.result().cut_off
    assert (row.vm, row.vcpu, row.at_ns) == ("g0", 0, granted_ns)
    assert reason.replace("number 9, expected 8", f"number {guest.sequence - 1}") in row.reason
    assert hashes(host) == well_behaved["hashes"]
    assert host.result().counters == well_behaved["counters"]
    assert host.result().digest == well_behaved["digest"]
    if sin not in (vanished, stalled):
        assert guest.answers[-1] == Refused(row.reason)


async def test_the_neighbours_did_count(well_behaved: dict[str, Any]):
    counts = {row.vm: row.count for row in well_behaved["counters"] if row.event == "branches"}
    assert set(counts) == {"near", "far", "farther"}
    assert all(counts.values())


@pytest.mark.parametrize("design", DESIGNS)
async def test_who_is_cut_off_under_each_design_halts_where_it_was_granted(
    design: str, autojump_clock: trio.testing.MockClock
):
    halted, _, _ = await run_with(halt_for_ever, design)
    cut, _, granted_ns = await run_with(ran_beyond, design)
    assert [row.at_ns for row in cut.result().cut_off] == [granted_ns]
    assert cut.result().digest == halted.result().digest


async def test_more_than_was_left_is_named_when_it_is_said_to_be_no_overflow(
    autojump_clock: trio.testing.MockClock,
):
    async def sin(guest: Raw) -> None:
        report = write(guest.grant.now_ns + 1, GLOBAL_CTRL, 0)
        await guest.send(report._replace(retired=user(LEFT + 5)))

    host, _, _ = await run_with(sin)
    (row,) = host.result().cut_off
    assert row.reason == f"retired {LEFT + 5} events of kind 1, {LEFT} were granted"


async def test_who_vanishes_while_the_host_works_is_cut_off_at_the_next_grant(
    autojump_clock: trio.testing.MockClock,
):
    async def sin(guest: Raw) -> None:
        # The report is in, and counts; whoever sent it does not wait for the answer.
        guest.transport.send(wire.encode(guest.sequence, limit(guest.grant)))
        guest.transport.close()

    host, guest, granted_ns = await run_with(sin)
    (row,) = host.result().cut_off
    assert row.at_ns >= guest.grant.limit_ns > granted_ns
    assert row.reason == "its connection is gone"


async def test_frames_sent_ahead_wait_for_their_turn(autojump_clock: trio.testing.MockClock):
    answers: list[list[say.Answer]] = []
    for ahead in (False, True):
        async with raw_guest(alone(), "optimized") as (host, guest):
            await guest.begin()
            start_ns = guest.grant.now_ns
            reports = [say.Report(start_ns, Reason.HALT, timer_at_ns=start_ns + 1_000_000)]
            reports += [say.Report(start_ns + 900_000_000, Reason.LIMIT)]
            if ahead:
                for number, report in enumerate(reports, guest.sequence):
                    guest.transport.send(wire.encode(number, report))
                frames = [await guest.transport.receive() for _ in reports]
                answers.append([wire.decode_answer(frame)[1] for frame in frames])
            else:
                answers.append([await guest.send(report) for report in reports])
        assert len(host.desk.cut_off) == 1
    assert answers[0] == answers[1]


async def test_a_flood_is_cut_off(autojump_clock: trio.testing.MockClock):
    async with raw_guest(scenario(remote("g0", 0), remote("g1", 1)), "optimized") as (host, guest):
        other = Raw(host.port.connect())
        async with trio.open_nursery() as nursery:
            nursery.start_soon(guest.begin)
            await other.begin("g1")
        # While g1 has the turn, g0's first report waits for its answer, and the others for their turn.
        for number in range(MAX_AHEAD + 2):
            guest.transport.send(wire.encode(guest.sequence + number, limit(guest.grant)))
        await halt_for_ever(other)
    (row,) = host.desk.cut_off
    assert row.reason == f"sent {MAX_AHEAD} frames ahead of its turn"
    assert row.at_ns >= guest.grant.limit_ns


async def refused(guest: Raw, request: say.Request) -> str:
    """Say something as a stranger; return the reason of the refusal."""
    answer = await guest.send_bytes(wire.encode(0, request))
    assert isinstance(answer, Refused)
    return answer.reason


async def test_strangers_are_refused_counted_and_change_nothing(autojump_clock: trio.testing.MockClock):
    of = scenario(remote("g0", 0), program("far", 1))
    digests = []
    for with_strangers in (False, True):
        async with raw_guest(of, "optimized") as (host, guest):
            await guest.begin()
            if with_strangers:
                stranger = Raw(host.port.connect())
                assert await refused(stranger, say.Hello("g1")) == "no remote vCPU 0 in a VM 'g1'"
                assert await refused(stranger, say.Hello("g0", 1)) == "no remote vCPU 1 in a VM 'g0'"
                assert await refused(stranger, say.Hello("far")) == "no remote vCPU 0 in a VM 'far'"
                assert await refused(stranger, say.Hello("g0")) == "g0, vCPU 0 has a guest already"
                assert await refused(stranger, say.Start()) == "Start number 0, expected HELLO number 0"
                answer = await stranger.send_bytes(b"")
                assert answer == Refused("frame of 0 bytes is shorter than its header of 16")
                assert host.desk.nr_refused == 6
            await halt_for_ever(guest)
        digests.append(host.result().digest)
        assert host.desk.cut_off == []
    assert digests[0] == digests[1]


async def test_a_host_of_another_version_says_so(autojump_clock: trio.testing.MockClock):
    async with raw_guest(alone(), "optimized") as (_, guest):
        hello = wire.encode(0, say.Hello("g0"))
        answer = await guest.send_bytes(hello[:4] + b"\x02" + hello[5:])
        assert answer == Refused("protocol version 2, expected 1")
        await guest.begin()
        await guest.send(say.Bye())


async def test_who_left_or_was_cut_off_does_not_come_again(autojump_clock: trio.testing.MockClock):
    of = scenario(remote("g0", 0), remote("g1", 1))
    async with raw_guest(of, "optimized") as (host, guest):
        other = Raw(host.port.connect())
        await other.send(say.Hello("g1"))
        await guest.begin()
        granted_ns = guest.grant.now_ns
        answer = await guest.send(say.Bye())
        assert answer == say.End(granted_ns, say.EndReason.LEFT)
        again = Raw(host.port.connect())
        assert await refused(again, say.Hello("g0")) == "g0, vCPU 0 has halted for ever"
        await other.send(say.Start())
        await other.send(say.Bye())
    assert host.desk.cut_off == []


async def test_who_does_not_come_is_given_up(autojump_clock: trio.testing.MockClock):
    of = scenario(remote("g0", 0), remote("g1", 1))
    async with raw_guest(of, "optimized", Patience(wait_s=2)) as (host, guest):
        await guest.begin("g1")
        await halt_for_ever(guest)
    (row,) = host.result().cut_off
    assert (row.vm, row.reason) == ("g0", "nobody came within 2 s")


async def test_one_who_comes_and_never_starts_stalls(autojump_clock: trio.testing.MockClock):
    async with raw_guest(alone(), "optimized", STALL) as (host, guest):
        await guest.send(say.Hello("g0"))
    (row,) = host.result().cut_off
    assert row.reason == "said nothing for 3 s"


async def test_the_end_of_the_run_is_told(autojump_clock: trio.testing.MockClock):
    async with raw_guest(alone(), "optimized") as (host, guest):
        await guest.begin()
        await halt_for_ever(guest)
    assert guest.answers[-1] == say.End(host.machine.until_ns, say.EndReason.RUN_OVER)
