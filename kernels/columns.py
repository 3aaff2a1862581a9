"""State tables: which word of a row means what.

All state of a process is one flat ``uint64`` array, the arena. Every kind of actor has a table in it,
``uint64[rows, columns]``; a row is named by the absolute offset of its first word and a column by a constant
of this module, so kernels read ``s[v + V_GLOBAL_CTRL]``. Since offsets are the same in every process of a
run, a row moves between processes by copying its words.

Counters have three index spaces that never mix: the MSR number, the RDPMC index, and the *slot* used here
(general-purpose counters 0 to 7, fixed counters 8 to 10). KVM's internal index (fixed from 32) appears only
as bit numbers of masks.
"""

from typing import Final

import numpy as np

from vpmu.kernels.jit import U64

SLOTS: Final = 11
FIXED_SLOT: Final = U64(8)
NO_SLOT: Final = U64(255)
"""In place of a slot: no counter."""


class Row:
    """Hands out consecutive columns of a table while its module is imported."""

    def __init__(self) -> None:
        self.used = 0

    def word(self) -> np.uint64:
        """Return the next column."""
        return self.words(1)

    def words(self, count: int) -> np.uint64:
        """Return the first of the next ``count`` columns, an array inside the row."""
        first = self.used
        self.used += count
        return U64(first)

    def width(self) -> int:
        """Return the number of columns handed out so far."""
        return self.used


# --- Run: one row at offset 0 -------------------------------------------------------------------------------
_row = Row()
R_SEED = _row.word()
R_COSTS = _row.word()
"""Offset of the cost table."""
R_CONSTANT = _row.words(32)
"""By cost: its duration in ns, or 0 if it is drawn."""
R_KINDS = _row.word()
"""Offset of the map from event selectors to event kinds."""
R_STATS = _row.word()
"""Offset of the action histograms."""
R_LOG_COUNT = _row.word()
"""Records in the log since it was last drained."""
R_LOG_CAPACITY = _row.word()
R_HOSTS = _row.word()
"""Offset and number of host rows."""
R_NR_HOSTS = _row.word()
R_KEEP = _row.word()
"""Bit per record kind to log."""
R_STEPS = _row.word()
"""Engine steps left of the budget."""
R_ACCESSES = _row.word()
"""Accesses since the start, over all vCPUs (bench and progress)."""
R_SCRATCH = _row.words(64)
"""The solver's constraint masks and assignment."""
RUN_COLUMNS: Final = _row.width()

# --- Host ---------------------------------------------------------------------------------------------------
_row = Row()
H_ID = _row.word()
H_PCPUS = _row.word()
"""Offset of the host's first pCPU row; they follow each other."""
H_NR_PCPUS = _row.word()
H_POSSIBLE = _row.word()
"""Possible CPUs of the machine: the reservation's cost is for them."""
H_HOLDERS = _row.word()
"""Who holds a reference on the PMU hardware: tasks and CPUs with at least one hardware event."""
H_MUTEX_FREE_AT = _row.word()
H_INDEX = _row.word()
"""Counter of this host's random draws."""
H_RESERVES = _row.word()
H_RELEASES = _row.word()
H_WAITS = _row.word()
H_WAIT_NS = _row.word()
H_HELD = _row.word()
"""1 if somebody holds the hardware for the whole run (the watchdog), so that nobody has to ask."""
H_BALANCE_NS = _row.word()
H_BALANCE_AT = _row.word()
H_FLOATING = _row.word()
"""Number of vCPUs that may change their physical CPU."""
H_MIGRATIONS = _row.word()
H_HASH = _row.word()
H_REMOTE = _row.word()
"""1 if this host's physical CPUs, host perf and vCPUs do not all live in this process, or talk by message."""
HOST_COLUMNS: Final = _row.width()

