"""The process that watches: it adds up reports, hands them on as spans, serves metrics, and keeps configurations."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING

from cnimeta.errors import CniError
from cnimeta.node.monitor.collected import collected
from cnimeta.observe.metrics import render

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence
    from typing import Any, NoReturn

    from cnimeta.node.monitor.ledger import Ledger
    from cnimeta.node.monitor.serving import Server
    from cnimeta.plugin.base import Plugin

_TURN_S = 0.5
_COMPLAINTS_MAX = 100


class Watch:
    """`log`: what it complains of, each thing once. `export`: gets the reports of each turn."""

    def __init__(
        self,
        ledger: Ledger,
        plugins: Mapping[str, Plugin],
        net_dir: str,
        log: Callable[[str], None],
        *,
        export: Callable[[list[dict[str, Any]]], None] = lambda _: None,
        keepers: Sequence[Callable[[], object]] = (),
    ) -> None:
        self._ledger = ledger
        self._plugins = plugins
        self._net_dir = net_dir
        self._log = log
        self._export = export
        self._keepers = keepers
        self._said: set[str] = set()

    def fold(self) -> None:
        """Add up what there is, if nobody else does."""
        try:
            if self._ledger.hold():
                reports = self._ledger.fold()
                if reports:
                    self._export(reports)
        except CniError as error:
            self._say_once(str(error))

    def text(self) -> str:
        """The metrics now, with what was added up last."""
        return render(collected(self._plugins, self._net_dir, self._say_once, self._ledger.totals)[0])

    def run(self, server: Server | None) -> NoReturn:
        """Until the process ends."""
        while True:
            for look in self._keepers:
                look()
            self.fold()
            if server is None:
                time.sleep(_TURN_S)
            else:
                server.serve(_TURN_S, self.fold)

    def _say_once(self, line: str) -> None:
        if line not in self._said and len(self._said) < _COMPLAINTS_MAX:
            self._said.add(line)
            self._log(line)
