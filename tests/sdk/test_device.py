"""Device information: what runtimeConfig says, and the file of the Device Information Specification."""

from __future__ import annotations

import pytest

from cnimeta.errors import DecodingFailure, InvalidNetworkConfig
from cnimeta.spec.device import DeviceInfo, device_id, device_info_file
from cnimeta.spec.netconf import NetConf
from cnimeta.spec.result import Interface, Result

pytestmark = pytest.mark.unit

PCI = b'{"type":"pci","version":"1.1.0","pci":{"pci-address":"0000:04:00.5","rdma-device":"mlx5_2"}}'


def test_a_file_is_the_same_when_it_was_read_and_written() -> None:
    info = DeviceInfo.decode(PCI)
    assert (info.pci_id, info.socket_path, info.details["rdma-device"]) == ("0000:04:00.5", "", "mlx5_2")
    assert info.encode() == PCI
    made = DeviceInfo("vhost-user", {"mode": "client", "path": "/run/x.sock"})
    assert DeviceInfo.decode(made.encode()) == made
    assert (made.pci_id, made.socket_path) == ("", "/run/x.sock")


@pytest.mark.parametrize(
    "data",
    [b"", b"[]", b"{}", b'{"type":"usb"}', b'{"type":"pci","pci":[]}', b'{"type":"pci","pci":{"pci-address":4}}'],
)
def test_a_file_is_refused_when_it_has_another_form(data: bytes) -> None:
    with pytest.raises(DecodingFailure, match="the device information"):
        DeviceInfo.decode(data)


def test_the_runtime_goes_before_the_configuration_when_both_name_a_device() -> None:
    conf = NetConf({"deviceID": "a", "runtimeConfig": {"deviceID": "b", "CNIDeviceInfoFile": "/run/x"}})
    assert (device_id(conf), device_info_file(conf)) == ("b", "/run/x")
    assert (device_id(NetConf({"deviceID": "a"})), device_info_file(NetConf({}))) == ("a", "")
    with pytest.raises(InvalidNetworkConfig, match=r"\$\.runtimeConfig\.CNIDeviceInfoFile must be an absolute path"):
        device_info_file(NetConf({"runtimeConfig": {"CNIDeviceInfoFile": "x"}}))


def test_an_interface_says_its_device_when_the_version_can() -> None:
    result = Result((Interface("net1", sandbox="/x", pci_id="0000:04:00.5", socket_path="/run/x.sock"),))
    body = result.as_json("1.1.0")
    assert Result.from_json(body, "1.1.0") == result
