"""`cnimeta doctor`: each thing it looks at, good and bad, and no trace of having looked."""

from __future__ import annotations

import json
import subprocess
from typing import TYPE_CHECKING

import pytest

from cnimeta.cli.install import install
from cnimeta.cli.main import main
from cnimeta.node.doctor.examination import examine
from cnimeta.node.doctor.finding import Finding
from cnimeta.plugin import launcher

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from cnimeta.testing.netns import Namespace

pytestmark = pytest.mark.kernel

PLUGINS = ["bandwidth", "hostport_alloc", "portmap"]


def findings(folder: Path) -> dict[str, Finding]:
    """By what was looked at, with the test's folders."""
    return {finding.what: finding for finding in examine([str(folder / "bin")], str(folder / "net.d"))}


@pytest.fixture
def routing(make_netns: Callable[[str], Namespace]) -> Namespace:
    """A node's own namespace, which passes packets on."""
    namespace = make_netns("node")
    namespace.run("sysctl", "-qw", "net.ipv4.ip_forward=1")
    return namespace


@pytest.fixture
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("CNIMETA_CONFIG", str(tmp_path / "config.toml"))
    for name in ("bin", "net.d"):
        (tmp_path / name).mkdir()
    return tmp_path


def test_nothing_fails_when_everything_is_installed(place: Path, routing: Namespace) -> None:
    install(str(place / "bin"), PLUGINS)
    (place / "net.d" / "10.conflist").write_text(
        '{"cniVersion": "1.0.0", "name": "net", "plugins": [{"type": "portmap"}]}'
    )
    with routing.entered():
        found = findings(place)
    assert {finding.state for finding in found.values()} == {"ok"}
    assert found["launcher bandwidth"].message == f"{place}/bin/bandwidth, 0.3.0 to 1.1.0"
    assert found["network 10.conflist"].message == "net, 1.0.0"
    assert found["shaping"].message == "ifb, tbf and redirection were tried" or "loaded" in found["shaping"].message


def test_no_trace_stays_when_it_has_looked(place: Path) -> None:
    def node() -> list[str]:
        commands = (["nft", "list", "tables"], ["ip", "-o", "link"], ["tc", "qdisc"])
        return [subprocess.run(command, check=True, capture_output=True, text=True).stdout for command in commands]

    before = node()
    findings(place)
    assert node() == before
    assert sorted(path.name for path in place.rglob("*")) == ["bin", "net.d"]


def test_a_launcher_that_is_not_fit_is_told_when_there_is_one(place: Path) -> None:
    install(str(place / "bin"), PLUGINS)
    portmap, bandwidth = place / "bin" / "portmap", place / "bin" / "bandwidth"
    portmap.write_text(
        portmap.read_text().replace("load(Target('cnimeta_plugins.portmap.main:", "load(Target('cnimeta_plugins.gone:")
    )
    bandwidth.write_text(bandwidth.read_text().replace(launcher.package_folder(), "/opt/other/cnimeta", 1))
    found = findings(place)
    assert found["launcher portmap"].state == "fail"
    assert (
        "does not work: plugin portmap failed VERSION: plugin cnimeta_plugins.gone" in found["launcher portmap"].message
    )
    assert "No module named 'cnimeta_plugins.gone'" in found["launcher portmap"].message
    assert found["launcher bandwidth"].state == "warn"
    assert "another cnimeta" in found["launcher bandwidth"].message
    assert main(["doctor", "--bin-dir", str(place / "bin"), "--net-dir", str(place / "net.d")]) == 1


def test_a_launcher_is_looked_for_in_every_folder_when_there_are_several(place: Path) -> None:
    install(str(place / "bin"), PLUGINS)
    found = {finding.what: finding for finding in examine([f"{place}/none", f"{place}/bin"], str(place / "net.d"))}
    assert found["launcher portmap"].message.startswith(f"{place}/bin/portmap, ")
    words = ["doctor", "--json", "--net-dir", str(place / "net.d")]
    assert main([*words, "--bin-dir", f"{place}/none:{place}/bin"]) == 0
    assert main([*words, "--bin-dir", f"{place}/none", "--bin-dir", f"{place}/bin"]) == 0
    assert main([*words, "--bin-dir", ":"]) == 2


