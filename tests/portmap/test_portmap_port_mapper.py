"""portmap as a port mapper: what other plugins and `cnimeta ports` ask it, beside the verbs."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, Any

import pytest
from portmap_kit import Host, conf, tcp

from cnimeta.errors import CniError
from cnimeta.host.clock import boot_id
from cnimeta.host.files import PosixFiles
from cnimeta.host.nftables.kernel import KernelNft
from cnimeta.ports.mapper import Expected, MappedPort, Repaired
from cnimeta.testing import call
from cnimeta_plugins.portmap.backends import Backends
from cnimeta_plugins.portmap.main import Portmap
from cnimeta_plugins.portmap.mapper import Mapper
from cnimeta_plugins.portmap.nftables.rules import TABLE
from cnimeta_plugins.portmap.port_mapper import PortmapPorts

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping
    from pathlib import Path

    from cnimeta.testing.netns import Namespace


class Node(Host):
    """A host of fakes whose records are files, as the port mapper reads them."""

    def __init__(self, folder: Path) -> None:
        super().__init__()
        self.data_dir = str(folder)
        self.boot = boot_id()

    def mapper(self, _environ: Mapping[str, str], log: Callable[[str], None]) -> Mapper:
        return Mapper(
            Backends(sources=self.sources()),
            lambda: self.conntrack,
            lambda: self.sysctl,
            PosixFiles(),
            log,
            boot_id=lambda: self.boot,
            route=lambda _: "",
            namespaces=self.namespaces,
            locks=lambda _: self.locks,
        )

    def call(self, verb: str, body: dict[str, Any], container_id: str = "c1", **more: Any) -> Any:
        namespace = f"{self.data_dir}/ns/{container_id}"
        plugin = Portmap(lambda request: self.mapper(request.environ, request.log))
        return call(
            plugin, verb, {**body, "dataDir": self.data_dir}, container_id=container_id, netns=namespace, **more
        )

    def ports(self) -> PortmapPorts:
        return PortmapPorts(lambda _: Backends(sources=self.sources()), self.mapper)

    def mappings(self) -> set[MappedPort]:
        found = self.ports().mappings(self.data_dir, self.lines.append)
        assert len(found) == len(set(found))
        return set(found)

    def lose_records(self) -> None:
        for name in os.listdir(f"{self.data_dir}/portmap"):
            os.unlink(f"{self.data_dir}/portmap/{name}")


@pytest.fixture
def node(tmp_path: Path) -> Node:
    return Node(tmp_path)


@pytest.mark.unit
def test_recorded_mappings_are_told_port_by_port_when_there_are_some(node: Node) -> None:
    node.call("ADD", conf(tcp(8080), tcp(9000, 80, count=2, hostIP="192.0.2.1"), managedBy="hostport_alloc"))
    node.call("ADD", conf(tcp(8081), backend="iptables", ips=("10.88.0.3/16",)), "c2")
    managed = ("net", "c1", "eth0", "tcp")
    assert node.mappings() == {
        MappedPort(*managed, 8080, 80, managed_by="hostport_alloc"),
        MappedPort(*managed, 9000, 80, "192.0.2.1", managed_by="hostport_alloc"),
        MappedPort(*managed, 9001, 81, "192.0.2.1", managed_by="hostport_alloc"),
        MappedPort("net", "c2", "eth0", "tcp", 8081, 80),
    }


@pytest.mark.unit
@pytest.mark.parametrize("backend", ["nftables", "memory"])
def test_mappings_are_told_by_the_kernel_when_their_records_are_lost(node: Node, backend: str) -> None:
    body = conf(tcp(8080), tcp(7070, 70, hostIP="192.0.2.1"), ips=("10.88.0.2/16", "fd00::2/64"), backend=backend)
    node.call("ADD", body)
    node.lose_records()
    node.call("ADD", conf(tcp(8081), backend=backend, ips=("10.88.0.3/16",)), "c2")
    told = None if backend == "memory" else ""
    assert node.mappings() == {
        MappedPort("net", "c1", "eth0", "tcp", 8080, 80, recorded=False, managed_by=told),
        MappedPort("net", "c1", "eth0", "tcp", 7070, 70, "192.0.2.1", recorded=False, managed_by=told),
        MappedPort("net", "c2", "eth0", "tcp", 8081, 80),
    }


@pytest.mark.unit
@pytest.mark.parametrize(
    ("network", "managed_by", "told"),
    [
        ("net", "", ""),
        ("net", "hostport_alloc", "hostport_alloc"),
        ("n" * 105, "hostport_alloc", "hostport_alloc"),
        ("n" * 106, "hostport_alloc", None),  # no room in the comment
        ("n" * 119, "hostport_alloc", None),
        ("n" * 120, "", ""),
        ("net", "some/body", ""),
    ],
)
def test_the_kernel_tells_on_whose_behalf_a_port_is_mapped(
    node: Node, network: str, managed_by: str, told: str | None
) -> None:
    node.call("ADD", {**conf(tcp(8080), managedBy=managed_by), "name": network}, "c")
    node.lose_records()
    assert node.mappings() == {
        MappedPort(network, "c", "eth0", "tcp", 8080, 80, recorded=False, managed_by=told),
    }
    node.call("GC", {**conf(), "name": network, "cni.dev/valid-attachments": []})
    assert node.mappings() == set()


@pytest.mark.unit
def test_mappings_are_not_told_when_their_record_is_of_an_earlier_boot(node: Node) -> None:
    node.boot = "before"
    node.call("ADD", conf(tcp(8080)))
    assert node.mappings() == set()


@pytest.mark.unit
def test_a_damaged_record_is_reported_and_the_kernel_tells_when_mappings_are_asked_for(node: Node) -> None:
    node.call("ADD", conf(tcp(8080)))
    (name,) = os.listdir(f"{node.data_dir}/portmap")
    with open(f"{node.data_dir}/portmap/{name}", "ab") as file:
        file.write(b"}")
    assert node.mappings() == {MappedPort("net", "c1", "eth0", "tcp", 8080, 80, recorded=False)}
    assert any("damaged" in line for line in node.lines)


@pytest.mark.unit
def test_an_unreadable_folder_is_an_error_when_mappings_are_asked_for(node: Node, tmp_path: Path) -> None:
    (tmp_path / "portmap").write_text("a file where a folder should be")
    with pytest.raises(CniError) as caught:
        node.mappings()
    assert caught.value.code == 104


@pytest.mark.unit
@pytest.mark.parametrize("backend", ["nftables", "iptables", "memory"])
def test_mappings_are_put_back_when_the_rules_were_flushed(node: Node, backend: str) -> None:
    bodies = {f"c{n}": conf(tcp(8080 + n), ips=(f"10.88.0.{n + 2}/16",), backend=backend) for n in range(4)}
    for name, body in bodies.items():
        node.call("ADD", body, name)
    node.flush()
    node.namespaces.gone.add(f"{node.data_dir}/ns/c3")
    repaired = node.ports().repair(node.data_dir, node.lines.append, ["c2"])
    assert sorted(repaired) == [Repaired("c0", "eth0", "net"), Repaired("c1", "eth0", "net")]
    for name in ("c0", "c1"):
        node.call("CHECK", bodies[name], name)
    with pytest.raises(CniError):
        node.call("CHECK", bodies["c2"], "c2")


@pytest.mark.unit
def test_the_reason_is_told_when_a_mapping_cannot_be_put_back(node: Node) -> None:
    node.call("ADD", conf(tcp(8080), backend="iptables"))

    def refuse() -> None:
        raise CniError("the kernel said no")

    node.flush()
    node.iptables.on_commit = refuse
    (found,) = node.ports().repair(node.data_dir, node.lines.append, ())
    assert found == Repaired("c1", "eth0", "net", "the kernel said no")


@pytest.mark.unit
def test_nothing_changes_when_all_is_in_place_and_repaired(node: Node) -> None:
    node.call("ADD", conf(tcp(8080)))
    before = node.nft.dump()
    node.ports().repair(node.data_dir, node.lines.append, ())
    assert node.nft.dump() == before


@pytest.mark.unit
@pytest.mark.parametrize(
    ("keys", "kept"),
    [
        (
            {"backend": "iptables", "dataDir": "/x", "snat": "no", "markMasqBit": 99},
            {"backend": "iptables", "dataDir": "/x"},
        ),
        ({"backend": "auto"}, {"backend": "auto"}),
        ({"backend": "ipvs", "dataDir": 7}, {}),
        ({"backend": ["nftables"]}, {}),
        ({"Backend": "nftables"}, {"backend": "nftables"}),
    ],
)
def test_only_what_delete_needs_is_left_when_options_may_be_refused(keys: dict[str, Any], kept: dict[str, Any]) -> None:
    body = {"cniVersion": "1.0.0", "name": "net", "type": "portmap", "runtimeConfig": {"portMappings": []}}
    assert PortmapPorts().essential({**body, **keys}) == {**body, **kept}


@pytest.mark.unit
@pytest.mark.parametrize("backend", ["nftables", "iptables", "memory"])
def test_what_is_gone_is_told_and_put_back_when_checked_and_repaired(node: Node, backend: str) -> None:
    for number in (1, 2):
        node.call("ADD", conf(tcp(8080 + number), ips=(f"10.88.0.{number}/16",), backend=backend), f"c{number}")

    def look() -> list[bool]:
        return [bool(one.error) for one in node.ports().compare(node.data_dir, node.lines.append).others]

    assert look() == [False, False]
    node.flush()
    assert look() == [True, True]
    assert [one.error for one in node.ports().repair(node.data_dir, node.lines.append)] == ["", ""]
    assert look() == [False, False]


def expected(node: Node, number: int, body: dict[str, Any]) -> Expected:
    """What CHECK of a container is called with."""
    name = f"c{number}"
    return Expected("net", name, "eth0", f"{node.data_dir}/ns/{name}", {**body, "dataDir": node.data_dir})


@pytest.mark.unit
@pytest.mark.parametrize("backend", ["nftables", "iptables", "memory"])
def test_what_is_expected_is_held_against_one_reading_when_there_is_much_of_it(node: Node, backend: str) -> None:
    """The same answers as CHECK of each, whatever was done to it; what is not expected is told of by the records."""
    bodies = {n: conf(tcp(8080 + n), ips=(f"10.88.0.{n}/16",), backend=backend) for n in range(1, 7)}
    for number, body in bodies.items():
        node.call("ADD", body, f"c{number}")
    node.call("DEL", bodies[2], "c2")
    asked = {**bodies, 3: conf(tcp(9999), ips=("10.88.0.3/16",), backend=backend)}
    del asked[6]
    found = node.ports().compare(node.data_dir, node.lines.append, [expected(node, *one) for one in asked.items()])
    for (number, body), error in zip(asked.items(), found.errors, strict=True):
        try:
            node.call("CHECK", body, f"c{number}")
        except CniError as said:
            assert error is not None
            assert (error.code, error.msg) == (said.code, said.msg)
        else:
            assert error is None
    assert [error is None for error in found.errors] == [True, False, False, True, True]
    assert [(one.container_id, one.error) for one in found.others] == [("c6", "")]


@pytest.mark.unit
def test_maps_and_rules_are_read_once_when_many_are_compared(node: Node, monkeypatch: pytest.MonkeyPatch) -> None:
    bodies = {n: conf(tcp(8080 + n), ips=(f"10.88.0.{n}/16",)) for n in range(1, 30)}
    for number, body in bodies.items():
        node.call("ADD", body, f"c{number}")
    asked: list[str] = []

    def spied(name: str) -> Callable[..., object]:
        real = getattr(node.nft, name)

        def spy(*given: object) -> object:
            asked.append(f"{name}{given}")
            return real(*given)

        return spy

    for name in ("elements", "lookup", "all_rules", "rules", "dry_run", "chain_uses"):
        monkeypatch.setattr(node.nft, name, spied(name))
    everything = [expected(node, *one) for one in bodies.items()]
    node.ports().compare(node.data_dir, node.lines.append, everything[:1])
    for_one = list(asked)
    asked.clear()
    found = node.ports().compare(node.data_dir, node.lines.append, everything)
    assert list(found.errors) == [None] * len(bodies)
    assert asked == for_one
    assert not [one for one in asked if one.startswith(("dry_run", "lookup"))]


@pytest.mark.unit
def test_portmaps_own_refusals_are_among_them_when_a_key_is_wrong(node: Node) -> None:
    refusals = Portmap().port_mapper().refusals
    for keys in ({"snat": "no"}, {"backend": "ipvs"}, {"runtimeConfig": []}):
        with pytest.raises(CniError) as caught:
            node.call("ADD", {**conf(tcp(8080)), **keys})
        assert caught.value.code in refusals


@pytest.mark.kernel
def test_the_registered_mapper_tells_the_kernels_mappings_when_records_are_lost(
    make_netns: Callable[[str], Namespace], tmp_path: Path
) -> None:
    mapper = Portmap().port_mapper()
    body = conf(tcp(8080), tcp(9000, 9000, endPort=9001), dataDir=str(tmp_path))
    with make_netns("node").entered():
        assert mapper.mappings(str(tmp_path), print) == []
        call(Portmap(), "ADD", body, netns="/proc/1/ns/net")
        wanted = [MappedPort("net", "c1", "eth0", "tcp", *ports) for ports in ((8080, 80), (9000, 9000), (9001, 9001))]
        assert mapper.mappings(str(tmp_path), print) == wanted
        for path in (tmp_path / "portmap").iterdir():
            path.unlink()
        assert mapper.mappings(str(tmp_path), print) == [one._replace(recorded=False) for one in wanted]
        assert len(KernelNft(TABLE).elements("claims4")) == 3
