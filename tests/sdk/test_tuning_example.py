"""The port of the reference's `tuning` in examples/: in memory, and on the real kernel beside the Go one."""

from __future__ import annotations

import ast
import importlib.util
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from cnimeta.errors import CheckFailed, CniError, InvalidNetworkConfig, IoFailure
from cnimeta.host.network.values import SetLink, SetSysctl
from cnimeta.spec.result import Interface, Result
from cnimeta.testing.conformance import FAIL, examine
from cnimeta.testing.conformance.subject import sandbox
from cnimeta.testing.node import Node, attempt, run

FOLDER = Path(__file__).parents[2] / "examples" / "plugins" / "tuning"
NETNS = "/run/netns/c1"
PREV = Result().with_ip("10.1.0.2/24", interface=Interface("eth0", "02:00:00:00:00:03", sandbox=NETNS))
CONF = {"cniVersion": "1.1.0", "name": "net", "type": "tuning"}
EVERYTHING = {
    "sysctl": {"net.ipv4.conf.IFNAME.log_martians": "1", "net/ipv4/conf/all/arp_filter": "1"},
    "mac": "02:00:00:00:AA:01", "mtu": 1400, "promisc": True, "allmulti": True,
}  # fmt: skip


@pytest.fixture(scope="module")
def tuning():
    spec = importlib.util.spec_from_file_location("cni_tuning", FOLDER / "cni_tuning.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def full(**keys):
    return {**CONF, "prevResult": PREV, **keys}


@pytest.mark.unit
def test_del_puts_everything_back_but_settings_when_add_ran_twice(tuning):
    node = Node.of(NETNS)
    for _ in range(2):
        after = run(tuning.Tuning(), "ADD", node, full(**EVERYTHING))
        node = after.node
    link = node.links[NETNS]["eth0"].link
    assert (link.mac, link.mtu, link.promiscuous, link.all_multicast) == ("02:00:00:00:aa:01", 1400, True, True)
    assert (after.result.interfaces[0].mac, after.result.interfaces[0].mtu) == ("02:00:00:00:AA:01", 1400)
    run(tuning.Tuning(), "CHECK", node, full(**EVERYTHING))
    for _ in range(2):
        node = run(tuning.Tuning(), "DEL", node, CONF).node
    set_back = Node.of(NETNS).with_changes(
        NETNS, SetSysctl("net/ipv4/conf/eth0/log_martians", "1"), SetSysctl("net/ipv4/conf/all/arp_filter", "1")
    )
    assert node == set_back


@pytest.mark.unit
def test_the_record_goes_and_nothing_else_happens_when_the_namespace_is_gone_or_another(tuning):
    added = run(tuning.Tuning(), "ADD", Node.of(NETNS), full(mtu=1400)).node
    assert run(tuning.Tuning(), "DEL", added.without(NETNS), CONF, netns="").node == Node()
    host = added.host()
    host.namespaces.leads_to[NETNS] = "4:another"
    after = attempt(tuning.Tuning(), "DEL", added, CONF, host=host)
    assert after.error is None
    assert after.node.links == added.links
    assert after.node.records == {}


@pytest.mark.unit
@pytest.mark.parametrize(
    ("change", "said"),
    [
        (SetLink("eth0", mtu=1300), "mtu is 1300 instead of 1400"),
        (SetLink("eth0", promiscuous=False), "promiscuous is False instead of True"),
        (SetSysctl("net/ipv4/conf/all/arp_filter", "0"), 'arp_filter is "0" instead of "1"'),
    ],
)
def test_check_names_what_was_changed_since(tuning, change, said):
    node = run(tuning.Tuning(), "ADD", Node.of(NETNS), full(**EVERYTHING)).node.with_changes(NETNS, change)
    with pytest.raises(CheckFailed, match=said):
        run(tuning.Tuning(), "CHECK", node, full(**EVERYTHING))


@pytest.mark.unit
@pytest.mark.parametrize(
    ("keys", "error"),
    [
        ({"mac": "nonsense"}, InvalidNetworkConfig), ({"sysctl": {"kernel.shmmax": "1"}}, InvalidNetworkConfig),
        ({"sysctl": {"net.ipv4.conf.IFNAME.x": 1}}, InvalidNetworkConfig), ({"mtu": "1400"}, InvalidNetworkConfig),
        ({"sysctl": {"net/../kernel/shmmax": "1"}}, InvalidNetworkConfig), ({"mtu": 12}, IoFailure),
    ],
)  # fmt: skip
def test_add_fails_and_changes_no_link_when_a_value_is_wrong(tuning, keys, error):
    after = attempt(tuning.Tuning(), "ADD", Node.of(NETNS), full(**keys))
    assert isinstance(after.error, error)
    assert after.node.links == Node.of(NETNS).links
    assert run(tuning.Tuning(), "DEL", after.node, CONF).node == Node.of(NETNS)


@pytest.mark.unit
def test_a_setting_needs_leave_when_there_is_an_allowlist(tuning):
    node = Node.of(NETNS)._replace(files={tuning.ALLOWED: b"^net\\.ipv4\\.conf\\.all\\.[a-z_]*$\n"})
    run(tuning.Tuning(), "ADD", node, full(sysctl={"net.ipv4.conf.all.arp_filter": "1"}))
    with pytest.raises(InvalidNetworkConfig, match="is not allowed"):
        run(tuning.Tuning(), "ADD", node, full(sysctl={"net.ipv6.conf.all.forwarding": "1"}))


@pytest.mark.unit
def test_gc_forgets_what_is_not_listed(tuning):
    node = run(tuning.Tuning(), "ADD", Node.of(NETNS), full(mtu=1400)).node
    assert run(tuning.Tuning(), "GC", node, {**CONF, "cni.dev/valid-attachments": []}).node.records == {}


@pytest.mark.unit
def test_the_package_is_short_and_uses_public_names_alone_when_it_is_read():
    text = (FOLDER / "cni_tuning.py").read_text(encoding="utf-8")
    lines = [line for path in FOLDER.iterdir() if path.is_file() for line in path.read_text().splitlines()]
    assert len([line for line in lines if line.strip()]) <= 150
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, ast.ImportFrom):
            assert not [
                name for name in (node.module or "").split(".") if name.startswith("_") and name != "__future__"
            ]
        if isinstance(node, ast.Attribute):
            assert not node.attr.startswith("_")


