"""What the guest does next: the one way in for physical CPUs, in the kernels and message by message alike."""

import numpy as np

from vpmu.kernels.columns import (
    E_TRUTH,
    FIXED_SLOT,
    G_ACCESSED_AT,
    G_ACCESSES,
    G_CPU_HW,
    G_CURRENT,
    G_EMULATED,
    G_FAULTS,
    G_HASH,
    G_ID,
    G_IN_KERNEL,
    G_IN_PMI,
    G_KEPT,
    G_LOG,
    G_MICRO,
    G_MICRO_EVENT,
    G_NMI_QUEUE,
    G_OPERATION,
    G_OUTSIDE,
    G_QUEUE,
    G_REGISTER,
    G_RESCHED,
    G_RUNNING,
    G_SEQUENCE,
    G_STILL,
    G_STREAM,
    G_STREAM_LEFT,
    G_STREAM_OPEN,
    G_TIMER_AT,
    G_VALUE,
    G_VCPU,
    Q_COUNT,
    R_ACCESSES,
    R_LOG_CAPACITY,
    R_LOG_COUNT,
    T_FRESH,
    T_STILL,
    TH_CURSOR,
    TH_END,
    TH_TYPE,
    V_HOST,
)
from vpmu.kernels.guest.code import run_code
from vpmu.kernels.guest.driver import (
    call,
    deliver_nmi,
    kernel_cycles,
    switch_begin,
    take_sample,
    timer_interrupt,
)
from vpmu.kernels.guest.due import follow_event, follow_events
from vpmu.kernels.guest.notes import work_ends
from vpmu.kernels.guest.outside import outside_resume
from vpmu.kernels.guest.sessions import close_session
from vpmu.kernels.guest.threads import THREAD_REPLAY
from vpmu.kernels.guest.truth import (
    truth_counter,
    truth_emulated,
    truth_eventsel,
    truth_fixed_ctrl,
    truth_full_counter,
    truth_global_ctrl,
    truth_ovf_ctrl,
    truth_read,
    truth_runs,
    truth_still,
)
from vpmu.kernels.integers import U0, U1, U2, U3, U8, U16
from vpmu.kernels.jit import U64, Arena, inlined, kernel
from vpmu.kernels.log import RECORD_ACCESS, head_word, keeps, log_record, mix
from vpmu.kernels.msr import (
    EVENTSEL0,
    FIXED_CTR0,
    FIXED_CTR_CTRL,
    FULL_PMC0,
    GLOBAL_CTRL,
    GLOBAL_OVF_CTRL,
    GLOBAL_STATUS,
    LVTPC,
    PMC0,
    RDPMC_FIXED,
)
from vpmu.kernels.perf.interrupt import (
    ACCESS_EMULATE,
    ACCESS_RDPMC,
    ACCESS_WRITE,
    RETIRES_INSTRUCTION,
    access_done,
    access_of,
    adjust_step,
    overflow_step,
)
from vpmu.kernels.perf.queue import (
    OP_CALL,
    OP_KERNEL,
    OP_LAST_ACCESS,
    OP_NONE,
    OP_OVERFLOW,
    OP_RDPMC,
    OP_READ_FIXED_CTRL,
    pop,
)
from vpmu.kernels.program_layout import CUR_POS
from vpmu.kernels.stats import (
    ACTION_COUNTER,
    ACTION_DISABLE,
    ACTION_ENABLE,
    ACTION_EVENTSEL,
    ACTION_FIXED_CTRL,
    ACTION_LVTPC,
    ACTION_RDPMC,
    ACTION_STATUS,
    record_action,
)

GUEST_ACCESS = U64(1)
"""It executes an intercepted instruction: G_OPERATION, G_REGISTER, G_VALUE."""
GUEST_RUN = U64(2)
"""It has code to run."""
GUEST_HALT = U64(3)
"""It halts until G_TIMER_AT."""
GUEST_OVERFLOW = U64(4)
"""A watched counter has overflowed."""
GUEST_LIMIT = U64(5)
GUEST_DONE = U64(6)
"""Its programs have finished."""
GUEST_WAIT = U64(7)
"""Its accesses come from outside, and there is none yet."""

