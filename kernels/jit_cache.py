"""Where compiled kernels are kept: one directory per state of the kernels' sources.

numba's own cache looks only at the file that holds a function, so it misses a change in a function that is
called from another file. Therefore each cache directory is keyed by a hash of all sources, and directories
that nobody uses any more are pruned. Nothing here imports numba.
"""

import atexit
import fcntl
import hashlib
import os
import re
import shutil
import sys
import tempfile
import warnings
from collections.abc import Iterable
from functools import cache
from pathlib import Path

KEPT_KEYS = 4
"""How many directories of other source states survive: a branch switch and back stays warm."""

_KEY = re.compile(r"[0-9a-f]{16}")
_LOCK_NAME = ".in-use"


def source_key(sources: Iterable[Path], *versions: str) -> str:
    """Hash source files and version strings to a cache key.

    Parameters
    ----------
    sources
        Files whose text decides what the compiled code does; their order does not matter.
    *versions
        What else decides it: numba's version, Python's.

    Returns
    -------
    str
        16 hexadecimal digits.
    """
    digest = hashlib.sha256(repr(versions).encode())
    for path in sorted(sources):
        text = path.read_bytes()
        digest.update(f"\0{path.name}\0{len(text)}\0".encode())
        digest.update(text)
    return digest.hexdigest()[:16]


def python_version() -> str:
    """Name the interpreter as far as compiled code depends on it, e.g. ``cpython-311 3.11.7``."""
    return f"{sys.implementation.cache_tag} {sys.version.split()[0]}"


def cache_root() -> Path:
    """Return the folder of all source states: ``$XDG_CACHE_HOME/vpmu`` or ``~/.cache/vpmu``."""
    base = os.environ.get("XDG_CACHE_HOME", "")
    # The XDG base directory specification: a relative path is invalid and is ignored.
    home = Path(base) if os.path.isabs(base) else Path(os.path.expanduser("~/.cache"))
    return home / "vpmu"


def chosen_by_user() -> Path | None:
    """Return the directory that the user named by VPMU_CACHE_DIR or else NUMBA_CACHE_DIR, if any.

    Such a directory is used as it is: no key, no pruning. Who names one (an image, a shared file system) has
    to keep it in step with the sources.
    """
    for variable in ("VPMU_CACHE_DIR", "NUMBA_CACHE_DIR"):
        if value := os.environ.get(variable):
            return _made_writable(Path(value).absolute(), variable)
    return None


@cache
def _made_writable(directory: Path, variable: str) -> Path:
    try:
        directory.mkdir(parents=True, exist_ok=True)
        # numba passes over a directory that it cannot write to, even if all it wants lies there.
        tempfile.TemporaryFile(dir=directory).close()
    except OSError as error:
        return _fallback(directory, error, f"Set {variable} to a directory you can write.")
    return directory


def open_cache(key: str, root: Path) -> Path:
    """Create the key's directory, hold it against pruning for this process's life, and prune old ones.

    Parameters
    ----------
    key
        A result of `source_key`.
    root
        The folder of all source states; created when absent.

    Returns
    -------
    Path
        The directory to compile into; if it cannot be written, a temporary one, with a warning.
    """
    try:
        directory = _hold(root / key)
    except OSError as error:
        return _fallback(root / key, error, "Set VPMU_CACHE_DIR to a directory you can write.")
    prune(root, keep=key)
    return directory


def _fallback(refused: Path, error: OSError, advice: str) -> Path:
    """Make a fresh temporary directory, removed when the process ends, and say that every start now compiles.

    Note: it is fresh on purpose. What lies in the cache is executed, so a well-known name in a folder that
    others can write to is not to be trusted.
    """
    directory = Path(tempfile.mkdtemp(prefix="vpmu-cache-"))
    owner = os.getpid()

    def remove() -> None:
        if os.getpid() == owner:  # a forked child runs the hook, too
            shutil.rmtree(directory, ignore_errors=True)

    atexit.register(remove)
    warnings.warn(
        f"cannot keep compiled kernels in {refused} ({error.strerror or error}); they are compiled anew by "
        f"each process, which takes a while. {advice}",
        RuntimeWarning,
        stacklevel=2,
    )
    return directory


def _hold(directory: Path) -> Path:
    """Create a directory and share-lock it until the process ends, so that no pruner takes it away."""
    while True:
        directory.mkdir(parents=True, exist_ok=True)
        lock = directory / _LOCK_NAME
        handle = os.open(lock, os.O_RDWR | os.O_CREAT, 0o600)
        fcntl.flock(handle, fcntl.LOCK_SH)
        if _is_same_file(lock, handle):
            tempfile.TemporaryFile(dir=directory).close()  # raises where it cannot be written
            os.utime(directory)
            return directory
        os.close(handle)  # a pruner moved it between mkdir and flock: make it anew


def _is_same_file(path: Path, handle: int) -> bool:
    try:
        return os.path.samestat(os.stat(path), os.fstat(handle))
    except FileNotFoundError:
        return False


def prune(root: Path, keep: str) -> list[Path]:
    """Remove directories of old source states that no process uses.

    Parameters
    ----------
    root
        The folder of all source states.
    keep
        The key in use; it stays whatever its age.

    Returns
    -------
    list of Path
        What was removed: all but the `KEPT_KEYS` most recently opened, less those that a live process holds.
    """
    found = [path for path in root.iterdir() if _KEY.fullmatch(path.name) and path.name != keep]
    by_age = sorted(found, key=_opened_ns, reverse=True)
    return [path for path in by_age[KEPT_KEYS - 1 :] if _remove_unless_held(path)]


def _opened_ns(path: Path) -> int:
    try:
        return path.stat().st_mtime_ns
    except FileNotFoundError:  # another process pruned it meanwhile
        return 0


def _remove_unless_held(directory: Path) -> bool:
    """Remove a directory if its lock is free; say whether it was removed."""
    try:
        handle = os.open(directory / _LOCK_NAME, os.O_RDWR)
    except OSError:
        return False  # not made by `open_cache`, or gone already: not ours to remove
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        # Renamed under the lock: whoever waits for it sees that the path leads elsewhere, and starts anew.
        trash = directory.with_name(f"{directory.name}.pruned-{os.getpid()}")
        directory.rename(trash)
    except OSError:
        return False
    finally:
        os.close(handle)
    shutil.rmtree(trash, ignore_errors=True)
    return True
