"""Loading configurations: what libcni accepts, what it chooses, and messages that name file and key."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from cnimeta.errors import CniError, DecodingFailure, IncompatibleVersion, InvalidNetworkConfig, IoFailure
from cnimeta.runtime import NetworkList, find_network, load_file, load_folder
from cnimeta.runtime.conf import parse_list
from cnimeta.spec.version import ALL

pytestmark = pytest.mark.unit

BRIDGE = {"type": "bridge", "Unknown": {"kept": [1, None]}}


def write(path: Path, document: object) -> str:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(document if isinstance(document, str) else json.dumps(document), encoding="utf-8")
    return str(path)


def a_list(**changes: object) -> dict[str, object]:
    return {"cniVersion": "1.0.0", "name": "net", "plugins": [BRIDGE], **changes}


def test_plugins_stay_as_written_when_a_list_is_loaded(tmp_path: Path) -> None:
    path = write(tmp_path / "a.conflist", a_list(plugins=[BRIDGE, {"type": "portmap"}], other="kept out"))
    assert load_file(path) == NetworkList("net", "1.0.0", (BRIDGE, {"type": "portmap"}))


@pytest.mark.parametrize("suffix", [".conf", ".json"])
def test_a_list_of_one_comes_back_when_the_file_holds_one_plugin(tmp_path: Path, suffix: str) -> None:
    raw = {"cniVersion": "0.4.0", "name": "one", "type": "ptp", "ipam": {"type": "host-local"}}
    assert load_file(write(tmp_path / f"x{suffix}", raw)) == NetworkList("one", "0.4.0", (raw,))


def test_a_conflist_is_refused_when_it_holds_one_plugin(tmp_path: Path) -> None:
    path = write(tmp_path / "x.conflist", {"name": "one", "type": "ptp"})
    with pytest.raises(InvalidNetworkConfig, match=r"x\.conflist: \$\.plugins is missing"):
        load_file(path)


@pytest.mark.parametrize(
    ("single", "several", "chosen"),
    [
        (None, None, "0.1.0"),
        ("", None, "0.1.0"),
        ("1.0.0", [], "1.0.0"),
        ("0.3.1", ["0.4.0", "1.0.0"], "1.0.0"),
        ("1.1.0", ["0.4.0"], "1.1.0"),
        (None, ["0.3.0", "1.1.0", "1.0.0", "9.0.0"], "1.1.0"),
        ("2.0.0", ["1.0.0"], "1.0.0"),
        ("1.0.0", ["2.0.0"], "1.0.0"),
        *((version, None, version) for version in ALL),
    ],
)
def test_the_highest_version_this_runtime_speaks_is_chosen_when_several_are_offered(
    single: str | None, several: list[str] | None, chosen: str
) -> None:
    assert parse_list(a_list(cniVersion=single, cniVersions=several)).cni_version == chosen  # type: ignore[arg-type]


@pytest.mark.parametrize("version", ["2.0.0", "1.2.0", "0.5.0", "1.0"])
def test_nothing_is_loaded_when_no_version_is_known(version: str) -> None:
    for raw in (a_list(cniVersion=version), a_list(cniVersion=None, cniVersions=[version])):
        with pytest.raises(IncompatibleVersion, match=f"none of the configuration's versions is supported: {version};"):
            parse_list(raw)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("value", "meant"), [(True, True), ("true", True), ("TRUE", True), (False, False), ("false", False), (None, False)]
)
def test_flags_are_read_when_they_are_booleans_or_words(value: object, meant: bool) -> None:
    network = parse_list(a_list(disableCheck=value, disableGC=value))  # type: ignore[arg-type]
    assert (network.disable_check, network.disable_gc) == (meant, meant)


def test_plugins_of_the_lists_folder_come_after_its_own_when_there_is_one(tmp_path: Path) -> None:
    path = write(tmp_path / "a.conflist", a_list())
    write(tmp_path / "net" / "20.conf", {"type": "bandwidth"})
    write(tmp_path / "net" / "10.conf", {"type": "portmap"})
    write(tmp_path / "net" / "30.json", {"type": "not read"})
    (tmp_path / "net" / "15.conf").mkdir()
    assert [plugin["type"] for plugin in load_file(path).plugins] == ["bridge", "portmap", "bandwidth"]


def test_a_list_without_plugins_is_fine_when_its_folder_has_some(tmp_path: Path) -> None:
    path = write(tmp_path / "a.conflist", {"cniVersion": "1.0.0", "name": "net"})
    write(tmp_path / "net" / "10.conf", {"type": "portmap"})
    assert load_file(path).plugins == ({"type": "portmap"},)


@pytest.mark.parametrize("value", [True, "true"])
def test_the_lists_folder_is_not_read_when_only_inlined_plugins_count(tmp_path: Path, value: object) -> None:
    path = write(tmp_path / "a.conflist", a_list(loadOnlyInlinedPlugins=value))
    write(tmp_path / "net" / "10.conf", "not even JSON")
    assert load_file(path).plugins == (BRIDGE,)


@pytest.mark.parametrize(
    ("changes", "error", "message"),
    [
        ({"name": None}, InvalidNetworkConfig, r"\$\.name is missing"),
        ({"name": "a/b"}, InvalidNetworkConfig, r"\$\.name \"a/b\" is invalid"),
        ({"name": "net\n"}, InvalidNetworkConfig, r"\$\.name \"net\\n\" is invalid"),
        ({"name": 5}, InvalidNetworkConfig, r"\$\.name must be a string, got a number: 5"),
        ({"cniVersion": "one"}, InvalidNetworkConfig, r"\$\.cniVersion must be a version such as 1\.1\.0, got \"one\""),
        ({"cniVersion": 1}, InvalidNetworkConfig, r"\$\.cniVersion must be a string"),
        ({"cniVersions": "1.0.0"}, InvalidNetworkConfig, r"\$\.cniVersions must be an array"),
        ({"cniVersions": ["1.0.0", "x"]}, InvalidNetworkConfig, r"\$\.cniVersions\[1\] must be a version"),
        ({"plugins": []}, InvalidNetworkConfig, r"\$\.plugins is missing or empty"),
        ({"plugins": {}}, InvalidNetworkConfig, r"\$\.plugins must be an array"),
        ({"plugins": ["x"]}, InvalidNetworkConfig, r"\$\.plugins\[0\] must be an object"),
        ({"plugins": [None]}, InvalidNetworkConfig, r"\$\.plugins\[0\]\.type is missing"),
        ({"plugins": [BRIDGE, {"type": "../x"}]}, InvalidNetworkConfig, r"\$\.plugins\[1\]\.type \"\.\./x\" is not"),
        ({"plugins": [{"type": "a", "capabilities": []}]}, InvalidNetworkConfig, r"\[0\]\.capabilities must be an obj"),
        (
            {"plugins": [{"type": "a", "capabilities": {"b": 1}}]},
            InvalidNetworkConfig,
            r"\.capabilities\.b must be true",
        ),
        ({"plugins": None, "loadOnlyInlinedPlugins": True}, InvalidNetworkConfig, r"\$\.plugins is missing or empty"),
        ({"disableCheck": "yes"}, InvalidNetworkConfig, r"\$\.disableCheck must be true or false"),
        ({"disableGC": 1}, InvalidNetworkConfig, r"\$\.disableGC must be true or false"),
    ],
)
def test_file_key_and_value_are_named_when_a_list_is_wrong(
    tmp_path: Path, changes: dict[str, object], error: type[CniError], message: str
) -> None:
    path = write(tmp_path / "bad.conflist", a_list(**changes))
    with pytest.raises(error, match=message) as caught:
        load_file(path)
    assert caught.value.msg.startswith(f"{path}: ")


@pytest.mark.parametrize("text", ["", "{", "[]", '"x"', "nul", '{"name": NaN}'])
def test_a_decoding_failure_names_the_file_when_it_is_not_a_json_object(tmp_path: Path, text: str) -> None:
    path = write(tmp_path / "bad.conflist", text)
    with pytest.raises(DecodingFailure, match=r"bad\.conflist: the network configuration"):
        load_file(path)


def test_the_failing_file_is_named_when_it_is_in_the_lists_folder(tmp_path: Path) -> None:
    path = write(tmp_path / "a.conflist", a_list())
    write(tmp_path / "net" / "10.conf", {"name": "no type"})
    with pytest.raises(InvalidNetworkConfig, match=r"net/10\.conf: \$\.type is missing"):
        load_file(path)
    write(tmp_path / "net" / "10.conf", "{")
    with pytest.raises(DecodingFailure, match=r"net/10\.conf"):
        load_file(path)


def test_an_io_failure_names_the_file_when_it_cannot_be_read(tmp_path: Path) -> None:
    for path in (tmp_path / "missing.conflist", tmp_path):
        with pytest.raises(IoFailure, match="cannot read"):
            load_file(str(path))


def test_lists_come_before_single_configurations_when_a_network_is_looked_for(tmp_path: Path) -> None:
    write(tmp_path / "00.conf", {"name": "net", "type": "first-by-name"})
    write(tmp_path / "10.conflist", a_list(name="other"))
    write(tmp_path / "20.conflist", a_list())
    assert find_network("net", str(tmp_path)).plugins == (BRIDGE,)
    (tmp_path / "20.conflist").unlink()
    assert find_network("net", str(tmp_path)).plugins[0]["type"] == "first-by-name"


def test_broken_files_are_in_the_details_when_a_network_is_not_found(tmp_path: Path) -> None:
    write(tmp_path / "00.conflist", "{")
    write(tmp_path / "10.conflist", a_list())
    assert find_network("net", str(tmp_path)).name == "net"
    with pytest.raises(InvalidNetworkConfig, match='no network "gone" in') as caught:
        find_network("gone", str(tmp_path))
    assert "00.conflist" in caught.value.details
    assert "10.conflist" not in caught.value.details


def test_an_unreadable_file_is_an_error_when_it_may_be_the_network_that_is_looked_for(tmp_path: Path) -> None:
    write(tmp_path / "20-net.conflist", a_list())
    (tmp_path / "10-other.conflist").symlink_to("/proc/self/mem")
    with pytest.raises(IoFailure, match=r"10-other\.conflist: .*Input/output error"):
        find_network("net", str(tmp_path))


def test_the_lists_folder_is_an_error_when_nobody_can_tell_whether_it_is_there(tmp_path: Path) -> None:
    path = write(tmp_path / "net.conflist", a_list())
    loop = tmp_path / "net"
    loop.symlink_to(loop)
    with pytest.raises(IoFailure, match="symbolic links"):
        load_file(path)


def test_networks_come_by_file_name_when_a_folder_is_loaded(tmp_path: Path) -> None:
    write(tmp_path / "30.json", {"name": "c", "type": "x"})
    write(tmp_path / "10.conflist", a_list(name="a"))
    write(tmp_path / "20.conf", {"name": "b", "type": "x"})
    write(tmp_path / "05.txt", "not a configuration")
    assert [network.name for network in load_folder(str(tmp_path))] == ["a", "b", "c"]


def test_declared_capabilities_are_collected_when_plugins_declare_them() -> None:
    plugins = [
        {"type": "a", "capabilities": {"portMappings": True, "ips": False}},
        {"type": "b", "Capabilities": {"bandwidth": True, "portMappings": True, "dns": None}},
    ]
    assert parse_list(a_list(plugins=plugins)).capabilities == ("bandwidth", "portMappings")  # type: ignore[arg-type]