# --- perf: cpu_hw_events of one CPU, of a guest or a host ---------------------------------------------------
_row = Row()
U_NR_GP = _row.word()
U_NR_FIXED = _row.word()
U_MAX_PERIOD = _row.word()
U_COUNTER_MSR = _row.word()
"""MSR of the first general-purpose counter: 0xC1, or 0x4C1 with full-width writes."""
U_COUNTER_MASK = _row.word()
U_ALL = _row.word()
"""GLOBAL_CTRL with every counter enabled."""
U_GUEST_MASK = _row.word()
"""GLOBAL_CTRL bits of counters whose events exclude the host."""
U_HOST_MASK = _row.word()
"""GLOBAL_CTRL bits of counters whose events exclude the guest."""
U_ENABLED = _row.word()
U_DEPTH = _row.word()
"""Nesting of perf_pmu_disable()."""
U_NR_EVENTS = _row.word()
U_NR_ADDED = _row.word()
U_EVENT = _row.words(SLOTS)
"""Offsets of the collected events, in order."""
U_ASSIGN = _row.words(SLOTS)
U_BY_SLOT = _row.words(SLOTS)
"""Offset of the event that runs on a slot, 0 if none."""
U_TAG = _row.words(SLOTS)
U_CPU_CONTEXT = _row.word()
U_TASK_CONTEXT = _row.word()
"""Offset of the current task's context, 0 if it has none."""
U_TICK_NS = _row.word()
U_TICK_SEQ = _row.word()
U_MAX_SAMPLES = _row.word()
"""max_samples_per_tick."""
U_ALLOWED_NS = _row.word()
"""perf_sample_allowed_ns: handler time above which the sampling rate is lowered."""
U_RUNNING_LENGTH = _row.word()
"""Running sum of 128 handler times."""
U_SAMPLE_RATE = _row.word()
U_MUX_NS = _row.word()
U_MUX_AT = _row.word()
"""When the multiplexing timer fires; NEVER if it is not armed."""
U_FAILED = _row.word()
"""Pinned events that went to ERROR."""
U_STATUS = _row.word()
"""GLOBAL_STATUS bits that the PMI handler still has to deal with."""
U_OVERFLOWED = _row.word()
"""Bit per vPMC slot whose KVM event overflowed in this PMI."""
U_PMI_ENABLED = _row.word()
"""U_ENABLED when the PMI came, and the queue that was in use."""
U_PMI_QUEUE = _row.word()
U_QUEUE = _row.word()
"""Offset of the queue that this CPU's accesses go to."""
U_MASKED = _row.word()
"""What a PMI sets in the LVTPC: its mask bit, which the handler has to clear; 0 if it sets nothing."""
CPU_HW_COLUMNS: Final = _row.width()

# --- Queue of micro-operations (ring) -----------------------------------------------------------------------
QUEUE_SIZE: Final = 64
NMI_QUEUE_SIZE: Final = 16
_row = Row()
Q_HEAD = _row.word()
Q_COUNT = _row.word()
Q_CUT = _row.word()
"""QUEUE_SIZE less the size of this ring: 0, or for the queue of the NMI handler 48."""
Q_OPS = _row.words(2 * QUEUE_SIZE)
QUEUE_COLUMNS: Final = _row.width()
NMI_QUEUE_COLUMNS: Final = QUEUE_COLUMNS - 2 * (QUEUE_SIZE - NMI_QUEUE_SIZE)

