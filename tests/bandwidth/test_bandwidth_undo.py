"""A failed ADD leaves all as before, whichever request to the kernel fails, and however."""

from __future__ import annotations

import contextlib
import errno
import json
import os
import re
import subprocess
from typing import TYPE_CHECKING, Any

import pytest
from test_bandwidth_kernel import IFB, RATES, Pair

from cnimeta.cli.install import install
from cnimeta.errors import CniError, IoFailure
from cnimeta.host import netlink
from cnimeta.host.links.kernel import RouteLinks
from cnimeta.host.links.removal import remove_link
from cnimeta.testing import call
from cnimeta.testing.links import FakeLinks
from cnimeta_plugins.bandwidth.main import Bandwidth
from cnimeta_plugins.bandwidth.plan import ifb_name

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from pathlib import Path

    from cnimeta.host.protocols import Links
    from cnimeta.testing.netns import Namespace

NETNS = "/run/netns/c1"
SUBNETS = {**RATES, "shapedSubnets": ["10.0.0.0/8", "fd00::/8"]}
LIMITS: dict[str, dict[str, Any]] = {
    "to": {"ingressRate": 8_000_000, "ingressBurst": 800_000},
    "from": {"egressRate": 4_000_000, "egressBurst": 400_000},
    "both": RATES,
    "faster": {**RATES, "ingressRate": 16_000_000, "egressRate": 16_000_000},
    "subnets": SUBNETS,
    "other subnets": {**RATES, "unshapedSubnets": ["192.168.0.0/16"]},
    "faster subnets": {**SUBNETS, "ingressRate": 16_000_000, "egressRate": 16_000_000},
}
BEFORE = ["nothing", "foreign", *LIMITS]


