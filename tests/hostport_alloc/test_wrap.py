"""`cnimeta wrap`: what becomes of real configurations, and that unwrapping gives back the very bytes."""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

import pytest

from cnimeta.errors import CniError
from cnimeta.spec.netconf import NetConf
from cnimeta_plugins.hostport_alloc.config import read_settings
from cnimeta_plugins.hostport_alloc.operator import wrap, wrapfile
from cnimeta_plugins.hostport_alloc.operator.commands import add_commands

pytestmark = pytest.mark.unit

PORTMAP = {"type": "portmap", "capabilities": {"portMappings": True}, "snat": True}
BANDWIDTH = {"type": "bandwidth", "capabilities": {"bandwidth": True}}
IPAM = {"type": "host-local", "subnet": "10.22.0.0/16"}

CONFIGURATIONS: dict[str, dict[str, Any]] = {
    "flannel.conflist": {
        "name": "cbr0",
        "cniVersion": "0.3.1",
        "plugins": [{"type": "flannel", "delegate": {"hairpinMode": True, "isDefaultGateway": True}}, PORTMAP],
    },
    "canal.conflist": {
        "name": "canal",
        "cniVersion": "0.3.1",
        "plugins": [
            {
                "type": "flannel",
                "delegate": {"type": "calico", "include_default_routes": True, "policy": {"type": "k8s"}},
            },
            PORTMAP,
        ],
    },
    "calico.conflist": {
        "name": "k8s-pod-network",
        "cniVersion": "0.3.1",
        "plugins": [{"type": "calico", "ipam": {"type": "calico-ipam"}}, PORTMAP, BANDWIDTH],
    },
    "bridge.conf": {"cniVersion": "1.0.0", "name": "mynet", "type": "bridge", "bridge": "cni0", "ipam": IPAM},
    "ptp.conf": {"name": "ptp", "type": "ptp", "ipam": IPAM},
    "macvlan.conflist": {
        "cniVersion": "1.1.0",
        "name": "mv",
        "disableGC": True,
        "plugins": [{"type": "macvlan", "master": "eth0", "ipam": IPAM}],
    },
}


def entry_of(document: dict[str, Any]) -> dict[str, Any]:
    return document["plugins"][0] if "plugins" in document else document


@pytest.mark.parametrize("name", CONFIGURATIONS)
def test_every_plugin_becomes_a_delegate_as_it_stands(name: str) -> None:
    before = CONFIGURATIONS[name]
    after: dict[str, Any] = wrap.wrapped(before, wrap.Options({"default": "20000-20999"}))
    entry = entry_of(after)
    assert entry["type"] == "hostport_alloc"
    assert {key: after[key] for key in before if key in ("name", "cniVersion", "disableGC")} == {
        key: before[key] for key in before if key in ("name", "cniVersion", "disableGC")
    }
    assert len(after.get("plugins", [0])) == 1
    plugins = before.get("plugins", [{k: v for k, v in before.items() if k not in ("name", "cniVersion")}])
    moved = [entry["portmap"]] if "portmap" in entry else []
    assert entry["delegates"] + [{**one, "capabilities": {"portMappings": True}} for one in moved] == plugins
    assert entry["capabilities"]["portMappings"] is True
    assert entry["capabilities"]["io.kubernetes.cri.pod-annotations"] is True
    settings = read_settings(NetConf({**entry, "name": after["name"], "cniVersion": after.get("cniVersion", "")}))
    assert settings.chain.wrapper


def test_portmap_keeps_its_place_when_it_is_not_the_last() -> None:
    entry = entry_of(wrap.wrapped(CONFIGURATIONS["calico.conflist"], wrap.Options({})))
    assert [plugin["type"] for plugin in entry["delegates"]] == ["calico", "portmap", "bandwidth"]
    assert "portmap" not in entry
    assert entry["capabilities"]["bandwidth"] is True


