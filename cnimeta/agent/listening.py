"""The agent's socket: its own path, or one that systemd listens on, or the one of the agent it has been a moment ago.

A path has one agent: it holds a record lock on the file beside it, which its forks do not inherit and which ends with
it. The socket is bound under a name of its own and renamed into place, so that nobody meets one that does not listen
yet; it is removed at the end only when it still is the one that was put there.
"""

from __future__ import annotations

import fcntl
import os
import re
import socket
import stat

from cnimeta.errors import IoFailure

_BACKLOG = 4096
_PASSED = 3  # sd_listen_fds(3): the first descriptor that is passed on
_OWNED = "CNIMETA_AGENT_OWNS"


class Listening:
    """A socket that listens. `path` is what launchers connect to."""

    def __init__(self, listener: socket.socket, path: str, owned: str = "", lock: int = -1) -> None:
        self.socket = listener
        self.path = path
        self._owned = owned
        """Device and inode of the path, when it is ours to remove."""
        self._lock = lock
        listener.setblocking(False)

    def close(self) -> None:
        """Listen no more. Who has connected and was not served works alone."""
        if self._owned and _inode(self.path) == self._owned:
            os.unlink(self.path)
        self.socket.close()
        if self._lock >= 0:
            os.close(self._lock)

    def pass_on(self) -> dict[str, str]:
        """Leave the socket to the program that this process becomes; the environment that tells it so."""
        os.dup2(self.socket.fileno(), _PASSED, inheritable=True)
        if self.socket.fileno() == _PASSED:
            os.set_inheritable(_PASSED, True)
        return {"LISTEN_FDS": "1", "LISTEN_PID": str(os.getpid()), _OWNED: self._owned}


def listen(path: str) -> Listening:
    """The socket passed to this process, if one is, or one of its own at `path`. Raises IoFailure (code 5)."""
    passed = os.environ.pop("LISTEN_FDS", "0"), os.environ.pop("LISTEN_PID", "")
    owned = os.environ.pop(_OWNED, "")
    try:
        if passed[1] == str(os.getpid()) and passed[0] != "0":
            return _passed(path, owned)
        return _bound(path)
    except OSError as error:
        raise IoFailure(f"cannot listen on {path}: {error.strerror or error}") from None


def _passed(path: str, owned: str) -> Listening:
    os.set_inheritable(_PASSED, False)
    listener = socket.socket(fileno=_PASSED)
    if listener.family != socket.AF_UNIX or not listener.getsockopt(socket.SOL_SOCKET, socket.SO_ACCEPTCONN):
        raise IoFailure("descriptor 3 was passed to the agent, but is no unix socket that listens")
    if owned:
        return Listening(listener, path, owned, _locked(path))
    return Listening(listener, str(listener.getsockname()))


def _bound(path: str) -> Listening:
    folder = os.path.dirname(path)
    os.makedirs(folder, mode=0o700, exist_ok=True)
    found = os.lstat(folder)
    if not stat.S_ISDIR(found.st_mode) or found.st_uid != os.geteuid() or found.st_mode & 0o022:
        raise IoFailure(f"{folder} must be a folder of this user, and nobody else may write to it")
    lock = _locked(path)
    if _inode(path) and not stat.S_ISSOCK(os.lstat(path).st_mode):
        raise IoFailure(f"{path} is there and is no socket; it is left alone")
    _remove_unfinished(path)
    private = f"{path}.{os.getpid()}"
    listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    try:
        listener.bind(private)
        os.chmod(private, 0o600)
        listener.listen(_BACKLOG)
        owned = _inode(private)
        os.rename(private, path)
    except OSError:
        listener.close()
        raise
    return Listening(listener, path, owned, lock)


def _locked(path: str) -> int:
    """The lock of the path. The file is never removed: a removed lock file has two holders."""
    flags = os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW | os.O_NONBLOCK
    lock = os.open(f"{path}.lock", flags, 0o600)
    try:
        fcntl.lockf(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except (BlockingIOError, PermissionError):
        os.close(lock)
        raise IoFailure(f"another agent serves {path}") from None
    return lock


def _remove_unfinished(path: str) -> None:
    """What an agent left that was killed between binding and renaming."""
    folder, name = os.path.split(path)
    for other in os.listdir(folder):
        if re.fullmatch(re.escape(name) + r"\.\d+", other) and stat.S_ISSOCK(os.lstat(f"{folder}/{other}").st_mode):
            os.unlink(f"{folder}/{other}")


def _inode(path: str) -> str:
    """device:inode; empty when nothing is there."""
    try:
        found = os.lstat(path)
    except FileNotFoundError:
        return ""
    return f"{found.st_dev}:{found.st_ino}"
