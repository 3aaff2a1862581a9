"""The duration of every basic operation: one row of the cost table per operation, constant or log-normal.

A row says: a constant part, and a part with a median and a spread (the standard deviation of its logarithm).
Which row a machine has is its cost profile's business; nothing here is a figure. A cost is drawn with the
counter-based hash, so it depends on who pays and on how many costs the payer had before, never on the order
in which actors are advanced.
"""

from collections.abc import Mapping
from difflib import get_close_matches

import numpy as np

from vpmu.kernels.integers import MASK32, U0, U1, U8, U16, U63
from vpmu.kernels.jit import U64, Arena, kernel
from vpmu.kernels.random import STREAM_COST, draw, exp2_q30, normal_q24

COST_NAMES = [
    "exit",  # VM exit, hardware and the host's common path
    "entry",  # VM entry, likewise
    "msr_intercept",  # KVM's software for one intercepted MSR access
    "rdpmc_intercept",  # KVM's software for one intercepted RDPMC
    "hw_wrmsr",  # one WRMSR to a PMU register
    "hw_rdmsr",  # one RDMSR of a PMU register
    "hw_rdpmc",  # one RDPMC
    "hw_lvt",  # one write of the APIC's LVTPC
    "nmi",  # delivery of an NMI and return from it
    "host_irq",  # one interrupt of the host's timer, as the interrupted code sees it
    "perf_event_create",  # perf_event_create_kernel_counter, without MSR accesses and reservation
    "perf_event_release",  # perf_event_release_kernel, likewise
    "perf_event_read",  # perf_event_read_value, without the RDPMC
    "perf_event_update",  # changing a live event's config or period
    "perf_sched",  # one perf context scheduled in or out, software part
    "pmu_reserve",  # the host's first hardware event: the whole cost
    "pmu_release",  # the host's last hardware event, likewise
    "vcpu_switch",  # the host's context switch between vCPU threads
    "vcpu_migrate",  # a vCPU thread moved to another physical CPU
    "guest_switch",  # the guest kernel's context switch
    "guest_tick",  # the guest's timer tick
    "guest_wakeup",  # a wake-up in the guest
    "guest_pmi",  # the guest's PMI handler, software part
    "guest_irq_entry",  # interrupt entry and exit in the guest
    "inject",  # injecting an interrupt or NMI at VM entry
    "halt_wake",  # from HLT back to guest code
    "l1d_flush",  # flush of the L1 data cache at the VM entry after a host interrupt, and its refill
]
"""Names of the basic operations as a cost profile spells them; the position is the row."""

COST_EXIT = U64(0)
COST_ENTRY = U64(1)
COST_MSR_INTERCEPT = U64(2)
COST_RDPMC_INTERCEPT = U64(3)
COST_HW_WRMSR = U64(4)
COST_HW_RDMSR = U64(5)
COST_HW_RDPMC = U64(6)
COST_HW_LVT = U64(7)
COST_NMI = U64(8)
COST_HOST_IRQ = U64(9)
COST_PERF_EVENT_CREATE = U64(10)
COST_PERF_EVENT_RELEASE = U64(11)
COST_PERF_EVENT_READ = U64(12)
COST_PERF_EVENT_UPDATE = U64(13)
COST_PERF_SCHED = U64(14)
COST_PMU_RESERVE = U64(15)
COST_PMU_RELEASE = U64(16)
COST_VCPU_SWITCH = U64(17)
COST_VCPU_MIGRATE = U64(18)
COST_GUEST_SWITCH = U64(19)
COST_GUEST_TICK = U64(20)
COST_GUEST_WAKEUP = U64(21)
COST_GUEST_PMI = U64(22)
COST_GUEST_IRQ_ENTRY = U64(23)
COST_INJECT = U64(24)
COST_HALT_WAKE = U64(25)
COST_L1D_FLUSH = U64(26)
COST_ROWS = U64(27)

C_BASE = U64(0)
C_MEDIAN = U64(1)
C_SPREAD = U64(2)
COST_COLUMNS = U64(3)

BASE_LIMIT_NS = 2**40
MEDIAN_LIMIT_NS = 2**32
SIGMA_LIMIT_Q16 = 2 << 16

_LOG2_E_Q16 = U64(94548)
_BIAS = U64(32 << 40)
_U40 = U64(40)
_U62 = U64(62)


