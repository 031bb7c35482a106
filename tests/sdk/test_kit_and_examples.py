"""The testing kit's own parts, and the example plugins, run."""

from __future__ import annotations

import importlib.util
import json
import os
import subprocess
import sys

import pytest

from cnimeta.delegate.call import Delegates
from cnimeta.delegate.spawn import ProcessExec
from cnimeta.errors import CniError
from cnimeta.spec.convert import render_result
from cnimeta.testing import call
from cnimeta.testing.delegates import FakeDelegate, FakeExec, address_result
from cnimeta.testing.noop import received, steer, write_noop

ROOT = os.path.dirname(os.path.dirname(os.path.dirname(os.path.abspath(__file__))))
EXAMPLES = os.path.join(ROOT, "examples", "plugins")


def load(name):
    spec = importlib.util.spec_from_file_location(os.path.basename(name), os.path.join(EXAMPLES, name + ".py"))
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.mark.unit
def test_a_noop_plugin_does_what_it_is_told_and_writes_down_what_it_was_asked(tmp_path):
    path = write_noop(str(tmp_path), "noop", {"DEL": {"code": 11, "msg": "later"}})
    environ = {"CNI_CONTAINERID": "c1", "CNI_IFNAME": "eth0", "CNI_NETNS": "/x", "CNI_PATH": str(tmp_path)}
    delegates = Delegates(ProcessExec(20), environ, [str(tmp_path)])
    prev = address_result("10.1.0.2/24")
    conf = {"cniVersion": "1.1.0", "name": "n", "type": "noop", "prevResult": render_result(prev, "1.1.0")}
    assert delegates.add(conf) == prev
    with pytest.raises(CniError, match="later") as caught:
        delegates.delete(conf)
    assert caught.value.code == 11
    assert "1.1.0" in delegates.versions("noop")
    steer(path, {"ADD": {"stdout": "garbage"}})
    with pytest.raises(CniError, match="not valid JSON"):
        delegates.add(conf)
    assert [seen.verb for seen in received(path)] == ["ADD", "DEL", "VERSION", "ADD", "DEL"]
    assert received(path)[0].conf == conf


