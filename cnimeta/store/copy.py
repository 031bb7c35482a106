"""Reading a database whose disk takes no writes: from a copy, since SQLite has to write beside one with a log."""

from __future__ import annotations

import os

from cnimeta.host.owned import own_open
from cnimeta.store.engine import sqlite as _sqlite3

_PLACES = ("/run", "/dev/shm", "/tmp")  # noqa: S108 - the folder made there is this process's alone
_SIZE_MAX = 1 << 30
_CHUNK_BYTES = 1 << 20
_ATTEMPTS = 5


def in_memory(path: str, log: str) -> _sqlite3.Connection:
    """The contents of a database and its log, in memory. Raises OSError, NotOurs, sqlite's DatabaseError.

    No connection of this process may have the database open: to close any descriptor of a file drops the locks that
    SQLite has on it (https://www.sqlite.org/howtocorrupt.html).
    """
    folder = _private_folder()
    copies = [os.path.join(folder, name) for name in ("copy", "copy-wal")]
    try:
        _copy_both((path, log), copies)
        source = _sqlite3.connect(copies[0], isolation_level=None)
        try:
            source.execute("PRAGMA journal_mode=DELETE").fetchall()
            memory = _sqlite3.connect(":memory:", isolation_level=None)
            source.backup(memory)
        finally:
            source.close()
    finally:
        for name in os.listdir(folder):
            os.unlink(os.path.join(folder, name))
        os.rmdir(folder)
    return memory


def _private_folder() -> str:
    for place in _PLACES:
        folder = os.path.join(place, f"cnimeta-copy-{os.getpid()}-{os.urandom(8).hex()}")
        try:
            os.mkdir(folder, 0o700)
        except OSError:  # refused: the next place
            continue
        return folder
    raise OSError(f"none of {', '.join(_PLACES)} takes a copy")


def _copy_both(sources: tuple[str, str], targets: list[str]) -> None:
    """Copy database and log as they were at one moment: others may still write, where only this process cannot."""
    for _ in range(_ATTEMPTS):
        before = [_state(source) for source in sources]
        for source, target in zip(sources, targets, strict=True):
            _copy(source, target)
        if [_state(source) for source in sources] == before:
            return
    raise OSError(f"{sources[0]} changed while it was copied")


def _state(path: str) -> tuple[int, ...]:
    try:
        found = os.lstat(path)
    except FileNotFoundError:
        return ()
    return found.st_dev, found.st_ino, found.st_size, found.st_mtime_ns


def _copy(source: str, target: str) -> None:
    """Copy a file; a missing one leaves none."""
    try:
        descriptor = own_open(source, os.O_RDONLY)
    except FileNotFoundError:
        if os.path.exists(target):  # unknown: as without a log, which reading tells
            os.unlink(target)
        return
    with open(descriptor, "rb", buffering=0) as file, open(target, "wb", buffering=0) as copy:
        if os.fstat(descriptor).st_size > _SIZE_MAX:
            raise OSError(f"{source} is larger than {_SIZE_MAX} bytes")
        while chunk := file.read(_CHUNK_BYTES):
            rest = memoryview(chunk)
            while rest:
                rest = rest[copy.write(rest) :]
