"""The guest kernel's paths: tick, wake-up, context switch, PMI; each a run of micro-operations."""

import numpy as np

from vpmu.kernels.columns import (
    C_COUNT,
    E_COUNT,
    E_LAST_PERIOD,
    E_OWNER,
    EVENT_COLUMNS,
    G_CORE_RATE,
    G_COST_IRQ,
    G_COST_PMI,
    G_COST_SWITCH,
    G_COST_TICK,
    G_COST_WAKEUP,
    G_CPU_HW,
    G_CURRENT,
    G_HASH,
    G_HOLD_UNTIL,
    G_ID,
    G_IN_KERNEL,
    G_IN_PMI,
    G_INTERVAL_AT,
    G_LOG,
    G_NEXT,
    G_NMI_PENDING,
    G_NMI_QUEUE,
    G_PMI_AT,
    G_PMIS,
    G_QUEUE,
    G_RESCHED,
    G_RETRIES,
    G_SAMPLES,
    G_SAVED_KERNEL,
    G_SEQUENCE,
    G_SLICE_AT,
    G_STREAM_OPEN,
    G_SWITCH_AT,
    G_SWITCHES,
    G_TICK_AT,
    G_TICK_FROM,
    G_TICK_NS,
    G_TIMER_AT,
    G_TIMER_FROM,
    G_WAKE_AT,
    Q_COUNT,
    S_FIRST,
    S_NR_EVENTS,
    TH_CONTEXT,
    TH_CURSOR,
    TH_ID,
    TH_PROGRAM,
    TH_SWITCHES,
    U_MUX_AT,
)
from vpmu.kernels.guest.due import due_pause
from vpmu.kernels.guest.sessions import CALL_INTERVAL, event_times, session_step
from vpmu.kernels.guest.threads import pick_next, scheduler_tick, update_current, wake_due
from vpmu.kernels.guest.truth import truth_pause, truth_resume
from vpmu.kernels.integers import U0, U1, U16, U32, rate_at
from vpmu.kernels.jit import U64, Arena, kernel
from vpmu.kernels.log import (
    RECORD_INTERVAL,
    RECORD_PMI,
    RECORD_SAMPLE,
    RECORD_SWITCH,
    head_word,
    keeps,
    log_record,
    mix,
)
from vpmu.kernels.perf.context import rotate, task_in, task_out
from vpmu.kernels.perf.interrupt import CALL_PMI_DONE, pmi_begin, pmi_end, tick_begin
from vpmu.kernels.perf.period import sample_took
from vpmu.kernels.perf.queue import OP_CALL, OP_KERNEL, emit
from vpmu.kernels.program import program_chain, program_function, program_ip
from vpmu.kernels.stats import ACTION_HANDLE_IRQ, ACTION_SCHED_IN, ACTION_SCHED_OUT, record_action

CALL_PMI = U64(2)
CALL_TICK = U64(3)
CALL_WAKE = U64(4)
CALL_ROTATE = U64(5)
CALL_SESSION = U64(6)
CALL_TIMER_DONE = U64(7)
CALL_SWITCHED_OUT = U64(8)
CALL_SWITCHED_IN = U64(9)

KERNEL_FUNCTION = U64(0xFFFFFFFF)
"""Function id of a sample that hit kernel code."""
KERNEL_IP = U64(0xFFFFFFFF81000000)

_EVENT = U64(EVENT_COLUMNS)
_HANG_LIMIT_NS = U64(100_000_000)
_RETRIES = U64(3)
_U48 = U64(48)


@kernel
def set_timer(s: Arena, g: np.uint64) -> None:
    """Program the clock event device for the earliest timer; an idle guest's tick is off."""
    at = min(s[g + G_WAKE_AT], s[g + G_INTERVAL_AT])
    if s[g + G_CURRENT] != U0:
        at = min(at, s[g + G_TICK_AT])
    at = min(at, s[g + G_CPU_HW + U_MUX_AT])
    s[g + G_TIMER_AT] = max(at, s[g + G_HOLD_UNTIL])