@pytest.mark.unit
def test_the_fixtures_work_when_a_project_names_the_module(tmp_path):
    (tmp_path / "conftest.py").write_text('pytest_plugins = ["cnimeta.testing.fixtures"]\n')
    (tmp_path / "test_it.py").write_text(
        "from cnimeta.testing.delegates import FakeDelegate, address_result\n"
        "def test_it(cni_call, cni_exec, cni_clock, cni_noop):\n"
        "    plugin = FakeDelegate('p', address_result('10.1.0.2/24'))\n"
        "    assert cni_call(plugin, 'ADD', {'cniVersion': '1.1.0', 'name': 'n', 'type': 'p'}).ips\n"
        "    cni_exec.plugins['p'] = plugin\n"
        "    assert cni_exec.locate('p', []) == '/opt/cni/bin/p'\n"
        "    assert cni_clock.now() >= 0\n"
        "    assert cni_noop('bridge').endswith('/bridge')\n"
    )
    done = subprocess.run(
        [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "--rootdir", str(tmp_path), str(tmp_path)],
        cwd=tmp_path, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert "1 passed" in done.stdout, done.stdout


@pytest.mark.unit
def test_a_hook_can_fail_the_call_of_a_fake():
    executor = FakeExec(FakeDelegate("p"))

    def fault(name, environ, stdin):
        raise OSError(5, "I/O error")

    executor.hook = fault
    with pytest.raises(OSError, match="I/O"):
        executor.run("/x/p", {"CNI_COMMAND": "VERSION"}, b"")


@pytest.mark.unit
def test_the_chained_example_keeps_the_contract(tmp_path):
    plugin = load("chained/cni_chained").Chained()
    conf = {"cniVersion": "1.1.0", "name": "n", "type": "chained", "dataDir": str(tmp_path)}
    prev = address_result("10.1.0.2/24")
    full = {**conf, "prevResult": render_result(prev, "1.1.0")}
    for container in ("c1", "c2"):
        assert call(plugin, "ADD", full, container_id=container) == prev
    call(plugin, "CHECK", full, container_id="c1")
    call(plugin, "GC", conf)
    call(plugin, "CHECK", full, container_id="c2")
    call(plugin, "GC", {**conf, "cni.dev/valid-attachments": [{"containerID": "c1", "ifname": "eth0"}]})
    call(plugin, "CHECK", full, container_id="c1")
    with pytest.raises(CniError, match="no record of container c2"):
        call(plugin, "CHECK", full, container_id="c2")
    for _ in range(2):
        call(plugin, "DEL", conf, container_id="c1", netns="")
    with pytest.raises(CniError, match=r"\$\.prevResult is missing"):
        call(plugin, "ADD", conf)


@pytest.mark.kernel
def test_the_subnet_example_makes_a_bridge_with_debians_plugins(tmp_path, make_netns):
    host, pod = make_netns("host"), make_netns("pod")
    (tmp_path / "subnet.env").write_text(
        "FLANNEL_NETWORK=10.244.0.0/16\nFLANNEL_SUBNET=10.244.3.1/24\nFLANNEL_MTU=1450\nFLANNEL_IPMASQ=true\n"
    )
    conf = {
        "cniVersion": "1.0.0", "name": "flannel", "type": "subnet_env", "subnetFile": str(tmp_path / "subnet.env"),
        "dataDir": str(tmp_path / "state"), "delegate": {"isDefaultGateway": True, "bridge": "cni9"},
    }  # fmt: skip

    def run(verb, body):
        environ = {
            "CNI_COMMAND": verb, "CNI_CONTAINERID": "c1", "CNI_IFNAME": "eth0", "CNI_NETNS": pod.path,
            "CNI_PATH": "/usr/lib/cni", "PATH": os.environ["PATH"],
        }  # fmt: skip
        command = ["ip", "netns", "exec", host.name, sys.executable, os.path.join(EXAMPLES, "subnet_env.py")]
        done = subprocess.run(command, input=json.dumps(body), env=environ, capture_output=True, text=True, check=False)
        assert done.returncode == 0, done
        return done.stdout

    result = json.loads(run("ADD", conf))
    assert result["cniVersion"] == "1.0.0"
    assert result["ips"][0]["address"].startswith("10.244.3.")
    assert "mtu 1450" in pod.run("ip", "link", "show", "eth0").stdout
    assert "10.244.0.0/16" in pod.run("ip", "route").stdout
    run("CHECK", {**conf, "prevResult": result})
    (tmp_path / "subnet.env").unlink()
    for _ in range(2):
        assert run("DEL", conf) == ""
    assert pod.run("ip", "link", "show", "eth0", check=False).returncode != 0
    assert os.listdir(tmp_path / "state") == ["ipam"]


@pytest.mark.kernel
def test_the_fixtures_come_by_themselves_when_nothing_names_them(tmp_path):
    """Through pytest's entry point: the bridge forwards, and the client reaches the container both ways."""
    (tmp_path / "test_it.py").write_text(
        "def test_memory(cni_host, cni_node):\n"
        "    assert cni_node.links['/run/netns/c1']['eth0'].link.up\n"
        "    assert cni_host.executor.dump() == ''\n"
        "import socket\n"
        "def test_kernel(cni_bridge):\n"
        "    with cni_bridge.container.entered():\n"
        "        server = socket.create_server(('::', 80), family=socket.AF_INET6, dualstack_ipv6=True)\n"
        "    for address in ('10.88.0.2', 'fd88::2'):\n"
        "        with cni_bridge.client.entered(), socket.create_connection((address, 80), 10) as client:\n"
        "            assert server.accept()[1][0].endswith(client.getsockname()[0])\n"
        "    server.close()\n"
        "    assert [ip.address for ip in cni_bridge.result.ips] == ['10.88.0.2/24', 'fd88::2/64']\n"
    )
    done = subprocess.run(
        [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "--rootdir", str(tmp_path), str(tmp_path)],
        cwd=tmp_path, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert "2 passed" in done.stdout, done.stdout
