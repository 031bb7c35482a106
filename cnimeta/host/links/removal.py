"""Removing a network interface without waiting for what the kernel does after it.

RTM_DELLINK takes the interface off the node in 0.3 ms: its name and index are free, its queues and filters gone. The
request is answered 10 to 20 ms later, after an RCU grace period, when the last of its memory may be freed; whoever sent
the request sleeps until then (net/core/dev.c, netdev_run_todo). So a child process sends it and sleeps, and we go on
when the kernel announces that the interface is gone.
"""

from __future__ import annotations

import errno
import os
import struct
import time
from _socket import AF_NETLINK, SOCK_CLOEXEC, SOCK_RAW, socket
from _thread import start_new_thread

from cnimeta.host import afterwards
from cnimeta.host.links.rtnetlink import ifinfo, refused
from cnimeta.host.netlink import ACK, ERROR, ROUTE, request, split, tell

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable

_RTM_DELLINK, _RTMGRP_LINK = 17, 1
_LONGEST_WAIT_S = 0.2
_RECEIVE_BYTES = 1 << 16


def send_from_orphan(descriptor: int, message: bytes) -> bool:
    """Fork twice, so that nobody has to wait for the process that sleeps. False where no process can be made.

    Once, in a process that ends soon itself; where nobody waits for that end, a thread does.
    """
    if afterwards.may_linger():
        return _sent_by_thread(os.dup(descriptor), message)
    ending = afterwards.holding()
    try:
        child = os.fork()
    except OSError:  # refused: this process waits itself
        return False
    if child == 0:
        _in_child(descriptor, message, twice=not ending)
    if ending:
        return True
    try:
        return os.waitpid(child, 0)[1] == 0
    except ChildProcessError:  # whoever runs us ignores SIGCHLD: the wait for it to be announced tells
        return True


def remove_link(index: int, name: str, send: Callable[[int, bytes], bool] = send_from_orphan) -> None:
    """Remove an interface; missing is fine. Raises IoFailure (code 5), naming it by `name`.

    send: has the message sent on a descriptor by somebody else, and says whether it could.
    """
    try:
        if not _removed_by_other(index, send):
            tell(ROUTE, [(_RTM_DELLINK, 0, ifinfo(index))])
    except OSError as error:
        if error.errno != errno.ENODEV:
            raise refused("remove", name, error) from None


def _removed_by_other(index: int, send: Callable[[int, bytes], bool]) -> bool:
    """Whether the kernel announced it in time. Raises OSError when it refused."""
    link = socket(AF_NETLINK, SOCK_RAW | SOCK_CLOEXEC, ROUTE)
    try:
        link.bind((0, _RTMGRP_LINK))
        if not send(link.fileno(), request(1, _RTM_DELLINK, ACK, ifinfo(index))):
            return False
        return _announced(link, index)
    finally:
        link.close()


def _sent_by_thread(descriptor: int, message: bytes) -> bool:
    """A fork would have to be given every page again that this process writes to."""

    def send() -> None:
        try:
            os.write(descriptor, message)
        except OSError:  # unknown: that nothing is announced tells
            pass
        finally:
            os.close(descriptor)

    try:
        start_new_thread(send, ())
    except RuntimeError:  # there can be none
        os.close(descriptor)
        return False
    return True


def _in_child(descriptor: int, message: bytes, *, twice: bool) -> None:
    """Never returns. The orphan holds nothing that another waits for: no pipe, no lock, no working directory."""
    status = 1
    try:
        if not twice or os.fork() == 0:
            os.dup2(descriptor, 0)
            os.closerange(1, 1 << 16)
            os.chdir("/")
            os.write(0, message)
        status = 0
    finally:
        os._exit(status)


def _announced(link: socket, index: int) -> bool:
    """Wait for the announcement. An announcement that was lost among many others shows as a wait that ends."""
    until = time.monotonic() + _LONGEST_WAIT_S
    while (left := until - time.monotonic()) > 0:
        link.settimeout(left)
        try:
            data = link.recv(_RECEIVE_BYTES)
        except (TimeoutError, OSError):  # unknown: the request is sent from here as well
            return False
        for kind, _, body in split(data):
            if kind == ERROR:
                number = -struct.unpack_from("=i", body)[0]
                if number:
                    raise OSError(number, "netlink request refused")
                return True
            if kind == _RTM_DELLINK and struct.unpack_from("=i", body, 4)[0] == index:
                return True
    return False
