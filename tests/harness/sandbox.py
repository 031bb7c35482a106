"""A process with network, mount and process namespaces of its own: whatever a world does is gone when it ends."""

from __future__ import annotations

import contextlib
import ctypes
import os
import pickle
import select
import signal
import subprocess
import sys
import traceback
from typing import TYPE_CHECKING, Any, TypeVar

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

T = TypeVar("T")
_NEWNET, _NEWNS, _NEWPID = 0x40000000, 0x00020000, 0x20000000
_REC, _PRIVATE, _BIND, _REMOUNT, _RDONLY, _DETACH = 0x4000, 1 << 18, 0x1000, 0x20, 1, 2
_LIBC = ctypes.CDLL(None, use_errno=True)


class Failed(Exception):
    """The work ended with an exception in the other process; the text is its traceback."""


def _must(result: int, what: str) -> None:
    if result != 0:
        number = ctypes.get_errno()
        raise OSError(number, f"{what}: {os.strerror(number)}")


def mount(source: str, target: str, kind: str = "none", flags: int = 0) -> None:
    """mount(2)."""
    _must(_LIBC.mount(source.encode(), target.encode(), kind.encode(), ctypes.c_ulong(flags), None), f"mount {target}")


def bind(source: str, target: str) -> None:
    """Show a file under another path, too."""
    mount(source, target, flags=_BIND)


def seal(folder: str) -> None:
    """Make what lies under a folder read-only, as container runtimes make /proc/sys."""
    mount(folder, folder, flags=_BIND)
    mount("none", folder, flags=_BIND | _REMOUNT | _RDONLY)


def unmount(target: str) -> None:
    """umount2(2), at once."""
    _must(_LIBC.umount2(target.encode(), _DETACH), f"umount {target}")


def _setns(fd: int) -> None:
    _must(_LIBC.setns(fd, _NEWNET), "setns")


@contextlib.contextmanager
def _back_home() -> Iterator[None]:
    home = os.open("/proc/thread-self/ns/net", os.O_RDONLY | os.O_CLOEXEC)
    try:
        yield
    finally:
        _setns(home)
        os.close(home)


@contextlib.contextmanager
def entered(fd: int) -> Iterator[None]:
    """This process inside the network namespace that `fd` is."""
    with _back_home():
        _setns(fd)
        yield


@contextlib.contextmanager
def fresh_network(*, up: bool = True) -> Iterator[None]:
    """This process inside a new network namespace, which lives on if something holds it. `up`: with its loopback up."""
    with _back_home():
        _must(_LIBC.unshare(_NEWNET), "unshare")
        if up:
            subprocess.run(["ip", "link", "set", "lo", "up"], check=True)
        yield


def inside(work: Callable[[], T], timeout_s: float = 60, *, all_processes: bool = False) -> T:
    """What `work` returns, run in a process of its own that is init of its process namespace, with a fresh /run.

    `all_processes`: in the machine's process namespace, where every process can be seen. Raises Failed with its traceback, or when it is not done in time. All it started ends with it.
    """
    reader, writer = os.pipe()
    pid = os.fork()
    if pid == 0:
        os.close(reader)
        _outer(work, writer, 0 if all_processes else _NEWPID)
    os.close(writer)
    data = b""
    try:
        with open(reader, "rb", buffering=0) as stream:
            while select.select([stream], [], [], timeout_s)[0]:
                chunk = stream.read(1 << 20)
                if not chunk:
                    break
                data += chunk
    finally:
        if not data:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(pid, signal.SIGKILL)
        os.waitpid(pid, 0)
    if not data:
        raise Failed(f"not done within {timeout_s:g} s, or ended without an answer")
    good, value = pickle.loads(data)
    if not good:
        raise Failed(value)
    result: T = value
    return result


def _outer(work: Callable[[], Any], writer: int, processes: int) -> None:
    """The first child: it makes the namespaces, and waits for the one that lives in them."""
    status = 1
    try:
        os.setsid()
        signal.signal(signal.SIGINT, signal.SIG_DFL)
        signal.setitimer(signal.ITIMER_REAL, 0)
        _must(_LIBC.unshare(_NEWNET | _NEWNS | processes), "unshare")
        inner = os.fork()
        if inner == 0:
            _inner(work, writer)
        os.close(writer)
        os.waitpid(inner, 0)
        if not processes:
            _end_companions()
        status = 0
    except BaseException:  # noqa: BLE001 - this process is a copy of the tests': it must not go on as them
        traceback.print_exc()
    finally:
        os._exit(status)


def _end_companions() -> None:
    """End every process that has this one's mount namespace: what the work has started."""
    own = os.readlink("/proc/self/ns/mnt")
    for name in os.listdir("/proc"):
        if name.isdigit() and int(name) != os.getpid():
            with contextlib.suppress(OSError):
                if os.readlink(f"/proc/{name}/ns/mnt") == own:
                    os.kill(int(name), signal.SIGKILL)


def _inner(work: Callable[[], Any], writer: int) -> None:
    try:
        mount("none", "/", flags=_REC | _PRIVATE)
        mount("proc", "/proc", "proc")
        mount("tmpfs", "/run", "tmpfs")
        os.mkdir("/run/netns")
        subprocess.run(["ip", "link", "set", "lo", "up"], check=True)
        answer: tuple[bool, Any] = (True, work())
    except BaseException:  # noqa: BLE001 - the other side raises it
        answer = (False, traceback.format_exc())
    with contextlib.suppress(BaseException), open(writer, "wb") as stream:
        stream.write(pickle.dumps(answer))
    sys.stderr.flush()
    os._exit(0)
