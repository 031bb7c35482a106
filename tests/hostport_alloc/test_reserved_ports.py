"""`reservePorts`: our ports in net.ipv4.ip_local_reserved_ports, beside those of others, and away again."""

from __future__ import annotations

import argparse
import json
import sys
from typing import TYPE_CHECKING, Any

import pytest
from hostport_harness import RESERVED, Node, conf
from kernel_node import KernelNode, assert_nothing_left

from cnimeta.errors import CniError
from cnimeta.spec.netconf import NetConf
from cnimeta.testing.faults import Killed
from cnimeta.testing.files import MemoryFiles
from cnimeta.testing.lock import FakeLock
from cnimeta.testing.netfilter import FakeSysctl
from cnimeta_plugins.hostport_alloc.allocate.ranges import ports_in, text_of
from cnimeta_plugins.hostport_alloc.operator.commands import add_commands
from cnimeta_plugins.hostport_alloc.operator.examine import examine
from cnimeta_plugins.hostport_alloc.operator.reserving import leave
from cnimeta_plugins.hostport_alloc.state.reservation import Reservation

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from cnimeta.testing.netns import Namespace

unit = pytest.mark.unit
WANTED = {"reservePorts": True, "ranges": {"default": "20000-20009", "games": "7000-7003"}}


def a_node(others: str = "") -> Node:
    """Its sockets tell what its setting has."""
    node = Node()
    node.sysctl.values[RESERVED] = others
    node.sockets.reserved = lambda: [  # type: ignore[method-assign]
        (int(first), int(last or first))
        for first, _, last in (part.partition("-") for part in node.sysctl.read(RESERVED).split(",") if part)
    ]
    return node


@unit
@pytest.mark.parametrize("text", ["", "8080", "1-3,5,9-10", "65534-65535", "1", "1-65535"])
def test_list_is_read_and_written_as_the_kernel_does(text: str) -> None:
    assert text_of(ports_in(text)) == text


@unit
def test_ranges_are_reserved_beside_what_others_have_and_given_out_all_the_same() -> None:
    node = a_node("8080,20003-20004")
    for number in range(8):
        node.call("ADD", conf(**WANTED), container_id=f"c{number}")
    assert node.sysctl.read(RESERVED) == "7000-7003,8080,20000-20009"
    assert sorted(port for number in range(8) for port in node.ports(f"c{number}")) == [
        *range(20000, 20003),
        *range(20005, 20010),
    ]
    with pytest.raises(CniError, match="8 used, 0 quarantined, 2 blocked"):
        node.call("ADD", conf(**WANTED), container_id="c9")
    node.call("DEL", conf(**WANTED))
    assert list(leave(node.wiring, [])) == []  # another folder's
    assert node.wiring.reservation("/data").give_back() == ports_in("7000-7003,20000-20002,20005-20009")
    assert node.sysctl.read(RESERVED) == "8080,20003-20004"
    assert "/data/reserved.json" not in node.files.content


@unit
def test_nothing_is_touched_when_it_is_not_configured() -> None:
    node = a_node("8080")
    node.call("ADD", conf())
    assert (node.sysctl.read(RESERVED), node.files.reads) == ("8080", [])


@unit
def test_networks_keep_each_its_own_and_changed_ranges_are_followed() -> None:
    node = a_node("9")
    node.call("ADD", conf(**WANTED))
    second = {**conf(reservePorts=True, ranges={"default": "30-31"}), "name": "second"}
    node.call("ADD", second, container_id="c2")
    assert node.sysctl.read(RESERVED) == "9,30-31,7000-7003,20000-20009"
    second["ranges"] = {"default": "31-32"}
    node.call("ADD", second, container_id="c3")
    assert node.sysctl.read(RESERVED) == "9,31-32,7000-7003,20000-20009"


@unit
def test_what_somebody_wrote_over_is_put_back_and_theirs_stays() -> None:
    node = a_node("9")
    node.call("ADD", conf(**WANTED))
    node.sysctl.values[RESERVED] = "10"
    (told,) = examine(node.wiring, NetConf(conf(**WANTED, expose=[])))
    assert told.startswith("14 ports of the ranges are not in net.ipv4.ip_local_reserved_ports")
    node.call("ADD", conf(**WANTED), container_id="c2")
    assert node.sysctl.read(RESERVED) == "10,7000-7003,20000-20009"
    assert examine(node.wiring, NetConf(conf(**WANTED, expose=[]))) == []


@unit
@pytest.mark.parametrize("where", ["boot", "namespace"])
def test_mark_of_another_boot_or_namespace_is_void(where: str) -> None:
    node = a_node()
    node.call("ADD", conf(**WANTED))
    if where == "boot":
        node.boot = "boot-2"
    else:
        node.namespaces.leads_to["/proc/thread-self/ns/net"] = "4:another"
    node.sysctl.values[RESERVED] = "7000"  # of sysctl.d, from now on
    node.call("ADD", conf(**WANTED), container_id="c2")
    node.wiring.reservation("/data").give_back()
    assert node.sysctl.read(RESERVED) == "7000"


@unit
def test_port_that_a_file_of_sysctl_d_names_stays_when_ours_was_there_first() -> None:
    node = a_node()
    node.call("ADD", conf(**WANTED))
    node.sysctl.files[RESERVED] = ["7001-7002,9", "20009"]
    node.wiring.reservation("/data").give_back()
    assert node.sysctl.read(RESERVED) == "7001-7002,20009"


