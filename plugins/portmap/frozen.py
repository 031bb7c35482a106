"""CHECK of thousands of attachments at the cost of one look: what is read of kernel and records is read once.

The verbs never come here: what they act on has to be as it is now.
"""

from __future__ import annotations

from cnimeta_plugins.portmap.backends import Backends
from cnimeta_plugins.portmap.mapper import Mapper
from cnimeta_plugins.portmap.records import Records

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Sequence

    from cnimeta_plugins.portmap.backend import AnyBackend
    from cnimeta_plugins.portmap.records import Found


class FrozenMapper(Mapper):
    """A mapper whose `check` tells how everything was when it was first asked."""

    def __init__(self, mapper: Mapper) -> None:
        self.__dict__.update(mapper.__dict__)
        self.backends = FrozenBackends(mapper.backends)
        self._records: dict[str, Records] = {}

    def records(self, data_dir: str) -> Records:
        """The records under a folder, each read once."""
        if data_dir not in self._records:
            self._records[data_dir] = RecordsOnce(data_dir, self.files, self.log, self.backends.read_payload)
        return self._records[data_dir]


class FrozenBackends(Backends):
    """Backends that each read the host once, and are asked once whether they can be used."""

    def __init__(self, backends: Backends) -> None:
        self.__dict__.update(backends.__dict__)
        self._backends = backends
        self._frozen: dict[str, AnyBackend] = {}
        self._usable: dict[Sequence[str], str] = {}

    def __getitem__(self, name: str) -> AnyBackend:
        """Raises UnknownBackend."""
        if name not in self._frozen:
            self._frozen[name] = self._backends[name].frozen()
        return self._frozen[name]

    def usable(self, names: Sequence[str]) -> str:
        """As `Backends`."""
        if names not in self._usable:
            self._usable[names] = self._backends.usable(names)
        return self._usable[names]


class RecordsOnce(Records):
    """Records of which each is read once."""

    def _find(self, name: str) -> Found:
        known: dict[str, Found] = self.__dict__.setdefault("_known", {})
        if name not in known:
            known[name] = super()._find(name)
        return known[name]
