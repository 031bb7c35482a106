"""Delegates to bridge and host-local the way flannel's plugin does: the node's subnet comes from a subnet.env.

    FLANNEL_NETWORK=10.244.0.0/16
    FLANNEL_SUBNET=10.244.3.1/24
    FLANNEL_MTU=1450
    FLANNEL_IPMASQ=true

Configuration: {"type": "subnet_env", "subnetFile": "/run/flannel/subnet.env", "delegate": {"isDefaultGateway": true}}
What DEL needs is in the configuration and the file at ADD; a node that got another subnet since has new ones, so the
delegate's configuration is kept per container until DEL, as flannel keeps it.
"""

from __future__ import annotations

import os

from cnimeta.delegate import Delegates
from cnimeta.errors import InvalidNetworkConfig, PluginNotAvailable
from cnimeta.host.files import PosixFiles
from cnimeta.plugin import Plugin, Request, main
from cnimeta.spec.ip import parse_cidr
from cnimeta.spec.jsonio import dumps, loads_object

TYPE_CHECKING = False
if TYPE_CHECKING:
    from cnimeta.spec.jsonio import JSON
    from cnimeta.spec.result import Result


class SubnetEnv(Plugin):
    name = "subnet_env"
    about = "runs bridge with the subnet of this node"
    files = PosixFiles()

    def add(self, request: Request) -> Result:
        conf = self._conf(request)
        self.files.write(self._record(request), dumps(conf).encode())
        return Delegates.of(request).add(conf)

    def delete(self, request: Request) -> None:
        saved = self.files.read(self._record(request))
        if saved is not None:  # nothing saved: ADD never came so far, or DEL was here before
            Delegates.of(request).delete(loads_object(saved, self._record(request)))
            self.files.remove(self._record(request))

    def check(self, request: Request) -> None:
        prev: JSON = request.conf.fields.get("prevResult")
        Delegates.of(request).check({**self._conf(request), "prevResult": prev})

    def gc(self, request: Request) -> None:
        keys = ("cni.dev/valid-attachments", "cni.dev/attachments")
        lists = {key: request.conf.fields.get(key) for key in keys if request.conf.fields.has(key)}
        Delegates.of(request).gc({**self._conf(request), **lists})

    def status(self, request: Request) -> None:
        if self.files.read(self._subnet_file(request)) is None:
            raise PluginNotAvailable(f"{self._subnet_file(request)} is not there yet")
        Delegates.of(request).status(self._conf(request))

    def _conf(self, request: Request) -> dict[str, JSON]:
        """The delegate's configuration: what `delegate` says, completed from the file."""
        path = self._subnet_file(request)
        lines = (self.files.read(path) or b"").decode().splitlines()
        values = dict(line.split("=", 1) for line in lines if "=" in line)
        for key in ("FLANNEL_NETWORK", "FLANNEL_SUBNET", "FLANNEL_MTU"):
            if key not in values:
                raise InvalidNetworkConfig(f"{path} has no {key}")
        gateway = parse_cidr(values["FLANNEL_SUBNET"]).address.text  # said outright: bridge's CHECK looks for it
        ipam: JSON = {
            "type": "host-local",
            "ranges": [[{"subnet": parse_cidr(values["FLANNEL_SUBNET"]).network.text}]],
            "routes": [{"dst": values["FLANNEL_NETWORK"], "gw": gateway}],
            "dataDir": os.path.join(self._folder(request), "ipam"),
        }
        given = dict(request.conf.fields.object("delegate").raw)
        own: dict[str, JSON] = {"cniVersion": request.conf.cni_version, "name": request.conf.name, "ipam": ipam}
        masquerade = values.get("FLANNEL_IPMASQ") != "true"  # bridge does what flanneld does not
        defaults: dict[str, JSON] = {"type": "bridge", "mtu": int(values["FLANNEL_MTU"]), "ipMasq": masquerade}
        return {**defaults, **given, **own}

    def _subnet_file(self, request: Request) -> str:
        return request.conf.fields.text("subnetFile", "/run/flannel/subnet.env")

    def _folder(self, request: Request) -> str:
        return request.conf.fields.text("dataDir", "/var/lib/cni/subnet_env")

    def _record(self, request: Request) -> str:
        key = "@".join(request.attachment.key)
        return os.path.join(self._folder(request), key)


if __name__ == "__main__":
    main(SubnetEnv())
