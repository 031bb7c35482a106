"""Where metrics are served: an address as people write it."""

from __future__ import annotations

from typing import TYPE_CHECKING

from cnimeta.errors import InvalidEnvironment, shown

if TYPE_CHECKING:
    from typing import TypeAlias

    Place: TypeAlias = str | tuple[str, int]
    """A path, or host and port."""


def place_of(address: str) -> Place:
    """What `HOST:PORT`, `[HOST]:PORT` or a path means. Raises InvalidEnvironment (code 4)."""
    if address.startswith("/"):
        return address
    host, colon, port = address.rpartition(":")
    if not colon or not host or not port.isascii() or not port.isdigit() or int(port) > 65535:
        raise InvalidEnvironment(f"an address must be HOST:PORT or the path of a socket, got {shown(address)}")
    return host.removeprefix("[").removesuffix("]"), int(port)
