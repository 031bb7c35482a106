"""The registry of backends: a line each. A record's payload is read by the backend that its record names."""

from __future__ import annotations

from cnimeta.errors import IoFailure, shown
from cnimeta.namedtuple import NamedTuple
from cnimeta_plugins.portmap.records import UnknownBackend

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping, Sequence

    from cnimeta.spec.jsonio import JSON
    from cnimeta_plugins.portmap.backend import AnyBackend
    from cnimeta_plugins.portmap.records import Payload


class Unusable(IoFailure):
    """The host lacks what the backend takes: `auto` goes on to the next."""


class Source(NamedTuple):
    """Where a backend comes from: functions that import what they need, so that a command loads only what it uses."""

    open_backend: Callable[[str], AnyBackend]
    """The backend on this host; programs are looked for in the given PATH first."""
    may_hold: Callable[[], bool] = lambda: True
    """Whether the host may have mappings of this kind; asked before the backend is loaded to look for some."""


def _nftables(path: str) -> AnyBackend:
    from cnimeta_plugins.portmap.nftables.backend import on_host

    return on_host(path)


def _nftables_may_hold() -> bool:
    from cnimeta_plugins.portmap.nftables.names import may_hold

    return may_hold()


def _iptables(path: str) -> AnyBackend:
    from cnimeta_plugins.portmap.iptables.backend import IptablesBackend

    return IptablesBackend(path=path)


def _iptables_may_hold() -> bool:
    from cnimeta_plugins.portmap.iptables.names import may_hold

    return may_hold()


BACKENDS: Mapping[str, Source] = {
    "nftables": Source(_nftables, _nftables_may_hold),
    "iptables": Source(_iptables, _iptables_may_hold),
}
"""By name: what `backend` of a configuration may say. Never change a name: records have it."""


class Backends:
    """The backends of one command, each opened when it is first needed."""

    def __init__(self, path: str = "", sources: Mapping[str, Source] = BACKENDS) -> None:
        self._path = path
        self._sources = sources
        self._open: dict[str, AnyBackend] = {}

    @property
    def names(self) -> tuple[str, ...]:
        """Every name, in order."""
        return tuple(self._sources)

    def __getitem__(self, name: str) -> AnyBackend:
        """Raises UnknownBackend."""
        if name not in self._open:
            if name not in self._sources:
                raise UnknownBackend(f"there is no backend {shown(name)}")
            self._open[name] = self._sources[name].open_backend(self._path)
        return self._open[name]

    def usable(self, names: Sequence[str]) -> str:
        """The first of `names` that can be used on this host; the last when none can, or there is but one.

        Raises what keeps one from telling: mappings must not change sides because a read failed.
        """
        for name in names[:-1]:
            try:
                self[name].ready()
            except Unusable:  # refused: the next one
                continue
            return name
        return names[-1]

    def holding(self, but: str = "") -> Iterator[AnyBackend]:
        """Those whose mappings the host may have; one can be left out."""
        for name, source in self._sources.items():
            if name != but and source.may_hold():
                yield self[name]

    def read_payload(self, name: str, value: JSON) -> Payload:
        """The payload of a record. Raises UnknownBackend, or another CniError for one that is damaged."""
        payload: Payload = self[name].payload(value)
        return payload
