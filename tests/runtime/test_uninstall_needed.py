"""`cnimeta uninstall` leaves what a node still needs: by its containers, by its networks, by another installation."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

import pytest

from cnimeta.cli.install import BACKUP_SUFFIX, install, uninstall
from cnimeta.cli.main import main
from cnimeta.host.clock import boot_id
from cnimeta.host.files import PosixFiles
from cnimeta.plugin import launcher
from cnimeta.testing import call
from cnimeta.testing.noop import write_noop
from cnimeta.testing.sockets import FakePortScan
from cnimeta_plugins.hostport_alloc.main import HostportAlloc
from cnimeta_plugins.hostport_alloc.wiring import Wiring
from cnimeta_plugins.portmap.records import Owner, Record, Records

if TYPE_CHECKING:
    from pathlib import Path

pytestmark = pytest.mark.project

NAMES = ["bandwidth", "hostport_alloc", "portmap"]
PREV = {"cniVersion": "1.0.0", "ips": [{"address": "10.1.0.2/24"}]}


class Node:
    """Folders of a node: launchers, networks, state."""

    def __init__(self, folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
        self.bin, self.nets, self.data = folder / "bin", folder / "net.d", folder / "data"
        self.capsys = capsys
        self.nets.mkdir()
        install(str(self.bin), NAMES)

    def network(self, *plugins: dict[str, Any]) -> None:
        body = {"cniVersion": "1.0.0", "name": "net", "plugins": plugins}
        (self.nets / "10-net.conflist").write_text(json.dumps(body))

    def uninstall(self, *words: str) -> tuple[int, str]:
        status = main(["uninstall", "--bin-dir", str(self.bin), "--net-dir", str(self.nets), *words])
        said = self.capsys.readouterr()
        return status, said.out + said.err

    @property
    def installed(self) -> list[str]:
        return sorted(path.name for path in self.bin.iterdir() if launcher.read_target(str(path)))


@pytest.fixture
def node(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Node:
    config = tmp_path / "config.toml"
    config.write_text(f'[portmap]\ndataDir = "{tmp_path}/data"\n')
    monkeypatch.setenv("CNIMETA_CONFIG", str(config))
    return Node(tmp_path, capsys)


def test_everything_goes_when_nothing_needs_it(node: Node) -> None:
    (node.nets / "10-broken.conflist").write_text("{")
    node.network({"type": "bridge"})
    assert node.uninstall()[0] == 0
    assert node.installed == []
    assert sorted(path.name for path in node.nets.iterdir()) == ["10-broken.conflist", "10-net.conflist"]


def test_nothing_goes_when_a_network_needs_a_plugin_as_a_delegate_unless_forced(node: Node) -> None:
    node.network({"type": "hostport_alloc", "delegates": [{"type": "bridge"}, {"type": "bandwidth"}]})
    status, said = node.uninstall()
    assert status == 1
    assert said.startswith("cnimeta: still needed: ")
    assert all(f"{name} by 10-net.conflist in {node.nets}" in said for name in NAMES)  # portmap too: it comes after
    assert "--force" in said
    assert node.installed == NAMES
    assert node.uninstall("--force")[0] == 0
    assert node.installed == []


def test_one_goes_when_only_others_are_needed(node: Node) -> None:
    node.network({"type": "portmap"})
    assert node.uninstall("--only", "bandwidth")[0] == 0
    assert node.uninstall("--only", "portmap")[0] == 1
    assert node.installed == ["hostport_alloc", "portmap"]


def test_it_goes_when_the_file_that_comes_back_serves_the_network(node: Node) -> None:
    node.network({"type": "portmap"})
    (node.bin / f"portmap{BACKUP_SUFFIX}").write_bytes(b"\x7fELF theirs")
    assert node.uninstall("--only", "portmap") == (0, f"{node.bin}/portmap: restored\n")


def test_portmap_stays_when_containers_are_on_its_record(node: Node) -> None:
    for number, boot in enumerate([boot_id()] * 4 + ["an earlier one"]):
        owner = Owner("net", f"c{number}", "eth0")
        Records(str(node.data), PosixFiles(), print).store(Record(owner, "", boot, (), (), "nftables", None))
    (node.bin / f"portmap{BACKUP_SUFFIX}").write_bytes(b"\x7fELF theirs")  # it would not know what ours made
    status, said = node.uninstall("--only", "portmap")
    assert (status, node.installed) == (1, NAMES)
    assert "still needed: portmap by 4 containers: c0, c1, c2 and 1 more;" in said
    assert node.uninstall("--only", "hostport_alloc")[0] == 0


def test_hostport_alloc_stays_when_a_container_is_in_its_database(node: Node) -> None:
    write_noop(str(node.bin), "maps")
    entry = {"type": "hostport_alloc", "expose": ["80/tcp"], "portmap": {"type": "maps"}, "dataDir": str(node.data)}
    node.network(entry)
    network = {"cniVersion": "1.0.0", "name": "net"}
    plugin = HostportAlloc(Wiring(scan=FakePortScan()))
    call(plugin, "ADD", {**network, **entry, "prevResult": PREV}, path=str(node.bin))
    status, said = node.uninstall("--only", "hostport_alloc")
    assert status == 1
    assert "hostport_alloc by 1 container: c1;" in said
    call(plugin, "DEL", {**network, **entry}, path=str(node.bin))
    assert "1 container" not in node.uninstall("--only", "hostport_alloc")[1]
    node.network({"type": "bridge"})
    assert node.uninstall("--only", "hostport_alloc")[0] == 0


def test_a_plugin_stays_when_it_cannot_be_told_who_needs_it(node: Node) -> None:
    node.data.write_text("no folder")
    status, said = node.uninstall("--only", "portmap")
    assert status == 1
    assert "portmap, as far as can be told: " in said
    assert node.installed == NAMES


def test_a_launcher_of_another_cnimeta_is_left_alone_when_this_one_is_uninstalled(node: Node) -> None:
    path = node.bin / "portmap"
    newer = path.read_text().replace(launcher.package_folder(), "/opt/newer/cnimeta")
    path.write_text(newer)
    lines = uninstall(str(node.bin), NAMES)
    assert f"{path}: of another cnimeta, left alone" in lines
    assert [file.name for file in node.bin.iterdir()] == ["portmap"]
    assert node.uninstall("--force")[0] == 0
    assert path.read_text() == newer


def test_a_launcher_goes_on_asking_the_agent_when_it_is_installed_again(node: Node) -> None:
    path, folder = node.bin / "portmap", str(node.bin)
    assert main(["install", "--bin-dir", folder, "--only", "portmap", "--agent"]) == 0
    path.write_text(path.read_text().replace(launcher.package_folder(), "/opt/older/cnimeta"))  # before an upgrade
    assert main(["install", "--bin-dir", folder]) == 0
    asking = [name for name in NAMES if launcher.asks_agent(str(node.bin / name))]
    assert (asking, node.installed) == (["portmap"], NAMES)
    assert main(["install", "--bin-dir", folder]) == 0
    assert launcher.asks_agent(str(path))
    assert main(["install", "--bin-dir", folder, "--no-agent"]) == 0
    assert not launcher.asks_agent(str(path))


@pytest.mark.parametrize("command", ["install", "uninstall"])
def test_status_2_comes_out_when_several_folders_are_to_be_written(
    node: Node, command: str, capsys: pytest.CaptureFixture[str]
) -> None:
    for words in (["--bin-dir", f"{node.bin}:/x"], ["--bin-dir", str(node.bin), "--bin-dir", "/x"], ["--bin-dir", ""]):
        with pytest.raises(SystemExit) as caught:
            main([command, *words])
        assert caught.value.code == 2
        assert "argument --bin-dir: one folder is written to, got" in capsys.readouterr().err
    assert node.installed == NAMES