REPLAY_WORDS = U64(3)
"""Record of a replay stream: operation | register << 8, value, user-mode cycles before it."""

_LOG_MARGIN = U64(128)


@inlined
def guest_poll(s: Arena, log: Arena, g: np.uint64, now: np.uint64) -> np.uint64:
    """Advance the guest to its next access, or to code that takes time.

    Parameters
    ----------
    s, log : uint64[n]
        The arena and the log.
    g : uint64
        Offset of the guest row.
    now : uint64, ns

    Returns
    -------
    uint64
        GUEST_ACCESS, GUEST_RUN, GUEST_HALT, GUEST_DONE or GUEST_WAIT.
    """
    while True:
        if s[g + G_STREAM_OPEN] & s[g + G_IN_PMI] != U0:
            if s[g + G_STREAM_LEFT] == U0:
                return GUEST_WAIT
            _next_record(s, g, s[g + G_CURRENT], now)
            return GUEST_ACCESS
        if s[g + G_IN_KERNEL] != U0:
            return GUEST_RUN
        nmi = s[g + G_NMI_QUEUE + Q_COUNT] != U0
        if nmi or s[g + G_QUEUE + Q_COUNT] != U0:
            q = g + G_NMI_QUEUE if nmi else g + G_QUEUE
            code, argument, value = pop(s, q)
            if code <= OP_LAST_ACCESS:
                _ask(s, g, code, argument, value, now)
                return GUEST_ACCESS
            _inline(s, log, g, code, argument, value, now)
        elif s[g + G_TIMER_AT] <= now:
            timer_interrupt(s, g, now)
        elif s[g + G_RESCHED] != U0:
            switch_begin(s, g, now)
        elif s[g + G_RUNNING] == U0:
            if not close_session(s, g, now):
                return GUEST_DONE
        else:
            thread = s[g + G_CURRENT]
            if thread == U0:
                return GUEST_HALT
            if s[thread + TH_END] != s[thread + TH_CURSOR + CUR_POS]:
                return GUEST_RUN
            if s[thread + TH_TYPE] == THREAD_REPLAY and s[g + G_STREAM_LEFT] | s[g + G_STREAM_OPEN] != U0:
                if s[g + G_STREAM_LEFT] == U0:
                    return GUEST_WAIT
                if _next_record(s, g, thread, now):
                    return GUEST_ACCESS
            else:
                work_ends(s, log, g, now)


@inlined
def guest_resume(
    s: Arena,
    log: Arena,
    g: np.uint64,
    now: np.uint64,
    complete: bool,
    outcome: np.uint64,
    value: np.uint64,
    nmi: bool,
) -> np.uint64:
    """Enter the guest: hand it the result of its access, and an NMI; then as guest_poll().

    One that decides outside the kernels says what it wants when it is asked.
    """
    if complete:
        guest_complete(s, log, g, now, outcome, value)
    if s[g + G_OUTSIDE] != U0:
        outside_resume(s, log, g, now, complete, outcome, value, nmi)
        return GUEST_RUN
    if nmi:
        deliver_nmi(s, log, g, now)
    return guest_poll(s, log, g, now)


@kernel
def _ask(
    s: Arena, g: np.uint64, code: np.uint64, argument: np.uint64, value: np.uint64, now: np.uint64
) -> None:
    """Make a micro-operation the access that the guest asks for."""
    operation, register, word = access_of(s, g + G_CPU_HW, code, argument, value, s[g + G_KEPT])
    s[g + G_MICRO] = code
    s[g + G_MICRO_EVENT] = value
    s[g + G_OPERATION] = operation
    s[g + G_REGISTER] = register
    s[g + G_VALUE] = word
    s[g + G_ACCESSED_AT] = now


