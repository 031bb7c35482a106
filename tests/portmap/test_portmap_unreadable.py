"""A record that the disk does not give is reported, and keeps nobody from the others."""

from __future__ import annotations

import errno
from typing import Any

import pytest
from portmap_kit import Host, conf

from cnimeta.errors import CniError
from cnimeta.testing.files import MemoryFiles
from cnimeta_plugins.portmap.plan import Owner
from cnimeta_plugins.portmap.records import file_name

pytestmark = pytest.mark.unit


class BadSector(MemoryFiles):
    """Files of which one cannot be read."""

    bad = ""

    def read(self, path: str) -> bytes | None:
        if self.bad and path.endswith(self.bad):
            raise OSError(errno.EIO, "Input/output error", path)
        return super().read(path)


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


def test_check_and_delete_of_the_one_fail_until_it_can_be_read(host: Host) -> None:
    mapping = conf({"hostPort": 8082, "containerPort": 80}, ips=("10.88.0.3/16",))
    for verb in ("CHECK", "DEL"):
        with pytest.raises(CniError) as caught:
            host.call(verb, mapping, container_id="c2")
        assert caught.value.code == 104
    host.files.bad = ""
    host.call("CHECK", mapping, container_id="c2")
    host.call("DEL", mapping, container_id="c2")
    assert "8082" not in "\n".join(host.dump())
