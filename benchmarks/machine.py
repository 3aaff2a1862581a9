"""How fast a machine guest executes a loop of ten instructions, against what it has to reach."""

from __future__ import annotations

import time
from typing import Any, Final

from vpmu.machine import layout as at
from vpmu.machine.boot import boot
from vpmu.machine.image import Image, Segment
from vpmu.machine.processor import Processor

ENTRY: Final = 0x100000
TURNS: Final = 20_000_000
WANTED: Final = 50_000_000
"""Instructions per second."""

# 1: mov (%rsi), %rbx; add $0, %rsi; nop, 7 times; loop 1b, then hlt
CODE: Final = bytes.fromhex("48 8b 1e 48 83 c6 00 90 90 90 90 90 90 90 e2 f0 f4")


def measure() -> list[dict[str, Any]]:
    """Return instructions per second of CPU time, with the model's misses drawn for every block."""
    processor = Processor(4 << 20, 0)
    boot(processor, Image("loop", (Segment(ENTRY, CODE, len(CODE)),), ENTRY, multiboot=False), [])
    processor.write("rcx", TURNS)
    processor.write("rsi", 0x200000)
    start = time.process_time()
    while processor.run() == at.STOP_MISS:
        pass
    rate = round(int(processor.words[at.COUNT + 1]) / (time.process_time() - start))
    return [
        {
            "name": "machine_guest",
            "value": rate,
            "unit": "instructions/s",
            "baseline": WANTED,
            "ratio": rate / WANTED,
        }
    ]
