"""`cnimeta wrap --own`: our file is the first, in step with the primary's, whatever the primary does to its own."""

from __future__ import annotations

import argparse
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
from hostport_harness import Node
from hypothesis import given
from hypothesis import strategies as st

from cnimeta.errors import CniError
from cnimeta.host.files import PosixFiles
from cnimeta.runtime.cache import Cache, Cached
from cnimeta.runtime.conf import load_folder
from cnimeta.testing.clock import FakeClock
from cnimeta_plugins.hostport_alloc.operator import own, unwrap, wrap
from cnimeta_plugins.hostport_alloc.operator.commands import add_commands
from cnimeta_plugins.hostport_alloc.operator.unserved import unserved

pytestmark = pytest.mark.unit

PRIMARY = "10-flannel.conflist"
FLANNEL = {
    "name": "cbr0",
    "cniVersion": "1.0.0",
    "plugins": [
        {"type": "flannel", "delegate": {"hairpinMode": True}},
        {"type": "portmap", "capabilities": {"portMappings": True}},
    ],
}
PTP = {"name": "ptp", "cniVersion": "1.0.0", "type": "ptp", "ipam": {"type": "host-local", "subnet": "10.1.0.0/16"}}
OPTIONS = wrap.Options({"default": "21000-21999"}, ["80/tcp"])


class Folder:
    def __init__(self, path: Path) -> None:
        self.path = path
        self.said: list[str] = []
        self.clock = FakeClock()
        self.keeper = own.Keeper(str(path), self.clock, self.said.append)

    def write(self, document: Any, name: str = PRIMARY) -> None:
        (self.path / name).write_text(document if isinstance(document, str) else json.dumps(document))

    def take(self, options: wrap.Options = OPTIONS, name: str = PRIMARY) -> own.Ownership:
        return own.take(str(self.path / name), options)

    @property
    def ours(self) -> Any:
        return json.loads((self.path / own.NAME).read_text())

    @property
    def first(self) -> Any:
        """What a runtime takes."""
        return next(load_folder(str(self.path)))


@pytest.fixture
def folder(tmp_path: Path) -> Folder:
    found = Folder(tmp_path)
    found.write(FLANNEL)
    return found


def run(*words: str, node: Node | None = None) -> int:
    parser = argparse.ArgumentParser()
    add_commands(parser.add_subparsers(), None if node is None else node.wiring)
    args = parser.parse_args(words)
    status: int = args.run(args)
    return status


def test_ours_is_the_first_and_the_primarys_is_untouched_when_it_is_taken(folder: Folder) -> None:
    before = (folder.path / PRIMARY).read_bytes()
    folder.take()
    assert (folder.path / PRIMARY).read_bytes() == before
    first = folder.first
    assert (first.name, first.cni_version) == ("cbr0", "1.0.0")
    assert [plugin["type"] for plugin in first.plugins] == ["hostport_alloc"]
    assert first.plugins[0]["delegates"] == FLANNEL["plugins"][:1]
    assert first.plugins[0]["ranges"] == {"default": "21000-21999"}
    found = own.ownership(str(folder.path))
    assert found is not None
    assert (found.primary, found.options.ranges, found.options.expose) == (PRIMARY, OPTIONS.ranges, OPTIONS.expose)
    assert folder.keeper.look() == "ok"
    assert folder.said == []


def test_a_single_configuration_becomes_a_list_when_it_is_the_primary(folder: Folder) -> None:
    (folder.path / PRIMARY).unlink()
    folder.write(PTP, "10-ptp.conf")
    folder.take(name="10-ptp.conf")
    assert folder.first.plugins[0]["delegates"][0]["type"] == "ptp"


@pytest.mark.parametrize("name", ["00-a.conflist", "0.conf", "-.json"])
def test_nothing_is_written_when_another_file_would_come_first(folder: Folder, name: str) -> None:
    folder.write(FLANNEL, name)
    before = sorted(os.listdir(folder.path))
    with pytest.raises(CniError, match="rename it"):
        folder.take()
    assert sorted(os.listdir(folder.path)) == before


def test_nothing_is_written_when_runtimes_take_another_network_now(folder: Folder) -> None:
    folder.write(PTP, "00-multus.conf")
    before = sorted(os.listdir(folder.path))
    with pytest.raises(CniError, match=r"00-multus\.conf in .* comes before 10-flannel\.conflist"):
        folder.take()
    assert sorted(os.listdir(folder.path)) == before
    folder.take(name="00-multus.conf")
    folder.take(name="00-multus.conf")  # again, with ours there


