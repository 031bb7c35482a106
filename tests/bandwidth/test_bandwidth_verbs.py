"""The verbs on links in memory: faults at every change, repetition, recorded calls, and what is not imported."""

from __future__ import annotations

import contextlib
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from cnimeta.errors import CniError
from cnimeta.spec.netconf import NetConf
from cnimeta.testing import call
from cnimeta.testing.links import FakeLinks
from cnimeta_plugins.bandwidth.main import Bandwidth
from cnimeta_plugins.bandwidth.plan import ifb_name

pytestmark = pytest.mark.unit

NETNS = "/run/netns/c1"
RATES = {"ingressRate": 8_000_000, "ingressBurst": 800_000, "egressRate": 4_000_000, "egressBurst": 400_000}
CALLS = [
    one
    for one in map(
        json.loads, (Path(__file__).parent / "data" / "kubelet_containerd_calls.jsonl").read_text().splitlines()
    )
    if one["plugin"] == "bandwidth"
]


def conf(version: str = "1.0.0", **keys: Any) -> dict[str, Any]:
    interfaces = [{"name": "vhost"}, {"name": "eth0", "sandbox": NETNS}]
    result = {"cniVersion": version, "interfaces": interfaces, "dns": {}}
    return {"cniVersion": version, "name": "net", "type": "bandwidth", "prevResult": result, **keys}


@pytest.fixture
def links() -> FakeLinks:
    made = FakeLinks()
    made.veth(NETNS, "eth0", "vhost")
    return made


@pytest.mark.parametrize("version", ["0.3.0", "0.3.1", "0.4.0", "1.0.0", "1.1.0"])
def test_both_directions_are_shaped_in_every_version(links: FakeLinks, version: str) -> None:
    plugin = Bandwidth(links)
    result = call(plugin, "ADD", conf(version, **RATES))
    assert result is not None
    ifb = ifb_name("net", "c1")
    assert [one.name for one in result.interfaces] == ["vhost", "eth0", ifb]
    assert links.dump() == {
        "vhost": (
            "tbf rate 1000000 limit 125000 buffer 1562500",
            "ingress rate 0 limit 0 buffer 0",
            f"prio 1 redirect {ifb}",
        ),
        ifb: ("tbf rate 500000 limit 62500 buffer 1562500",),
    }


@pytest.mark.parametrize("version", ["0.1.0", "0.2.0"])
def test_version_is_refused_when_it_has_no_interfaces(links: FakeLinks, version: str) -> None:
    with pytest.raises(CniError) as caught:
        call(Bandwidth(links), "ADD", conf(version, **RATES))
    assert caught.value.code == 1


def test_everything_is_gone_when_the_namespace_has_become_the_nodes_own(links: FakeLinks) -> None:
    plugin = Bandwidth(links)
    call(plugin, "ADD", conf(**RATES))
    call(plugin, "DEL", conf(**RATES), netns="/proc/self/ns/net")
    assert ifb_name("net", "c1") not in links.dump()


def test_no_empty_brackets_are_shown_when_the_result_names_no_host_interface(links: FakeLinks) -> None:
    body = conf(**RATES)
    del body["prevResult"]["interfaces"][0]
    with pytest.raises(CniError, match=r"found in host ns$"):
        call(Bandwidth(links), "ADD", body)


def test_nothing_changes_when_added_twice(links: FakeLinks) -> None:
    plugin = Bandwidth(links)
    first = call(plugin, "ADD", conf(**RATES))
    before = links.dump()
    assert call(plugin, "ADD", conf(**RATES)) == first
    assert links.dump() == before


@pytest.mark.parametrize("change", range(1, 6))
def test_no_ifb_is_left_when_a_change_fails(links: FakeLinks, change: int) -> None:
    links.fail_at = change
    plugin = Bandwidth(links)
    with pytest.raises(CniError) as caught:
        call(plugin, "ADD", conf(**RATES))
    assert caught.value.code == 5
    assert links.ifbs() == []
    links.fail_at = 0
    call(plugin, "ADD", conf(**RATES))
    call(plugin, "CHECK", conf(**RATES))
    call(plugin, "DEL", conf(**RATES))
    assert links.ifbs() == []