# --- perf event ---------------------------------------------------------------------------------------------
_row = Row()
E_STATE = _row.word()
E_FLAGS = _row.word()
E_CONFIG = _row.word()
"""PERFEVTSEL bits: event, umask, USR, OS, INT, edge, inv, cmask."""
E_PERIOD = _row.word()
E_FREQUENCY = _row.word()
E_COUNT = _row.word()
E_PREVIOUS = _row.word()
E_LEFT = _row.word()
"""period_left, a signed 64-bit number."""
E_LAST_PERIOD = _row.word()
E_SLOT = _row.word()
"""hw.idx as a slot; NO_SLOT before the first assignment."""
E_TAG = _row.word()
E_RUNNING = _row.word()
"""RUN_STOPPED, RUN_COUNTING, or RUN_STALE: stopped, its counter not yet read."""
E_EXPIRED = _row.word()
"""1 if the last set_period() found the period elapsed."""
E_RELOAD = _row.word()
"""1 if the next start writes the counter."""
E_INTERRUPTS = _row.word()
E_INTERRUPTS_SEQ = _row.word()
E_FREQ_STAMP = _row.word()
E_FREQ_COUNT = _row.word()
E_ENABLED_NS = _row.word()
E_RUNNING_NS = _row.word()
E_STAMP = _row.word()
E_LEADER = _row.word()
"""Offset of the group's leader; the event itself if it leads."""
E_OWNER = _row.word()
"""What the event stands for: a vPMC's slot, or session << 8 | event."""
E_SAMPLES = _row.word()
E_THROTTLES = _row.word()
E_NOTED = _row.word()
"""1 while the log says that the event is throttled."""
E_PMIS = _row.word()
E_TRUTH = _row.word()
"""What E_COUNT must be: the events that its counters had to count, by the account of the truth."""
E_WHAT = _row.word()
"""What it asks for: event kind | privilege levels << 8, as the truth decodes E_CONFIG."""
E_CLASS = _row.word()
"""Which of E_DUE is open since E_EDGE: one of the DUE_ constants."""
E_EDGE = _row.word()
E_DUE = _row.words(4)
"""Events retired while it was enabled and its thread ran, by what perf let it do (kernels/guest/due.py)."""
E_SAMPLED = _row.word()
"""Sum of the samples' periods."""
E_MERGED = _row.word()
"""Events of periods that ended without a sample of their own: several at one PMI, or one between PMIs."""
E_LATE = _row.word()
"""Events past the last period's end when the counter was read; their sum over samples, and the most."""
E_SKID = _row.word()
E_SKID_MAX = _row.word()
EVENT_COLUMNS: Final = _row.width()

RUN_STOPPED: Final = U64(0)
RUN_COUNTING: Final = U64(1)
RUN_STALE: Final = U64(2)

EVENT_OFF: Final = U64(0)
EVENT_INACTIVE: Final = U64(1)
EVENT_ACTIVE: Final = U64(2)
EVENT_ERROR: Final = U64(3)
EVENT_DEAD: Final = U64(4)
"""Allocated in the arena, not in any context."""

FLAG_PINNED: Final = U64(1)
FLAG_EXCLUDE_HOST: Final = U64(2)
FLAG_EXCLUDE_GUEST: Final = U64(4)
FLAG_FREQUENCY: Final = U64(8)
FLAG_SAMPLING: Final = U64(16)
FLAG_VPMC: Final = U64(32)
"""A KVM event: its overflow goes to the vPMU."""
FLAG_WATCHDOG: Final = U64(64)
FLAG_HELD: Final = U64(128)
"""KVM drives the counter itself: host perf assigns it and leaves its state alone."""

# --- perf context -------------------------------------------------------------------------------------------
CONTEXT_CAPACITY: Final = 24
_row = Row()
C_COUNT = _row.word()
C_NR_ACTIVE = _row.word()
C_NR_FREQUENCY = _row.word()
C_SCHEDULED = _row.word()
C_STAMP = _row.word()
"""When a task's context came on."""
C_EVENTS = _row.words(CONTEXT_CAPACITY)
"""Offsets of events in scheduling order (pinned and flexible mixed; each class keeps its order)."""
CONTEXT_COLUMNS: Final = _row.width()