def test_forwarding_is_judged_when_packets_cannot_pass(place: Path, routing: Namespace) -> None:
    routing.run("sysctl", "-qw", "net.ipv4.ip_forward=0")
    routing.run("nft", "add table ip filter")
    routing.run("nft", "add chain ip filter FORWARD { type filter hook forward priority 0; policy drop; }")
    routing.run("nft", "add chain ip filter INPUT { type filter hook input priority 0; policy drop; }")
    with routing.entered():
        found = findings(place)
    assert found["forwarding"].state == found["forward hook"].state == "warn"
    assert "net.ipv4.ip_forward is 0" in found["forwarding"].message
    assert found["forward hook"].message.startswith("chain ip filter FORWARD: the policy is drop")
    routing.run("nft", "flush ruleset")
    routing.run("ip6tables-legacy", "-P", "FORWARD", "DROP")
    with routing.entered():
        assert findings(place)["forward hook"].message.startswith("chain FORWARD of ip6tables-legacy: ")


def test_foreign_and_missing_launchers_are_warnings_when_nothing_is_installed(place: Path) -> None:
    (place / "bin" / "portmap").write_text("#!/bin/sh\n")
    found = findings(place)
    assert "--replace" in found["launcher portmap"].message
    assert f"cnimeta install --bin-dir {place}/bin" in found["launcher bandwidth"].message
    assert {found[f"launcher {name}"].state for name in PLUGINS} == {"warn"}


@pytest.mark.parametrize(
    ("text", "state", "message"),
    [
        ('[portmap]\nbackend = "iptables"\n', "ok", "portmap on iptables"),
        ('[portmap]\nbackend = "ipchains"\n', "fail", "backend must be one of auto, nftables, iptables"),
        ('[portmp]\nbackend = "iptables"\n', "warn", 'key "portmp" that nothing reads: did you mean portmap?'),
        ('[portmap]\nbacknd = "iptables"\n', "warn", 'key "backnd" that nothing reads: did you mean backend?'),
        ("[portmap\n", "fail", "is not valid TOML"),
        ("portmap = 1\n", "fail", "portmap must be a table"),
    ],
)
def test_the_settings_are_judged_when_there_are_any(place: Path, text: str, state: str, message: str) -> None:
    (place / "config.toml").write_text(text)
    found = findings(place)["settings"]
    assert found.state == state
    assert message in found.message


def test_the_folder_of_the_settings_is_judged_when_the_state_is_moved(place: Path) -> None:
    (place / "config.toml").write_text(f'[portmap]\ndataDir = "{place}/config.toml/cnimeta"\n')
    told = f"{place}/config.toml/cnimeta: {place}/config.toml is not a folder"
    assert findings(place)["state"] == Finding("state", "fail", told)
    (place / "config.toml").write_text(f'[portmap]\ndataDir = "{place}/deep/down"\n')
    assert findings(place)["state"] == Finding("state", "ok", f"{place}/deep/down")


def test_each_network_is_judged_when_there_are_several(place: Path) -> None:
    assert findings(place)["networks"].state == "warn"
    (place / "net.d" / "10.conflist").write_text("{")
    (place / "net.d" / "20.conf").write_text('{"name": "single", "type": "no-such-plugin"}')
    found = findings(place)
    assert found["network 10.conflist"].state == "fail"
    assert f"{place}/net.d/10.conflist" in found["network 10.conflist"].message
    assert found["network 20.conf"] == Finding("network 20.conf", "warn", f"single: not in {place}/bin: no-such-plugin")


def test_a_script_can_read_it_when_json_is_asked_for(place: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = ["doctor", "--bin-dir", str(place / "bin"), "--net-dir", str(place / "net.d")]
    assert main([*words, "--json"]) == 0
    entries = json.loads(capsys.readouterr().out)
    assert all(set(entry) == {"what", "state", "message"} for entry in entries)
    assert main(words) == 0
    lines = capsys.readouterr().out.splitlines()
    assert [line.split()[0] for line in lines] == [entry["state"] for entry in entries]
