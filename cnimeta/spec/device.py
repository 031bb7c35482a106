"""Devices of a container, as runtimes and device plugins name them: `deviceID`, and the file of device information.

`deviceID` is of the CNI conventions; `CNIDeviceInfoFile` and the file's form are of the Network Plumbing Working
Group's Device Information Specification 1.1.0. A plugin that declares the capabilities is given both in runtimeConfig.
"""

from __future__ import annotations

from cnimeta.errors import DecodingFailure, InvalidNetworkConfig
from cnimeta.namedtuple import NamedTuple
from cnimeta.spec.fields import Fields
from cnimeta.spec.jsonio import dumps, loads_object

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Mapping

    from cnimeta.spec.jsonio import JSON
    from cnimeta.spec.netconf import NetConf

DEVICE_ID = "deviceID"
DEVICE_INFO_FILE = "CNIDeviceInfoFile"
"""The capabilities: a plugin's configuration declares the one that it wants."""
TYPES = ("pci", "vhost-user", "memif", "vdpa")
VERSION = "1.1.0"


class DeviceInfo(NamedTuple):
    """What a device plugin or a CNI plugin says of a device. `details` are those of its type, by their own keys."""

    type: str
    """One of TYPES."""
    details: Mapping[str, str]
    """Such as `pci-address`, `path`, `mode`."""
    version: str = VERSION

    @property
    def pci_id(self) -> str:
        """The PCI address, for `Interface.pci_id`; empty for what has none."""
        return self.details.get("pci-address", "")

    @property
    def socket_path(self) -> str:
        """The socket of a vhost-user or memif device, for `Interface.socket_path`; empty for others."""
        return self.details.get("path", "") if self.type in ("vhost-user", "memif") else ""

    def encode(self) -> bytes:
        """The file's content."""
        body: dict[str, JSON] = {"type": self.type, "version": self.version, self.type: dict(self.details)}
        return dumps(body).encode()

    @classmethod
    def decode(cls, data: bytes, what: str = "the device information") -> DeviceInfo:
        """Read a file's content. Raises DecodingFailure (code 6), naming `what`."""
        fields = Fields(loads_object(data, what))
        try:
            kind = fields.text("type")
            if kind not in TYPES:
                raise fields.wrong("type", "one of " + ", ".join(TYPES))
            inner = fields.object(kind)
            details = {key: inner.text(key) for key, value in inner.raw.items() if value is not None}
            return cls(kind, details, fields.text("version") or VERSION)
        except InvalidNetworkConfig as error:
            raise DecodingFailure(f"{what}: {error.msg}") from None


def device_id(conf: NetConf) -> str:
    """The device that the attachment is to get: runtimeConfig's, else the configuration's; empty for none."""
    return conf.runtime_config.text(DEVICE_ID) or conf.fields.text(DEVICE_ID)


def device_info_file(conf: NetConf) -> str:
    """The path where the plugin is to write what it made of the device; empty when nobody asks.

    Raises InvalidNetworkConfig (code 7) for a path that is not absolute.
    """
    path = conf.runtime_config.text(DEVICE_INFO_FILE)
    if path and not path.startswith("/"):
        raise conf.runtime_config.wrong(DEVICE_INFO_FILE, "an absolute path")
    return path