@pytest.mark.parametrize("text", ["", "{", "[]", '{"name": "n", "plugins": []}'])
def test_ours_stays_when_the_primary_is_half_written(folder: Folder, text: str) -> None:
    folder.take()
    before = folder.ours
    folder.write(text)
    assert folder.keeper.look() == folder.keeper.look() == "unusable"
    assert folder.ours == before
    assert len(folder.said) == 1
    changed = {**FLANNEL, "plugins": [{"type": "flannel", "mtu": 1400}]}
    folder.write(changed)
    assert folder.keeper.look() == "stale"
    assert folder.ours["plugins"][0]["delegates"] == [{"type": "flannel", "mtu": 1400}]
    assert folder.keeper.look() == "ok"


def test_ours_stays_when_the_primary_is_gone_and_follows_when_it_is_back(folder: Folder) -> None:
    folder.take()
    (folder.path / PRIMARY).unlink()
    assert folder.keeper.look() == "gone"
    assert folder.first.name == "cbr0"
    with pytest.raises(CniError, match="would have no network"):
        own.give_back(str(folder.path))
    folder.write({**FLANNEL, "name": "new"})
    assert folder.keeper.look() == "stale"
    assert folder.first.name == "new"


def test_ours_is_back_and_the_fight_is_named_when_others_remove_it(folder: Folder) -> None:
    folder.take()
    for _ in range(4):
        os.rename(folder.path / own.NAME, folder.path / f"{own.NAME}.cilium_bak")
        assert folder.keeper.look() == "missing"
        assert folder.first.plugins[0]["type"] == "hostport_alloc"
        folder.clock.advance(5)
    assert len([line for line in folder.said if "cni.exclusive=false" in line]) == 1
    folder.clock.advance(600)
    os.unlink(folder.path / own.NAME)
    folder.keeper.look()
    assert len([line for line in folder.said if "cni.exclusive=false" in line]) == 1


def test_an_edit_of_ours_is_undone_when_it_is_kept(folder: Folder) -> None:
    folder.take()
    before = folder.ours
    folder.write("{}", own.NAME)
    assert folder.keeper.look() == "stale"
    assert folder.ours == before


def test_nothing_is_kept_when_nothing_was_taken(folder: Folder) -> None:
    assert folder.keeper.look() == "none"
    folder.write('{"primary": "../x"}', own.NAME + own.SUFFIX)
    assert folder.keeper.look() == "unusable"
    assert not (folder.path / own.NAME).exists()


def test_it_is_all_undone_when_it_is_given_back(folder: Folder, capsys: pytest.CaptureFixture[str]) -> None:
    before = sorted(os.listdir(folder.path))
    primary = str(folder.path / PRIMARY)
    assert run("wrap", "--own", primary, "--range", "games=7000-7999") == 0
    assert run("wrap", "--own", "--unwrap", primary) == 0
    assert sorted(os.listdir(folder.path)) == before
    assert run("wrap", "--own", "--unwrap", primary) == 1
    assert "no configuration" in capsys.readouterr().err


def test_the_options_of_before_stay_when_it_is_derived_anew_without_any(folder: Folder) -> None:
    primary = str(folder.path / PRIMARY)
    assert run("wrap", "--own", primary, "--range", "games=7000-7999", "--expose", "80/tcp") == 0
    made = folder.ours
    folder.write({**FLANNEL, "plugins": [{"type": "flannel", "mtu": 1400}]})
    assert run("wrap", "--own", primary) == 0
    (entry,) = folder.ours["plugins"]
    assert entry["delegates"] == [{"type": "flannel", "mtu": 1400}]
    assert entry["ranges"] == made["plugins"][0]["ranges"]
    assert entry["expose"] == made["plugins"][0]["expose"] == ["80/tcp"]
    assert run("wrap", "--own", primary, "--expose", "81/tcp") == 0
    assert folder.ours["plugins"][0]["expose"] == ["81/tcp"]