def test_portmap_moves_to_its_key_when_it_is_the_last() -> None:
    entry = entry_of(wrap.wrapped(CONFIGURATIONS["flannel.conflist"], wrap.Options({})))
    assert [plugin["type"] for plugin in entry["delegates"]] == ["flannel"]
    assert entry["portmap"] == {"type": "portmap", "snat": True}


def run(*words: str) -> int:
    parser = argparse.ArgumentParser()
    add_commands(parser.add_subparsers())
    args = parser.parse_args(words)
    status: int = args.run(args)
    return status


@pytest.mark.parametrize("name", CONFIGURATIONS)
def test_unwrapping_gives_back_the_very_bytes_and_mode(name: str, tmp_path: Path) -> None:
    file = tmp_path / name
    text = json.dumps(CONFIGURATIONS[name], indent=3) + "\n\n"
    file.write_text(text)
    file.chmod(0o640)
    assert run("wrap", str(file), "--expose", "80/tcp", "--range", "default=21000-21999", "--kubeconfig", "node") == 0
    entry = entry_of(json.loads(file.read_text()))
    assert (entry["expose"], entry["ranges"], entry["kubernetes"]) == (["80/tcp"], {"default": "21000-21999"}, {})
    assert file.stat().st_mode & 0o777 == 0o640
    loaded = [path.name for path in tmp_path.iterdir() if path.suffix in (".conf", ".conflist", ".json")]
    assert loaded == [name]
    assert run("wrap", str(file), "--unwrap") == 0
    assert file.read_text() == text
    assert file.stat().st_mode & 0o777 == 0o640
    assert [path.name for path in tmp_path.iterdir()] == [name]