# --- Physical CPU -------------------------------------------------------------------------------------------
CAUSES: Final = 16
_row = Row()
P_ID = _row.word()
P_HOST = _row.word()
P_STATE = _row.word()
P_CURRENT = _row.word()
"""Offset of the vCPU that holds the CPU, 0 if none."""
P_QUEUE_HEAD = _row.word()
"""First vCPU of the run queue's list (all vCPUs placed here, runnable or not)."""
P_NR_VCPUS = _row.word()
P_NR_READY = _row.word()
"""How many vCPUs of the run queue wait for the CPU, and the least V_VRUNTIME of them, NEVER if none does."""
P_LEAST_VRUNTIME = _row.word()
P_TICK_NS = _row.word()
P_TICK_AT = _row.word()
P_NOISE_NS = _row.word()
P_NOISE_AT = _row.word()
P_NOISE_INDEX = _row.word()
P_IRQ_AT = _row.word()
"""The earlier of tick and noise."""
P_RESCHED = _row.word()
P_SLICE_AT = _row.word()
"""When the current vCPU began its slice."""
P_MIN_VRUNTIME = _row.word()
P_LATENCY_NS = _row.word()
P_GRANULARITY_NS = _row.word()
P_WAKEUP_NS = _row.word()
P_CAUSES = _row.words(CAUSES)
P_SWITCHES = _row.word()
P_EXITS = _row.word()
P_PMIS = _row.word()
P_CALLS = _row.words(16)
"""Calls to host perf that were served, by call."""
P_TIMER_AT = _row.word()
"""Next change of a host tool on this CPU."""
P_TOOLS = _row.word()
"""Offset and number of this CPU's tool rows."""
P_NR_TOOLS = _row.word()
P_REMOTE_PERF = _row.word()
"""1 in message mode: host perf calls leave the kernel as stops."""
P_REMOTE_GUEST = _row.word()
"""How guests take part: 0 in the kernel, 1 by message, 2 in the kernel once their rows are here."""
P_ASK = _row.word()
"""Message mode: what the current guest is being asked, and until when it may run."""
P_LIMIT = _row.word()
P_IDLE = _row.word()
P_OUT_STATE = _row.word()
"""State of the current vCPU once it is switched out."""
P_TICKED = _row.word()
P_WAKE_AT = _row.word()
"""When the first vCPU of the run queue wakes."""
P_LOADED_AT = _row.word()
P_STOP = _row.word()
P_STOP_AT = _row.word()
P_DONE = _row.word()
P_CORE_RATE = _row.word()
P_TSC_RATE = _row.word()
P_BUS_RATE = _row.word()
P_HOST_PROGRAM = _row.word()
"""What host kernel code retires."""
P_HOST_CURSOR = _row.words(8)
P_HOST_OWED = _row.word()
"""Cycles that host kernel code has run beyond the cursor."""
P_CPU_CONTEXT = _row.word()
P_DESIGN = _row.word()
"""Number of the host's design."""
P_INTERCEPTS = _row.word()
"""1 if guest accesses exit to the host, 0 on bare hardware."""
P_TRAVELS = _row.words(0)
"""From here to P_TRAVELS_END a call to host perf carries the words there and back."""
P_NOW = _row.word()
P_INDEX = _row.word()
"""Counter of this CPU's random draws."""
P_HASH = _row.word()
P_REQUESTS = _row.word()
P_CALL = _row.word()
"""Host perf call in progress: operation, its arguments and its results."""
P_CALL_VCPU = _row.word()
P_CALL_SLOT = _row.word()
P_CALL_VALUE = _row.word()
P_CALL_CONFIG = _row.word()
P_CALL_FLAGS = _row.word()
P_CALL_COST = _row.word()
P_CALL_STAGE = _row.word()
P_GRANT = _row.words(SLOTS)
"""Result: hardware slot that serves each vPMC of the call's vCPU, NO_SLOT if none."""
HW_NR_GP = _row.word()
HW_NR_FIXED = _row.word()
HW_MASK = _row.word()
HW_MASKED = _row.word()
"""What a PMI sets in the LVTPC: its mask bit, or 0."""
HW_EVENTSEL = _row.words(8)
HW_FIXED_CTRL = _row.word()
HW_GLOBAL_CTRL = _row.word()
HW_GLOBAL_STATUS = _row.word()
HW_DEBUGCTL = _row.word()
HW_LVTPC = _row.word()
HW_COUNTER = _row.words(SLOTS)
HW_KIND = _row.words(SLOTS)
HW_CPL = _row.words(SLOTS)
"""Privilege levels a slot counts at: bit 0 kernel, bit 1 user; 0 if it is not enabled locally."""
HW_ARMED = _row.word()
"""Bit per slot: enabled by its own control."""
HW_ACTIVE = _row.word()
"""Bit per slot: enabled by its own control and by GLOBAL_CTRL."""
HW_HOST_CTRL = _row.word()
"""GLOBAL_CTRL while the host runs, and the slots that it lets count."""
HW_HOST_SLOTS = _row.word()
HW_GUEST_CTRL = _row.word()
"""GLOBAL_CTRL that host perf wants loaded at VM entry."""
HW_PMI = _row.word()
"""1 while a PMI waits to be taken."""
P_TRAVELS_END = _row.words(0)
P_CPU_HW = _row.words(CPU_HW_COLUMNS)
P_QUEUE = _row.words(QUEUE_COLUMNS)
PCPU_COLUMNS: Final = _row.width()