@kernel
def timer_interrupt(s: Arena, g: np.uint64, now: np.uint64) -> None:
    """Begin the handler of a timer that is due (hrtimer_interrupt()).

    All that had expired when the clock was read, G_TICK_FROM, belong to one pass over the timers.
    """
    q = g + G_QUEUE
    if s[g + G_TIMER_AT] > s[g + G_TICK_FROM]:
        if s[g + G_RETRIES] == U0:
            s[g + G_TIMER_FROM] = now
            emit(s, q, OP_KERNEL, U0, s[g + G_COST_IRQ])
        s[g + G_TICK_FROM] = now
    base = s[g + G_TICK_FROM]
    if s[g + G_WAKE_AT] <= base:
        emit(s, q, OP_KERNEL, U0, s[g + G_COST_WAKEUP])
        emit(s, q, OP_CALL, CALL_WAKE, U0)
    elif s[g + G_TICK_AT] <= base and s[g + G_CURRENT] != U0:
        emit(s, q, OP_KERNEL, U0, s[g + G_COST_TICK])
        emit(s, q, OP_CALL, CALL_TICK, U0)
    elif s[g + G_CPU_HW + U_MUX_AT] <= base:
        emit(s, q, OP_CALL, CALL_ROTATE, U0)
    elif s[g + G_INTERVAL_AT] <= base:
        emit(s, q, OP_CALL, CALL_SESSION, U0)
    else:
        emit(s, q, OP_CALL, CALL_TIMER_DONE, U0)


