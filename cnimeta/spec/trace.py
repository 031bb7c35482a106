"""Trace context in the environment: how one operation is followed through runtime, plugins and delegates.

TRACEPARENT, TRACESTATE and BAGGAGE, as libcni writes them since August 2026 (OpenTelemetry's "environment variables as
context propagation carriers"; the values are W3C Trace Context's and Baggage's).
"""

from __future__ import annotations

from os import urandom

from cnimeta.namedtuple import NamedTuple

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Mapping

_PARENT, _STATE, _BAGGAGE = "TRACEPARENT", "TRACESTATE", "BAGGAGE"
_LENGTHS = (2, 32, 16, 2)
_HEX = frozenset("0123456789abcdef")


class TraceContext(NamedTuple):
    """Whose span the work belongs to: `parent` is `00-<trace id>-<span id>-<flags>`, the others go with it."""

    parent: str
    state: str = ""
    baggage: str = ""

    @classmethod
    def of(cls, environ: Mapping[str, str]) -> TraceContext | None:
        """What the environment says; None where it says nothing, or no such thing."""
        found = cls(*(environ.get(name, "") for name in (_PARENT, _STATE, _BAGGAGE)))
        return found if found.is_valid else None

    @property
    def is_valid(self) -> bool:
        """Whether `parent` has the form that the recommendation gives it, with IDs that are not all zeros."""
        parts = self.parent.split("-")
        right = [len(part) for part in parts[:4]] == list(_LENGTHS) and all(_HEX.issuperset(part) for part in parts[:4])
        return right and parts[0] != "ff" and (parts[0] != "00" or len(parts) == 4) and all(map(_any_digit, parts[1:3]))

    @property
    def trace_id(self) -> str:
        """32 hexadecimal digits, the same through the whole operation: for a log line."""
        return self.parent.split("-")[1]

    @property
    def span_id(self) -> str:
        """16 hexadecimal digits: the caller's span."""
        return self.parent.split("-")[2]

    def child(self) -> TraceContext:
        """The context of a new span of the trace, whose parent is this one's."""
        version, trace_id, _, flags = self.parent.split("-")[:4]
        return self._replace(parent=f"{version}-{trace_id}-{_new_span_id()}-{flags}")

    def environ(self) -> dict[str, str]:
        """The variables; those that say nothing are left out."""
        pairs = ((_PARENT, self.parent), (_STATE, self.state), (_BAGGAGE, self.baggage))
        return {name: value for name, value in pairs if value}


def _new_span_id() -> str:
    found = urandom(8)
    return found.hex() if any(found) else "0000000000000001"


def _any_digit(text: str) -> bool:
    """Whether there is anything but zeros."""
    return bool(text.strip("0"))
