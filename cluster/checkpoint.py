"""Checkpoints: the state of a run at the end of a window, in files, from which another attempt goes on.

Every rank that advances physical CPUs writes its rows to a state file and its records to a journal, and tells
the coordinator what they hold. Once all have, the coordinator writes a manifest: only then is the checkpoint
complete. Two are kept. A run that goes on takes the newest that is whole, and cuts the journals back to it.
"""

from __future__ import annotations

import hashlib
import itertools
import logging
import os
import struct
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import msgspec
import numpy as np

from vpmu.actors.machine import Machine, Pending
from vpmu.cluster import proto
from vpmu.cluster.errors import GangError, RemoteProtocolError
from vpmu.cluster.merge import Merge
from vpmu.cluster.proto import U64Array
from vpmu.kernels.columns import R_ACCESSES
from vpmu.kernels.jit import Arena
from vpmu.kernels.log import RECORD_WORDS

if TYPE_CHECKING:
    from typing import BinaryIO

FORMAT: Final = 1
"""Version of the files' layout; another is refused."""
KEPT: Final = 2
"""Complete checkpoints that are kept; older ones are removed."""
_MAGIC: Final = b"vPMUckpt"
_HEAD: Final = struct.Struct("<8sQQQQ")
_LOG = logging.getLogger(__name__)
_PIECE_WORDS: Final = 1 << 20
_PIECE_RECORDS: Final = 1 << 16


class Damaged(Exception):
    """A file of a checkpoint is not what was written; says which and how."""


class FileNote(msgspec.Struct, frozen=True):
    """A file as it was at a checkpoint: its name, its length in bytes and their SHA-256."""

    name: str
    size: int
    sha256: str


class Note(msgspec.Struct, frozen=True):
    """What a rank tells the coordinator once its part of a checkpoint is written.

    Attributes
    ----------
    number : int
        Counts the checkpoints of a run from 1.
    at_ns : int
        Virtual time: the end of the window.
    ranks : int
        How many ranks write one.
    state, journal : FileNote
        Its rows, and its records so far.
    due : list of Pending
        Of the fleet; every rank says the same.
    """

    number: int
    at_ns: int
    ranks: int
    state: FileNote
    journal: FileNote
    due: list[Pending]


class Manifest(msgspec.Struct, frozen=True):
    """A complete checkpoint.

    Attributes
    ----------
    number, at_ns : int
        As in `Note`.
    attempt : int
        Which start of the run wrote it.
    machine : str
        SHA-256 of the machine as built.
    states, journals : list of FileNote
        Every rank's rows; the records so far, of this attempt and those before.
    due : list of Pending
        Of the fleet.
    """

    number: int
    at_ns: int
    attempt: int
    machine: str
    states: list[FileNote]
    journals: list[FileNote]
    due: list[Pending]


class _Envelope(msgspec.Struct, frozen=True):
    """How a manifest stands in its file: the version first, then the hash of what follows."""

    format: int
    sha256: str
    checkpoint: msgspec.Raw


class Writing(msgspec.Struct, frozen=True):
    """What a rank is told about checkpoints.

    Attributes
    ----------
    directory : str
        Where the files go; all ranks and the coordinator see the same.
    every_s : float
        Wall time between two, at most.
    at_ns : int
        Virtual time that the attempt begins at.
    first : int
        Number of the next one.
    attempt : int
        Which start of the run this is.
    due : list of Pending, optional
        What is still to happen to the fleet; None at the beginning of a run.
    """

    directory: str
    every_s: float
    at_ns: int
    first: int
    attempt: int
    due: list[Pending] | None = None


# -- a rank's files -------------------------------------------------------------------------------------


def journal_name(attempt: int, rank: int) -> str:
    """Return the name of a rank's journal."""
    return f"journal-{attempt}-{rank}"


class Journal:
    """A rank's records in a file, in the order in which they were made; 64 bytes each.

    Parameters
    ----------
    directory : Path
        Of the run's checkpoints; there already.
    attempt, rank : int
        Whose it is.
    """

    def __init__(self, directory: Path, attempt: int, rank: int) -> None:
        self._path = directory / journal_name(attempt, rank)
        self._file: BinaryIO = open_new(self._path)
        self._digest = hashlib.sha256()
        self._size = 0

    def append(self, records: U64Array) -> None:
        """Write records, ``uint64[n, 8]``."""
        data = np.ascontiguousarray(records).view(np.uint8).reshape(-1).data
        self._file.write(data)
        self._digest.update(data)
        self._size += len(data)

    def note(self) -> FileNote:
        """Hand what was written to the operating system; return the file as it is now."""
        self._file.flush()
        return FileNote(self._path.name, self._size, self._digest.hexdigest())

    def sync(self) -> None:
        """Bring what the operating system has to the disk."""
        os.fsync(self._file.fileno())

    def close(self) -> FileNote:
        """Complete the file and return it as it is."""
        note = self.note()
        self._file.close()
        return note


