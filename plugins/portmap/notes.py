"""Notes beside the records: who waits for whose ports, and who has which container address.

A note spares a look into every record; it is believed only as far as the record that it leads to says the same. Each
kind has a folder of its own beside the records': few containers wait, and some backends know addresses by themselves.
"""

from __future__ import annotations

import os

from cnimeta_plugins.portmap.names import digest

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterable

    from cnimeta.host.protocols import Files
    from cnimeta.spec.ip import Address

_FOLLOWERS = "portmap-followers"
_ADDRESSES = "portmap-addresses"


class Notes:
    """The notes beside the folder of the records, which are told by their files' names. Failures are OSError."""

    def __init__(self, folder: str, files: Files) -> None:
        self._folder = folder
        self._followers = os.path.join(os.path.dirname(folder), _FOLLOWERS)
        self._addresses = os.path.join(os.path.dirname(folder), _ADDRESSES)
        self._files = files

    def follow(self, container_id: str, follower: str) -> None:
        """Note that the record `follower` waits for what a container has."""
        path = os.path.join(self._followers, f"{digest(container_id)}-{digest(follower)}")
        self._files.write(path, follower.encode())

    def take_followers(self, container_ids: Iterable[str]) -> list[str]:
        """The records that wait for what these containers had; they are not noted any more."""
        found = []
        names = self._files.names(self._followers)
        holders = {digest(container_id) for container_id in container_ids} if names else set()
        for name in names:
            if name.partition("-")[0] in holders:
                path = os.path.join(self._followers, name)
                found += self._told_by(name, path)
                self._files.remove(path)
        return found

    def take_address(self, address: Address, holder: str) -> None:
        """Note whose record has a container's address."""
        path = os.path.join(self._addresses, f"{address.packed.hex()}-{digest(holder)}")
        self._files.write(path, holder.encode())

    def holders(self, address: Address) -> list[str]:
        """The records that have it, or had."""
        head = f"{address.packed.hex()}-"
        names = [name for name in self._noted_addresses() if name.startswith(head)]
        return [record for name in names for record in self._told_by(name, os.path.join(self._addresses, name))]

    def leave_addresses(self, holders: tuple[str, ...], had: Iterable[Address], but: Iterable[Address]) -> None:
        """Remove what is noted about a record, by all the names that it may have, but for some addresses.

        What it had is looked for too: a kill may have left the beginning of such a note, which is no note yet.
        """
        ends = tuple(f"-{digest(holder)}" for holder in holders)
        kept = {address.packed.hex() + end for address in but for end in ends}
        found = {name for name in self._noted_addresses() if name.endswith(ends)}
        found |= {address.packed.hex() + end for address in had for end in ends}
        for name in found - kept:
            self._files.remove(os.path.join(self._addresses, name))

    def _noted_addresses(self) -> list[str]:
        return self._files.names(self._addresses)

    def _told_by(self, name: str, path: str) -> list[str]:
        """The record that a note tells of.

        Notes are not synced, so one may have lost its content: its name tells too, if the record is still there.
        """
        wanted = name.rpartition("-")[2]
        said = (self._files.read(path) or b"").decode("ascii", "replace")
        if digest(said) == wanted:
            return [said]
        return [record for record in self._files.names(self._folder) if digest(record) == wanted]
