"""The node's external addresses as its Node object has them, kept in a file of the state: the API may be down.

Asked for when an ADD has none of this boot that is fresh, and by GC and `cnimeta ports deliver`, off the way of Pods.
"""

from __future__ import annotations

from cnimeta.errors import CniError, StateUnusable, shown
from cnimeta.host.values import PodApiError
from cnimeta.namedtuple import NamedTuple
from cnimeta.store import document

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable

    from cnimeta.host.protocols import PodApi
    from cnimeta.spec.jsonio import JSON
    from cnimeta_plugins.hostport_alloc.pod.annotation import Deadline
    from cnimeta_plugins.hostport_alloc.pod.external import External
    from cnimeta_plugins.hostport_alloc.wiring import Wiring

FILE = "external.json"
FRESH_S = 600.0
"""An ADD asks again after so long."""
_VERSION = 1


class Known(NamedTuple):
    """What was heard, and when (seconds since boot)."""

    addresses: tuple[str, ...]
    heard: float


class Outside:
    """The external addresses of this node."""

    def __init__(self, wiring: Wiring, folder: str, external: External, log: Callable[[str], None]) -> None:
        self._wiring = wiring
        self._path = f"{folder}/{FILE}"
        self._external = external
        self._log = log

    def addresses(self, api: PodApi, deadline: Deadline, *, fresh_s: float = FRESH_S) -> tuple[str, ...] | None:
        """Those that are configured, or the Node's: as known, or asked for where that is older. None: not known.

        A Node without any has none: ().
        """
        if not self._external.needs_node:
            return self._external.addresses
        known = self._read()
        if known is not None and 0 <= self._wiring.clock.boottime() - known.heard < fresh_s:
            return known.addresses
        try:
            api.sign_in(deadline.left())
            found = self._external.of(api.node(self._name(), deadline.attempt_s()))
        except (PodApiError, CniError) as error:
            self._log(f"hostport_alloc: the node's external address cannot be read: {error}")
            return known.addresses if known is not None else None
        self._write(found)
        return found

    def _name(self) -> str:
        return self._external.node_name or self._wiring.host_name.lower()

    def _read(self) -> Known | None:
        """What is known of this boot: an address may be another after a boot. What cannot be read is not known."""
        try:
            data = self._wiring.files.read(self._path)
            body = document.decode(_VERSION, data.decode()) if data is not None else None
            if body is None or body.text("bootID") != self._wiring.boot_id or body.text("from") != self._from:
                return None
            return Known(tuple(body.texts("addresses")), float(str(body.get("heard"))))
        except (OSError, StateUnusable, CniError, ValueError, document.Damaged, document.Later) as error:
            self._log(f"hostport_alloc: {shown(self._path)} is not used: {error}")
            return None

    @property
    def _from(self) -> str:
        """What the addresses were read from: a changed configuration asks anew."""
        return f"{self._name()} {self._external.of_node} {self._external.annotation}"

    def _write(self, addresses: tuple[str, ...]) -> None:
        body: dict[str, JSON] = {
            "bootID": self._wiring.boot_id,
            "from": self._from,
            "addresses": list(addresses),
            "heard": self._wiring.clock.boottime(),
        }
        try:
            self._wiring.files.write(self._path, document.encode(_VERSION, body).encode())
        except (OSError, CniError) as error:  # the next ADD asks again
            self._log(f"hostport_alloc: {shown(self._path)} cannot be written: {error}")
