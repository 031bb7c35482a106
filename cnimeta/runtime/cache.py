"""The results cache, in libcni's own place and format, so that either runtime can DEL what the other ADDed.

`<folder>/results/<network>-<container ID>-<ifname>`, one JSON object of kind `cniCacheV1`, mode 0600. libcni writes it
without fsync and can leave an empty file after a crash (containernetworking/cni#1055): here it is written whole or not
at all, and a damaged file counts as no result, which DEL must live with; one that the disk does not give counts as
unknown. Files from before cniCacheV1, which hold the bare result, are read too.
"""

from __future__ import annotations

import base64
import os
from typing import TYPE_CHECKING

from cnimeta.errors import CniError, Failures, IoFailure, shown
from cnimeta.host.reading import retried
from cnimeta.namedtuple import NamedTuple
from cnimeta.spec.fields import Fields
from cnimeta.spec.jsonio import dumps, loads_object

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping

    from cnimeta.host.protocols import Files
    from cnimeta.spec.jsonio import JSON

DEFAULT_FOLDER = "/var/lib/cni"
_KIND = "cniCacheV1"


class Cached(NamedTuple):
    """What is remembered of an ADD."""

    network: str
    container_id: str
    ifname: str
    netns: str = ""
    args: tuple[tuple[str, str], ...] = ()
    capability_args: Mapping[str, JSON] = {}
    config: bytes = b""
    """The network configuration list as it was used."""
    result: Mapping[str, JSON] | None = None
    """The chain's final result, in the list's version."""


class Cache:
    """The cache under `folder` (libcni's --cache-dir)."""

    def __init__(self, files: Files, folder: str, log: Callable[[str], None]) -> None:
        self.files = files
        self.folder = os.path.join(folder, "results")
        self.log = log

    def path(self, network: str, container_id: str, ifname: str) -> str:
        """The file of one attachment; its parts have been validated, so it cannot leave the folder."""
        return os.path.join(self.folder, f"{network}-{container_id}-{ifname}")

    def store(self, cached: Cached) -> None:
        """Remember. IoFailure (5) when the file cannot be written."""
        path = self.path(cached.network, cached.container_id, cached.ifname)
        try:
            self.files.write(path, encode(cached))
        except OSError as error:
            raise IoFailure(f"cannot write the result to {path}: {error.strerror or error}") from None

    def load(self, network: str, container_id: str, ifname: str) -> Cached | None:
        """What is remembered, or None. A damaged file is reported through `log` and counts as none.

        IoFailure (5) when the disk does not tell.
        """
        found = self._read(self.path(network, container_id, ifname))
        return None if found is None else found._replace(network=network, container_id=container_id, ifname=ifname)

    def forget(self, network: str, container_id: str, ifname: str) -> None:
        """Remove; missing is fine. IoFailure (5)."""
        path = self.path(network, container_id, ifname)
        try:
            self.files.remove(path)
        except OSError as error:
            raise IoFailure(f"cannot remove the cached result {path}: {error.strerror or error}") from None

    def of_network(self, network: str) -> Iterator[Cached]:
        """Everything remembered of one network; at the end IoFailure (5) for what the disk did not give."""
        return (found for found in self._every(f"{network}-") if found.network == network)

    def every(self) -> Iterator[Cached]:
        """The same of every network."""
        return self._every("")

    def _every(self, prefix: str) -> Iterator[Cached]:
        try:
            names = [name for name in self.files.names(self.folder) if name.startswith(prefix)]
        except OSError as error:
            raise IoFailure(f"cannot read the cached results in {self.folder}: {error.strerror or error}") from None
        failures = Failures()
        for name in names:
            found = None
            with failures:
                found = self._read(os.path.join(self.folder, name))
            if found is not None and found.container_id and found.ifname:
                yield found
        failures.raise_any()

    def _read(self, path: str) -> Cached | None:
        try:
            data = retried(lambda: self.files.read(path))
            return None if data is None else decode(data)
        except (CniError, ValueError, IsADirectoryError) as error:
            self.log(f"{path}: the cached result cannot be read and is ignored: {error}")
        except OSError as error:
            raise IoFailure(f"cannot read the cached result {path}: {error.strerror or error}") from None
        return None


def encode(cached: Cached) -> bytes:
    """The file's content."""
    body: dict[str, JSON] = {
        "kind": _KIND,
        "containerId": cached.container_id,
        "config": base64.b64encode(cached.config).decode(),
        "ifName": cached.ifname,
        "networkName": cached.network,
    }
    if cached.netns:
        body["netns"] = cached.netns
    if cached.args:
        body["cniArgs"] = [list(pair) for pair in cached.args]
    if cached.capability_args:
        body["capabilityArgs"] = dict(cached.capability_args)
    if cached.result is not None:
        body["result"] = dict(cached.result)
    return dumps(body).encode()


def decode(data: bytes) -> Cached:
    """Read a file's content. Raises CniError or ValueError."""
    fields = Fields(loads_object(data, "the cached result"))
    if fields.has("cniVersion") and not fields.has("kind"):
        return Cached("", "", "", result=fields.raw)
    if fields.text("kind") != _KIND:
        raise ValueError(f"unknown kind {shown(fields.text('kind'))}")
    pairs = []
    for pair in fields.items("cniArgs"):
        if not isinstance(pair, list) or len(pair) != 2:
            raise ValueError("cniArgs must hold pairs")
        pairs.append((str(pair[0]), str(pair[1])))
    return Cached(
        fields.text("networkName"),
        fields.text("containerId"),
        fields.text("ifName"),
        fields.text("netns"),
        tuple(pairs),
        fields.object("capabilityArgs").raw,
        base64.b64decode(fields.text("config"), validate=True),
        fields.object("result").raw if fields.has("result") else None,
    )