def test_a_diff_shows_both_sides_and_changes_nothing(folder: Folder, capsys: pytest.CaptureFixture[str]) -> None:
    primary = str(folder.path / PRIMARY)
    folder.write(json.dumps(FLANNEL, indent=2))
    before = {path.name: path.read_bytes() for path in folder.path.iterdir()}
    assert run("wrap", "--diff", primary) == 0
    text = capsys.readouterr().out
    assert text.startswith(f"--- {primary}\n+++ {primary} (new)\n")
    assert '+      "type": "hostport_alloc",' in text
    assert "\x1b" not in text
    assert run("wrap", "--own", "--diff", primary) == 0
    assert f"--- {folder.path / own.NAME}" in capsys.readouterr().out
    assert {path.name: path.read_bytes() for path in folder.path.iterdir()} == before


def test_live_allocations_are_told_of_when_wrapping_and_unwrapping(
    folder: Folder, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    from cnimeta_plugins.hostport_alloc.main import HostportAlloc

    state = str(tmp_path / "state")
    (tmp_path / "state").mkdir(mode=0o700)
    primary = str(folder.path / PRIMARY)
    assert run("wrap", primary, "--data-dir", state) == 0
    from cnimeta.testing.memory import call

    node = Node()
    wiring = node.wiring
    wiring._open_database = None
    conf = {**json.loads((folder.path / PRIMARY).read_text())["plugins"][0], "cniVersion": "1.0.0", "name": "cbr0"}
    conf["delegates"], conf["expose"] = [{"type": "bridge"}], ["80/tcp"]
    call(HostportAlloc(wiring), "ADD", conf)
    capsys.readouterr()
    parser = argparse.ArgumentParser()
    add_commands(parser.add_subparsers(), wiring)
    args = parser.parse_args(["wrap", primary, "--unwrap"])
    assert args.run(args) == 0
    assert "1 container on record: their DEL does not reach" in capsys.readouterr().err
    args = parser.parse_args(["wrap", primary, "--data-dir", state])
    assert args.run(args) == 0
    assert "1 container of an earlier configuration have host ports" in capsys.readouterr().err


# --- three ways


WRAPPED = wrap.wrapped(FLANNEL, OPTIONS)


def edited(change: Any) -> unwrap.Unwrapped:
    now = json.loads(json.dumps(WRAPPED))
    change(now["plugins"][0], now)
    return unwrap.unwrapped(FLANNEL, WRAPPED, now)


def test_the_original_is_the_result_when_nothing_was_edited() -> None:
    assert edited(lambda _entry, _list: None) == unwrap.Unwrapped(FLANNEL)


def test_an_edit_is_kept_when_it_has_a_place_in_the_original() -> None:
    def change(entry: Any, document: Any) -> None:
        entry["delegates"][0]["delegate"]["mtu"] = 1400
        entry["portmap"]["snat"] = False
        entry["delegates"].append({"type": "bandwidth"})
        document["disableGC"] = True

    found = edited(change)
    assert found.conflicts == ()
    assert found.own == ()
    assert found.document["disableGC"] is True
    types = [plugin["type"] for plugin in found.document["plugins"]]  # type: ignore[union-attr, index, call-overload]
    assert types == ["flannel", "bandwidth", "portmap"]
    assert found.document["plugins"] == [
        {"type": "flannel", "delegate": {"hairpinMode": True, "mtu": 1400}},
        {"type": "bandwidth"},
        {"type": "portmap", "capabilities": {"portMappings": True}, "snat": False},
    ]


def test_an_edit_of_our_own_keys_is_named_when_it_goes_with_them() -> None:
    found = edited(lambda entry, _list: entry["ranges"].update(default="1-2"))
    assert found.document == FLANNEL
    assert found.own == ("$.plugins[0].ranges.default",)


def test_a_conflict_is_named_when_the_original_was_edited_too() -> None:
    ours = json.loads(json.dumps(FLANNEL))
    ours["plugins"][0]["delegate"]["hairpinMode"] = "no"
    now = json.loads(json.dumps(WRAPPED))
    now["plugins"][0]["delegates"][0]["delegate"]["hairpinMode"] = "maybe"
    found = unwrap.unwrapped(ours, WRAPPED, now)
    assert found.conflicts == ("$.plugins[0].delegate.hairpinMode",)
    assert found.document == ours


VALUES = st.recursive(
    st.none() | st.booleans() | st.integers(0, 3) | st.sampled_from(["a", "b"]),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.sampled_from("xyz"), inner, max_size=3),
    max_leaves=8,
)


