"""Which ports the node's own sockets use: inet_diag or else /proc/net for all of them, a bind and listen for one.

inet_diag leaves out the connections in TIME_WAIT, of which a busy proxy has tens of thousands; a kernel may lack it.

The probe of a port, and why it is made so (net/ipv4/inet_connection_sock.c, inet_csk_bind_conflict):
- TCP binds with SO_REUSEADDR, so that connections in TIME_WAIT do not count, and listens, since two such sockets may
  both bind as long as neither listens; UDP binds without it, for with it a conflict would be hidden;
- IPv4 and IPv6 are bound separately with IPV6_V6ONLY: a v4 bind does not see a v6-only listener;
- a filter that drops everything is attached before the bind, so no client is ever accepted and then cut off.
Without SO_REUSEADDR, a bind of TCP meets every socket that has the port, those in TIME_WAIT too.
"""

from __future__ import annotations

import errno
import os
from _socket import (
    AF_INET,
    AF_INET6,
    IPPROTO_IPV6,
    IPPROTO_TCP,
    IPPROTO_UDP,
    IPV6_V6ONLY,
    SO_REUSEADDR,
    SOCK_CLOEXEC,
    SOCK_DGRAM,
    SOCK_STREAM,
    SOL_SOCKET,
    socket,
)
from struct import pack, unpack_from

from cnimeta.errors import IoFailure, shown
from cnimeta.host import netlink
from cnimeta.host.netlink import DUMP
from cnimeta.host.reading import read_file, read_setting, retried, told

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterable

    from cnimeta.host.netlink import Ask, Connect

_IPPROTO_SCTP = 132
_SO_ATTACH_FILTER = 26
_DROP_ALL = pack("HBBI", 0x06, 0, 0, 0)  # BPF_RET | BPF_K, accept 0 bytes (linux/filter.h)
_TIME_WAIT = 6
_ALL_BUT_TIME_WAIT = 0xFFF & ~(1 << _TIME_WAIT)
_SOCK_DIAG, _DIAG_BY_FAMILY = 4, 20
_NO_DIAG = (errno.ENOENT, errno.EOPNOTSUPP, errno.EPROTONOSUPPORT)
"""No inet_diag for this family or protocol in the kernel, or no netlink for it at all (linux/sock_diag.h)."""
EPHEMERAL = (32768, 60999)  # the kernel's default, for a host that hides the setting
_FAMILY_MISSING = (errno.EAFNOSUPPORT, errno.EADDRNOTAVAIL, errno.EPROTONOSUPPORT, errno.ESOCKTNOSUPPORT)


