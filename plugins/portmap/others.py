"""The records of every attachment but one, as backends see them. Cheap to import."""

from __future__ import annotations

from cnimeta.namedtuple import NamedTuple

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

    from cnimeta.spec.ip import Address
    from cnimeta_plugins.portmap.plan import Owner
    from cnimeta_plugins.portmap.records import Life, Record, Records


class Others(NamedTuple):
    """The records of every attachment but one, for what must know whom else it meets."""

    records: Records
    life: Life
    owner: Owner | None

    def every(self) -> Iterator[Record]:
        """All that can be understood."""
        return (record for record in self.records.every() if record.owner != self.owner)

    def of_container(self, container_id: str) -> Iterator[Record]:
        """Those of one container."""
        return (record for record in self.records.of_container(container_id) if record.owner != self.owner)

    def has(self, owner: Owner) -> bool:
        """Whether there is a record of this one."""
        return owner != self.owner and self.records.find(owner).record is not None

    def at(self, address: Address) -> Iterator[Record]:
        """Those that have a container address, as far as it is noted."""
        return (record for record in self.records.at(address) if record.owner != self.owner)

    def take(self, addresses: Iterable[Address]) -> None:
        """Note that the attachment which these are the others of has these container addresses."""
        if self.owner is not None:
            self.records.take(self.owner, addresses)

    def is_dead(self, record: Record) -> bool:
        """Whether the record's container cannot be alive."""
        return self.life.is_dead(record)