@given(VALUES, VALUES)
def test_every_edit_of_a_delegate_is_kept_when_the_original_is_as_it_was(before: Any, after: Any) -> None:
    document = {"name": "n", "cniVersion": "1.0.0", "plugins": [{"type": "bridge", "key": before}]}
    wrapped = wrap.wrapped(document, OPTIONS)
    now = json.loads(json.dumps(wrapped))
    now["plugins"][0]["delegates"][0]["key"] = after
    found = unwrap.unwrapped(document, wrapped, now)
    assert found.conflicts == ()
    assert found.document["plugins"] == [{"type": "bridge", "key": after}]


# --- what goes past us


def told(folder: Folder, cache: str) -> list[str]:
    return list(unserved(Node().wiring, str(folder.path), cache))


def test_the_doctor_is_told_when_the_first_configuration_lacks_us(folder: Folder, tmp_path: Path) -> None:
    cache = str(tmp_path / "cache")
    assert told(folder, cache) == []
    folder.take()
    (line,) = told(folder, cache)
    assert "and nobody keeps it so" in line
    kept = own.Keeper(str(folder.path), FakeClock(), print)
    assert kept.look() == "ok"
    assert told(folder, cache) == []
    folder.take()  # the file that shows it is another one
    assert kept.look() == "ok"
    assert told(folder, cache) == []
    folder.write(FLANNEL, "00-a.conflist")
    (line,) = told(folder, cache)
    assert line.startswith("runtimes take 00-a.conflist, the first in ")
    (folder.path / "00-a.conflist").unlink()
    folder.write({**FLANNEL, "name": "new"})
    (line,) = told(folder, cache)
    assert line.startswith(f"{PRIMARY} has changed")
    (folder.path / own.NAME).unlink()
    assert told(folder, cache)[-1].endswith("containers get no ports")


def test_containers_made_without_us_are_named_when_they_live(folder: Folder, tmp_path: Path) -> None:
    folder.take()
    cache = Cache(PosixFiles(), str(tmp_path / "cache"), print)
    pod = (("K8S_POD_NAMESPACE", "shop"), ("K8S_POD_NAME", "web"))
    cache.store(Cached("cbr0", "c1", "eth0", "/run/netns/c1", pod, config=json.dumps(FLANNEL).encode()))
    cache.store(Cached("cbr0", "c2", "eth0", "/run/netns/c2", config=json.dumps(folder.ours).encode()))
    cache.store(Cached("cbr0", "c3", "eth0", "/run/netns/c3", config=json.dumps(FLANNEL).encode()))
    node = Node()
    node.namespaces.gone.add("/run/netns/c3")
    *_, line = unserved(node.wiring, str(folder.path), str(tmp_path / "cache"))
    assert line.startswith("1 container made without hostport_alloc: shop/web;")


# --- a primary that rewrites its file, and a keeper that is a process


@pytest.mark.kernel
def test_the_first_configuration_is_always_whole_and_ours_when_the_primary_writes_all_the_time(folder: Folder) -> None:
    """A primary that writes in place, without a rename; a runtime that looks all the time; a keeper that is killed."""
    folder.take()
    words = [sys.executable, "-m", "cnimeta.cli.main", "wrap", "--own", "--keep", str(folder.path / PRIMARY)]
    keeper = subprocess.Popen(words, stderr=subprocess.DEVNULL)
    try:
        mtu, deadline, looks = 0, time.monotonic() + 4, 0
        while time.monotonic() < deadline:
            mtu += 1
            folder.write({**FLANNEL, "plugins": [{"type": "flannel", "mtu": mtu}]})
            assert folder.first.plugins[0]["type"] == "hostport_alloc"
            looks += 1
            time.sleep(0.02)
        assert looks > 20
        _wait_for(lambda: folder.ours["plugins"][0]["delegates"][0].get("mtu") == mtu)
        keeper.send_signal(signal.SIGKILL)
        keeper.wait(10)
        folder.write({**FLANNEL, "plugins": [{"type": "flannel", "mtu": -1}]})  # at boot, before anything of ours runs
        assert folder.first.plugins[0]["delegates"][0]["mtu"] == mtu
        keeper = subprocess.Popen(words, stderr=subprocess.DEVNULL)
        _wait_for(lambda: folder.ours["plugins"][0]["delegates"][0]["mtu"] == -1)
    finally:
        keeper.kill()
        keeper.wait(10)
    assert folder.first.plugins[0]["type"] == "hostport_alloc"


def _wait_for(condition: Any) -> None:
    deadline = time.monotonic() + 20
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.05)
