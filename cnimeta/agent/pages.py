"""The memory that serving takes, had before it is asked for.

A fork shares its parent's memory until it writes to a page (and Python writes wherever it looks, to count references);
each page that it writes to first costs microseconds, and there are some hundred on the way of a request. So the agent
learns once which pages those are, by what a process has of its own after it has served (pagemap(5)), and each worker
takes copies of these with a few calls (madvise(2)) before it waits.
"""

from __future__ import annotations

import ctypes
import os
import struct
from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

_PAGE = os.sysconf("SC_PAGE_SIZE")
_PRESENT, _EXCLUSIVE = 1 << 63, 1 << 56  # pagemap(5)
_POPULATE_READ, _POPULATE_WRITE = 22, 23  # Linux 5.14
_GAP = 2  # so that one page between two others is taken along rather than to make another call
_RANGE = struct.Struct("=QQi")
_MADVISE = ctypes.CDLL(None, use_errno=True).madvise
_MADVISE.argtypes = (ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int)


class Range(NamedTuple):
    """Part of the memory, in bytes, and whether it is written to."""

    start: int
    length: int
    written: bool


def tell(descriptor: int, serve: Callable[[], None]) -> None:
    """Serve, and write to the descriptor which pages that took: in a process that was forked for it. Raises OSError."""
    areas = [*_mapped()]
    before = [_flags(area) for area in areas]
    serve()
    after = [_flags(area) for area in areas]  # first all of it: to look at it takes memory too
    with open(descriptor, "wb", closefd=False) as file:
        file.write(b"".join(_RANGE.pack(*one) for one in _taken(areas, before, after)))


class Told:
    """The agent's side of a rehearsal: a pipe that a process is to `tell` into, and what has come of it."""

    def __init__(self) -> None:
        self.descriptor, self.teller = os.pipe()
        os.set_blocking(self.descriptor, False)
        self._data = b""

    def begun(self) -> None:
        """The process is there: the other end is its own."""
        os.close(self.teller)

    def heard(self) -> tuple[Range, ...] | None:
        """What it comes to, when that is all, which ends it; until then None."""
        try:
            more = os.read(self.descriptor, 1 << 16)
        except BlockingIOError:
            return None
        self._data += more
        if more:
            return None
        os.close(self.descriptor)
        return told(self._data)


def told(data: bytes) -> tuple[Range, ...]:
    """What `tell` has written; none when it was cut off."""
    if len(data) % _RANGE.size:
        return ()
    return tuple(Range(start, length, bool(written)) for start, length, written in _RANGE.iter_unpack(data))


def take(ranges: tuple[Range, ...], madvise: Callable[[int, int, int], int] = _MADVISE) -> None:
    """Have these pages now. What cannot be had now comes when it is needed."""
    for start, length, written in ranges:
        if madvise(start, length, _POPULATE_WRITE if written else _POPULATE_READ) != 0 and written:
            for page in range(start, start + length, _PAGE):
                ctypes.memmove(page, page, 1)


class _Area(NamedTuple):
    start: int
    end: int
    writable: bool


def _mapped() -> Iterator[_Area]:
    """The areas of memory that a fork has too, and that are not shared."""
    with open("/proc/self/maps", encoding="utf-8", errors="replace") as file:
        for line in file:
            where, kind, *_, name = [*line.split(maxsplit=5), ""][:7]
            start, end = (int(text, 16) for text in where.split("-"))
            if kind[0] == "r" and kind[3] == "p" and not name.startswith(("[v", "[stack")):
                yield _Area(start, end, kind[1] == "w")


def _flags(area: _Area) -> bytes:
    """What the kernel says of each page, 8 bytes."""
    descriptor = os.open("/proc/self/pagemap", os.O_RDONLY | os.O_CLOEXEC)
    try:
        return os.pread(descriptor, (area.end - area.start) // _PAGE * 8, area.start // _PAGE * 8)
    finally:
        os.close(descriptor)


def _taken(areas: list[_Area], before: list[bytes], after: list[bytes]) -> Iterator[Range]:
    """The pages that this process came to have: of its own where it may write, mapped where it may not."""
    for area, had, has in zip(areas, before, after, strict=True):
        wanted = _PRESENT | (_EXCLUSIVE if area.writable else 0)
        flags = zip(struct.iter_unpack("=Q", had), struct.iter_unpack("=Q", has), strict=False)
        yield from _ranges(
            area, [at for at, ((old,), (new,)) in enumerate(flags) if new & wanted == wanted != old & wanted]
        )


def _ranges(area: _Area, pages: list[int]) -> Iterator[Range]:
    """Pages as ranges, with gaps that are not worth a call of their own."""
    for at, page in enumerate(pages):
        if at == 0 or page - pages[at - 1] > _GAP:
            first = page
        if at + 1 == len(pages) or pages[at + 1] - page > _GAP:
            yield Range(area.start + first * _PAGE, (page - first + 1) * _PAGE, area.writable)
