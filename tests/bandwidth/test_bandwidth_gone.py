"""DEL and ADD when the container's namespace is gone, is none, or cannot be entered."""

from __future__ import annotations

import contextlib
import json
import os
import subprocess
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from test_bandwidth_kernel import IFB, RATES, Pair
from test_bandwidth_verbs import NETNS, conf

from cnimeta.cli.install import install
from cnimeta.errors import CniError
from cnimeta.testing import call
from cnimeta.testing.links import FakeLinks
from cnimeta_plugins.bandwidth.main import Bandwidth
from cnimeta_plugins.bandwidth.plan import ifb_name

if TYPE_CHECKING:
    from collections.abc import Callable

    from cnimeta.testing.netns import Namespace


@pytest.fixture
def links() -> FakeLinks:
    made = FakeLinks()
    made.veth(NETNS, "eth0", "vhost")
    call(Bandwidth(made), "ADD", conf(**RATES))
    return made


def lose(links: FakeLinks, how: str) -> None:
    if how == "locked":
        links.locked.add(NETNS)
    else:
        links.inside.clear()


@pytest.mark.unit
@pytest.mark.parametrize("how", ["locked", "gone"])
def test_del_does_all_it_can_when_the_namespace_is_not_entered(links: FakeLinks, how: str) -> None:
    lose(links, how)
    if how == "gone":
        call(Bandwidth(links), "DEL", conf(**RATES))
    else:
        with pytest.raises(CniError, match="Operation not permitted") as caught:
            call(Bandwidth(links), "DEL", conf(**RATES))
        assert caught.value.code == 5
    assert links.dump() == {"vhost": ()}


@pytest.mark.unit
@pytest.mark.parametrize("how", ["locked", "gone"])
def test_del_takes_the_ifb_away_when_nothing_tells_the_veth(links: FakeLinks, how: str) -> None:
    lose(links, how)
    document = conf(**RATES)
    del document["prevResult"]
    with pytest.raises(CniError) if how == "locked" else contextlib.nullcontext():
        call(Bandwidth(links), "DEL", document)
    assert links.ifbs() == []


@pytest.mark.unit
@pytest.mark.parametrize("netns", ["", "/run/netns/none"])
def test_veth_of_the_same_name_stays_limited_when_it_is_another_containers(links: FakeLinks, netns: str) -> None:
    links.remove("vhost")
    links.veth("/run/netns/c2", "eth0", "vhost")
    call(Bandwidth(links), "ADD", conf(**RATES), container_id="c2", netns="/run/netns/c2")
    links.inside.pop((NETNS, "eth0"))
    before = links.dump()
    call(Bandwidth(links), "DEL", conf(**RATES), container_id="c1", netns=netns)
    assert links.dump() == {name: words for name, words in before.items() if name != ifb_name("net", "c1")}
    assert len(before["vhost"]) == 3


@pytest.mark.unit
def test_del_finds_the_veth_when_the_configuration_lost_its_limits(links: FakeLinks) -> None:
    call(Bandwidth(links), "DEL", conf())
    assert links.dump() == {"vhost": ()}


# --- on the kernel ------------------------------------------------------------------------------------------


@pytest.fixture
def pair(make_netns: Callable[[str], Namespace]) -> Pair:
    return Pair(make_netns("bwhost"), make_netns("bwcont"))


def not_a_namespace(kind: str, folder: Path) -> str:
    path = folder / "netns"
    if kind == "fifo":
        os.mkfifo(path)
    elif kind == "file":
        path.write_text("")
    elif kind == "folder":
        path.mkdir()
    elif kind == "broken link":
        path.symlink_to(folder / "nowhere")
    elif kind == "in a file":
        path.write_text("")
        return f"{path}/netns"
    elif kind == "another kind":
        return "/proc/self/ns/mnt"
    return str(path)


@pytest.mark.kernel
@pytest.mark.parametrize("kind", ["missing", "fifo", "file", "folder", "broken link", "in a file", "another kind"])
def test_del_succeeds_and_add_fails_at_once_when_cni_netns_is_no_namespace(
    pair: Pair, tmp_path: Path, kind: str
) -> None:
    netns = not_a_namespace(kind, tmp_path)
    pair.call("ADD", pair.conf(**RATES))
    before, started = pair.state(), time.monotonic()
    with pytest.raises(CniError, match="network namespace") as caught:
        pair.call("ADD", pair.conf(**RATES), netns=netns)
    assert caught.value.code == 5
    assert pair.state() == before
    pair.call("DEL", pair.conf(**RATES), netns=netns)
    assert time.monotonic() - started < 5
    assert IFB not in pair.names()
    assert [one["kind"] for one in pair.tc("qdisc", "show", "dev", "vhost")] == ["noqueue"]


@pytest.mark.crash
@pytest.mark.parametrize(
    "inject",
    ["setns:error=EPERM:when=1", "setns:error=ENOMEM:when=1", "openat:error=EMFILE", "openat:error=EACCES"],
)
def test_del_reports_and_leaves_nothing_when_the_namespace_cannot_be_entered(
    pair: Pair, tmp_path: Path, inject: str
) -> None:
    install(str(tmp_path), ["bandwidth"])
    pair.call("ADD", pair.conf(**RATES))
    environ = {"CNI_COMMAND": "DEL", "CNI_CONTAINERID": "c1", "CNI_IFNAME": "eth0", "CNI_PATH": "/usr/lib/cni"}
    environ |= {"CNI_NETNS": pair.container.path, "PATH": os.environ["PATH"]}
    only = ["-P", pair.container.path] if inject.startswith("openat") else []
    # The interface is asked for from outside first, which has to fail for anybody to go inside.
    outside = [] if only else ["-e", "inject=sendto:error=EPERM:when=1"]
    strace = ["strace", "-f", "-qq", "-o", "/dev/null", *only, *outside, "-e", f"inject={inject}"]
    command = ["ip", "netns", "exec", pair.host.name, *strace, str(tmp_path / "bandwidth")]
    given = json.dumps(pair.conf(**RATES))
    done = subprocess.run(command, input=given, env=environ, capture_output=True, text=True, check=False)
    answer: dict[str, Any] = json.loads(done.stdout)
    assert answer["code"] == 5
    assert "cannot enter the network namespace" in answer["msg"]
    assert IFB not in pair.names()
    assert [one["kind"] for one in pair.tc("qdisc", "show", "dev", "vhost")] == ["noqueue"]
