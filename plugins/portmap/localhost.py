"""`127.0.0.1:hostPort`: the kernel setting route_localnet of the interface towards a container.

It is set with the first mapping that needs it, and set back with the last mapping of all. That this plugin was the one
who set it is noted in `<dataDir>/portmap-localnet/`, a file for each interface with the boot's ID in it.
"""

from __future__ import annotations

import os

from cnimeta.errors import CheckFailed, CniError

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

    from cnimeta.host.protocols import Files, Sysctl
    from cnimeta.spec.ip import Address
    from cnimeta_plugins.portmap.plan import Plan
    from cnimeta_plugins.portmap.records import Records

FOLDER = "portmap-localnet"
_ALL = "net/ipv4/conf/all/route_localnet"


class Localhost:
    """The setting on this host. `route(address)` gives the interface towards a container."""

    def __init__(
        self, sysctl: Callable[[], Sysctl], route: Callable[[Address], str], files: Files, boot_id: Callable[[], str]
    ) -> None:
        """What is a call is not loaded by commands that do not need it."""
        self._sysctl = sysctl
        self._route = route
        self._files = files
        self._boot_id = boot_id

    def interface(self, plan: Plan) -> str:
        """The interface that has to let localhost through; empty for none, as without masquerading."""
        for family in plan.families if plan.settings.snat else ():
            if family.family == 4:
                return self._route(family.container.address)
        return ""

    def open(self, interface: str, data_dir: str) -> None:
        """Let packets with a 127.0.0.0/8 address leave by the interface. IoFailure (code 5)."""
        if interface and not self._is_open(interface):
            note = os.path.join(data_dir, FOLDER, interface)
            try:
                self._files.write(note, self._boot_id().encode())
            except OSError:  # refused: it stays on, as upstream leaves it
                pass
            try:
                self._sysctl().ensure(_name(interface), "1")
            except CniError:
                self._files.remove(note)
                raise

    def check(self, interface: str) -> None:
        """CheckFailed (code 101) unless it is set."""
        if interface and not self._is_open(interface):
            raise CheckFailed(f"{_name(interface)} was set back: 127.0.0.1 does not lead to the container any more")

    def close(self, records: Records, data_dir: str, log: Callable[[str], None], interfaces: Iterable[str]) -> None:
        """Set back what was set here, once no mapping is left: the noted interfaces. A failure is logged only.

        What a kill left of the notes of `interfaces` goes too.
        """
        folder = os.path.join(data_dir, FOLDER)
        try:
            for interface in () if records.any() else sorted({*self._files.names(folder), *interfaces} - {""}):
                note = os.path.join(folder, interface)
                if self._files.read(note) == self._boot_id().encode() and self._sysctl().read(_name(interface)) == "1":
                    self._sysctl().ensure(_name(interface), "0")
                self._files.remove(note)
                if records.any():  # an ADD since we looked relies on it
                    self.open(interface, data_dir)
        except (CniError, OSError) as error:
            log(f"portmap: route_localnet stays as it is: {error}")

    def _is_open(self, interface: str) -> bool:
        """The kernel takes the setting of the interface or that of all, whichever is on."""
        return any(self._sysctl().read(name) == "1" for name in (_name(interface), _ALL))


def _name(interface: str) -> str:
    return f"net/ipv4/conf/{interface}/route_localnet"
