"""What an instruction costs, and which events it causes: the stated model of a machine guest's core.

Unicorn says which instructions a guest executes, not how long they take. Time and the events of caches, TLBs
and branch prediction come from here: static costs per instruction, and misses that a hash of (seed, block
number) draws. docs/guests.md states the model; it is meant to be plain and repeatable, not to predict.
"""

from vpmu.machine.layout import UNITS

WIDTH = 4
"""Plain instructions per cycle."""

PLAIN = UNITS // WIDTH

COSTS = {
    "mul": 1,
    "imul": 1,
    "div": 26,
    "idiv": 26,
    "pause": 9,
    "mfence": 33,
    "lfence": 4,
    "sfence": 4,
    "clflush": 4,
    "iretq": 40,
    "iretd": 40,
    "retfq": 30,
    "retf": 30,
    "sysretq": 40,
    "invlpg": 120,
    "wbinvd": 2000,
}
"""Core cycles of instructions that take longer than 1/`WIDTH`."""

LOCKED = 18
"""Core cycles of an instruction with a LOCK prefix."""

TSC_READ = 24
EMULATED = 40
"""Core cycles of RDTSC, and of another instruction that the machine itself carries out."""
INTERRUPT = 60
"""Core cycles from an accepted interrupt or exception to its handler's first instruction."""

BRANCH_MISS = 15
L2_HIT = 10
LLC_HIT = 40
LLC_MISS = 160
TLB_WALK = 20
"""Core cycles that a miss adds."""

# A block draws one hash; each event looks at bits of its own. Chances are 1 / 2**n.
BRANCH_MISS_BITS = 7
L1D_MISS_BITS = 6
LLC_REFERENCE_BITS = 2
LLC_MISS_BITS = 3
DTLB_MISS_BITS = 10
L1I_MISS_BITS = 10
ITLB_MISS_BITS = 12
