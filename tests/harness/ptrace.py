"""One system call of a process held before it is made, or made for less than was asked: what strace cannot do (x86-64).

The process is stopped at each call up to that one, and then let go.
"""

from __future__ import annotations

import ctypes
import os
import platform
import re
import signal
import struct

_TABLE = """
        read=0 write=1 close=3 poll=7 lseek=8 mmap=9 ioctl=16 pread64=17 pwrite64=18 socket=41 connect=42
        sendto=44 recvfrom=45 sendmsg=46 recvmsg=47 bind=49 listen=50 getsockname=51 setsockopt=54 clone=56
        vfork=58 wait4=61 fcntl=72 flock=73 fsync=74 fdatasync=75 ftruncate=77 rename=82 mkdir=83 rmdir=84
        link=86 unlink=87 readlink=89 fchmod=91 statfs=137 getdents64=217 openat=257 newfstatat=262
        fallocate=285 pipe2=293 setns=308 pidfd_open=434 clone3=435 epoll_wait=232
"""
NUMBERS = {name: int(number) for name, number in re.findall(r"(\w+)=(\d+)", _TABLE)}
"""arch/x86/entry/syscalls/syscall_64.tbl"""
_SYSCALL, _GETREGS, _SETREGS, _DETACH = 24, 12, 13, 17
_SEIZE, _INTERRUPT, _GET_SYSCALL_INFO = 0x4206, 0x4207, 0x420E
_TRACESYSGOOD, _EXITKILL, _EVENT_STOP, _WALL = 1, 1 << 20, 128, 0x40000000
_ENTRY, _INFO_BYTES, _NUMBER_AT = 1, 88, 24
_REGISTERS, _COUNT_AT = 27, 12
"""Of struct user_regs_struct; rdx, the third argument, which is how many bytes `read`, `write` and the like are for."""
_LIBC = ctypes.CDLL(None, use_errno=True)
_LIBC.ptrace.argtypes = (ctypes.c_long, ctypes.c_long, ctypes.c_void_p, ctypes.c_void_p)
_LIBC.ptrace.restype = ctypes.c_long


def _ptrace(request: int, pid: int, address: int, data: object) -> int:
    done = _LIBC.ptrace(request, pid, address, data)
    if done < 0:
        number = ctypes.get_errno()
        raise OSError(number, f"ptrace {request:#x}: {os.strerror(number)}")
    return int(done)


class Tracee:
    """A child of this process, which waits in a call at first. It is killed when this process ends."""

    def __init__(self, pid: int) -> None:
        assert platform.machine() == "x86_64", "NUMBERS are those of x86-64"
        self._pid = pid
        self.ended: int | None = None
        """Its wait status, once it has."""
        _ptrace(_SEIZE, pid, 0, _TRACESYSGOOD | _EXITKILL)
        _ptrace(_INTERRUPT, pid, 0, None)
        self._wait()

    def until(self, name: str, number: int) -> bool:
        """Let it go on to before its number-th call of that name; False when it ends without."""
        left = number
        sent = 0
        while True:
            _ptrace(_SYSCALL, self._pid, 0, sent)
            status = self._wait()
            if self.ended is not None:
                return False
            stopped, sent = os.WSTOPSIG(status), 0
            if stopped != signal.SIGTRAP | 0x80:
                sent = 0 if status >> 16 == _EVENT_STOP else stopped
                continue
            if self._entered() == NUMBERS[name]:
                left -= 1
                if left == 0:
                    return True

    def cut(self, count: int) -> None:
        """Let the call that it stands before be for so many bytes only."""
        registers = (ctypes.c_ulonglong * _REGISTERS)()
        _ptrace(_GETREGS, self._pid, 0, ctypes.byref(registers))
        registers[_COUNT_AT] = count
        _ptrace(_SETREGS, self._pid, 0, ctypes.byref(registers))

    def let_go(self) -> None:
        """From here on nobody stops it."""
        if self.ended is None:
            _ptrace(_DETACH, self._pid, 0, None)

    def _wait(self) -> int:
        _, status = os.waitpid(self._pid, _WALL)
        if not os.WIFSTOPPED(status):
            self.ended = status
        return status

    def _entered(self) -> int:
        """The number of the call that it is about to make; -1 after a call."""
        found = ctypes.create_string_buffer(_INFO_BYTES)
        _ptrace(_GET_SYSCALL_INFO, self._pid, _INFO_BYTES, found)
        return int(struct.unpack_from("<Q", found, _NUMBER_AT)[0]) if found.raw[0] == _ENTRY else -1
