"""What a wrapped configuration becomes without hostport_alloc, with what was edited meanwhile. Pure.

Three documents: the original, what it was wrapped into, and what stands there now. What differs between the last two
was edited since; it is taken over into the original where it has a place there.
"""

from __future__ import annotations

from cnimeta.namedtuple import NamedTuple
from cnimeta.spec.fields import Fields, without
from cnimeta_plugins.hostport_alloc.config import PLUGIN_TYPE, PORTMAP_TYPE

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Mapping

    from cnimeta.spec.jsonio import JSON

_CHAIN_KEYS = ("delegates", "portmap")
"""Of hostport_alloc's own keys, those that the original has in another form."""
_MISSING = object()


class Unwrapped(NamedTuple):
    """The result, and what was edited but has no place in it: JSON paths of the file as it is."""

    document: dict[str, JSON]
    own: tuple[str, ...] = ()
    """Edits of hostport_alloc's own keys, which go with it."""
    conflicts: tuple[str, ...] = ()
    """Edits of what the original says differently."""


def unwrapped(original: Mapping[str, JSON], before: Mapping[str, JSON], now: Mapping[str, JSON]) -> Unwrapped:
    """`before`: what the original was wrapped into; `now`: what it has become."""
    conflicts: list[str] = []
    document = _merged(original, _inverse(before), _inverse(now), "$", conflicts)
    if not isinstance(document, dict):
        raise TypeError(document)
    is_list = Fields(now).has("plugins")
    own = differences("$.plugins" if is_list else "", _own(before), _own(now))
    if not is_list:  # the one entry is the document itself
        own = [text.replace("[0]", "$", 1) for text in own]
    return Unwrapped(document, tuple(own), tuple(conflicts))


def _inverse(document: Mapping[str, JSON]) -> dict[str, JSON]:
    """The document with the delegates in place of hostport_alloc, and portmap behind them."""
    fields = Fields(document)
    if not fields.has("plugins"):
        delegates = _delegates(document)
        head: dict[str, JSON] = {key: document[key] for key in document if key.lower() in ("cniversion", "name")}
        return {**head, **delegates[0]} if len(delegates) == 1 else {**head, "plugins": list(delegates)}
    plugins: list[JSON] = []
    for entry in fields.objects("plugins"):
        plugins += _delegates(entry.raw) if entry.text("type") == PLUGIN_TYPE else [dict(entry.raw)]
    return {key: plugins if key.lower() == "plugins" else value for key, value in document.items()}


def _delegates(entry: Mapping[str, JSON]) -> list[dict[str, JSON]]:
    fields = Fields(entry)
    found = [dict(delegate.raw) for delegate in fields.objects("delegates")]
    if fields.has("portmap"):
        portmap = dict(fields.object("portmap").raw)
        found.append({"type": PORTMAP_TYPE, **portmap, "capabilities": {"portMappings": True}})
    return found


def _own(document: Mapping[str, JSON]) -> list[JSON]:
    """The entries of hostport_alloc, less what the original has too."""
    fields = Fields(document)
    entries = fields.objects("plugins") if fields.has("plugins") else [fields]
    return [
        without(dict(entry.raw), "cniVersion", "name", *_CHAIN_KEYS)
        for entry in entries
        if entry.text("type") == PLUGIN_TYPE
    ]


def _merged(ours: JSON, before: JSON, now: JSON, place: str, conflicts: list[str]) -> JSON:
    """`ours` with what changed from `before` to `now`; what cannot be taken over is named."""
    if now == before:
        return ours
    if ours in (before, now):
        return now
    if isinstance(ours, dict) and isinstance(before, dict) and isinstance(now, dict):
        found: dict[str, JSON] = {}
        for key in dict.fromkeys([*ours, *now]):
            value = _member(ours.get(key, _MISSING), before.get(key, _MISSING), now.get(key, _MISSING))
            if value is _MISSING:
                continue
            found[key] = (
                _merged(ours.get(key), before.get(key), now.get(key), f"{place}.{key}", conflicts)
                if value is None
                else value  # type: ignore[assignment]
            )
        return found
    if isinstance(ours, list) and isinstance(before, list) and isinstance(now, list):
        if len(ours) == len(before) == len(now):
            triples = enumerate(zip(ours, before, now, strict=True))
            return [_merged(*triple, f"{place}[{index}]", conflicts) for index, triple in triples]
        if len(ours) == len(before):
            return _longer(ours, before, now, place, conflicts)
    conflicts.append(place)
    return ours


def _member(ours: object, before: object, now: object) -> object:
    """What becomes of a key that one of the three lacks: its value, or _MISSING. None: all have it, look inside."""
    if now is _MISSING:
        return ours if before is _MISSING else _MISSING
    if ours is _MISSING:
        return now if before is _MISSING or now != before else _MISSING
    return None if before is not _MISSING else now


def _longer(ours: list[JSON], before: list[JSON], now: list[JSON], place: str, conflicts: list[str]) -> JSON:
    """A list that entries were added to or taken from: those that are as before are the original's."""
    kept = list(zip(before, ours, strict=True))
    found = []
    for entry in now:
        match = next((pair for pair in kept if pair[0] == entry), None) or next(
            (pair for pair in kept if _type(pair[0]) == _type(entry) != ""), None
        )
        if match is None:
            found.append(entry)
        else:
            kept.remove(match)
            found.append(_merged(match[1], match[0], entry, f"{place}[{len(found)}]", conflicts))
    return found


def _type(entry: JSON) -> str:
    return Fields(entry).text("type") if isinstance(entry, dict) else ""


def differences(place: str, before: JSON, after: JSON) -> list[str]:
    """The JSON paths at which two documents differ."""
    if isinstance(before, dict) and isinstance(after, dict):
        keys = sorted({*before, *after})
        return [line for key in keys for line in differences(f"{place}.{key}", before.get(key), after.get(key))]
    if isinstance(before, list) and isinstance(after, list) and len(before) == len(after):
        pairs = enumerate(zip(before, after, strict=True))
        return [line for index, (one, two) in pairs for line in differences(f"{place}[{index}]", one, two)]
    return [] if before == after else [place]