# --- vCPU: KVM's side ---------------------------------------------------------------------------------------
REQUESTS: Final = 24
_row = Row()
V_ID = _row.word()
V_VM = _row.word()
V_GUEST = _row.word()
"""Offset of the guest row."""
V_PCPU = _row.word()
V_NEXT = _row.word()
"""Next vCPU in the run queue's list."""
V_PINNED = _row.word()
V_STATE = _row.word()
V_WAKE_AT = _row.word()
V_VRUNTIME = _row.word()
V_RAN_FROM = _row.word()
V_READY_AT = _row.word()
V_MOVE = _row.word()
"""Whether it leaves its host or comes to one: one of the MOVE_ constants (kernels/host/move.py)."""
V_LEFT_AT = _row.word()
"""When it left its last host."""
V_STEAL_NS = _row.word()
V_GUEST_NS = _row.word()
V_SLEEP_NS = _row.word()
V_INDEX = _row.word()
"""Counter of this vCPU's random draws."""
V_CALL = _row.words(8)
"""A host perf call interrupted by sleep: the P_CALL words."""
V_REASON = _row.word()
"""What the guest wants: a GUEST_ constant, 0 if it has to be resumed first."""
V_COMPLETE = _row.word()
"""1 if an access's result waits to be handed to the guest."""
V_INJECT = _row.word()
"""1 if an NMI waits to be injected."""
V_WORK_NS = _row.word()
"""Work under the reservation's mutex that begins when the vCPU wakes."""
V_OPERATION = _row.word()
"""The access in flight: operation, register, outcome, value, when it began."""
V_REGISTER = _row.word()
V_OUTCOME = _row.word()
V_VALUE = _row.word()
V_BEGAN_AT = _row.word()
V_REQ_HEAD = _row.word()
V_REQ_COUNT = _row.word()
V_REQS = _row.words(REQUESTS)
"""Host perf requests that a design queued: operation | slot << 8."""
V_NR_EVENTS = _row.word()
V_CONTEXT = _row.word()
V_EVENTS = _row.word()
"""Offset of the event rows that back this vCPU's vPMCs, V_NR_GP + V_NR_FIXED of them."""
V_VERSION = _row.word()
V_NR_GP = _row.word()
V_NR_FIXED = _row.word()
V_MASK = _row.word()
V_GLOBAL_VALID = _row.word()
V_RULES = _row.word()
"""Which rules of later KVM hold: RULE_ bits of kernels/designs/common.py."""
V_EVENTSEL_RESERVED = _row.word()
V_FIXED_RESERVED = _row.word()
"""Bits of the selectors and of FIXED_CTR_CTRL that raise #GP."""
V_CAPABILITIES = _row.word()
"""IA32_PERF_CAPABILITIES."""
V_HOST = _row.word()
"""1 while the host itself reads and writes its registers, as KVM_GET_MSRS and KVM_SET_MSRS do."""
V_FILTER = _row.word()
"""Offset of the VM's event filter (kernels/designs/filter.py), 0 if it has none."""
V_BLOCKED = _row.word()
"""Bit per vPMC whose event the filter blocks."""
V_EVENTSEL = _row.words(8)
V_FIXED_CTRL = _row.word()
V_GLOBAL_CTRL = _row.word()
V_GLOBAL_STATUS = _row.word()
V_OVF_CTRL = _row.word()
V_COUNTER = _row.words(SLOTS)
V_LVTPC = _row.word()
V_MASKED = _row.word()
"""What a PMI sets in the guest's LVTPC: its mask bit, or 0."""
V_HAS_EVENT = _row.word()
"""Bit per slot: a host perf event exists."""
V_REPROGRAM = _row.word()
V_PMI = _row.word()
"""1 while KVM_REQ_PMI is pending."""
V_HW_SLOT = _row.words(SLOTS)
"""Optimized: hardware slot that serves a vPMC, NO_SLOT if none."""
V_LIFE = _row.words(SLOTS)
V_USED = _row.word()
V_HW_CTRL = _row.word()
"""Optimized: the guest's enables, translated to hardware bits."""
V_HW_OWNED = _row.word()
"""Bit per hardware slot that KVM drives for this vCPU."""
V_LOADED = _row.word()
"""1 while this vCPU's counters are on the hardware."""
V_STILL = _row.word()
"""Bit per vPMC that stands still."""
V_STILL_AT = _row.words(SLOTS)
"""When an enabled vPMC lost its counter; NEVER if it has one."""
V_STILL_NS = _row.words(SLOTS)
V_PARAMETER = _row.words(8)
"""Design parameters."""
V_PRIVATE = _row.words(16)
"""Free for designs."""
V_DONE = _row.word()
V_EXITS = _row.word()
V_MSRS = _row.words(SLOTS + 11)
"""Its PMU on the way: counters, selectors, FIXED_CTR_CTRL, GLOBAL_CTRL, GLOBAL_STATUS."""
V_LOST_PMIS = _row.word()
"""PMIs that migrations have lost."""
V_MIGRATED = _row.word()
"""Hosts that it has come to."""
V_MIGRATIONS = _row.word()
VCPU_COLUMNS: Final = _row.width()

