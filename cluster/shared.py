"""An arena that processes of one machine hand each other without a copy on a wire."""

from __future__ import annotations

import mmap
import os

import numpy as np

from vpmu.cluster.proto import U64_DTYPE, WORD_BYTES
from vpmu.kernels.jit import Arena


class SharedArena:
    """An arena in a file that is in memory only, and gone with the last process that has it open.

    Parameters
    ----------
    arena : uint64[n]
        What it holds at first.
    """

    def __init__(self, arena: Arena) -> None:
        self._descriptor = os.memfd_create("vpmu-arena")
        os.ftruncate(self._descriptor, arena.size * WORD_BYTES)
        self.words: Arena = _map(self._descriptor)
        self.words[:] = arena
        self.path = f"/proc/{os.getpid()}/fd/{self._descriptor}"
        """Where other processes of the same user find it, until `close`."""

    def close(self) -> None:
        """Let no other process find it any more; `words` stay."""
        if self._descriptor >= 0:
            os.close(self._descriptor)
            self._descriptor = -1


def open_shared(path: str) -> Arena:
    """Return the arena of another process, writable by both."""
    descriptor = os.open(path, os.O_RDWR | os.O_CLOEXEC)
    try:
        return _map(descriptor)
    finally:
        os.close(descriptor)


def _map(descriptor: int) -> Arena:
    size = os.fstat(descriptor).st_size
    return np.frombuffer(mmap.mmap(descriptor, size, flags=mmap.MAP_SHARED), dtype=U64_DTYPE)