class NodeSockets:
    """The Sockets adapter, for the network namespace of the calling thread."""

    def __init__(self, proc: str = "/proc", ask: Ask = netlink.ask, connect: Connect = socket) -> None:
        self._net = f"{proc}/thread-self/net"
        self._settings = f"{proc}/sys/net/ipv4"
        self._ask = ask
        self._connect = connect

    def in_use(self) -> Iterable[tuple[str, int]]:
        """(protocol, local port) of every socket but those in TIME_WAIT. Raises IoFailure (code 5)."""
        found = self._from_diag()
        return (self._from_proc() if found is None else found) | self._sctp()

    def _from_diag(self) -> set[tuple[str, int]] | None:
        """None where the kernel has no inet_diag."""
        found: set[tuple[str, int]] = set()
        for family in (AF_INET, AF_INET6):
            for protocol, number in (("tcp", IPPROTO_TCP), ("udp", IPPROTO_UDP)):
                ports = self._ports(f"the node's {protocol} sockets", family, number)
                if ports is None:
                    return None
                found.update((protocol, port) for port in ports if port)
        return found

    @netlink.understood("the node's sockets")
    def _ports(self, what: str, family: int, protocol: int) -> set[int] | None:
        body = pack("=BBBxI48x", family, protocol, 0, _ALL_BUT_TIME_WAIT)
        messages = told(what, lambda: self._ask(_SOCK_DIAG, _DIAG_BY_FAMILY, DUMP, body), _NO_DIAG)
        return None if messages is None else {unpack_from(">H", message.body, 4)[0] for message in messages}

    def _from_proc(self) -> set[tuple[str, int]]:
        found = set()
        for table in ("tcp", "tcp6", "udp", "udp6"):
            protocol, closing = table[:3], b"%02X" % _TIME_WAIT if table.startswith("tcp") else b""
            for line in self._lines(f"{self._net}/{table}", needed=not table.endswith("6")):
                fields = line.split(None, 4)  # sl, local address:port, remote, state
                if fields[3] != closing:
                    found.add((protocol, int(fields[1].rpartition(b":")[2], 16)))
        return found

    def _sctp(self) -> set[tuple[str, int]]:
        found = set()
        for table in ("eps", "assocs"):
            path = f"{self._net}/sctp/{table}"
            heading = self._lines(path, heading=True)
            columns = heading[0].split() if heading else [b"LPORT"]
            if b"LPORT" not in columns:
                raise IoFailure(f"cannot read {path}: it has no column LPORT")
            place = columns.index(b"LPORT")
            for line in heading[1:]:
                fields = line.split()
                if len(fields) > place and fields[place].isdigit():
                    found.add(("sctp", int(fields[place])))
        return found

    def reserved(self) -> Iterable[tuple[int, int]]:
        """Spans of net.ipv4.ip_local_reserved_ports. Raises IoFailure (code 5)."""
        spans = []
        path = f"{self._settings}/ip_local_reserved_ports"
        data = told(path, lambda: retried(lambda: read_setting(path)))
        for line in (data or b"").splitlines():
            for part in line.split(b","):
                if part.strip():
                    numbers = _numbers("ip_local_reserved_ports", part.split(b"-"))
                    spans.append((numbers[0], numbers[-1]))
        return spans

    def ephemeral(self) -> tuple[int, int]:
        """net.ipv4.ip_local_port_range. Raises IoFailure (code 5)."""
        for line in self._lines(f"{self._settings}/ip_local_port_range", heading=True):
            first, last = _numbers("ip_local_port_range", line.split(), least=2)
            return first, last
        return EPHEMERAL

    def can_listen(self, protocol: str, port: int) -> bool:
        """Whether the port can be bound and listened on, IPv4 and IPv6. Raises IoFailure (code 5)."""
        return self._probed(protocol, port, alone=False)

    def is_unused(self, protocol: str, port: int) -> bool:
        """Whether no socket at all has the port, IPv4 and IPv6. Raises IoFailure (code 5).

        A bind that shares with nobody tells, in 0.05 ms. `in_use` makes the kernel go through its tables of all the
        node's connections, which takes it 3 ms and more, however few there are.
        """
        return self._probed(protocol, port, alone=True)

    def _probed(self, protocol: str, port: int, *, alone: bool) -> bool:
        sctp = f"{self._net}/sctp"
        if protocol == "sctp" and told(sctp, lambda: os.stat(sctp)) is None:
            return True  # no SCTP in this kernel yet; asking for a socket would load it
        return all(_probe(self._connect, family, protocol, port, alone=alone) for family in (AF_INET, AF_INET6))

    @staticmethod
    def _lines(path: str, *, heading: bool = False, needed: bool = False) -> list[bytes]:
        """The lines of a file of the kernel's, the first left out unless asked for; none when there is no such file.

        IoFailure (code 5); also for a missing file that is `needed`.
        """
        data = read_file(path)
        if data is None and needed:
            raise IoFailure(f"cannot read {path}: is /proc there?")
        lines = (data or b"").splitlines()
        return lines if heading else lines[1:]


def _numbers(setting: str, words: list[bytes], least: int = 1) -> list[int]:
    """So many numbers at least, two at most. IoFailure (code 5) for what the kernel does not write."""
    if not least <= len(words) <= 2 or not all(word.strip().isdigit() for word in words):
        raise IoFailure(f"cannot understand net.ipv4.{setting}: {shown(b' '.join(words).decode('ascii', 'replace'))}")
    return [int(word) for word in words]


def _probe(connect: Connect, family: int, protocol: str, port: int, *, alone: bool) -> bool:
    kind = SOCK_DGRAM if protocol == "udp" else SOCK_STREAM
    number = {"tcp": IPPROTO_TCP, "udp": IPPROTO_UDP, "sctp": _IPPROTO_SCTP}[protocol]
    try:
        probe = connect(family, kind | SOCK_CLOEXEC, number)
    except OSError as error:
        if error.errno in _FAMILY_MISSING:
            return True
        raise IoFailure(f"cannot make a {protocol} socket to probe port {port}: {error.strerror}") from None
    try:
        if not alone:  # which does not listen, and takes no datagram that the kernel would not drop as well
            from array import array  # brings `collections` along: 3 ms

            instructions = array("B", _DROP_ALL)
            probe.setsockopt(SOL_SOCKET, _SO_ATTACH_FILTER, pack("HP", 1, instructions.buffer_info()[0]))
        if family == AF_INET6:
            probe.setsockopt(IPPROTO_IPV6, IPV6_V6ONLY, 1)
        if protocol != "udp" and not alone:
            probe.setsockopt(SOL_SOCKET, SO_REUSEADDR, 1)
        probe.bind(("::" if family == AF_INET6 else "0.0.0.0", port))  # noqa: S104 - nothing is ever received
        if protocol != "udp" and not alone:
            probe.listen(1)
    except OSError as error:
        if error.errno in (errno.EADDRINUSE, errno.EACCES):
            return False
        if error.errno in _FAMILY_MISSING:
            return True
        raise IoFailure(f"cannot probe port {port}/{protocol}: {shown(error.strerror)}") from None
    finally:
        probe.close()
    return True