def test_nothing_is_changed_when_only_printing(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = tmp_path / "a.conf"
    file.write_text(json.dumps(CONFIGURATIONS["ptp.conf"]))
    assert run("wrap", str(file), "--print") == 0
    assert json.loads(capsys.readouterr().out)["type"] == "hostport_alloc"
    assert json.loads(file.read_text()) == CONFIGURATIONS["ptp.conf"]
    assert [path.name for path in tmp_path.iterdir()] == ["a.conf"]


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("{", "is not JSON"),
        ("[]", "must hold a JSON object"),
        ('{"name": "n", "plugins": []}', "nothing to wrap"),
        ('{"type": "bridge"}', "$.name is missing"),
        ('{"name": "n", "plugins": [{"type": "hostport_alloc"}]}', "already"),
        ('{"name": "n", "plugins": [{"bridge": "x"}]}', "$.delegates[0].type is missing"),
    ],
)
def test_file_is_left_alone_when_it_cannot_be_wrapped(
    text: str, said: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = tmp_path / "a.conflist"
    file.write_text(text)
    assert run("wrap", str(file)) == 1
    assert said in capsys.readouterr().err
    assert file.read_text() == text
    assert [path.name for path in tmp_path.iterdir()] == ["a.conflist"]


def test_wrapping_is_refused_when_the_options_are_wrong(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = tmp_path / "a.conf"
    file.write_text(json.dumps(CONFIGURATIONS["ptp.conf"]))
    for words, said in (
        (("--range", "default"), "--range must be NAME=FIRST-LAST"),
        (("--range", "default=9-1"), "$.ranges.default"),
        (("--expose", "web:80"), "$.expose[0]"),
        (("--data-dir", "data"), "$.dataDir"),
    ):
        assert run("wrap", str(file), *words) == 2
        assert said in capsys.readouterr().err
    assert [path.name for path in tmp_path.iterdir()] == ["a.conf"]


def test_unwrapping_is_refused_when_the_file_was_replaced_unless_forced(tmp_path: Path) -> None:
    file = tmp_path / "a.conf"
    file.write_text(json.dumps(CONFIGURATIONS["ptp.conf"]))
    assert run("wrap", str(file)) == 0
    file.write_text(json.dumps(CONFIGURATIONS["bridge.conf"]))
    assert run("wrap", str(file), "--unwrap") == 1
    assert json.loads(file.read_text()) == CONFIGURATIONS["bridge.conf"]
    assert run("wrap", str(file), "--unwrap", "--force") == 0
    assert json.loads(file.read_text()) == CONFIGURATIONS["ptp.conf"]


def test_unwrapping_is_refused_when_nothing_was_wrapped(tmp_path: Path) -> None:
    with pytest.raises(CniError, match="does not exist"):
        wrapfile.unwrap_file(str(tmp_path / "a.conf"))


def test_earlier_original_is_kept_under_a_number_when_another_installer_replaced_the_file(tmp_path: Path) -> None:
    file = tmp_path / "a.conf"
    file.write_text(json.dumps(CONFIGURATIONS["ptp.conf"]))
    assert run("wrap", str(file)) == 0
    file.write_text(json.dumps(CONFIGURATIONS["bridge.conf"]))
    assert run("wrap", str(file)) == 0
    assert json.loads((tmp_path / "a.conf.cnimeta-original").read_text()) == CONFIGURATIONS["bridge.conf"]
    assert json.loads((tmp_path / "a.conf.cnimeta-original.1").read_text()) == CONFIGURATIONS["ptp.conf"]
    assert run("wrap", str(file), "--unwrap") == 0
    assert json.loads(file.read_text()) == CONFIGURATIONS["bridge.conf"]


def test_unwrapping_keeps_an_edit_and_says_so_unless_forced(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = tmp_path / "a.conf"
    for force in ((), ("--force",)):
        file.write_text(json.dumps(CONFIGURATIONS["ptp.conf"]))
        assert run("wrap", str(file)) == 0
        edited = json.loads(file.read_text())
        edited["delegates"][0]["mtu"] = 1400
        edited["sticky"] = False
        file.write_text(json.dumps(edited))
        capsys.readouterr()
        assert run("wrap", str(file), "--unwrap", *force) == 0
        said = capsys.readouterr().err
        assert json.loads(file.read_text()) == {**CONFIGURATIONS["ptp.conf"], **({} if force else {"mtu": 1400})}
        assert [path.name for path in tmp_path.iterdir()] == ["a.conf"]
        assert ("edits are kept: $.mtu" in said) == (not force)
        assert ("$.sticky was changed and goes with hostport_alloc" in said) == (not force)


def test_nothing_is_changed_when_unwrapping_is_only_printed(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = tmp_path / "a.conf"
    file.write_text(json.dumps(CONFIGURATIONS["ptp.conf"]))
    assert run("wrap", str(file)) == 0
    before = {path.name: path.read_bytes() for path in tmp_path.iterdir()}
    capsys.readouterr()
    assert run("wrap", str(file), "--print", "--unwrap") == 0
    assert json.loads(capsys.readouterr().out) == CONFIGURATIONS["ptp.conf"]
    assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == before


def test_default_range_stays_when_another_one_is_named_until_it_is_emptied(tmp_path: Path) -> None:
    file = tmp_path / "a.conf"
    for words, ranges in (
        (("--range", "games=7000-7999"), {"default": "20000-24999", "games": "7000-7999"}),
        (("--range", "games=7000-7999", "--range", "default="), {"games": "7000-7999"}),
    ):
        file.write_text(json.dumps(CONFIGURATIONS["ptp.conf"]))
        assert run("wrap", str(file), *words) == 0
        assert json.loads(file.read_text())["ranges"] == ranges


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (("--range", "default=30000-31000"), "overlaps the NodePort range"),
        (("--range", "default=40000-41000"), "overlaps the ephemeral range"),
        (("--kubeconfig", "/no/such/file", "--policy", "required"), "cannot be read"),
    ],
)
def test_wrapping_is_refused_when_add_would_be(
    words: tuple[str, ...], said: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = tmp_path / "a.conf"
    file.write_text(json.dumps(CONFIGURATIONS["ptp.conf"]))
    assert run("wrap", str(file), *words) == 1
    assert said in capsys.readouterr().err
    assert json.loads(file.read_text()) == CONFIGURATIONS["ptp.conf"]
