"""Reading a database whose disk takes no writes: from a copy, since SQLite has to write beside one with a log."""

from __future__ import annotations

import _sqlite3
import os

_PLACES = ("/run", "/dev/shm", "/tmp")  # noqa: S108 - the folder made there is this process's alone
_SIZE_MAX = 1 << 30


def in_memory(path: str, log: str) -> _sqlite3.Connection:
    """The contents of a database and its log, in memory. Raises OSError, sqlite's DatabaseError."""
    folder = _private_folder()
    copies = [os.path.join(folder, name) for name in ("copy", "copy-wal")]
    try:
        _copy(path, copies[0])
        try:
            _copy(log, copies[1])
        except FileNotFoundError:
            pass
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
    failure = FileNotFoundError(f"none of {', '.join(_PLACES)} takes a copy")
    for place in _PLACES:
        folder = os.path.join(place, f"cnimeta-copy-{os.getpid()}-{os.urandom(8).hex()}")
        try:
            os.mkdir(folder, 0o700)
        except OSError:
            continue
        return folder
    raise failure


def _copy(source: str, target: str) -> None:
    fd = os.open(source, os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW | os.O_NONBLOCK)
    with open(fd, "rb", buffering=0) as file, open(target, "xb") as copy:
        if os.fstat(fd).st_size > _SIZE_MAX:
            raise OSError(f"{source} is larger than {_SIZE_MAX} bytes")
        copy.write(file.read())