@kernel
def _inline(
    s: Arena, log: Arena, g: np.uint64, code: np.uint64, argument: np.uint64, value: np.uint64, now: np.uint64
) -> None:
    """Carry out a micro-operation that is no access."""
    if code == OP_CALL:
        call(s, log, g, argument, value, now)
        follow_events(s, log, g, now)
    elif code == OP_KERNEL:
        s[g + G_IN_KERNEL] = kernel_cycles(s, g, value)
    elif code == OP_OVERFLOW:
        sample = overflow_step(s, g + G_CPU_HW, value, now)
        follow_event(s, log, g, value, now)
        if sample:
            take_sample(s, log, g, value, now)
    else:
        adjust_step(s, g + G_CPU_HW, argument, value)
        follow_events(s, log, g, now)


@kernel
def _next_record(s: Arena, g: np.uint64, thread: np.uint64, now: np.uint64) -> bool:
    """Take the next record of a replay stream; False if its gap of user code comes first."""
    at = s[g + G_STREAM]
    gap = s[at + U2]
    if gap != U0 and s[g + G_KEPT] != at:
        s[g + G_KEPT] = at
        s[thread + TH_END] += gap
        return False
    word = s[at]
    s[g + G_STREAM] = at + REPLAY_WORDS
    s[g + G_STREAM_LEFT] -= U1
    s[g + G_MICRO] = OP_NONE
    s[g + G_OPERATION] = word & U64(0xFF)
    s[g + G_REGISTER] = word >> U8
    s[g + G_VALUE] = s[at + U1]
    s[g + G_ACCESSED_AT] = now
    return True


@kernel
def guest_go(
    s: Arena, log: Arena, g: np.uint64, now: np.uint64, limit: np.uint64
) -> tuple[np.uint64, np.uint64]:
    """Run the guest until it needs its physical CPU, or to the limit.

    The watch list (G_NWATCH, G_WATCH) says what is counted meanwhile and comes back with what was retired.

    Parameters
    ----------
    s, log : uint64[n]
        The arena and the log.
    g : uint64
        Offset of the guest row.
    now, limit : uint64, ns

    Returns
    -------
    (end, reason) : uint64 ns, uint64
        Reason is one of the GUEST_ constants.
    """
    if s[g + G_STILL] != s[g + T_STILL]:
        truth_still(s, g)
    while True:
        reason = guest_poll(s, log, g, now)
        if reason != GUEST_RUN:
            return now, reason
        if now >= limit or s[R_LOG_COUNT] + _LOG_MARGIN > s[R_LOG_CAPACITY]:
            return now, GUEST_LIMIT
        until = limit
        if s[g + G_IN_KERNEL] == U0:
            until = min(limit, s[g + G_TIMER_AT])
        if s[g + T_FRESH] != U0:
            truth_runs(s, g)
        now, overflowed = run_code(s, g, now, until)
        if overflowed:
            return now, GUEST_OVERFLOW


@inlined
def guest_complete(
    s: Arena, log: Arena, g: np.uint64, now: np.uint64, outcome: np.uint64, value: np.uint64
) -> None:
    """Give the guest the result of its access.

    Parameters
    ----------
    s, log : uint64[n]
        The arena and the log.
    g : uint64
        Offset of the guest row.
    now : uint64, ns
        When the guest goes on.
    outcome : uint64
        OK or GP.
    value : uint64
        What was read.
    """
    operation = s[g + G_OPERATION]
    register = s[g + G_REGISTER]
    writes = operation == ACCESS_WRITE
    word = s[g + G_VALUE] if writes else value
    cost = now - s[g + G_ACCESSED_AT]
    s[g + G_ACCESSES] += U1
    s[R_ACCESSES] += U1
    what = operation | (outcome << U8) | (register << U16)
    s[g + G_HASH] = mix(s[g + G_HASH], now, what, word)
    if keeps(s, RECORD_ACCESS) and s[R_LOG_CAPACITY] != U0 and s[g + G_LOG] != U0:
        _log_access(s, log, g, outcome, word, cost)
    if outcome != U0:
        s[g + G_FAULTS] += U1
    ok = outcome == U0
    retires = RETIRES_INSTRUCTION
    if operation >= ACCESS_RDPMC:
        action = ACTION_RDPMC
        if operation == ACCESS_EMULATE:
            retires = register
        elif ok:
            _rdpmc_compare(s, g, register, value)
    else:
        action = _follow(s, g, register, word, writes, ok)
    if ok and s[g + G_EMULATED] != U0 and s[s[g + G_VCPU] + V_HOST] == U0:
        truth_emulated(s, g, retires)
    if operation != ACCESS_EMULATE:
        record_action(s, action, cost)
    code = s[g + G_MICRO]
    if code == OP_READ_FIXED_CTRL:
        s[g + G_KEPT] = value
    elif code != OP_NONE and not writes:
        access_done(s, g + G_CPU_HW, code, s[g + G_MICRO_EVENT], value)


