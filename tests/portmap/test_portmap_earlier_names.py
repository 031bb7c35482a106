"""Records under the names of two digests, which the build of 2026-11-26 gave them, are served as any other."""

from __future__ import annotations

from typing import Any

import pytest
from portmap_kit import Host, conf, tcp

from cnimeta_plugins.portmap.names import file_name
from cnimeta_plugins.portmap.plan import Owner

pytestmark = pytest.mark.unit

EARLIER = "2439a64be91a99151f6cf065-4b8be96b2ec8008863e93ce3.json"
"""Of p1/eth0/net, as that build wrote it."""
BACKENDS = pytest.mark.parametrize("backend", ["nftables", "iptables", "memory"])


def served(backend: str) -> Host:
    """p1 and p2 are mapped, and p1's record has its earlier name, in the notes too."""
    host = Host()
    for number in (1, 2):
        added = conf(tcp(8080 + number), ips=(f"10.88.0.{number + 1}/16",), backend=backend)
        host.call("ADD", added, container_id=f"p{number}")
    present = file_name(Owner("net", "p1", "eth0"))
    for path in [path for path in host.files.content if path.endswith(present)]:
        host.files.content[path.replace(present, EARLIER)] = host.files.content.pop(path)
    return host


def records(host: Host) -> list[str]:
    return [path.rpartition("/")[2] for path in host.files.content if "/portmap/" in path]


def p1(backend: str) -> dict[str, Any]:
    return conf(tcp(8081), backend=backend)


@BACKENDS
def test_check_and_del_find_it(backend: str) -> None:
    host = served(backend)
    assert EARLIER in records(host)
    host.call("CHECK", p1(backend), container_id="p1")
    host.call("DEL", {**conf(), "prevResult": None}, container_id="p1")  # the record alone tells what was mapped
    assert records(host) == [file_name(Owner("net", "p2", "eth0"))]
    assert host.lines == []


@BACKENDS
def test_it_has_its_present_name_when_it_was_written_again(backend: str) -> None:
    host = served(backend)
    host.call("ADD", p1(backend), container_id="p1")
    assert sorted(records(host)) == sorted(file_name(Owner("net", one, "eth0")) for one in ("p1", "p2"))
    host.call("DEL", p1(backend), container_id="p1")
    assert not [line for line in host.dump() if "8081" in line]
    assert host.lines == []


@BACKENDS
def test_gc_keeps_it_or_collects_it(backend: str) -> None:
    host = served(backend)
    valid = [{"containerID": one, "ifname": "eth0"} for one in ("p1", "p2")]
    host.call("GC", {**conf(), "cni.dev/valid-attachments": valid})
    assert EARLIER in records(host)
    host.call("CHECK", p1(backend), container_id="p1")
    host.call("GC", {**conf(), "cni.dev/valid-attachments": valid[1:]})
    assert records(host) == [file_name(Owner("net", "p2", "eth0"))]
    assert host.lines == []


def test_gc_leaves_that_of_another_network_alone() -> None:
    host = served("nftables")
    host.call("GC", {**conf(), "name": "other", "cni.dev/valid-attachments": []})
    assert EARLIER in records(host)
    assert host.lines == []


def test_the_present_one_counts_when_a_kill_left_both() -> None:
    host = served("nftables")
    earlier = {path: data for path, data in host.files.content.items() if path.endswith(EARLIER)}
    host.call("ADD", conf(tcp(8090), backend="nftables"), container_id="p1")
    host.files.content.update(earlier)
    other = conf(tcp(8081), ips=("10.88.0.9/16",))  # a number that only what was left names
    host.call("ADD", other, container_id="p3")
    host.call("DEL", conf(tcp(8090)), container_id="p1")
    assert EARLIER not in records(host)
    assert not [line for line in host.dump() if "8090" in line]