# --- Guest: the operating system in a vCPU ------------------------------------------------------------------
WATCH_COLUMNS: Final = 4
_row = Row()
G_ID = _row.word()
G_VCPU = _row.word()
G_NOW = _row.word()
G_THREADS = _row.word()
G_NR_THREADS = _row.word()
G_CURRENT = _row.word()
"""Offset of the thread that runs, 0 if the guest is idle."""
G_NEXT = _row.word()
"""Thread that a context switch in progress goes to."""
G_RESCHED = _row.word()
G_IN_KERNEL = _row.word()
"""Cycles of kernel code left to run before the next micro-operation."""
G_BUSY = _row.word()
"""1 while a kernel path with interrupts off is under way."""
G_TICK_NS = _row.word()
G_TICK_AT = _row.word()
G_WAKE_AT = _row.word()
G_INTERVAL_AT = _row.word()
G_TIMER_AT = _row.word()
"""The earliest of all timers."""
G_RETRIES = _row.word()
"""Timer interrupts handled back to back; when the first began; until when the clock event device rests."""
G_TIMER_FROM = _row.word()
G_HOLD_UNTIL = _row.word()
G_TICK_FROM = _row.word()
G_LATENCY_NS = _row.word()
G_GRANULARITY_NS = _row.word()
G_WAKEUP_NS = _row.word()
G_MIN_VRUNTIME = _row.word()
G_SLICE_AT = _row.word()
G_ACCOUNTED_AT = _row.word()
G_INDEX = _row.word()
G_HASH = _row.word()
G_SEQUENCE = _row.word()
G_SESSIONS = _row.word()
G_NR_SESSIONS = _row.word()
G_RUNNING = _row.word()
"""Program threads that have not finished."""
G_KERNEL_PROGRAM = _row.word()
G_KERNEL_CURSOR = _row.words(8)
G_CORE_RATE = _row.word()
G_TSC_RATE = _row.word()
G_BUS_RATE = _row.word()
G_OUTSIDE = _row.word()
"""Offset of the row of a guest that decides outside the kernels, 0 for one that runs in them."""
G_LEVEL = _row.word()
"""Privilege level of its accesses: 1 kernel, 2 user."""
G_EMULATED = _row.word()
"""1 if an instruction that the hypervisor emulates counts as retired."""
G_FILTER = _row.word()
"""Offset of the event filter, for the truth."""
G_OPERATION = _row.word()
"""The access that the guest asks for: operation, register, value; and the micro-operation behind it."""
G_REGISTER = _row.word()
G_VALUE = _row.word()
G_MICRO = _row.word()
G_MICRO_EVENT = _row.word()
G_FROM_NMI = _row.word()
G_ACCESSED_AT = _row.word()
G_PMI_AT = _row.word()
G_IN_PMI = _row.word()
G_NMI_PENDING = _row.word()
G_SAVED_KERNEL = _row.word()
"""Cycles of kernel code left when the NMI came."""
G_KEPT = _row.word()
"""What a read-modify-write read."""
G_SWITCH_AT = _row.word()
G_ACCESSES = _row.word()
G_PMIS = _row.word()
G_SWITCHES = _row.word()
G_SAMPLES = _row.word()
G_USER_NS = _row.word()
G_KERNEL_NS = _row.word()
G_INTERVAL_SESSION = _row.word()
"""Session whose timer is the next to fire."""
G_COST_SWITCH = _row.word()
"""What kernel paths take, in ns: context switch, tick, wake-up, PMI entry and exit, interrupt entry."""
G_COST_TICK = _row.word()
G_COST_WAKEUP = _row.word()
G_COST_PMI = _row.word()
G_COST_IRQ = _row.word()
G_LOG = _row.word()
"""1 if this guest's records are logged."""
G_FAULTS = _row.word()
G_STREAM = _row.word()
"""Replay guest: offset of the next record, and how many are left."""
G_STREAM_LEFT = _row.word()
G_STREAM_OPEN = _row.word()
"""1 if the stream is fed from outside: at its end, and in a PMI, the guest waits for the next record."""
G_STREAM_RECORD = _row.words(3)
"""Where an open stream's record is put."""
G_MASK = _row.word()
"""Width of the counters that the guest believes to have."""
G_FULL_WIDTH = _row.word()
G_STILL = _row.word()
"""Bit per vPMC that stands still while this guest runs, as the host says; it goes with the watch list."""
G_NWATCH = _row.word()
G_WATCH = _row.words(WATCH_COLUMNS * SLOTS)
"""What the physical CPU counts while this guest runs: kind, privilege mask, events left, events retired."""
T_EVENTSEL = _row.words(8)
"""Truth: what the guest has programmed, and what it retired while a counter was on."""
T_FIXED_CTRL = _row.word()
T_GLOBAL_CTRL = _row.word()
T_ON = _row.word()
T_ARMED = _row.word()
"""Bit per slot: let count by its own control."""
T_MEANING = _row.words(SLOTS)
"""What a counter counts: event kind | privilege levels << 8 | 1 << 16 if its overflow raises a PMI."""
T_BASE = _row.words(SLOTS)
T_COUNT = _row.words(SLOTS)
T_EDGE = _row.words(SLOTS)
T_FRESH = _row.word()
"""Bit per slot: it went on, and no code has run since: T_EDGE is not taken yet."""
T_REF = _row.words(4)
"""Reference and bus cycles retired: kernel, user each."""
T_DUE = _row.word()
"""Overflows that were due a PMI, and those that the guest acknowledged."""
T_TAKEN = _row.word()
T_READS = _row.word()
T_WRONG = _row.word()
T_SHORT = _row.words(SLOTS)
"""Events that reads missed against the truth, per vPMC."""
T_STILL = _row.word()
"""G_STILL as the account last saw it."""
T_LOST = _row.words(SLOTS)
"""Events retired while the vPMC stood still, since it was last read or written."""
T_SEEN = _row.words(SLOTS)
"""T_COUNT when the vPMC was last read."""
G_CPU_HW = _row.words(CPU_HW_COLUMNS)
G_QUEUE = _row.words(QUEUE_COLUMNS)
G_NMI_QUEUE = _row.words(NMI_QUEUE_COLUMNS)
GUEST_COLUMNS: Final = _row.width()

