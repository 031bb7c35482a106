"""`net.ipv4.ip_local_reserved_ports` kept in step with the ranges: the kernel takes none of these ports by itself.

The setting is one list for everybody, and writing replaces it. So what is written is what is there, less what is ours,
plus what is to be ours. Which part is ours stands in a file, the mark: what was there before is never ours. The mark is
written before the setting, and says at any moment at least what of the setting is ours.

The setting ends with the boot, and is of one network namespace: a mark of another is void.
"""

from __future__ import annotations

from cnimeta.errors import StateUnusable
from cnimeta.namedtuple import NamedTuple
from cnimeta.store import document
from cnimeta_plugins.hostport_alloc.allocate.ranges import ports_in, text_of

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Mapping

    from cnimeta.host.protocols import Files, Lock, Sysctl
    from cnimeta.spec.jsonio import JSON
    from cnimeta_plugins.hostport_alloc.allocate.ranges import PortSet

SETTING = "net/ipv4/ip_local_reserved_ports"
FILE, LOCK = "reserved.json", "reserved.lock"
_VERSION = 1


class Mark(NamedTuple):
    """Which reserved ports are ours."""

    boot_id: str = ""
    netns_id: str = ""
    ours: PortSet = 0
    networks: Mapping[str, PortSet] = {}
    """What each network's ranges have: together what is wanted."""

    @property
    def wanted(self) -> PortSet:
        """Of all networks."""
        found = 0
        for ports in self.networks.values():
            found |= ports
        return found


class Reservation:
    """The setting of this boot and namespace, and the mark under `folder`. The fakes' sides: Files, Sysctl, Lock.

    IoFailure (code 5) when the setting cannot be read or written, StateUnusable (104) when the mark cannot.
    """

    def __init__(self, folder: str, files: Files, sysctl: Sysctl, lock: Lock, boot_id: str, netns_id: str) -> None:
        self._path = f"{folder}/{FILE}"
        self._files = files
        self._sysctl = sysctl
        self._lock = lock
        self._place = boot_id, netns_id

    def ours(self) -> PortSet:
        """The ports that are reserved by us."""
        return self._read().ours

    def foreign(self) -> PortSet:
        """The ports that are reserved by others."""
        return self._reserved() & ~self._read().ours

    def missing(self, ports: PortSet) -> PortSet:
        """Those of `ports` that nobody has reserved."""
        return ports & ~self._reserved()

    def keep(self, network: str, ports: PortSet) -> PortSet:
        """Have the ports of a network reserved; what is ours then. Looks only, where all is as it should be."""
        mark = self._read()
        settled = mark.networks.get(network) == ports and not mark.ours & ~mark.wanted
        if settled and not self.missing(mark.wanted):
            return mark.ours
        with self._lock.held():
            mark = self._read()
            return self._settle(mark, {**mark.networks, network: ports})

    def adopt(self, network: str, ports: PortSet) -> PortSet:
        """Take what is reserved of these ports for ours, where the mark was lost; what is ours then."""
        with self._lock.held():
            mark = self._read(lost=True)
            return self._settle(
                mark._replace(ours=mark.ours | (self._reserved() & ports)), {**mark.networks, network: ports}
            )

    def give_back(self) -> PortSet:
        """Reserve nothing any more; what was ours. What files under /etc/sysctl.d name stays, whoever was first."""
        with self._lock.held():
            mark = self._read(lost=True)
            named = 0
            for text in self._sysctl.configured(SETTING) if mark.ours else ():
                named |= ports_in(text)
            self._settle(mark._replace(ours=mark.ours & ~named), {})
            self._remove()
            return mark.ours & ~named

    # --- under the lock --------------------------------------------------------------------------------

    def _settle(self, mark: Mark, networks: Mapping[str, PortSet]) -> PortSet:
        others = self._reserved() & ~mark.ours
        after = Mark(*self._place, 0, networks)
        after = after._replace(ours=after.wanted & ~others)
        self._write(after._replace(ours=mark.ours | after.ours))
        self._sysctl.ensure(SETTING, text_of(others | after.ours))
        self._write(after)
        return after.ours

    def _reserved(self) -> PortSet:
        return ports_in(self._sysctl.read(SETTING))

    # --- the mark --------------------------------------------------------------------------------------

    def _read(self, *, lost: bool = False) -> Mark:
        """The mark; none when it is of another boot or namespace. `lost`: one that is damaged is none."""
        try:
            data = self._files.read(self._path)
        except OSError as error:
            raise StateUnusable(f"{self._path} cannot be read: {error.strerror or error}") from None
        if data is None:
            return Mark()
        try:
            body = document.decode(_VERSION, data.decode())
            given = body.object("networks")
            networks = {name: ports_in(given.text(name)) for name in given.raw}
            mark = Mark(body.text("bootID"), body.text("netnsID"), ports_in(body.text("ours")), networks)
        except (document.Damaged, document.Later, ValueError) as error:
            if lost:
                return Mark()
            raise StateUnusable(
                f"{self._path} cannot be used: {error}; `cnimeta ports reserve --adopt` makes it anew"
            ) from None
        return mark if (mark.boot_id, mark.netns_id) == self._place else Mark()

    def _write(self, mark: Mark) -> None:
        networks: dict[str, JSON] = {name: text_of(ports) for name, ports in mark.networks.items()}
        body: dict[str, JSON] = {"bootID": mark.boot_id, "netnsID": mark.netns_id, "ours": text_of(mark.ours)}
        self._change(document.encode(_VERSION, {**body, "networks": networks}).encode())

    def _remove(self) -> None:
        try:
            self._files.remove(self._path)
        except OSError as error:
            raise StateUnusable(f"{self._path} cannot be removed: {error.strerror or error}") from None

    def _change(self, data: bytes) -> None:
        try:
            self._files.write(self._path, data)
        except OSError as error:
            raise StateUnusable(f"{self._path} cannot be written: {error.strerror or error}") from None