def open_new(path: Path) -> BinaryIO:
    """Open a file for writing; GangError if its directory is not here."""
    try:
        return path.open("wb")
    except FileNotFoundError:
        raise GangError(
            f"{path.parent} is not there: checkpoints need a directory that every worker sees"
        ) from None


def ranges_of(slices: Iterable[tuple[int, int]]) -> U64Array:
    """Return slices in order, neighbours made one: ``uint64[n, 2]``, offsets and lengths in words."""
    pairs = np.array(list(slices), dtype=np.uint64).reshape(-1, 2)
    pairs = pairs[pairs[:, 1] > 0]
    pairs = pairs[np.argsort(pairs[:, 0], kind="stable")]
    if not len(pairs):
        return pairs
    ends = pairs[:, 0] + pairs[:, 1]
    begins = np.concatenate([[True], pairs[1:, 0] != ends[:-1]])
    first = np.flatnonzero(begins)
    last = np.concatenate([first[1:], [len(pairs)]]) - 1
    return np.stack([pairs[first, 0], ends[last] - pairs[first, 0]], axis=1)


def state_name(number: int, attempt: int, rank: int) -> str:
    """Return the name of a rank's state file."""
    return f"state-{attempt}-{rank}-{number}"


def write_state(file: BinaryIO, machine: Machine, ranges: U64Array) -> tuple[int, str]:
    """Write rows of a machine, and what it counts for the whole run; return the bytes' number and SHA-256.

    The file is a head of 40 bytes (magic, format, numbers of ranges and of words of the action table,
    accesses), the ranges, the action table, and the words of the ranges, all little-endian.

    Parameters
    ----------
    file : binary file
        Just opened.
    machine : Machine
    ranges : uint64[n, 2]
        As `ranges_of` returns them.
    """
    actions = machine.table("action").reshape(-1)
    head = _HEAD.pack(_MAGIC, FORMAT, len(ranges), actions.size, int(machine.arena[R_ACCESSES]))
    digest = hashlib.sha256()
    for piece in itertools.chain((head, ranges, actions), _pieces(machine.arena, ranges)):
        data: Any = piece if isinstance(piece, bytes) else np.ascontiguousarray(piece).data.cast("B")
        digest.update(data)
        file.write(data)
    file.flush()
    return file.tell(), digest.hexdigest()


def _pieces(arena: Arena, ranges: U64Array) -> Iterable[U64Array]:
    """Yield the words of ranges, short ones together."""
    held: list[U64Array] = []
    words = 0
    for offset, length in ranges.tolist():
        held.append(arena[offset : offset + length])
        words += length
        if words >= _PIECE_WORDS:
            yield held[0] if len(held) == 1 else np.concatenate(held)
            held, words = [], 0
    if held:
        yield np.concatenate(held)


class Written:
    """A rank's part of a checkpoint that the operating system has, and the disk has once `sync` returns."""

    def __init__(self, note: Note, state: BinaryIO, journal: Journal) -> None:
        self.note = note
        self._state = state
        self._journal = journal

    def sync(self) -> None:
        """Wait for the disk; takes a while and belongs into a thread."""
        with self._state:
            os.fsync(self._state.fileno())
        self._journal.sync()


class RankCheckpoints:
    """A rank's end: its journal, and its state files.

    Parameters
    ----------
    writing : Writing
        What it was told.
    rank : int
        This process.
    machine : Machine
        Of this process.
    """

    def __init__(self, writing: Writing, rank: int, machine: Machine) -> None:
        self._directory = Path(writing.directory)
        self._machine = machine
        self._rank = rank
        self._attempt = writing.attempt
        self._number = writing.first
        self.journal = Journal(self._directory, writing.attempt, rank)

    def write(self, at_ns: int, ranges: U64Array, ranks: int, due: list[Pending]) -> Written:
        """Write the next checkpoint's part."""
        name = state_name(self._number, self._attempt, self._rank)
        file = open_new(self._directory / name)
        state = FileNote(name, *write_state(file, self._machine, ranges))
        note = Note(self._number, at_ns, ranks, state, self.journal.note(), due)
        self._number += 1
        return Written(note, file, self.journal)


