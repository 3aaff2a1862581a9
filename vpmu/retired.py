"""What really retired in every thread, in all and by function: ``DIR/DESIGN/truth.parquet``.

Not measured: closed forms of the threads' positions at the end of the run.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import numpy as np

from vpmu.kernels import columns as col
from vpmu.kernels.boot import retired_by
from vpmu.kernels.events import KIND_CYCLES
from vpmu.kernels.jit import U64
from vpmu.program import EVENT_KINDS

if TYPE_CHECKING:
    from vpmu.actors.machine import Machine

FILE: Final = "truth.parquet"
KERNEL_THREAD: Final = "[kernel]"
"""Thread of the rows for what a guest's kernel retired in a vCPU."""

_KINDS: Final = {"cycles": int(KIND_CYCLES)} | EVENT_KINDS
_RATE_ONE: Final = 1 << 28
_ROW_GROUP: Final = 1 << 16


def rows(machine: Machine) -> Iterator[dict[str, Any]]:
    """Yield what each thread retired (`function` is empty) and then each of its functions.

    A row has ``vm``, ``vcpu``, ``thread``, ``function``, ``time_ns`` (cycles at the core's frequency) and a
    column for every event. A function's events are rounded down, see
    `vpmu.kernels.program.program_function_events`; its cycles and every thread's totals are exact.
    """
    s = machine.arena
    kinds = np.array(list(_KINDS.values()), dtype=np.uint64)
    for vcpu in machine.vcpus:
        rate = int(s[vcpu.guest + int(col.G_CORE_RATE)])
        owners = [
            (t.name, int(s[t.offset + int(col.TH_PROGRAM)]), t.offset + int(col.TH_CURSOR), t.program)
            for t in vcpu.threads
        ]
        kernel = int(s[vcpu.guest + int(col.G_KERNEL_PROGRAM)])
        owners.append((KERNEL_THREAD, kernel, vcpu.guest + int(col.G_KERNEL_CURSOR), ""))
        for thread, program, cursor, name in owners:
            functions = machine.functions[name] if name else (KERNEL_THREAD,)
            out = np.zeros((len(kinds), 1 + len(functions)), dtype=np.uint64)
            work = np.zeros(len(functions), dtype=np.uint64)
            retired_by(s, U64(program), U64(cursor), kinds, out.reshape(-1), work)
            for index, function in enumerate(("", *functions)):
                events = dict(zip(_KINDS, out[:, index].tolist(), strict=True))
                if index and not (name and any(events.values())):
                    continue
                head = {"vm": vcpu.vm, "vcpu": vcpu.vcpu, "thread": thread, "function": function}
                yield head | {"time_ns": events["cycles"] * _RATE_ONE // rate} | events


def write_truth(machine: Machine, directory: Path) -> None:
    """Write a machine's `rows` to ``truth.parquet`` in the directory of its design."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    names = ("vm", "vcpu", "thread", "function", "time_ns", *_KINDS)
    types = {"vm": pa.string(), "vcpu": pa.uint32(), "thread": pa.string(), "function": pa.string()}
    schema = pa.schema([pa.field(name, types.get(name, pa.uint64()), nullable=False) for name in names])
    directory.mkdir(parents=True, exist_ok=True)
    part = directory / f".{FILE}.part"
    with pq.ParquetWriter(part, schema, compression="zstd") as writer:
        batch: list[dict[str, Any]] = []
        for row in rows(machine):
            batch.append(row)
            if len(batch) == _ROW_GROUP:
                writer.write_table(pa.Table.from_pylist(batch, schema))
                batch.clear()
        writer.write_table(pa.Table.from_pylist(batch, schema))
    part.replace(directory / FILE)


def read_truth(directory: Path) -> list[dict[str, Any]]:
    """Return the rows of a design's ``truth.parquet``; none if there is no such file."""
    import pyarrow.parquet as pq

    path = directory / FILE
    return pq.read_table(path).to_pylist() if path.exists() else []
