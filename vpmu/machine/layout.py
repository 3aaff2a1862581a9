"""What compiled callbacks and Python share of a machine: its words, then the table of blocks, then RAM.

Unicorn hands a callback one pointer. It points to the first word; everything else is at a fixed distance
from it, so that a callback needs no second pointer and no two machines can mix.
"""

import numpy as np

U64 = np.uint64

# -- words --

STOP = 0
"""Why the processor stopped: one of the ``STOP_`` constants below."""
STOP_ADDRESS = 1
STOP_DETAIL = 2
"""With `STOP_MISS` a block's size, with `STOP_FAULT` the error code, with `STOP_VECTOR` the vector."""
LEVEL = 3
"""Privilege that is counted for: 0 for CPL 0, 1 for CPL 1 to 3."""
CHECK_LEVEL = 4
"""1: the last block may have changed CPL."""
BLOCKS = 5
"""Blocks drawn for so far: index of the counter-based hash."""
SEED = 6
LAST = 7
"""Address of the block that was entered last."""
LAST_SIZE = 8
LAST_FLAGS = 9
REP_ADDRESS = 10
"""Address of a string instruction with a REP prefix that is under way; 0 if there is none."""
CLOCK = 11
"""Time since the grant, in units of 1/16 core cycle."""
HARD = 12
"""A block that would end after this time does not begin."""
SOFT = 13
"""No block begins after this time."""
CREDIT = 14
"""Units of the next block that an earlier grant has already paid."""
WINDOW = 15
"""2: the next instruction stands in the shadow of STI; 1: interrupts may have been enabled; 0: neither."""
PENDING = 16
"""1: an interrupt waits for interrupts to be enabled, or an NMI for IRET."""
NMI_BLOCKED = 17
SKIP = 18
"""Address whose code hook lets the instruction pass, once."""
STEP = 19
"""1: one block is to be executed uncounted; 2: it has begun."""
EFER = 20
RAM_BYTES = 21
FOLDED = 22
"""Iterations of one-instruction loops that were counted without being executed."""
TRAMPOLINE = 23
"""1: the page at `TRAMPOLINE_VIRTUAL` is mapped."""
SCRATCH = 24
"""Four words that registers are read to."""
GENERATION = 28
"""Blocks of the table that were thrown out because their code had changed."""
STOP_ACCESS = 29
"""With `STOP_FAULT` and `STOP_DEVICE`: 0 for a read, 1 for a write, 2 for an instruction fetch."""

COUNT = 32
"""Events since the grant by level, 16 kinds each (`vpmu.kernels.events`); that of cycles is in 1/16 cycle."""
KINDS = 16
ARMED = COUNT + 2 * KINDS
"""How many of the alarms below are set."""
ALARMS = ARMED + 1
ALARM_WORDS = 3
"""An alarm is two words' indices and a limit: no block begins once the words' sum has reached it."""
ALARMS_MAX = 64
ZERO = ALARMS + ALARMS_MAX * ALARM_WORDS
"""A word that stays 0, for an alarm on one word."""
WORDS = 512

NEVER = 1 << 62

STOP_NONE = 0
STOP_MISS = 1
STOP_DUE = 2
STOP_LIMIT = 3
STOP_WINDOW = 4
STOP_CODE = 5
STOP_FAULT = 6
STOP_DEVICE = 7
STOP_VECTOR = 8
STOP_STEPPED = 9

# -- the map from virtual to physical pages that code was fetched from --

PAGES = WORDS
PAGE_SLOTS = 4096
PAGE_WORDS = 2

# -- the table of blocks --

TABLE = PAGES + PAGE_SLOTS * PAGE_WORDS
SLOT_BITS = 14
SLOTS = 1 << SLOT_BITS
GOLDEN = 0x9E3779B97F4A7C15
"""Multiplier of the table's hash, and increment of the model's."""
BLOCK_WORDS = 8

BLOCK_ADDRESS = 0
"""Virtual address, plus 1."""
BLOCK_PLACE = 1
"""Physical address times 2**16, plus the size in bytes."""
BLOCK_HEAD = 2
"""The aligned word of RAM that holds the block's first byte."""
BLOCK_TAIL = 3
"""The aligned word of RAM that holds its last byte."""
BLOCK_INSTRUCTIONS = 4
"""Instructions, branches, loads and stores, 16 bits each from the lowest."""
BLOCK_COST = 5
"""Units of 1/16 cycle without misses."""
BLOCK_FLAGS = 6
"""Its flags, and from bit 16 on the physical address of its last byte."""
BLOCK_REP = 7
"""Address of the string instruction with REP that ends the block, or 0."""

FLAG_PREDICTED = 1
"""It ends with a branch that may be mispredicted."""
FLAG_FAR = 2
"""It may change CPL."""
FLAG_STI = 4
FLAG_ENABLES = 8
"""It may enable interrupts, without a shadow."""
FLAG_IRET = 16
FLAG_LOOP = 32
"""It is one LOOP instruction that jumps to itself."""
FLAG_SPIN = 64
"""It is one jump to itself."""

# -- RAM --

RAM = (TABLE + SLOTS * BLOCK_WORDS + 511) // 512 * 512
"""Word at which RAM begins, at a page's beginning."""

TRAMPOLINE_VIRTUAL = 0xFFFFFFFFFFE00000
TRAMPOLINE_PHYSICAL = 0xFEF00000
"""A page of the machine's own, for what Unicorn's interface cannot do: raise the privilege."""

UNITS = 16
"""Units of time in a core cycle."""