# --- on the kernel, beside the Go plugin ---

PYTHON = f"""#!{sys.executable}
import sys
sys.path[:0] = [{str(FOLDER)!r}, {str(FOLDER.parents[2])!r}]
from cni_tuning import Tuning
from cnimeta.plugin import main
main(Tuning())
"""
SETTINGS = ("net.ipv4.conf.eth0.log_martians", "net.ipv4.conf.all.arp_filter", "net.ipv4.ip_default_ttl")
CASES = {
    "sysctl": {"sysctl": {"net.ipv4.conf.eth0.log_martians": "1", "net.ipv4.ip_default_ttl": "77"}},
    "slashes": {"sysctl": {"net/ipv4/conf/all/arp_filter": "1"}},
    "ifname": {"sysctl": {"net.ipv4.conf.IFNAME.log_martians": "1"}},
    "mac": {"mac": "02:00:00:00:aa:02"},
    "mac in capitals": {"mac": "02:00:00:00:AA:02"},
    "mac of the runtime": {"capabilities": {"mac": True}, "runtimeConfig": {"mac": "02:00:00:00:aa:03"}},
    "mac of args": {"args": {"cni": {"mac": "02:00:00:00:aa:04"}}, "mac": "02:00:00:00:aa:05"},
    "mtu": {"mtu": 1400},
    "promisc": {"promisc": True},
    "allmulti": {"allmulti": True},
    "all": {"mac": "02:00:00:00:aa:06", "mtu": 1300, "promisc": True, "sysctl": {"net.ipv4.ip_default_ttl": "42"}},
    "nothing": {},
    "not of the network": {"sysctl": {"kernel.shmmax": "1"}},
    "out of proc": {"sysctl": {"net.ipv4.../../kernel.shmmax": "1"}},
    "no such setting": {"sysctl": {"net.ipv4.conf.eth0.no_such": "1"}},
    "a bad mac": {"mac": "nonsense"},
    "a bad mtu": {"mtu": 1},
}