W_KIND: Final = U64(0)
W_CPL: Final = U64(1)
W_LEFT: Final = U64(2)
W_RETIRED: Final = U64(3)

# --- A guest that decides outside the kernels ---------------------------------------------------------------
TOTALS: Final = 32
_row = Row()
O_TOTAL = _row.words(2 * TOTALS)
"""By kind: what it has retired, in kernel mode, then in user mode."""
O_COMPLETE = _row.word()
"""1 if the result of its access waits to be told: fault, value, cost in ns."""
O_FAULT = _row.word()
O_RESULT = _row.word()
O_COST_NS = _row.word()
O_PMI = _row.word()
"""1 if a PMI waits to be told, and the LVTPC's word with which it was delivered."""
O_LVTPC = _row.word()
OUTSIDE_COLUMNS: Final = _row.width()

# --- Event filter of a VM -----------------------------------------------------------------------------------
FILTER_EVENTS: Final = 300
"""KVM_PMU_EVENT_FILTER_MAX_EVENTS."""
_row = Row()
F_DENY = _row.word()
F_MASKED = _row.word()
F_FIXED = _row.word()
"""fixed_counter_bitmap."""
F_COUNT = _row.word()
F_EVENTS = _row.words(FILTER_EVENTS)
FILTER_COLUMNS: Final = _row.width()

