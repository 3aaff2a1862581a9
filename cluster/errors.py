"""What can go wrong between processes, by whose mistake it is."""


class ProtocolError(Exception):
    """Base of both protocol errors; never raised itself."""


class LocalProtocolError(ProtocolError):
    """Our side tried something that the protocol forbids."""


class RemoteProtocolError(ProtocolError):
    """A peer sent something that the protocol forbids.

    Parameters
    ----------
    reason : str
        What was wrong, with what was found and what was due.
    rank : int, optional
        The rank of the run that sent it; None where the sender is not known (yet).
    """

    def __init__(self, reason: str, rank: int | None = None) -> None:
        super().__init__(reason if rank is None else f"rank {rank}: {reason}")
        self.reason = reason
        self.rank = rank

    def from_rank(self, rank: int) -> "RemoteProtocolError":
        """Return the same error with its sender named."""
        return RemoteProtocolError(self.reason, rank)


class GangError(Exception):
    """A gang of ranks did not come to its end; no result comes from it.

    Parameters
    ----------
    reason : str
        One line.
    rank : int, optional
        The rank that failed first; None if no single rank did.
    traceback_text : str
        The failed rank's traceback as text, or empty.
    lost : bool
        Whether a process was lost, or did not come: another attempt may do better.
    """

    def __init__(
        self, reason: str, rank: int | None = None, traceback_text: str = "", *, lost: bool = False
    ) -> None:
        self.line = reason if rank is None else f"rank {rank} failed: {reason}"
        super().__init__(f"{self.line}\n{traceback_text}".rstrip())
        self.lost = lost
        self.reason = reason
        self.rank = rank
        self.traceback_text = traceback_text
