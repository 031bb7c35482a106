"""Databases and locks of attachments without a disk, with a fault or a kill at any step of a transaction.

A transaction takes three steps: before it begins, before it is committed, and after. `fail_at` and `kill_at` count them
from the moment they are set. The tables and the SQL are the real ones, in memory.
"""

from __future__ import annotations

import _sqlite3
import contextlib
from typing import TYPE_CHECKING, TypeVar

from cnimeta.errors import CniError, StateUnusable, TryAgainLater
from cnimeta.store.database import LaterVersion
from cnimeta.store.rescue import tolerant as tolerant_of_text
from cnimeta.store.sql import begin, enter_boot, migrate
from cnimeta.store.values import Damage
from cnimeta.testing.faults import Steps

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from cnimeta.host.protocols import Lock
    from cnimeta.store.locks import Key
    from cnimeta.store.values import Connection, Contents

T = TypeVar("T")


class MemoryDatabases(Steps):
    """The databases of a node, by folder; call it as `cnimeta.store.Database` is called."""

    def __init__(self) -> None:
        super().__init__()
        self.connections: dict[str, Connection] = {}
        self.busy = False
        """Let every transaction time out."""
        self.in_transaction = False
        self.transactions = 0
        self.reads = 0
        self.statements: list[str] = []
        """Every statement of the transactions and snapshots, as it was run."""
        self.hook: Callable[[str], None] | None = None
        """Called with every step, before it is taken."""

    def __call__(
        self, folder: str, contents: Contents, boot_id: str, log: Callable[[str], None], timeout_s: float = 10
    ) -> MemoryDatabase:
        """The database in `folder`, as the next command finds it."""
        return MemoryDatabase(self, folder, contents, boot_id, log, timeout_s)

    def __del__(self) -> None:
        """Python 3.13 warns of connections that nobody closed."""
        for connection in self.connections.values():
            connection.close()

    def lose(self, folder: str) -> None:
        """Let the database be gone."""
        self.connections.pop(folder).close()

    def fail_at(self, step: int, error: CniError | None = None, *, lasting: bool = False) -> None:
        """Let the step-th step from now (1 for the next) fail; `lasting`: and all after it."""
        failure = error or StateUnusable("state: disk I/O error")
        self._arm(step, lambda: failure, lasting=lasting)

    def step(self, text: str) -> None:
        """Count a step, and take the fault that was set for it."""
        if self.hook is not None:
            self.hook(text)
        self._step(text)


class MemoryDatabase:
    """A Database in memory."""

    def __init__(
        self,
        node: MemoryDatabases,
        folder: str,
        contents: Contents,
        boot_id: str,
        log: Callable[[str], None],
        timeout_s: float,
    ) -> None:
        self.node = node
        self.folder = folder
        self.contents = contents
        self.boot_id = boot_id
        self.log = log
        self.timeout_s = timeout_s
        self.later = 0

    def exists(self) -> bool:
        """As the protocol says."""
        return self.folder in self.node.connections

    def write(self, work: Callable[[Connection], T], *, tolerant: bool = False) -> T:
        """As the protocol says."""
        if self.node.busy:
            raise TryAgainLater(f"{self.folder} was not free within {self.timeout_s:g} s")
        assert not self.node.in_transaction, "a transaction inside a transaction"
        self._opened(tolerant=tolerant)
        self.node.step("begin")
        result = self._mended(lambda: self._transaction(self._opened(tolerant=tolerant), work))
        self.node.step("done")
        return result

    def read(self, work: Callable[[Connection], T], *, tolerant: bool = False) -> T:
        """As the protocol says."""
        self.node.reads += 1
        return self._mended(lambda: self._snapshot(self._opened(tolerant=tolerant), work))

    def problems(self, *, quick: bool = False) -> list[str]:
        """As the protocol says."""
        pragma = "quick_check" if quick else "integrity_check"
        rows = self.read(lambda connection: connection.execute(f"PRAGMA {pragma}").fetchall(), tolerant=True)
        return [row[0] for row in rows if row[0] != "ok"]

    def _transaction(self, connection: Connection, work: Callable[[Connection], T]) -> T:
        self.node.in_transaction = True
        connection.execute("BEGIN IMMEDIATE")
        try:
            result = work(connection)
            self.node.step("commit")
            connection.execute("COMMIT")
        except BaseException:
            connection.execute("ROLLBACK")
            raise
        finally:
            self.node.in_transaction = False
        self.node.transactions += 1
        return result

    def _snapshot(self, connection: Connection, work: Callable[[Connection], T]) -> T:
        connection.execute("BEGIN")
        try:
            return work(connection)
        finally:
            connection.execute("ROLLBACK")

    def _mended(self, run: Callable[[], T]) -> T:
        """Run it; on a database that turns out to be damaged, once more on one that is made in its place."""
        try:
            return run()
        except Damage as error:
            if self.later:
                raise StateUnusable(f"state: {self.folder}: {error}") from None
            self.log(f"state: {self.folder} is damaged ({error}): kept as .damaged, made anew")
        old = tolerant_of_text(self.node.connections.pop(self.folder))
        self._created(old)
        old.close()
        try:
            return run()
        except Damage as error:
            raise StateUnusable(f"state: {self.folder}: {error}") from None

    def _opened(self, *, tolerant: bool) -> Connection:
        connection = self.node.connections.get(self.folder)
        if connection is None:
            connection = self._created(None)
        version = int(connection.execute("PRAGMA user_version").fetchone()[0])
        self.later = version if version > self.contents.schema.version else 0
        if self.later and not tolerant:
            raise LaterVersion(f"{self.folder} was written by a later version")
        if not self.later:
            migrate(connection, self.contents.schema)
            enter_boot(connection, self.contents, self.boot_id, 0)
        return connection

    def _created(self, old: Connection | None) -> Connection:
        gathered = self.contents.gather()
        connection = _sqlite3.connect(":memory:", isolation_level=None, check_same_thread=False)
        connection.set_trace_callback(self.node.statements.append)
        begin(connection, self.contents.schema, self.boot_id, 1)
        self.contents.fill(connection, old, gathered)
        self.node.connections[self.folder] = connection
        return connection


class FakeLocks:
    """Locks of attachments for tests: `busy` holds keys that another command works on; `held` those of this one.

    `before` is called ahead of each, as if one had waited: with what another command does meanwhile. Without `usable`
    no lock can be made.
    """

    def __init__(self) -> None:
        self.busy: set[Key] = set()
        self.held: list[Key] = []
        self.before: Callable[[Key], None] = lambda _: None
        self.usable = True

    def of(self, key: Key) -> Lock:
        """The lock of one attachment."""
        return _FakeLock(self, key)

    def try_of(self, key: Key) -> Lock:
        """The same: nothing waits here."""
        return _FakeLock(self, key)


class _FakeLock:
    def __init__(self, locks: FakeLocks, key: Key) -> None:
        self._locks = locks
        self._key = key

    @contextlib.contextmanager
    def held(self) -> Iterator[None]:
        if not self._locks.usable:
            raise StateUnusable("the lock cannot be used: No space left on device")
        assert self._key not in self._locks.held, "this command has the lock already"
        self._locks.before(self._key)
        if self._key in self._locks.busy:
            raise TryAgainLater(f"another command works on container {self._key[1]}")
        self._locks.held.append(self._key)
        try:
            yield
        finally:
            self._locks.held.remove(self._key)