def test_recorded_calls_are_served(links: FakeLinks) -> None:
    plugin = Bandwidth(links)
    for one in CALLS:
        env, stdin = one["env"], one["stdin"]
        for interface in stdin.get("prevResult", {}).get("interfaces", []):
            if not interface.get("sandbox") and interface["name"].startswith("veth"):
                links.veth(env["CNI_NETNS"], env["CNI_IFNAME"], interface["name"])
        call(
            plugin,
            env["CNI_COMMAND"],
            stdin,
            container_id=env["CNI_CONTAINERID"],
            ifname=env["CNI_IFNAME"],
            netns=env["CNI_NETNS"],
            args=env["CNI_ARGS"],
        )
        if env["CNI_COMMAND"] == "ADD":
            assert any(words and words[0].startswith("tbf") for words in links.dump().values())
    assert links.ifbs() == []


@pytest.mark.parametrize(
    ("keys", "words"),
    [
        ({"interfaces": []}, "no interfaces provided"),
        ({"interfaces": [{"name": "other"}, {"name": "eth0", "sandbox": NETNS}]}, "no veth peer"),
        ({"interfaces": [{"name": "vhost", "sandbox": NETNS}]}, "no veth peer"),
    ],
)
def test_add_is_refused_when_prev_result_lacks_the_veth(links: FakeLinks, keys: dict[str, Any], words: str) -> None:
    document = conf(**RATES)
    document["prevResult"] |= keys
    with pytest.raises(CniError, match=words) as caught:
        call(Bandwidth(links), "ADD", document)
    assert caught.value.code == 7
    assert links.calls == []


def test_another_containers_gone_ifb_does_not_cost_a_foreign_filter(links: FakeLinks) -> None:
    from cnimeta.host.links.values import INGRESS, Classifier, Queue

    host = links.get(name="vhost").ifindex
    links.waiting[host] = [Queue("clsact", INGRESS, 0xFFFFFFF1)]
    links.filters[host] = [Classifier("bpf", 1)]
    call(Bandwidth(links), "ADD", conf(**RATES))
    assert links.dump()["vhost"][2:] == ("prio 1 bpf", f"prio 49152 redirect {ifb_name('net', 'c1')}")


def test_pyroute2_is_not_imported_when_there_is_nothing_to_do() -> None:
    program = """
import sys
from cnimeta.testing import call
from cnimeta_plugins.bandwidth.main import Bandwidth
conf = {"cniVersion": "1.0.0", "name": "no-such-network", "type": "bandwidth", "prevResult": {"cniVersion": "1.0.0"}}
call(Bandwidth(), "ADD", conf)
call(Bandwidth(), "CHECK", conf)
call(Bandwidth(), "DEL", conf, netns="")
print("pyroute2" in sys.modules)
"""
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=False)
    assert (done.stdout.strip(), done.stderr) == ("False", "")


@pytest.mark.parametrize("change", [1, 2], ids=["no ifb", "no tbf"])
def test_status_is_not_ready_when_the_kernel_lacks_a_module(links: FakeLinks, change: int) -> None:
    links.fail_at = change
    with pytest.raises(CniError, match="bandwidth cannot shape") as caught:
        call(Bandwidth(links), "STATUS", {"cniVersion": "1.1.0", "name": "net", "type": "bandwidth"})
    assert caught.value.code == 50
    assert links.ifbs() == []


def test_classes_change_in_place_when_only_rates_differ(links: FakeLinks) -> None:
    plugin = Bandwidth(links)
    call(plugin, "ADD", conf(**RATES, shapedSubnets=["10.0.0.0/8"]))
    links.calls.clear()
    faster = conf(**{**RATES, "egressRate": 5_000_000}, shapedSubnets=["10.0.0.0/8"])
    call(plugin, "ADD", faster)
    assert [one.split()[0] for one in links.calls] == ["add_ifb", "change_classes", "change_classes"]
    call(plugin, "CHECK", faster)


def test_classes_are_built_anew_when_subnets_differ(links: FakeLinks) -> None:
    plugin = Bandwidth(links)
    call(plugin, "ADD", conf(**RATES, shapedSubnets=["10.0.0.0/8"]))
    links.calls.clear()
    other = conf(**RATES, unshapedSubnets=["10.0.0.0/8"])
    with pytest.raises(CniError, match="filters by subnet"):
        call(plugin, "CHECK", other)
    call(plugin, "ADD", other)
    assert [one.split()[0] for one in links.calls] == ["add_ifb", "set_classes", "set_classes"]
    call(plugin, "CHECK", other)