# -- the coordinator's end ------------------------------------------------------------------------------


@dataclass(slots=True)
class Start:
    """Where an attempt begins: the machine's state, and what its ranks are told."""

    arena: Arena
    writing: Writing


@dataclass
class Keeper:
    """The run's checkpoints in a directory: completes them, finds the newest whole one, reads the records.

    Parameters
    ----------
    directory : Path
        Of this design's run; made if it is absent.
    machine : Machine
        As built; it is not changed.
    every_s : float
        Wall time between two checkpoints, at most.
    """

    directory: Path
    machine: Machine
    every_s: float
    _notes: dict[int, dict[int, Note]] = field(default_factory=dict)
    _before: list[FileNote] = field(default_factory=list)
    _attempt: int = -1
    _built: str = ""

    def begin(self) -> Start:
        """Begin an attempt, from the newest checkpoint that is whole, or from the beginning if there is none.

        Files that belong to no checkpoint any more are removed, journals are cut back.

        Raises
        ------
        GangError
            If the checkpoints are of another machine.
        """
        self.directory.mkdir(parents=True, exist_ok=True)
        self._built = self._built or hashlib.sha256(self.machine.arena.data).hexdigest()
        self._notes.clear()
        self._attempt = 1 + max([self._attempt, *self._attempts()])
        manifest, arena = self._newest()
        self._before = [] if manifest is None else manifest.journals
        self._cut_back(manifest)
        writing = Writing(str(self.directory.resolve()), self.every_s, 0, 1, self._attempt)
        if manifest is not None:
            at, first, due = manifest.at_ns, manifest.number + 1, manifest.due
            writing = msgspec.structs.replace(writing, at_ns=at, first=first, due=due)
        return Start(arena, writing)

    def _attempts(self) -> list[int]:
        """Return the attempts that have files here."""
        names = [file.name for file in self.directory.iterdir()]
        return [int(name.split("-")[1]) for name in names if name.startswith(("journal-", "state-"))]

    def _manifests(self) -> list[Path]:
        return sorted(self.directory.glob("checkpoint-*.json"), reverse=True)

    def _newest(self) -> tuple[Manifest | None, Arena]:
        for path in self._manifests():
            try:
                manifest = read_manifest(path)
                if manifest.machine != self._built:
                    changed = "the scenario, its programs or vpmu itself have changed since"
                    raise GangError(f"{path} is of another run: {changed}")
                for journal in manifest.journals:
                    check_file(self.directory, journal)
                return manifest, self._load(manifest)
            except Damaged as damage:
                _LOG.warning("refused: %s; the checkpoint before it is used", damage)
        return None, self.machine.arena.copy()

    def _load(self, manifest: Manifest) -> Arena:
        """Return the machine's state at a checkpoint: every row from its owner."""
        merge = Merge(self.machine)
        for state in manifest.states:
            install_state(self.directory, state, merge)
        return merge.finish()

    def _cut_back(self, manifest: Manifest | None) -> None:
        """Remove what was written after a checkpoint, and all that is older than the one before it."""
        kept = set()
        for path in self._manifests():
            try:
                each = read_manifest(path)
            except Damaged:
                continue
            if manifest is not None and each.number <= manifest.number:
                kept |= {path.name, *(file.name for file in [*each.states, *each.journals])}
        for path in list(self.directory.iterdir()):
            if path.name not in kept:
                path.unlink()
        for journal in self._before:
            os.truncate(self.directory / journal.name, journal.size)

    def take(self, rank: int, data: bytes) -> None:
        """Take what a rank tells of its part; complete the checkpoint once all have.

        Raises
        ------
        RemoteProtocolError
            If it is no such note, or does not fit the others'.
        """
        try:
            note = msgspec.msgpack.decode(data, type=Note)
        except msgspec.MsgspecError as error:
            raise RemoteProtocolError(f"bad note of a checkpoint: {error}") from None
        names = state_name(note.number, self._attempt, rank), journal_name(self._attempt, rank)
        if (note.state.name, note.journal.name) != names:
            raise RemoteProtocolError("a note of a checkpoint about another's files")
        notes = self._notes.setdefault(note.number, {})
        first = next(iter(notes.values()), note)
        if rank in notes or (note.at_ns, note.ranks, note.due) != (first.at_ns, first.ranks, first.due):
            raise RemoteProtocolError("a note of a checkpoint that does not fit the others'")
        notes[rank] = note
        if len(notes) == note.ranks:
            self._complete(self._notes.pop(note.number))

    def _complete(self, notes: dict[int, Note]) -> None:
        by_rank = [notes[rank] for rank in sorted(notes)]
        manifest = Manifest(
            by_rank[0].number,
            by_rank[0].at_ns,
            self._attempt,
            self._built,
            [note.state for note in by_rank],
            self._before + [note.journal for note in by_rank],
            by_rank[0].due,
        )
        write_manifest(self.directory / f"checkpoint-{manifest.number:08d}.json", manifest)
        self._remove_old()

    def _remove_old(self) -> None:
        for path in self._manifests()[KEPT:]:
            number = int(path.stem.split("-")[1])
            path.unlink()
            for state in self.directory.glob(f"state-*-*-{number}"):
                state.unlink()

    def records(self, last: Iterable[FileNote]) -> Iterator[U64Array]:
        """Yield all records of the run, those of the attempt that came to the end being in `last`.

        Raises
        ------
        GangError
            If a journal is not as it was written.
        """
        try:
            for note in [*self._before, *last]:
                yield from self._journal(note)
        except Damaged as damage:
            raise GangError(str(damage)) from None

    def _journal(self, note: FileNote) -> Iterator[U64Array]:
        """Yield a journal's records, not all at once: it may be longer than memory."""
        check_file(self.directory, note)
        path, piece = self.directory / note.name, RECORD_WORDS * proto.WORD_BYTES * _PIECE_RECORDS
        for offset in range(0, note.size, piece):
            nr_words = min(piece, note.size - offset) // proto.WORD_BYTES
            data = np.fromfile(path, dtype=proto.U64_DTYPE, count=nr_words, offset=offset)
            yield data.reshape(-1, RECORD_WORDS)