@kernel
def _tick(s: Arena, g: np.uint64, now: np.uint64) -> None:
    """Handle the scheduler tick; ticks missed while the guest stood still are skipped."""
    period = s[g + G_TICK_NS]
    s[g + G_TICK_AT] += ((s[g + G_TICK_FROM] - s[g + G_TICK_AT]) // period + U1) * period
    scheduler_tick(s, g, now)
    tick_begin(s, g + G_CPU_HW)
    emit(s, g + G_QUEUE, OP_CALL, CALL_TIMER_DONE, U0)


@kernel
def _timer_done(s: Arena, g: np.uint64, now: np.uint64) -> None:
    """End a pass over the timers (hrtimer_interrupt()), once all that they began is done.

    Timers that expired meanwhile have their pass at once, three times; then the device rests as long as the
    passes took, at most 100 ms.
    """
    if s[g + G_QUEUE + Q_COUNT] != U0:
        emit(s, g + G_QUEUE, OP_CALL, CALL_TIMER_DONE, U0)
        return
    set_timer(s, g)
    if s[g + G_TIMER_AT] <= s[g + G_TICK_FROM]:
        return
    if s[g + G_TIMER_AT] > now:
        s[g + G_RETRIES] = U0
        return
    s[g + G_RETRIES] += U1
    if s[g + G_RETRIES] < _RETRIES:
        return
    s[g + G_RETRIES] = U0
    s[g + G_HOLD_UNTIL] = now + min(now - s[g + G_TIMER_FROM], _HANG_LIMIT_NS)
    set_timer(s, g)


@kernel
def switch_begin(s: Arena, g: np.uint64, now: np.uint64) -> None:
    """Let the scheduler choose (__schedule()); begins a context switch if another thread comes."""
    s[g + G_RESCHED] = U0
    update_current(s, g, now)
    following = pick_next(s, g)
    if following == s[g + G_CURRENT]:
        s[g + G_SLICE_AT] = now
        return
    s[g + G_NEXT] = following
    s[g + G_SWITCH_AT] = now
    due_pause(s, g)
    task_out(s, g + G_CPU_HW, now)
    emit(s, g + G_QUEUE, OP_CALL, CALL_SWITCHED_OUT, U0)


@kernel
def _has_events(s: Arena, thread: np.uint64) -> bool:
    """Return whether a thread has perf events of its own."""
    return thread != U0 and s[thread + TH_CONTEXT] != U0 and s[s[thread + TH_CONTEXT] + C_COUNT] != U0


@kernel
def _switched_out(s: Arena, g: np.uint64, now: np.uint64) -> None:
    """Go on after the outgoing thread's events are off."""
    thread = s[g + G_CURRENT]
    if _has_events(s, thread):
        record_action(s, ACTION_SCHED_OUT, now - s[g + G_SWITCH_AT])
    emit(s, g + G_QUEUE, OP_KERNEL, U0, s[g + G_COST_SWITCH])
    emit(s, g + G_QUEUE, OP_CALL, CALL_SWITCHED_IN, U0)


@kernel
def _switched_in(s: Arena, log: Arena, g: np.uint64, now: np.uint64, done: bool) -> None:
    """Let the next thread come; with ``done`` its events are on."""
    if done:
        record_action(s, ACTION_SCHED_IN, now - s[g + G_SWITCH_AT])
        return
    update_current(s, g, now)
    thread = s[g + G_NEXT]
    truth_pause(s, g)
    due_pause(s, g)
    s[g + G_CURRENT] = thread
    truth_resume(s, g)
    s[g + G_SWITCHES] += U1
    s[g + G_SLICE_AT] = now
    s[g + G_SWITCH_AT] = now
    identity = U0
    if thread != U0:
        s[thread + TH_SWITCHES] += U1
        identity = s[thread + TH_ID]
    if s[g + G_TICK_AT] < now and s[g + G_TIMER_AT] > now:
        # The tick was off while the guest was idle.
        period = s[g + G_TICK_NS]
        s[g + G_TICK_AT] += ((now - s[g + G_TICK_AT]) // period + U1) * period
    set_timer(s, g)
    note(s, log, g, RECORD_SWITCH, now, identity, U0)
    if thread == U0:
        task_in(s, g + G_CPU_HW, U0, now)
        return
    task_in(s, g + G_CPU_HW, s[thread + TH_CONTEXT], now)
    if _has_events(s, thread):
        emit(s, g + G_QUEUE, OP_CALL, CALL_SWITCHED_IN, U1)


@kernel
def note(
    s: Arena, log: Arena, g: np.uint64, kind: np.uint64, now: np.uint64, register: np.uint64, value: np.uint64
) -> None:
    """Put something that happened to a guest into its hash and the log."""
    s[g + G_HASH] = mix(s[g + G_HASH], now, kind | (register << U16), value)
    if keeps(s, kind) and s[g + G_LOG] != U0:
        s[g + G_SEQUENCE] += U1
        log_record(s, log, head_word(kind, U0, U0), now, s[g + G_ID], s[g + G_SEQUENCE], register, value)


@kernel
def deliver_nmi(s: Arena, log: Arena, g: np.uint64, now: np.uint64) -> None:
    """Interrupt the guest with an NMI; while one is handled, one more is remembered.

    A guest whose accesses come from outside handles it there.
    """
    s[g + G_PMIS] += U1
    note(s, log, g, RECORD_PMI, now, U0, U0)
    if s[g + G_IN_PMI] != U0:
        s[g + G_NMI_PENDING] = U1
        return
    s[g + G_IN_PMI] = U1
    s[g + G_SAVED_KERNEL] = s[g + G_IN_KERNEL]
    s[g + G_IN_KERNEL] = U0
    if s[g + G_STREAM_OPEN] != U0:
        return
    emit(s, g + G_NMI_QUEUE, OP_KERNEL, U0, s[g + G_COST_PMI])
    emit(s, g + G_NMI_QUEUE, OP_CALL, CALL_PMI, U0)


@kernel
def _pmi(s: Arena, g: np.uint64, now: np.uint64) -> None:
    """Enter the PMI handler, its interrupt cost paid."""
    s[g + G_PMI_AT] = now
    pmi_begin(s, g + G_CPU_HW, g + G_NMI_QUEUE)


@kernel
def _pmi_done(s: Arena, g: np.uint64, now: np.uint64) -> None:
    """Leave the PMI handler, or begin again for an NMI that came meanwhile."""
    took = now - s[g + G_PMI_AT]
    record_action(s, ACTION_HANDLE_IRQ, took)
    sample_took(s, g + G_CPU_HW, took)
    pmi_end(s, g + G_CPU_HW)
    if s[g + G_NMI_PENDING] != U0:
        s[g + G_NMI_PENDING] = U0
        emit(s, g + G_NMI_QUEUE, OP_KERNEL, U0, s[g + G_COST_PMI])
        emit(s, g + G_NMI_QUEUE, OP_CALL, CALL_PMI, U0)
        return
    s[g + G_IN_PMI] = U0
    s[g + G_IN_KERNEL] = s[g + G_SAVED_KERNEL]


@kernel
def take_sample(s: Arena, log: Arena, g: np.uint64, e: np.uint64, now: np.uint64) -> None:
    """Record where the PMI hit: instruction pointer, function, call chain, thread, period."""
    thread = s[g + G_CURRENT]
    period = s[e + E_LAST_PERIOD]
    ip = KERNEL_IP
    function = KERNEL_FUNCTION
    identity = U0
    level = U0
    if thread != U0:
        identity = s[thread + TH_ID]
        if s[g + G_SAVED_KERNEL] == U0:
            program = s[thread + TH_PROGRAM]
            ip = program_ip(s, program, thread + TH_CURSOR)
            chain = program_chain(s, program, thread + TH_CURSOR)
            function = program_function(s, program, thread + TH_CURSOR) | (chain << U32)
            level = U64(3)
    s[g + G_SAMPLES] += U1
    s[g + G_HASH] = mix(s[g + G_HASH], now, ip, period)
    if keeps(s, RECORD_SAMPLE) and s[g + G_LOG] != U0:
        s[g + G_SEQUENCE] += U1
        head = head_word(RECORD_SAMPLE, U0, U0)
        at = log_record(s, log, head, now, s[g + G_ID], s[g + G_SEQUENCE], ip, period)
        log[at + U64(6)] = function
        log[at + U64(7)] = identity | (s[e + E_OWNER] << U16) | (level << _U48)


@kernel
def _interval(s: Arena, log: Arena, g: np.uint64, session: np.uint64, now: np.uint64) -> None:
    """Note what an interval of ``perf stat -I`` has read: counts so far, enabled and running times."""
    e = s[session + S_FIRST]
    for _ in range(s[session + S_NR_EVENTS]):
        s[g + G_HASH] = mix(s[g + G_HASH], now, RECORD_INTERVAL | (s[e + E_OWNER] << U16), s[e + E_COUNT])
        if s[g + G_LOG] != U0:
            s[g + G_SEQUENCE] += U1
            head = head_word(RECORD_INTERVAL, U0, U0)
            at = log_record(s, log, head, now, s[g + G_ID], s[g + G_SEQUENCE], s[e + E_OWNER], s[e + E_COUNT])
            log[at + U64(6)], log[at + U64(7)] = event_times(s, g, session, e, now)
        e += _EVENT


@kernel
def kernel_cycles(s: Arena, g: np.uint64, ns: np.uint64) -> np.uint64:
    """Return the core cycles of a kernel path that takes ``ns`` nanoseconds."""
    return rate_at(ns, s[g + G_CORE_RATE])


@kernel
def call(s: Arena, log: Arena, g: np.uint64, which: np.uint64, argument: np.uint64, now: np.uint64) -> None:
    """Go on with a kernel path (OP_CALL).

    Parameters
    ----------
    s, log : uint64[n]
        The arena and the log.
    g : uint64
        Offset of the guest row.
    which, argument : uint64
        One of the CALL_ constants, and its argument.
    now : uint64, ns
    """
    q = g + G_QUEUE
    if which == CALL_PMI:
        _pmi(s, g, now)
    elif which == CALL_PMI_DONE:
        _pmi_done(s, g, now)
    elif which == CALL_TICK:
        _tick(s, g, now)
    elif which == CALL_WAKE:
        wake_due(s, g, now)
        emit(s, q, OP_CALL, CALL_TIMER_DONE, U0)
    elif which == CALL_ROTATE:
        rotate(s, g + G_CPU_HW, now)
        emit(s, q, OP_CALL, CALL_TIMER_DONE, U0)
    elif which == CALL_SESSION:
        session_step(s, g, now)
        emit(s, q, OP_CALL, CALL_TIMER_DONE, U0)
    elif which == CALL_TIMER_DONE:
        _timer_done(s, g, now)
    elif which == CALL_INTERVAL:
        _interval(s, log, g, argument, now)
    elif which == CALL_SWITCHED_OUT:
        _switched_out(s, g, now)
    else:
        _switched_in(s, log, g, now, argument != U0)