def lent() -> FakeLinks:
    made = FakeLinks()
    made.lent(NETNS, "eth0")
    return made


PLACES = {"host": ({}, lambda links: links), "inside": ({"shapeInside": True}, lambda links: links.there[NETNS])}


@pytest.mark.parametrize("place", PLACES)
@pytest.mark.parametrize("change", range(1, 6))
def test_del_completes_when_repeated_after_a_change_failed(place: str, change: int) -> None:
    links = lent() if place == "inside" else FakeLinks()
    if place == "host":
        links.veth(NETNS, "eth0", "vhost")
    keys, shaped = PLACES[place]
    plugin, there = Bandwidth(links), shaped(links)
    before = there.dump()
    call(plugin, "ADD", conf(**RATES, **keys))
    there.calls.clear()
    there.fail_at = change
    with contextlib.suppress(CniError):
        call(plugin, "DEL", conf(**RATES, **keys))
    there.fail_at = 0
    for _ in range(2):
        call(plugin, "DEL", conf(**RATES, **keys))
        assert there.dump() == before


def test_container_is_shaped_inside_when_its_interface_has_no_end_on_the_host() -> None:
    links = lent()
    result = call(Bandwidth(links), "ADD", conf(**RATES, shapeInside=True))
    ifb = ifb_name("net", "c1")
    assert result is not None
    assert (result.interfaces[-1].name, result.interfaces[-1].sandbox) == (ifb, NETNS)
    assert links.dump() == {}
    assert links.there[NETNS].dump() == {
        "eth0": (
            "tbf rate 500000 limit 62500 buffer 1562500",
            "ingress rate 0 limit 0 buffer 0",
            f"prio 1 redirect {ifb}",
        ),
        ifb: ("tbf rate 1000000 limit 125000 buffer 1562500",),
    }


def test_del_does_nothing_inside_when_the_pod_had_no_limit() -> None:
    links = lent()
    call(Bandwidth(links), "DEL", conf(shapeInside=True))
    assert links.there[NETNS].calls == links.calls == []


def test_del_takes_the_ifb_away_when_rates_are_unreadable(links: FakeLinks) -> None:
    call(Bandwidth(links), "ADD", conf(**RATES))
    call(Bandwidth(links), "DEL", conf(ingressRate="fast"))
    assert links.dump() == {"vhost": ()}


def test_del_takes_the_ifb_away_when_the_veth_refuses(links: FakeLinks) -> None:
    call(Bandwidth(links), "ADD", conf(**RATES))
    links.calls.clear()
    links.fail_at = 1
    with pytest.raises(CniError) as caught:
        call(Bandwidth(links), "DEL", conf(**RATES))
    assert caught.value.code == 5
    assert links.ifbs() == []


RATES_OF_POD = {"bandwidth": {"ingressRate": 8000, "ingressBurst": 8000}}
ASKABLE = {"capabilities": {"bandwidth": True}}
NO_RATE = "no rate is set, and no Pod can ask for one: capabilities.bandwidth"


@pytest.mark.parametrize(
    ("keys", "told"),
    [
        ({"latency": 5}, [f"$.latency has no effect: {NO_RATE}"]),
        ({"shapedSubnets": ["10.0.0.0/8"]}, [f"$.shapedSubnets has no effect: {NO_RATE}"]),
        ({"latency": 5, **ASKABLE}, []),
        ({"latency": 5, "runtimeConfig": RATES_OF_POD}, []),
        ({"latency": 5, **RATES_OF_POD["bandwidth"]}, []),
        (
            {**ASKABLE, "runtimeConfig": {"bandwidth": {"unshapedSubnets": ["::/0"]}}},
            ["$.runtimeConfig.bandwidth.unshapedSubnets has no effect: no rate is set"],
        ),
        (
            {**RATES_OF_POD["bandwidth"], "runtimeConfig": RATES_OF_POD},
            ["$.runtimeConfig.bandwidth has no effect: the network's own rates go before it"],
        ),
        ({}, []),
    ],
    ids=str,
)
def test_key_that_decides_nothing_is_told(links: FakeLinks, keys: dict[str, Any], told: list[str]) -> None:
    lines: list[str] = []
    body = conf(**keys)
    call(Bandwidth(links), "ADD", body, netns=NETNS, log=lines)
    assert lines == [f"bandwidth: {line}" for line in told]
    assert list(Bandwidth(links).validate(NetConf(body))) == told
