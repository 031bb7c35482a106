"""A small eBPF program on `clsact`, as eBPF network plugins have theirs there. Kernel: Documentation/bpf."""

from __future__ import annotations

import ctypes
import os
import struct

_SYS_BPF, _PROG_LOAD, _SCHED_CLS = 321, 5, 3
_DROP, _DIRECT_ACTION = 2, 1
_CLSACT, _CLSACT_PARENT, _ARRIVING = 0xFFFF0000, 0xFFFFFFF1, 0xFFFFFFF2
PASS_ON = -1
"""TC_ACT_UNSPEC: filters of later priorities decide."""
ACCEPT = 0
"""TC_ACT_OK: no further filter is asked."""


def drop_length(device: str, length: int, otherwise: int) -> None:
    """Attach, at priority 1, a program that drops arriving frames of `length` bytes and returns `otherwise` for all."""
    from pyroute2 import IPRoute

    program = _load(length, otherwise)
    try:
        with IPRoute() as route:
            index = route.link_lookup(ifname=device)[0]
            route.tc("add", "clsact", index, handle=_CLSACT, parent=_CLSACT_PARENT)
            keys = {"fd": program, "name": "drop_length", "flags": _DIRECT_ACTION}
            route.tc("add-filter", "bpf", index, parent=_ARRIVING, prio=1, protocol=3, **keys)
    finally:
        os.close(program)


def _load(length: int, otherwise: int) -> int:
    code = b"".join(
        struct.pack("<BBhi", *instruction)
        for instruction in (
            (0x61, 0x12, 0, 0),  # r2 = skb->len
            (0x55, 0x02, 2, length),  # if r2 != length: skip two
            (0xB7, 0x00, 0, _DROP),
            (0x95, 0x00, 0, 0),
            (0xB7, 0x00, 0, otherwise),
            (0x95, 0x00, 0, 0),
        )
    )
    text, licence = ctypes.create_string_buffer(code), ctypes.create_string_buffer(b"Apache-2.0")
    keys = struct.pack("<IIQQ", _SCHED_CLS, len(code) // 8, ctypes.addressof(text), ctypes.addressof(licence))
    request = ctypes.create_string_buffer(keys + bytes(96))
    number = ctypes.CDLL(None, use_errno=True).syscall(_SYS_BPF, _PROG_LOAD, request, len(keys) + 96)
    if number < 0:
        raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()))
    return int(number)
