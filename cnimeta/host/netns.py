"""Doing something inside another network namespace: this thread goes there and comes back."""

from __future__ import annotations

import errno
import os

from cnimeta.errors import IoFailure, shown
from cnimeta.host.values import NoNamespace

_CLONE_NEWNET = 0x40000000
_OWN = "/proc/thread-self/ns/net"
_NS_GET_NSTYPE = 0xB703  # linux/nsfs.h


def join(descriptor: int) -> None:
    """Go to the namespace (of any kind) of an open /proc/PID/ns file, for good. Raises OSError."""
    _set(descriptor, 0)


def entered(path: str) -> Entered:
    """Run a `with` block in the network namespace at `path`. NoNamespace, or IoFailure (code 5) when it cannot be.

    Sockets opened inside keep working on that namespace afterwards. A thread that cannot come back ends the process:
    to go on in a container's namespace would be worse.
    """
    return Entered(path)


class Entered:
    """What `entered` gives. (`contextlib` costs 3 ms to import, which DEL would have to pay.)"""

    def __init__(self, path: str) -> None:
        self._path = path
        self._home = -1

    def __enter__(self) -> None:
        there = opened(self._path)
        try:
            home = os.open(_OWN, os.O_RDONLY | os.O_CLOEXEC)
            try:
                _set(there, _CLONE_NEWNET)
            except BaseException:
                os.close(home)
                raise
        except OSError as error:
            raise _unable(self._path, error) from None
        finally:
            os.close(there)
        self._home = home

    def __exit__(self, *_: object) -> None:
        home, self._home = self._home, -1
        try:
            _set(home, _CLONE_NEWNET)
        except OSError:  # then: the wrong namespace must not be worked in
            os._exit(70)
        os.close(home)


def made() -> int:
    """A descriptor of a new network namespace, which is gone when nobody has one any more. Raises OSError."""
    home = os.open(_OWN, os.O_RDONLY | os.O_CLOEXEC)
    try:
        _call("unshare", _CLONE_NEWNET)
        try:
            return os.open(_OWN, os.O_RDONLY | os.O_CLOEXEC)
        finally:
            try:
                _set(home, _CLONE_NEWNET)
            except OSError:  # then: as above
                os._exit(70)
    finally:
        os.close(home)


def opened(path: str) -> int:
    """A descriptor of the namespace. A FIFO does not hold us up: it is opened without waiting for a writer."""
    import fcntl

    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK | os.O_NOCTTY)
    except OSError as error:
        if error.errno in (errno.ENOENT, errno.ENOTDIR, errno.ENXIO):  # ENXIO: a socket
            raise NoNamespace(f"there is no network namespace {shown(path)}") from None
        raise _unable(path, error) from None
    except ValueError:  # a NUL byte
        raise NoNamespace(f"there is no network namespace {shown(path)}") from None
    try:
        if fcntl.ioctl(descriptor, _NS_GET_NSTYPE) == _CLONE_NEWNET:
            return descriptor
    except OSError as error:
        if error.errno != errno.ENOTTY:
            os.close(descriptor)
            raise _unable(path, error) from None
    os.close(descriptor)
    raise NoNamespace(f"{shown(path)} is not a network namespace")


def _set(descriptor: int, kind: int) -> None:
    _call("setns", descriptor, kind)


def _call(name: str, *numbers: int) -> None:
    """setns(2), unshare(2)."""
    if hasattr(os, name):  # Python 3.12
        getattr(os, name)(*numbers)
        return
    import ctypes

    try:
        call = getattr(ctypes.CDLL(None, use_errno=True), name)
    except AttributeError:  # the dynamic linker had no memory to look for it
        raise OSError(errno.ENOMEM, os.strerror(errno.ENOMEM)) from None
    if call(*numbers) != 0:
        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number))


def _unable(path: str, error: OSError) -> IoFailure:
    return IoFailure(f"cannot enter the network namespace {shown(path)}: {error.strerror or error}")