def check_file(directory: Path, note: FileNote) -> None:
    """Raise Damaged if a file's beginning is not what it was; what was added behind it does not matter."""
    path = directory / note.name
    digest = hashlib.sha256()
    left = note.size
    try:
        with path.open("rb") as file:
            while left and (piece := file.read(min(left, 8 * _PIECE_WORDS))):
                digest.update(piece)
                left -= len(piece)
    except FileNotFoundError:
        raise Damaged(f"{path} is missing") from None
    if left:
        raise Damaged(f"{path} is {left} bytes short")
    if digest.hexdigest() != note.sha256:
        raise Damaged(f"{path} is not what was written: its SHA-256 is another")


def install_state(directory: Path, note: FileNote, merge: Merge) -> None:
    """Add what a rank has written to a merge; Damaged if the file is not what it was."""
    check_file(directory, note)
    path = directory / note.name
    with path.open("rb") as file:
        magic, version, nr_ranges, nr_actions, accesses = _HEAD.unpack(file.read(_HEAD.size))
        if magic != _MAGIC or version != FORMAT:
            raise Damaged(f"{path} has format {version}, this is {FORMAT}")
        ranges = np.fromfile(file, proto.U64_DTYPE, 2 * nr_ranges).reshape(-1, 2)
        merge.add(np.fromfile(file, proto.U64_DTYPE, nr_actions), accesses)
        for offset, length in ranges.tolist():
            try:
                rows = merge.claim(offset, length)
            except ValueError as error:
                raise Damaged(f"{path}: {error}") from None
            if file.readinto(rows.data.cast("B")) != 8 * length:
                raise Damaged(f"{path} ends too early")


def write_manifest(path: Path, manifest: Manifest) -> None:
    """Write a manifest under its name at once, or not at all."""
    body = msgspec.json.encode(manifest)
    part = path.with_name(f".{path.name}.part")
    with part.open("wb") as file:
        file.write(
            msgspec.json.encode(_Envelope(FORMAT, hashlib.sha256(body).hexdigest(), msgspec.Raw(body)))
        )
        file.flush()
        os.fsync(file.fileno())
    part.replace(path)


def read_manifest(path: Path) -> Manifest:
    """Return the manifest of a file; Damaged if it is none, of another format, or not what was written."""
    try:
        envelope = msgspec.json.decode(path.read_bytes(), type=_Envelope)
    except (msgspec.MsgspecError, ValueError) as error:
        raise Damaged(f"{path} is no manifest: {error}") from None
    if envelope.format != FORMAT:
        raise Damaged(f"{path} has format {envelope.format}, this is {FORMAT}")
    if hashlib.sha256(bytes(envelope.checkpoint)).hexdigest() != envelope.sha256:
        raise Damaged(f"{path} is not what was written: its SHA-256 is another")
    return msgspec.json.decode(envelope.checkpoint, type=Manifest)
