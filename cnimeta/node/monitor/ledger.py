"""The sums of all reports since the node was started, kept beside the reports, by one process at a time.

The agent does it as long as it runs; without one, `cnimeta metrics` does. Whoever is killed in between has counted a
report once or not yet: the sums say which lines were the last that are in them.
"""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

from cnimeta.errors import CniError, IoFailure
from cnimeta.host.files import replace_file
from cnimeta.host.owned import is_own_folder, own_folder, own_open
from cnimeta.host.spool import Spool
from cnimeta.host.waiting import flocked
from cnimeta.observe.totals import Totals
from cnimeta.spec.jsonio import dumps, loads_object

if TYPE_CHECKING:
    from collections.abc import Iterator
    from typing import Any

_TOTALS, _LOCK = "totals.json", "lock"


class Ledger:
    """Of one folder, which is made when somebody writes."""

    def __init__(self, folder: str) -> None:
        self.folder = folder
        self._totals: Totals | None = None
        self._lock = -1

    def hold(self) -> bool:
        """Whether this process is the one that adds up, from now on until it ends. Raises IoFailure, NotOurs."""
        if self._lock >= 0:
            return True
        try:
            own_folder(self.folder)
            lock = own_open(self._path(_LOCK), os.O_RDWR | os.O_CREAT)
            if flocked(lock):
                self._lock = lock
                return True
            os.close(lock)
        except OSError as error:
            raise IoFailure(f"{self.folder} cannot be used: {error.strerror or error}") from None
        return False

    def release(self) -> None:
        """Let another process add up."""
        if self._lock >= 0:
            os.close(self._lock)
            self._lock, self._totals = -1, None

    def read(self) -> Totals:
        """The sums as they were last kept; empty where there are none. Raises IoFailure, NotOurs."""
        try:
            if not is_own_folder(self.folder):
                return Totals()
            with open(own_open(self._path(_TOTALS), os.O_RDONLY), "rb") as file:
                return Totals.read(loads_object(file.read(), self._path(_TOTALS)))
        except FileNotFoundError:
            return Totals()
        except OSError as error:
            raise IoFailure(f"cannot read {self._path(_TOTALS)}: {error.strerror or error}") from None
        except (CniError, ValueError, TypeError):  # nobody else's, so it is damaged: it begins anew
            return Totals()

    def fold(self) -> list[dict[str, Any]]:
        """Add up what was reported, and keep the sums. The reports, oldest first. For who holds it.

        Raises IoFailure, NotOurs (code 104).
        """
        spool = Spool(self.folder)
        found: list[dict[str, Any]] = []
        try:
            for _ in range(2):  # what somebody has taken who was killed then, and what has come since
                known_by, lines = spool.take()
                if not known_by:
                    break
                if known_by != self.totals.folded:
                    found += self._add(lines)
                    self._keep(known_by)
                spool.done()
        except OSError as error:
            self._totals = None  # what is kept decides
            raise IoFailure(f"{self.folder} cannot be used: {error.strerror or error}") from None
        return found

    def _add(self, lines: bytes) -> Iterator[dict[str, Any]]:
        for line in lines.splitlines():
            try:
                report = loads_object(line, "a report")
            except CniError:
                self.totals.drop()
                continue
            self.totals.add(report)
            yield report

    def _keep(self, known_by: str) -> None:
        self.totals.folded = known_by
        replace_file(self._path(_TOTALS), dumps(self.totals.as_json()).encode(), durable=False)  # type: ignore[arg-type]

    @property
    def totals(self) -> Totals:
        """The sums: this process's own while it holds them, else as they are kept."""
        if self._lock < 0:
            return self.read()
        if self._totals is None:
            self._totals = self.read()
        return self._totals

    def _path(self, name: str) -> str:
        return os.path.join(self.folder, name)
