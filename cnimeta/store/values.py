"""What the owner of a database's contents and the database agree on. Imports nothing that opens one."""

from __future__ import annotations

from cnimeta.errors import InvalidEnvironment, shown
from cnimeta.namedtuple import NamedTuple

TYPE_CHECKING = False
if TYPE_CHECKING:
    import _sqlite3
    from typing import Protocol, TypeAlias

    Connection: TypeAlias = _sqlite3.Connection

    class Contents(Protocol):
        """What is in a database, and where it can be had from when it is lost."""

        schema: Schema

        def gather(self) -> object:
            """What others know of the contents. Called outside of transactions, when the contents were lost."""
            ...

        def fill(self, new: Connection, old: Connection | None, gathered: object) -> None:
            """Put in what can be read of `old`, a damaged database, and what was gathered."""
            ...

        def new_boot(self, connection: Connection) -> None:
            """Forget what did not outlive the boot."""
            ...
else:
    Connection = object


class Damage(Exception):
    """What was read cannot have been written like that: the database is not to be relied on.

    Raised in a transaction, by this package or by the owner of the contents, it has the database made anew.
    """


class Schema(NamedTuple):
    """The tables. `steps[n]` holds the statements that take version n to n + 1; steps are never changed, only added."""

    steps: tuple[tuple[str, ...], ...]

    @property
    def version(self) -> int:
        """The version that this code reads and writes."""
        return len(self.steps)


def storable(*values: str) -> tuple[str, ...]:
    """Text as it is. Raises InvalidEnvironment (code 4) for bytes that are no UTF-8, which a database cannot hold."""
    for value in values:
        try:
            value.encode()
        except UnicodeEncodeError:
            raise InvalidEnvironment(f"{shown(value)} is not UTF-8 text") from None
    return values
