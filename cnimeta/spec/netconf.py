"""A network configuration as one plugin receives it on stdin (spec §1 and §3).

Codes: what the spec lays down for every plugin (the document itself, cniVersion, name, type, prevResult, GC's list) is
a DecodingFailure (6) when it has the wrong type; a missing or malformed network name, and every key of a plugin's own
including runtimeConfig, is an InvalidNetworkConfig (7); a cniVersion that no plugin knows is IncompatibleVersion (1).
"""

from __future__ import annotations

from cnimeta.errors import DecodingFailure, InvalidNetworkConfig
from cnimeta.spec import validate
from cnimeta.spec.fields import Fields
from cnimeta.spec.jsonio import loads_object
from cnimeta.spec.version import IMPLIED

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Sequence

    from cnimeta.spec.jsonio import JSON
    from cnimeta.spec.result import Result

MAX_BYTES = 16 << 20
"""Of a configuration. GC's list of 60,000 attachments has 7 MB."""
VALID_ATTACHMENTS = ("cni.dev/valid-attachments", "cni.dev/attachments")
"""GC's list; libcni sends both, the second because the spec first named it so. Null is as good as absent."""


class NetConf:
    """One plugin's configuration. `raw` is the object as received, unknown keys included, for delegates."""

    __slots__ = ("cni_version", "fields", "name", "raw", "type")

    def __init__(self, raw: dict[str, JSON]) -> None:
        self.raw = raw
        self.fields = Fields(raw)
        try:
            self.cni_version = self.fields.text("cniVersion") or IMPLIED
            self.name = self.fields.text("name")
            self.type = self.fields.text("type")
        except InvalidNetworkConfig as error:
            raise DecodingFailure(error.msg) from None

    @classmethod
    def decode(cls, stdin: bytes) -> NetConf:
        """Read stdin. Raises DecodingFailure (code 6)."""
        if len(stdin) > MAX_BYTES:
            raise DecodingFailure(f"the network configuration on stdin is longer than {MAX_BYTES} bytes")
        return cls(loads_object(stdin, "the network configuration on stdin"))

    def require_name(self) -> None:
        """Raise InvalidNetworkConfig (code 7) unless the network has a valid name."""
        validate.network_name(self.name)

    @property
    def runtime_config(self) -> Fields:
        """`runtimeConfig`, the capability arguments the runtime gave."""
        return self.fields.object("runtimeConfig")

    @property
    def prev_result(self) -> Result | None:
        """The result of the plugins before this one, or None. Raises DecodingFailure (code 6)."""
        raw = self.fields.get("prevResult")
        if raw is None:
            return None
        if not isinstance(raw, dict):
            raise DecodingFailure(self.fields.wrong("prevResult", "an object").msg)
        from cnimeta.spec.convert import parse_prev_result  # VERSION and a late DEL start without it

        return parse_prev_result(raw, self.cni_version)

    def require_prev_result(self) -> Result:
        """The prevResult of a chained plugin. Raises InvalidNetworkConfig (code 7) when there is none."""
        result = self.prev_result
        if result is None:
            raise InvalidNetworkConfig(
                f"$.prevResult is missing: {self.type or 'this plugin'} must be chained after a plugin with a result"
            )
        return result

    def valid_attachments(self) -> frozenset[tuple[str, str]] | None:
        """GC's list of (container ID, ifname) to keep; None when the key is absent, which frees nothing.

        Raises DecodingFailure (code 6) for a list of another shape: nothing may be freed on the word of half a list.
        """
        for key in VALID_ATTACHMENTS:
            if self.fields.has(key):
                return self._attachments(key)
        return None

    def _attachments(self, key: str) -> frozenset[tuple[str, str]]:
        try:
            plain = _plain_attachments(self.fields.items(key))
            if plain is not None:
                return plain
            kept = set()
            for entry in self.fields.objects(key):
                for part in ("containerID", "ifname"):
                    if not entry.text(part):
                        raise entry.wrong(part, "a non-empty string")
                kept.add((entry.text("containerID"), entry.text("ifname")))
        except InvalidNetworkConfig as error:
            raise DecodingFailure(error.msg) from None
        return frozenset(kept)


def _plain_attachments(entries: Sequence[JSON]) -> frozenset[tuple[str, str]] | None:
    """A list in the very form that libcni sends, which may be tens of thousands long; None for any other form."""
    kept = set()
    for entry in entries:
        if type(entry) is not dict or len(entry) != 2:
            return None
        container_id, ifname = entry.get("containerID"), entry.get("ifname")
        if type(container_id) is not str or type(ifname) is not str or not (container_id and ifname):
            return None
        kept.add((container_id, ifname))
    return frozenset(kept)
