"""Taking back what an ADD did: the steps in reverse, from the record alone.

Delegates are called as at ADD, from every verb and every `cnimeta ports` command: with the recorded configurations and
CNI_ARGS, in the recorded namespace while it lives, and with the whole environment of whoever calls.
"""

from __future__ import annotations

from cnimeta.errors import CniError, Failures
from cnimeta.namedtuple import NamedTuple
from cnimeta.spec.convert import parse_result, render_result
from cnimeta.spec.fields import Fields
from cnimeta.spec.version import IMPLIED, at_least
from cnimeta_plugins.hostport_alloc.config import QUARANTINE_S, STICKY_S
from cnimeta_plugins.hostport_alloc.verbs.steps import Step, call_conf

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping, Sequence

    from cnimeta.delegate.call import Delegates
    from cnimeta.spec.jsonio import JSON
    from cnimeta.spec.result import Result
    from cnimeta_plugins.hostport_alloc.state.record import Record
    from cnimeta_plugins.hostport_alloc.wiring import Wiring

_PREV_RESULT_ON_DEL_SINCE = "0.4.0"


class Undo(NamedTuple):
    """What a record keeps for DEL: the steps as planned, ADD's result once there is one, and CNI_ARGS."""

    steps: tuple[Step, ...]
    result: Result | None = None
    version: str = IMPLIED
    args: str = ""
    """CNI_ARGS of the ADD: some delegates find their own state by the Pod's name, also on GC."""
    path: str = ""
    """CNI_PATH of the ADD, for repair."""
    quarantine_s: float = QUARANTINE_S
    sticky_s: float = STICKY_S
    mapped_here: bool = False
    """Whether a port mapper of this installation has mapped the ports, so that its mappings are all there are."""

    @property
    def folders(self) -> tuple[str, ...]:
        """Where the plugins of the ADD were."""
        return tuple(folder for folder in self.path.split(":") if folder)


def encode_undo(undo: Undo) -> JSON:
    """The JSON form."""
    steps: list[JSON] = [{"conf": step.conf, "maps": step.maps, "own": step.own} for step in undo.steps]
    return {
        "steps": steps,
        "version": undo.version,
        "result": None if undo.result is None else render_result(undo.result, undo.version),
        "args": undo.args,
        "path": undo.path,
        "quarantineSeconds": undo.quarantine_s,
        "stickySeconds": undo.sticky_s,
        "mappedHere": undo.mapped_here,
    }


def decode_undo(value: JSON) -> Undo | None:
    """Read the JSON form; None when there is none (a record rebuilt from the kernel's rules has none)."""
    if not isinstance(value, dict):
        return None
    try:
        fields = Fields(value)
        version = fields.text("version") or IMPLIED
        steps = tuple(
            Step(dict(entry.object("conf").raw), entry.boolean("maps"), entry.boolean("own"))
            for entry in fields.objects("steps")
        )
        raw = fields.get("result")
        result = parse_result(raw, version) if isinstance(raw, dict) else None
        times = _number(fields, "quarantineSeconds"), _number(fields, "stickySeconds")
        here = fields.boolean("mappedHere")
        return Undo(steps, result, version, fields.text("args"), fields.text("path"), *times, here)
    except CniError:  # unknown: the configuration tells
        return None


def _number(fields: Fields, key: str) -> float:
    value = fields.get(key)
    return float(value) if isinstance(value, int | float) else 0.0


def lives(wiring: Wiring, record: Record) -> bool:
    """Whether the recorded path still leads to the recorded namespace. False also when that cannot be told."""
    return bool(record.netns and record.netns_id) and wiring.namespaces.identity(record.netns) == record.netns_id


def is_gone(wiring: Wiring, record: Record) -> bool:
    """Whether the recorded namespace is known to be gone. False also when that cannot be told."""
    return wiring.namespaces.is_gone(record.netns, record.netns_id)


def delegates_of(
    wiring: Wiring,
    record: Record,
    undo: Undo | None,
    environ: Mapping[str, str],
    folders: Sequence[str],
    log: Callable[[str], None],
    *,
    lost: str = "",
) -> Delegates:
    """The delegates of a recorded attachment, `folders` empty: those of its ADD.

    `lost` is CNI_NETNS where the namespace is not known to live: nothing for DEL; CHECK and ADD need a path.
    """
    places = tuple(folders) or (undo.folders if undo is not None else ())
    seen = {
        **environ,
        "CNI_CONTAINERID": record.container_id,
        "CNI_IFNAME": record.ifname,
        "CNI_NETNS": record.netns if lives(wiring, record) else lost,
        "CNI_ARGS": undo.args if undo is not None else "",
        "CNI_PATH": ":".join(places),
    }
    return wiring.delegates(seen, places, log)


def take_back(
    wiring: Wiring, delegates: Delegates, steps: Iterable[Step], mappings: Sequence[JSON], prev: Result | None
) -> tuple[list[CniError], bool]:
    """DEL in reverse order, every step whatever the others do.

    Returns what failed, and whether the port mappings are gone, so that their ports may be given out again.
    """
    failures = Failures()
    unmapped = True
    for step in reversed(tuple(steps)):
        known = prev if at_least(step.version, _PREV_RESULT_ON_DEL_SINCE) else None
        try:
            delegates.delete(call_conf(step, mappings, known))
        except CniError as error:
            if step.maps and _unmapped_without_options(wiring, delegates, step, error, mappings, known):
                continue
            failures.found.append(error)
            unmapped = unmapped and not step.maps
    return failures.found, unmapped


def _unmapped_without_options(
    wiring: Wiring,
    delegates: Delegates,
    step: Step,
    error: CniError,
    mappings: Sequence[JSON],
    prev: Result | None,
) -> bool:
    """Whether a port mapper that refuses its own configuration, on DEL as on ADD, can unmap without what it refuses.

    Otherwise a wrong key would keep the ports of every ADD it makes fail.
    """
    try:
        mapper = wiring.mapper(step.type)
        if mapper is None or error.code not in mapper.refusals:
            return False
        delegates.delete(call_conf(step._replace(conf=mapper.essential(step.conf)), mappings, prev))
    except CniError:  # refused: the first error is told
        return False
    return True
