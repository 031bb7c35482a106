"""What `cnimeta ports repair` and `release` do. Both work on an attachment only under its lock, and only if it is
still what was read: whoever is busy with it is left to it, and said so.
"""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

from cnimeta.errors import CniError, IncompatibleVersion, InvalidNetworkConfig, TryAgainLater, shown
from cnimeta.observe import notes
from cnimeta_plugins.hostport_alloc.config import PORTMAP_TYPE
from cnimeta_plugins.hostport_alloc.operator.audit import Problem
from cnimeta_plugins.hostport_alloc.operator.comparison import Comparison, Standing
from cnimeta_plugins.hostport_alloc.verbs import steps as calls
from cnimeta_plugins.hostport_alloc.verbs.steps import call_conf, mappings_of, with_check
from cnimeta_plugins.hostport_alloc.verbs.undo import decode_undo, delegates_of, lives, take_back

if TYPE_CHECKING:
    from collections.abc import Callable, Collection

    from cnimeta.delegate.call import Delegates
    from cnimeta.host.protocols import Locks
    from cnimeta_plugins.hostport_alloc.state.record import Record
    from cnimeta_plugins.hostport_alloc.state.store import Store
    from cnimeta_plugins.hostport_alloc.verbs.steps import Step
    from cnimeta_plugins.hostport_alloc.verbs.undo import Undo
    from cnimeta_plugins.hostport_alloc.wiring import Wiring


class Repair:
    """Bits and rules made anew from the records."""

    def __init__(
        self,
        wiring: Wiring,
        store: Store,
        locks: Locks,
        data_dir: str,
        folders: tuple[str, ...],
        log: Callable[[str], None],
    ) -> None:
        self.wiring = wiring
        self.store = store
        self.locks = locks
        self.data_dir = data_dir
        self.folders = folders
        self.log = log

    def run(self, tell: Callable[[str], None] = lambda _: None) -> tuple[list[str], list[Problem]]:
        """Repair every live attachment. Returns the containers whose mappings are in place, and what could not be.

        `tell`: each container, before it is worked on.
        What is in place is told by one look at the host; the others alone are worked on, each under its lock.
        """
        self.store.rebuild()
        standings = [Standing.of(record, self.store, self.wiring) for record in self.store.records()]
        others, failed = self._others({one.record.container_id for one in standings if one.undo is not None})
        done: list[str] = []
        comparison = Comparison(self.wiring, self.data_dir, self.folders, self.log)
        for (record, undo, why_not), errors in zip(standings, comparison.errors(standings), strict=True):
            tell(record.container_id)
            maps = undo is not None and any(step.maps for step in undo.steps)
            if why_not:
                self.log(f"container {shown(record.container_id)} is left alone: {why_not}")
            try:
                if maps and (not errors or self._one(record)):
                    done.append(record.container_id)
            except CniError as error:
                failed.append(Problem("rule", record.container_id, str(error)))
        return [*done, *others], failed

    def _one(self, record: Record) -> bool:
        """Whether the mappings of an attachment are in place now; False for one that has none, or that is gone."""
        with self.locks.try_of(record.key).held():
            now = self.store.load(record.key)
            if now is None or now.token != record.token:
                return False
            undo = Standing.of(now, self.store, self.wiring).undo
            if undo is None:
                return False
            delegates = delegates_of(self.wiring, now, undo, os.environ, self.folders, self.log, lost=now.netns)
            steps = [step for step in undo.steps if step.maps]
            for step in steps:
                self._map_again(delegates, now, undo, step)
            notes.count("cnimeta_repairs_total", what="rules")
            return bool(steps)

    def _map_again(self, delegates: Delegates, record: Record, undo: Undo, step: Step) -> None:
        mappings = mappings_of(record)
        try:
            calls.check(delegates, [with_check(step)], mappings, undo.result)
        except CniError:
            pass
        else:
            return
        # What is there may be half of it: DEL first, and the port is nobody else's meanwhile.
        take_back(self.wiring, delegates, [step], mappings, undo.result)
        delegates.add(call_conf(step, mappings, undo.result))
        try:
            calls.check(delegates, [with_check(step)], mappings, undo.result)
        except CniError as error:
            if error.code != IncompatibleVersion.code:  # a mapper from before CHECK can only be believed
                raise

    def _others(self, done: Collection[str]) -> tuple[list[str], list[Problem]]:
        """The same for containers that portmap mapped on its own, without hostport_alloc."""
        mapper = self.wiring.mapper(PORTMAP_TYPE)
        results = list(mapper.repair(self.data_dir, self.log, done)) if mapper is not None else []
        failed = [Problem("rule", found.container_id, found.error) for found in results if found.error]
        return [found.container_id for found in results if not found.error], failed

    def release(self, container: str, *, force: bool) -> tuple[list[str], list[Problem]]:
        """Do for a container what its DEL would have done, when that never comes. Returns its ports and failures.

        `container` is the ID, or its beginning where that is enough. Without knowledge of how its ports were mapped,
        they are not freed: somebody's rules may still be there. Nor while its namespace lives, unless `force`.
        """
        found = self.store.beginning(container)
        exact = [record for record in found if record.container_id == container]
        if not exact and len({record.container_id for record in found}) > 1:
            raise InvalidNetworkConfig(f"more than one container ID begins with {shown(container)}: give more of it")
        freed: list[str] = []
        failed: list[Problem] = []
        for record in exact or found:
            try:
                self._release(record, freed, failed, force=force)
            except TryAgainLater as error:
                failed.append(Problem("record", record.container_id, error.msg))
        return freed, failed

    def _release(self, record: Record, freed: list[str], failed: list[Problem], *, force: bool) -> None:
        undo = decode_undo(record.undo)
        if undo is None:
            message = "it does not tell how its ports were mapped: use DEL"
            failed.append(Problem("record", record.container_id, message))
            return
        if lives(self.wiring, record) and not force:
            message = f"its namespace {shown(record.netns)} is alive: stop the container, or use --force"
            failed.append(Problem("record", record.container_id, message))
            return
        with self.locks.try_of(record.key).held():
            now = self.store.load(record.key)
            if now is None or now.token != record.token:
                return
            delegates = delegates_of(self.wiring, record, undo, os.environ, self.folders, self.log)
            errors, unmapped = take_back(self.wiring, delegates, undo.steps, mappings_of(record), undo.result)
            failed += [Problem("rule", record.container_id, str(error)) for error in errors]
            if unmapped:
                self.store.release(record.key, token=record.token, quarantine_s=undo.quarantine_s, sticky_s=0)
                freed += [f"{port}/{protocol}" for protocol, port in sorted(record.held)]
