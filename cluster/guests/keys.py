"""The CURVE keys of hosts and their remote guests, as files: whoever has the guests' may be a guest."""

from __future__ import annotations

import os
import tomllib
from pathlib import Path
from typing import Any, Final, TypeVar

import msgspec
import zmq

SERVE_KEY: Final = "serve.key"
GUEST_KEY: Final = "guest.key"
_KEY_LENGTH: Final = 40
"""Of a CURVE key in Z85."""


class ServeKey(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """A host's pair, and the public key of its guests; keys are 40 characters of Z85."""

    public: str
    secret: str
    guest: str

    def __repr__(self) -> str:
        """Leave the secret out: this may stand in a traceback."""
        return f"ServeKey(public={self.public!r})"


class GuestKey(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """The guests' pair, and the public key of their host."""

    public: str
    secret: str
    host: str

    def __repr__(self) -> str:
        """Leave the secret out: this may stand in a traceback."""
        return f"GuestKey(public={self.public!r})"

    def secure(self, dealer: zmq.Socket[Any]) -> None:
        """Make a DEALER, not connected yet, CURVE's."""
        dealer.curve_publickey = self.public.encode()
        dealer.curve_secretkey = self.secret.encode()
        dealer.curve_serverkey = self.host.encode()


def write_guest_keys(directory: Path) -> list[Path]:
    """Draw a pair for a host and one for its guests; return the files, which only the owner reads.

    Raises
    ------
    FileExistsError
        If one is there already: whoever has the old ones would be locked out.
    """
    host, host_secret = (key.decode() for key in zmq.curve_keypair())
    guest, guest_secret = (key.decode() for key in zmq.curve_keypair())
    texts = {
        SERVE_KEY: {"public": host, "secret": host_secret, "guest": guest},
        GUEST_KEY: {"public": guest, "secret": guest_secret, "host": host},
    }
    return [_write(directory / name, text) for name, text in texts.items()]


def read_serve_key(file: Path) -> ServeKey:
    """Return a host's key; ValueError says what is wrong with the file."""
    return _read(file, ServeKey)


def read_guest_key(file: Path) -> GuestKey:
    """Return the guests' key; else as `read_serve_key`."""
    return _read(file, GuestKey)


_Key = TypeVar("_Key", ServeKey, GuestKey)


def _write(file: Path, keys: dict[str, str]) -> Path:
    """Write a new file that others cannot read, not even for a moment; no key has a quote or a backslash."""
    text = "".join(f'{name} = "{key}"\n' for name, key in keys.items())
    with open(os.open(file, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "w") as out:
        out.write(text)
    return file


def _read(file: Path, kind: type[_Key]) -> _Key:
    try:
        keys = msgspec.convert(tomllib.loads(file.read_text()), kind)
    except (msgspec.ValidationError, tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise ValueError(f"{file} is no key of `vpmu cluster keys`: {error}") from None
    if any(len(key) != _KEY_LENGTH for key in msgspec.structs.astuple(keys)):
        raise ValueError(f"{file} is no key of `vpmu cluster keys`: a key has {_KEY_LENGTH} characters")
    return keys