@kernel
def lognormal(bits: U64, median_ns: U64, sigma_q16: U64) -> U64:
    """Return a log-normally distributed time, from 64 random bits: ``median * exp(sigma * z)``, rounded.

    Parameters
    ----------
    bits : uint64
        A draw; it becomes z as `normal_q24` says.
    median_ns : uint64, ns
        Below `MEDIAN_LIMIT_NS`.
    sigma_q16 : uint64, 1/65536
        Standard deviation of the time's logarithm, at most `SIGMA_LIMIT_Q16` (2.0).

    Returns
    -------
    uint64, ns
        Off by less than 0.1 % for a sigma up to 1.5, apart from rounding to a nanosecond.
    """
    # The power of two, in 1/2**40, plus 32 so that it is positive: |z| <= 7.05 and sigma <= 2 keep it within
    # 32 +- 20.4, hence the last shift between 10 and 51.
    exponent = (normal_q24(bits) * (sigma_q16 * _LOG2_E_Q16)) >> U16
    negative = bits >> U63
    exponent = _BIAS + ((exponent ^ (U0 - negative)) + negative)  # no branch: half of all draws would miss it
    scaled = median_ns * exp2_q30((exponent >> U8) & MASK32)
    shift = _U62 - (exponent >> _U40)
    return (scaled + (U1 << (shift - U1))) >> shift


@kernel
def draw_cost(s: Arena, cost_row: U64, seed: U64, actor: U64, index: U64) -> U64:
    """Return what one operation costs this time.

    Parameters
    ----------
    s : uint64[n]
        The arena.
    cost_row : uint64
        Offset of the operation's row: the table's offset plus ``COST_X * COST_COLUMNS``.
    seed, actor : uint64
        The run's seed and the payer's number.
    index : uint64
        How many costs the payer drew before; the caller counts them.

    Returns
    -------
    uint64, ns
    """
    cost = s[cost_row + C_BASE] + s[cost_row + C_MEDIAN]
    sigma_q16 = s[cost_row + C_SPREAD]
    if sigma_q16 == U0:
        return cost
    bits = draw(seed, actor, STREAM_COST, index)
    return s[cost_row + C_BASE] + lognormal(bits, s[cost_row + C_MEDIAN], sigma_q16)


def encode_costs(
    costs: Mapping[str, tuple[int, int, int]], default: tuple[int, int, int] | None = None
) -> Arena:
    """Return the cost table of a profile.

    Parameters
    ----------
    costs
        For each of `COST_NAMES`: constant part (ns), median (ns) and sigma (1/65536) of the log-normal part.
    default
        The row of operations that `costs` leaves out; without it, each must be there.

    Returns
    -------
    uint64[COST_ROWS, COST_COLUMNS]

    Raises
    ------
    ValueError
        An unknown or a missing operation, or a figure outside its range.
    """
    for name in costs:
        if name not in COST_NAMES:
            close = get_close_matches(name, COST_NAMES, n=1)
            raise ValueError(f"unknown cost {name!r}" + (f": did you mean {close[0]!r}?" if close else ""))
    table = np.empty((len(COST_NAMES), int(COST_COLUMNS)), dtype=np.uint64)
    for row, name in enumerate(COST_NAMES):
        figures = costs.get(name, default)
        if figures is None:
            raise ValueError(f"the cost {name!r} is missing")
        _check_cost(name, *figures)
        table[row] = figures
    return table


def constant_costs(table: Arena) -> Arena:
    """Return what each operation of an encoded table costs, 0 where it is drawn (R_CONSTANT)."""
    spread = table[:, int(C_SPREAD)]
    return np.where(spread == U0, table[:, int(C_BASE)] + table[:, int(C_MEDIAN)], U0)


def _check_cost(name: str, base_ns: int, median_ns: int, sigma_q16: int) -> None:
    for what, value, limit in (
        ("constant part", base_ns, BASE_LIMIT_NS),
        ("median", median_ns, MEDIAN_LIMIT_NS),
        ("sigma", sigma_q16, SIGMA_LIMIT_Q16 + 1),
    ):
        if not 0 <= value < limit:
            raise ValueError(f"the {what} of cost {name!r} is {value}: it must be from 0 to {limit - 1}")