@unit
def test_add_goes_on_when_the_setting_cannot_be_written() -> None:
    node = a_node("8080")
    node.sysctl.read_only = True
    node.call("ADD", conf(**WANTED))
    assert any(line.startswith("hostport_alloc: ports are not reserved: cannot set") for line in node.log)
    assert len(node.ports()) == 1


@unit
def test_lost_or_damaged_mark_is_told_and_adopted(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    node = a_node("9")
    wanted = conf(**WANTED)
    path = tmp_path / "net.conflist"
    path.write_text(json.dumps({"cniVersion": "1.0.0", "name": "pods", "plugins": [wanted]}))

    def ports(*words: str) -> tuple[int, str]:
        parser = argparse.ArgumentParser()
        add_commands(parser.add_subparsers(), node.wiring)
        args = parser.parse_args(["ports", *words, "--conf", str(path)])
        status: int = args.run(args)
        said = capsys.readouterr()
        return status, said.out + said.err

    assert ports("reserve") == (0, "reserved by us: 7000-7003,20000-20009; reserved by others: 9\n")
    del node.files.content["/data/reserved.json"]
    with pytest.raises(CniError, match="10 blocked"):
        node.call("ADD", wanted)
    (told,) = examine(node.wiring, NetConf({**wanted, "expose": []}))
    assert "14 ports of the ranges (7000-7003,20000-20009)" in told
    node.files.content["/data/reserved.json"] = b"garbage"
    with pytest.raises(CniError, match=r"reserved\.json cannot be used") as caught:
        node.call("ADD", wanted)
    assert caught.value.code == 104
    assert ports("reserve", "--adopt", "--remove")[0] == 2
    assert ports("reserve", "--adopt", "--json") == (0, '{"ours": "7000-7003,20000-20009", "others": "9"}\n')
    node.call("ADD", wanted)
    assert ports("reserve", "--remove") == (0, "not reserved any more: 7000-7003,20000-20009; reserved by others: 9\n")
    assert node.sysctl.read(RESERVED) == "9"
    path.write_text(json.dumps({"cniVersion": "1.0.0", "name": "pods", "plugins": [conf()]}))
    assert ports("reserve") == (1, "cnimeta: $.reservePorts is not true in the configuration\n")


@unit
@pytest.mark.parametrize("fault", ["kill_at", "fail_at"])
def test_nothing_of_others_is_lost_and_all_of_ours_is_found_whatever_ends_it(fault: str) -> None:
    """Killed, or a full disk, at each step; then the same again, and away."""
    ended = 0
    for step in range(1, 30):
        files, sysctl = MemoryFiles(), FakeSysctl()
        sysctl.values[RESERVED] = "9,100-101"
        reservation = Reservation("/data", files, sysctl, FakeLock(), "boot", "1:2")
        getattr(files, fault)(step)
        try:
            reservation.keep("pods", ports_in("99-100,200-299"))
            reservation.keep("pods", ports_in("250-309"))
            reservation.give_back()
        except (Killed, CniError):
            ended += 1
        files.heal()
        assert {9, 100, 101} <= {port for port in range(400) if ports_in(sysctl.read(RESERVED)) >> port & 1}
        reservation.keep("pods", ports_in("250-309"))
        assert sysctl.read(RESERVED) == "9,100-101,250-309"
        assert reservation.give_back() == ports_in("250-309")
        assert sysctl.read(RESERVED) == "9,100-101"
    assert ended > 10


@pytest.mark.kernel
def test_kernel_takes_no_port_of_a_range_by_itself(make_netns: Callable[[str], Namespace], tmp_path: Path) -> None:
    node = KernelNode(make_netns, tmp_path, ("hostport_alloc", "portmap"))
    setting = "net.ipv4.ip_local_reserved_ports"

    def reserved() -> str:
        return node.node.run("sysctl", "-n", setting).stdout.strip()

    wanted: dict[str, Any] = node.conf(reservePorts=True, ranges={"default": "20000-20004"}, forceOverlap=True)
    path = tmp_path / "net.conflist"
    path.write_text(json.dumps({"cniVersion": "1.0.0", "name": "pods", "plugins": [wanted]}))
    cli = ("-P", "-m", "cnimeta.cli.main")
    for action, after in (((), "20000-20004"), (("--remove",), "")):  # where others have reserved nothing
        node.node.run(sys.executable, *cli, "ports", "reserve", *action, "--conf", str(path))
        assert reserved() == after
    node.node.run("sysctl", "-qw", f"{setting}=8080,20001", "net.ipv4.ip_local_port_range=20000 20005")
    node.call("ADD", wanted)
    assert reserved() == "8080,20000-20004"
    assert node.ports()[0] in (20000, 20002, 20003, 20004)
    bound = "import socket; s = socket.socket(); s.bind(('127.0.0.1', 0)); print(s.getsockname()[1])"
    assert {node.node.run(sys.executable, "-c", bound).stdout.strip() for _ in range(3)} == {"20005"}
    node.call("DEL", wanted)
    words = (*cli, "uninstall", "--force", "--bin-dir", str(node.bin), "--net-dir")
    said = node.node.run(sys.executable, *words, str(tmp_path)).stdout
    assert f"{setting.replace('/', '.')}: 20000,20002-20004 given back" in said
    assert reserved() == "8080,20001"
    assert_nothing_left(node)