@pytest.fixture(scope="module")
def executables(tmp_path_factory):
    path = tmp_path_factory.mktemp("tuning") / "tuning"
    path.write_text(PYTHON)
    path.chmod(0o755)
    return {"go": "/usr/lib/cni/tuning", "python": str(path)}


def observed(pod):
    link = json.loads(pod.run("ip", "-j", "-d", "link", "show", "eth0").stdout)[0]
    seen = {key: link[key] for key in ("address", "mtu", "promiscuity", "flags")}
    values = pod.run("sysctl", "-n", *SETTINGS, check=False).stdout.split()
    return {**seen, "sysctl": dict(zip(SETTINGS, values, strict=True))}


def story(path, conf, state, make_netns):
    """What is seen before ADD, after two, after CHECK, and after two DELs, with each one's outcome."""
    host, pod = make_netns("host"), make_netns("pod")
    host.veth("veth0", pod, "eth0")
    pod.run("ip", "link", "set", "eth0", "address", "02:00:00:00:00:09")
    prev = {
        "cniVersion": "1.0.0", "interfaces": [{"name": "eth0", "mac": "02:00:00:00:00:09", "sandbox": pod.path}],
        "ips": [{"address": "10.1.0.2/24", "interface": 0}],
    }  # fmt: skip
    whole = {"cniVersion": "1.0.0", "name": "n", "type": "tuning", "dataDir": str(state), "prevResult": prev, **conf}
    told = [("start", observed(pod))]
    for verb in ("ADD", "CHECK", "DEL", "DEL"):
        environ = {
            "PATH": os.environ["PATH"], "CNI_COMMAND": verb, "CNI_CONTAINERID": "c1", "CNI_NETNS": pod.path,
            "CNI_IFNAME": "eth0", "CNI_PATH": "/usr/lib/cni",
        }  # fmt: skip
        done = subprocess.run(
            ["ip", "netns", "exec", host.name, path],
            input=json.dumps(whole), env=environ, capture_output=True, text=True, check=False,
        )  # fmt: skip
        answer = json.loads(done.stdout) if done.stdout.strip() else {}
        if done.returncode == 0:
            answer = [(one["name"], one.get("mac")) for one in answer.get("interfaces", [])]
        else:
            assert set(answer) >= {"code", "msg"}, done
            answer = "an error"
        told.append((verb, done.returncode, answer, observed(pod)))
    return told


@pytest.mark.kernel
@pytest.mark.parametrize("case", CASES)
def test_the_kernel_and_the_result_are_as_with_the_reference(executables, tmp_path, make_netns, case):
    stories = {name: story(path, CASES[case], tmp_path / name, make_netns) for name, path in executables.items()}
    if case in ("ifname", "no such setting", "mac in capitals"):  # the reference's CHECK reads neither
        stories = {name: [one for one in told if one[0] != "CHECK"] for name, told in stories.items()}
    assert stories["python"] == stories["go"]


@pytest.mark.kernel
@pytest.mark.timeout(300)
def test_it_keeps_every_rule_of_the_specification(executables):
    conf = {"type": "tuning", "mtu": 1400, "sysctl": {"net.ipv4.conf.IFNAME.log_martians": "1"}}
    with sandbox(executables["python"], conf) as subject:
        assert [finding for finding in examine(subject) if finding.outcome == FAIL] == []


@pytest.mark.unit
def test_errors_of_the_reference_are_cni_errors_here(tuning):
    with pytest.raises(CniError, match="prevResult is missing"):
        run(tuning.Tuning(), "ADD", Node.of(NETNS), CONF)