@inlined
def _follow(s: Arena, g: np.uint64, msr: np.uint64, word: np.uint64, writes: bool, ok: bool) -> np.uint64:
    """Let the truth follow an access to an MSR, unless it faulted; return the action it counts as.

    The register is decoded once for both.
    """
    if msr == GLOBAL_CTRL:
        if writes and ok:
            truth_global_ctrl(s, g, word)
        return ACTION_DISABLE if writes and word == U0 else ACTION_ENABLE
    if msr - EVENTSEL0 < U8:
        if writes and ok:
            truth_eventsel(s, g, msr - EVENTSEL0, word)
        return ACTION_EVENTSEL
    if msr == FIXED_CTR_CTRL:
        if writes and ok:
            truth_fixed_ctrl(s, g, word)
        return ACTION_FIXED_CTRL
    if msr == GLOBAL_STATUS:
        return ACTION_STATUS
    if msr == LVTPC:
        return ACTION_LVTPC
    if msr == GLOBAL_OVF_CTRL:
        if writes and ok:
            truth_ovf_ctrl(s, g, word)
        return ACTION_STATUS
    if ok:
        _follow_counter(s, g, msr, word, writes)
    return ACTION_COUNTER


@kernel
def _follow_counter(s: Arena, g: np.uint64, msr: np.uint64, word: np.uint64, writes: bool) -> None:
    """Let the truth follow an access to a counter by its MSR; other registers do not concern it."""
    if msr - FULL_PMC0 < U8:
        if writes:
            truth_full_counter(s, g, msr - FULL_PMC0, word)
        else:
            truth_read(s, g, msr - FULL_PMC0, word)
        return
    slot = msr - PMC0
    if slot >= U8:
        slot = FIXED_SLOT + (msr - FIXED_CTR0)
        if slot - FIXED_SLOT >= U3:
            return
    if writes:
        truth_counter(s, g, slot, word)
    else:
        truth_read(s, g, slot, word)


@kernel
def _rdpmc_compare(s: Arena, g: np.uint64, index: np.uint64, value: np.uint64) -> None:
    """Hold a counter that RDPMC read against the truth; what it had to count goes to its event."""
    gain = U0
    if index < U8:
        gain = truth_read(s, g, index, value)
    elif index - RDPMC_FIXED < U64(3):
        gain = truth_read(s, g, FIXED_SLOT + (index - RDPMC_FIXED), value)
    if s[g + G_MICRO] == OP_RDPMC:
        s[s[g + G_MICRO_EVENT] + E_TRUTH] += gain


@kernel
def _log_access(
    s: Arena, log: Arena, g: np.uint64, outcome: np.uint64, word: np.uint64, cost: np.uint64
) -> None:
    """Log an access: outcome, operation, register, word and cost."""
    s[g + G_SEQUENCE] += U1
    head = head_word(RECORD_ACCESS, outcome, s[g + G_OPERATION])
    at = log_record(
        s, log, head, s[g + G_ACCESSED_AT], s[g + G_ID], s[g + G_SEQUENCE], s[g + G_REGISTER], word
    )
    log[at + U64(6)] = cost