# --- Guest thread -------------------------------------------------------------------------------------------
_row = Row()
TH_ID = _row.word()
TH_TYPE = _row.word()
TH_STATE = _row.word()
TH_VRUNTIME = _row.word()
TH_PROGRAM = _row.word()
TH_CURSOR = _row.words(8)
TH_END = _row.word()
"""Position at which the thread's work, or a sleeper's burst, is done."""
TH_WAKE_AT = _row.word()
TH_WAKE_MEAN_NS = _row.word()
TH_WAKE_REGULAR = _row.word()
TH_BURST_CYCLES = _row.word()
TH_CONTEXT = _row.word()
"""Offset of its perf context, 0 if nothing is attached."""
TH_STARTED_AT = _row.word()
TH_FINISHED_AT = _row.word()
TH_CPU_NS = _row.word()
TH_SWITCHES = _row.word()
TH_MISSED = _row.word()
"""Wake-ups that came while it was still awake."""
THREAD_COLUMNS: Final = _row.width()

# --- perf session of a guest --------------------------------------------------------------------------------
_row = Row()
S_ID = _row.word()
S_CONTEXT = _row.word()
S_THREAD = _row.word()
S_START_AT = _row.word()
S_STOP_AT = _row.word()
S_INTERVAL_NS = _row.word()
S_NEXT_AT = _row.word()
S_STATE = _row.word()
S_FIRST = _row.word()
"""Offset of the session's first event row; they follow each other."""
S_NR_EVENTS = _row.word()
S_INTERVALS = _row.word()
SESSION_COLUMNS: Final = _row.width()

# --- Host tool on one CPU -----------------------------------------------------------------------------------
_row = Row()
TO_ID = _row.word()
TO_START_AT = _row.word()
TO_STOP_AT = _row.word()
TO_STATE = _row.word()
TO_FIRST = _row.word()
TO_NR_EVENTS = _row.word()
TO_VCPU = _row.word()
"""Offset of the vCPU whose thread it is attached to, 0 if it is system-wide."""
TOOL_COLUMNS: Final = _row.width()
