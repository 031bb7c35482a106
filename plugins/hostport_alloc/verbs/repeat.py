"""ADD of an attachment that has a record: answered as before if all is in place, else undone and begun afresh."""

from __future__ import annotations

from cnimeta.errors import CniError, joined
from cnimeta.observe import notes
from cnimeta.spec.version import at_least
from cnimeta_plugins.hostport_alloc.verbs.steps import CHECK_SINCE, call_conf, check, mappings_of
from cnimeta_plugins.hostport_alloc.verbs.undo import decode_undo, take_back
from cnimeta_plugins.hostport_alloc.verbs.wanted import asked_by, given_to

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Sequence

    from cnimeta.spec.jsonio import JSON
    from cnimeta.spec.result import Result
    from cnimeta_plugins.hostport_alloc.state.record import Record
    from cnimeta_plugins.hostport_alloc.verbs.add import Add
    from cnimeta_plugins.hostport_alloc.verbs.steps import Step
    from cnimeta_plugins.hostport_alloc.verbs.undo import Undo


class Repeat:
    """A repeated ADD."""

    def __init__(self, adding: Add, existing: Record) -> None:
        self.adding = adding
        self.existing = existing
        self.steps = adding.steps

    def run(self) -> Result | None:
        """The answer of the first ADD; None when this one goes on. The ports stay held when the same are wanted."""
        store, existing = self.adding.store, self.existing
        before = decode_undo(existing.undo)
        alive = store.is_alive(existing)
        same = alive and given_to(existing) == asked_by(self.adding.wanted)
        if same and before is not None and existing.phase == "mapped" and self._in_place(before):
            return before.result
        steps = before.steps if before is not None else self.steps
        mappings = mappings_of(existing)
        errors, unmapped = take_back(
            self.adding.wiring, self.adding.delegates, steps, mappings, before and before.result
        )
        failure = joined(errors)
        if failure is not None and alive and not unmapped:
            raise failure
        if not same:
            quarantine_s, sticky_s = self.adding.settings.quarantine_s, self.adding.settings.sticky_s
            store.release(existing.key, token=existing.token, quarantine_s=quarantine_s, sticky_s=sticky_s)
        return None

    def _in_place(self, before: Undo) -> bool:
        """Whether the attachment is as the first ADD left it: same plan, same namespace, and every CHECK passes.

        Mappings of our own portmap that do not pass are made again, so that the container keeps its address.
        """
        result = before.result
        if (
            not self.adding.settings.chain.wrapper
            or not self._same_namespace()
            or result is None
            or before.steps != self.steps
            or not all(at_least(step.version, CHECK_SINCE) for step in self.steps)
        ):
            return False
        mappings = mappings_of(self.existing)
        try:
            check(self.adding.delegates, [step for step in self.steps if not step.own], mappings, result)
            for step in self.steps:
                if step.own:
                    self._ensure_mapped(step, mappings, result)
        except CniError as error:
            self.adding.request.log(f"hostport_alloc: repeated ADD starts afresh: {error}")
            return False
        return True

    def _same_namespace(self) -> bool:
        """The path is the same, and so is what it leads to."""
        netns = self.adding.request.attachment.netns
        return self.existing.netns == netns and self.existing.netns_id == self.adding.wiring.namespaces.identity(netns)

    def _ensure_mapped(self, step: Step, mappings: Sequence[JSON], result: Result) -> None:
        delegates = self.adding.delegates
        try:
            check(delegates, [step], mappings, result)
        except CniError:
            notes.count("cnimeta_repairs_total", what="rules")
            errors, _ = take_back(self.adding.wiring, delegates, [step], mappings, result)
            failure = joined(errors)
            if failure is not None:
                raise failure from None
            delegates.add(call_conf(step, mappings, result))
