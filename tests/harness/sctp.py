"""SCTP without the kernel's: an INIT from a raw socket, and raw sockets that tell where it arrives. Nobody answers."""

from __future__ import annotations

import socket
import struct

PROTOCOL = 132


def init_from(port: int, to: int) -> bytes:
    """An INIT chunk's packet, whose checksum holds: conntrack looks at it."""
    chunk = struct.pack(">BBHIIHHI", 1, 0, 20, 0x1234, 65535, 1, 1, 1)
    head = struct.pack(">HHI", port, to, 0)
    return head + struct.pack("<I", _crc32c(head + bytes(4) + chunk)) + chunk


def ports_of(packet: bytes, family: int) -> tuple[int, int]:
    """Source and destination port of what a raw socket received: with its header in IPv4."""
    offset = (packet[0] & 15) * 4 if family == socket.AF_INET else 0
    source, to = struct.unpack_from(">HH", packet, offset)
    return source, to


def _crc32c(data: bytes) -> int:
    crc = 0xFFFFFFFF
    for byte in data:
        crc ^= byte
        for _ in range(8):
            crc = crc >> 1 ^ (0x82F63B78 if crc & 1 else 0)
    return crc ^ 0xFFFFFFFF