class Faulty:
    """Netlink, and the removal of links, whose n-th request fails: not made, made in part, or only its answer lost."""

    def __init__(self, number: int, how: str, error: int = errno.EIO) -> None:
        self.left = number
        self.how = how
        self.error = error

    def links(self) -> RouteLinks:
        return RouteLinks(self.ask, self.tell, self.remove_link)

    @property
    def struck(self) -> bool:
        return self.left <= 0

    def ask(self, *request: Any) -> Any:
        if self._strikes():
            raise OSError(self.error, os.strerror(self.error))
        return netlink.ask(*request)

    def tell(self, protocol: int, orders: Sequence[Any]) -> None:
        if self._strikes():
            part = {"before": 0, "within": len(orders) // 2, "after": len(orders)}[self.how]
            if part:
                with contextlib.suppress(OSError):
                    netlink.tell(protocol, orders[:part])
            raise OSError(self.error, os.strerror(self.error))
        netlink.tell(protocol, orders)

    def remove_link(self, index: int, name: str) -> None:
        if self._strikes():
            if self.how == "after":
                remove_link(index, name)
            raise IoFailure(f"cannot remove interface {name}")
        remove_link(index, name)

    def _strikes(self) -> bool:
        self.left -= 1
        return self.left == 0


def conf(**keys: Any) -> dict[str, Any]:
    interfaces = [{"name": "vhost"}, {"name": "eth0", "sandbox": NETNS}]
    result = {"cniVersion": "1.0.0", "interfaces": interfaces, "dns": {}}
    return {"cniVersion": "1.0.0", "name": "net", "type": "bandwidth", "prevResult": result, **keys}


def failure_of(links: Links, conf: dict[str, Any], netns: str = NETNS) -> CniError | None:
    """What ADD fails with."""
    try:
        call(Bandwidth(links), "ADD", conf, netns=netns)
    except CniError as error:
        return error
    return None


# --- in memory ----------------------------------------------------------------------------------------------


def prepared(before: str) -> FakeLinks:
    links = FakeLinks()
    host = links.veth(NETNS, "eth0", "vhost")
    links.links[host.ifindex] = links.links[host.ifindex]._replace(queue_length=17)
    if before in LIMITS:
        call(Bandwidth(links), "ADD", conf(**LIMITS[before]))
    elif before == "foreign":
        links.add_ingress(host.ifindex)
        links.add_redirect(host.ifindex, links.link("other", "dummy").ifindex, 1)
        links.add_redirect(host.ifindex, links.link("more", "dummy").ifindex, 49152)
        links.set_bucket(host.ifindex, 1000, 1000, 1000)
        links.waiting[host.ifindex][0] = links.waiting[host.ifindex][0]._replace(kind="fq_codel", handle=0x80010000)
    links.calls.clear()
    links.reads.clear()
    return links


@pytest.mark.unit
@pytest.mark.parametrize("how", ["read", "before", "after"])
@pytest.mark.parametrize("before", BEFORE)
@pytest.mark.parametrize("limits", LIMITS)
def test_all_is_as_before_in_memory_when_any_step_of_add_fails(before: str, limits: str, how: str) -> None:
    number = 0
    while True:
        number += 1
        links = prepared(before)
        there = links.dump(), links.links.copy()
        if how == "read":
            links.fail_read_at = number
        else:
            links.fail_at, links.late = number, how == "after"
        failure = failure_of(links, conf(**LIMITS[limits]))
        if failure is not None:
            assert (failure.code, failure.details) == (5, "")
            assert (links.dump(), links.links) == there
        elif number > len(links.reads if how == "read" else links.calls):
            break
    assert number > (5 if how == "read" else 1)


# --- on the kernel ------------------------------------------------------------------------------------------


@pytest.fixture
def pair(make_netns: Callable[[str], Namespace]) -> Pair:
    return Pair(make_netns("bwhost"), make_netns("bwcont"))


def state(pair: Pair) -> Any:
    """Everything that traffic control and the interfaces of the host say, less what counts and passes."""
    found = json.loads(pair.host.run("ip", "-j", "link", "show").stdout)
    links = [[one.get(key) for key in ("ifindex", "ifname", "mtu", "txqlen", "ifalias")] for one in found]
    questions = [
        f"{what} show dev {name}{where}\n"
        for _, name, *_ in links[1:]
        for what, where in (("qdisc", ""), ("class", ""), ("filter", ""), ("filter", " ingress"))
    ]
    shown = pair.host.run("tc", "-batch", "-", stdin="".join(questions)).stdout
    return links, re.sub(r"direct_packets_stat \S+|rule hit \S+|success \S+|\(.*?\)", "", shown)


def prepare(pair: Pair, before: str) -> None:
    pair.host.run("ip", "link", "set", "vhost", "txqueuelen", "17")
    if before in LIMITS:
        pair.call("ADD", pair.conf(**LIMITS[before]))
    elif before == "foreign":
        for words in (
            "qdisc add dev vhost clsact",
            "filter add dev vhost ingress protocol ip prio 1 u32 match ip dst 10.77.0.0/16 flowid 1:7",
            "filter add dev vhost ingress protocol all prio 49152 u32 match u32 0 0 flowid 1:8",
            "qdisc add dev vhost root handle 1: pfifo limit 77",
        ):
            pair.host.run("tc", *words.split())


def tidy(pair: Pair) -> None:
    for name in pair.names():
        if name.startswith("bwp"):
            pair.host.run("ip", "link", "del", name)
    for where in ("root", "ingress", "clsact"):
        pair.host.run("tc", "qdisc", "del", "dev", "vhost", where, check=False)


@pytest.mark.crash
@pytest.mark.parametrize("how", ["before", "within", "after"])
@pytest.mark.parametrize("before", BEFORE)
@pytest.mark.parametrize("limits", ["from", "both", "subnets"])
def test_all_is_as_before_when_any_netlink_request_of_add_fails(pair: Pair, before: str, limits: str, how: str) -> None:
    prepare(pair, before)
    there, number = state(pair), 0
    while True:
        number += 1
        faulty = Faulty(number, how)
        with pair.host.entered():
            failure = failure_of(faulty.links(), pair.conf(**LIMITS[limits]), pair.container.path)
        if failure is not None:
            assert (failure.code, failure.details) == (5, "")
            assert state(pair) == there, number
        elif faulty.struck:  # the removal of an ifb, whose answer alone got lost
            tidy(pair)
            prepare(pair, before)
            there = state(pair)
        else:
            break
    assert number > 8


@pytest.mark.crash
@pytest.mark.parametrize("error", [errno.EINTR, errno.EAGAIN, errno.ENOBUFS])
def test_add_succeeds_when_reads_fail_in_passing(pair: Pair, error: int) -> None:
    """In passing: each of the kernel's answers to a question is lost once."""
    failing: list[bool] = []

    def unsteady(*request: Any) -> Any:
        def connect(*words: int) -> Any:
            failing.append(True)
            if len(failing) % 2:
                raise OSError(error, os.strerror(error))
            return netlink.socket(*words)

        return netlink.ask(*request, connect=connect)

    with pair.host.entered():
        for verb in ("ADD", "CHECK", "DEL"):
            call(Bandwidth(RouteLinks(unsteady)), verb, pair.conf(**RATES), netns=pair.container.path)
    assert len(failing) > 20
    assert IFB not in pair.names()


@pytest.mark.crash
def test_error_names_what_stays_when_it_cannot_be_undone() -> None:
    links = prepared("nothing")
    host = next(iter(links.links.values()))

    class Stuck(FakeLinks):
        def remove(self, name: str) -> None:
            raise IoFailure(f"cannot remove interface {name}")

    links.__class__ = Stuck
    links.fail_at = 3
    with pytest.raises(CniError) as caught:
        call(Bandwidth(links), "ADD", conf(**RATES))
    assert f"and undoing it: cannot remove interface {ifb_name('net', 'c1')}" in caught.value.details
    assert links.queues(host.ifindex) == []


@pytest.mark.crash
@pytest.mark.parametrize(
    ("syscall", "error"), [("sendto", "EIO"), ("recvfrom", "EIO"), ("recvfrom", "ENOBUFS"), ("socket", "EMFILE")]
)
def test_all_is_as_before_when_a_call_of_the_real_process_fails(
    pair: Pair, tmp_path: Path, syscall: str, error: str
) -> None:
    install(str(tmp_path), ["bandwidth"])
    environ = {"CNI_COMMAND": "ADD", "CNI_CONTAINERID": "c1", "CNI_IFNAME": "eth0", "CNI_PATH": "/usr/lib/cni"}
    environ |= {"CNI_NETNS": pair.container.path, "PATH": os.environ["PATH"]}
    given, before, number = json.dumps(pair.conf(**RATES)), state(pair), -(error == "EIO")
    while True:
        number += 2  # every other one: a process takes half a second
        inject = f"inject={syscall}:error={error}:when={number}"
        strace = ["strace", "-f", "-qq", "-o", "/dev/null", "-e", f"trace={syscall}", "-e", inject]
        command = ["ip", "netns", "exec", pair.host.name, *strace, str(tmp_path / "bandwidth")]
        done = subprocess.run(command, input=given, env=environ, capture_output=True, text=True, check=False)
        answer = json.loads(done.stdout)
        assert "Traceback" not in done.stderr
        if done.returncode == 0:
            tidy(pair)
            if number > 22:
                break
            continue
        assert answer["code"] == 5, answer
        assert "details" not in answer, answer
        assert state(pair) == before, answer
