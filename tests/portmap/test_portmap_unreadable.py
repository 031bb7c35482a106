"""A record that the disk does not give is reported, and keeps nobody from the others."""

from __future__ import annotations

import errno
from typing import Any

import pytest
from portmap_kit import Host, conf, iptables_ports, nft_ports

from cnimeta.errors import CniError
from cnimeta.testing.files import MemoryFiles
from cnimeta_plugins.portmap.names import file_name
from cnimeta_plugins.portmap.plan import Owner

pytestmark = pytest.mark.unit


class BadSector(MemoryFiles):
    """Files of which one cannot be read."""

    bad = ""
    refused = False

    def read(self, path: str) -> bytes | None:
        if self.refused or (self.bad and path.endswith(self.bad)):
            raise OSError(errno.EIO, "Input/output error", path)
        return super().read(path)

    def names(self, folder: str) -> list[str]:
        if self.refused:
            raise OSError(errno.EACCES, "Permission denied", folder)
        return super().names(folder)

    def remove(self, path: str) -> None:
        if self.refused:
            raise OSError(errno.EROFS, "Read-only file system", path)
        super().remove(path)


@pytest.fixture
def host() -> Host:
    host = Host()
    host.files = BadSector()
    for number in (1, 2, 3):
        mapping = {"hostPort": 8080 + number, "containerPort": 80}
        host.call("ADD", conf(mapping, ips=(f"10.88.0.{number + 1}/16",)), container_id=f"c{number}")
    host.files.bad = file_name(Owner("net", "c2", "eth0"))
    return host


def collect(host: Host, *kept: str) -> None:
    listed: list[Any] = [{"containerID": one, "ifname": "eth0"} for one in kept]
    host.call("GC", {**conf(), "cni.dev/valid-attachments": listed})


def test_gc_collects_the_others_and_tells_of_the_one(host: Host) -> None:
    with pytest.raises(CniError, match="Input/output error") as caught:
        collect(host)
    assert caught.value.code == 104
    assert caught.value.msg.count("cannot use") == 1
    assert file_name(Owner("net", "c2", "eth0")) in caught.value.msg
    left = "\n".join(host.dump())
    assert "8082" in left  # unknown is not gone
    assert "8081" not in left
    assert "8083" not in left
    host.files.bad = ""
    collect(host)
    assert host.dump() == []


def test_add_of_another_container_works_after_a_reboot(host: Host) -> None:
    host.boot = "boot-2"
    host.flush()
    host.call("ADD", conf({"hostPort": 8081, "containerPort": 80}), container_id="c4")
    assert "8081" in "\n".join(host.dump())


def refused(host: Host, verb: str, mapping: dict[str, Any], **which: str) -> CniError:
    with pytest.raises(CniError) as caught:
        host.call(verb, mapping, **which)
    return caught.value


def test_check_and_delete_of_the_one_fail_until_it_can_be_read(host: Host) -> None:
    mapping = conf({"hostPort": 8082, "containerPort": 80}, ips=("10.88.0.3/16",))
    assert refused(host, "CHECK", mapping, container_id="c2").code == 104
    host.files.bad = ""
    host.call("CHECK", mapping, container_id="c2")
    host.call("DEL", mapping, container_id="c2")
    assert "8082" not in "\n".join(host.dump())


@pytest.mark.parametrize("given", [True, False])
@pytest.mark.parametrize("whole", [True, False])
@pytest.mark.parametrize("backend", ["nftables", "iptables"])
def test_delete_removes_what_the_names_tell_when_the_state_cannot_be_read(
    backend: str, *, whole: bool, given: bool
) -> None:
    """One record, or the whole folder; with the mappings in the configuration, or without."""
    host = Host()
    host.files = files = BadSector()
    confs = {}
    for number in (1, 2):
        mapping = {"hostPort": 8080 + number, "containerPort": 80}
        confs[f"c{number}"] = conf(mapping, ips=(f"10.88.0.{number + 1}/16",), backend=backend)
        host.call("ADD", confs[f"c{number}"], container_id=f"c{number}")
    files.refused, files.bad = whole, file_name(Owner("net", "c1", "eth0"))
    asked = confs["c1"] if given else {**confs["c1"], "runtimeConfig": {}}
    assert refused(host, "DEL", asked, container_id="c1").code == 104
    left = {one.port for one in (nft_ports if backend == "nftables" else iptables_ports)(host)}
    assert left == {8082}
    files.refused, files.bad = False, ""
    host.call("DEL", asked, container_id="c1")
    assert not [name for name in files.content if file_name(Owner("net", "c1", "eth0")) in name]
    host.call("CHECK", confs["c2"], container_id="c2")


@pytest.mark.parametrize("second", [True, False])
def test_delete_leaves_the_other_interface_of_the_container_alone_on_iptables(*, second: bool) -> None:
    """Both interfaces are on one network: the names of the chains tell them apart, as far as they can."""
    host = Host()
    host.files = files = BadSector()
    for number, ifname in ((1, "eth0"), (2, "eth1")):
        mapping = {"hostPort": 8080 + number, "containerPort": 80}
        given = conf(mapping, ips=(f"10.88.0.{number + 1}/16",), backend="iptables")
        given["prevResult"]["interfaces"][1]["name"] = ifname
        host.call("ADD", given, ifname=ifname)
    files.refused = True
    assert refused(host, "DEL", conf(backend="iptables"), ifname="eth1" if second else "eth0").code == 104
    assert {one.port for one in iptables_ports(host)} == {8081 if second else 8082}
