"""What `--json` prints, of every command: one spelling for its keys, CNI's own."""

from __future__ import annotations

import argparse
import json
import re
from typing import TYPE_CHECKING, Any

import pytest
from hostport_harness import POD_ARGS, Node, conf

from cnimeta.cli.main import main
from cnimeta.testing.noop import write_noop
from cnimeta_plugins.hostport_alloc.operator.commands import add_commands

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

pytestmark = pytest.mark.kernel

SPELLED = re.compile(r"[a-z]+([A-Z][a-z]+|ID|UID|IP)*s?")
"""hostPort, containerIDs, podUID, hostIP; not container_id, containerId, hostIp."""
MEANT = {
    **dict.fromkeys(("containerid", "container", "id", "sandboxid"), "containerID"),
    **dict.fromkeys(("interface", "ifname", "interfacename"), "ifname"),
    **dict.fromkeys(("hostip", "hostaddress", "address"), "hostIP"),
    **dict.fromkeys(("msg", "text", "error", "reason"), "message"),
    **dict.fromkeys(("poduid", "uid"), "podUID"),
}
"""What one thing might be called, and what it is called here."""
OF_CNI = {"msg", "interface", "address"}
"""CNI's own words in results and errors, where they mean other things."""


def keys_in(value: Any) -> Iterator[str]:
    if isinstance(value, dict):
        for key, inner in value.items():
            yield key
            yield from keys_in(inner)
    elif isinstance(value, list):
        for inner in value:
            yield from keys_in(inner)


def judge(value: Any, known: set[str]) -> None:
    keys = set(keys_in(value))
    assert known <= keys
    assert {key for key in keys if not SPELLED.fullmatch(key)} == set()
    assert {key for key in keys if MEANT.get(key.lower(), key) != key} - (
        OF_CNI if "cniVersion" in keys else set()
    ) == set()


@pytest.fixture
def printed(capsys: pytest.CaptureFixture[str]) -> Any:
    return lambda: json.loads(capsys.readouterr().out)


@pytest.mark.parametrize(
    ("words", "known"),
    [
        (["list"], {"hostPort", "containerPort", "containerID", "ifname", "hostIP", "podUID", "annotationError"}),
        (["show", "default"], {"range", "usedPorts"}),
        (["top"], {"hostPorts", "pendingAnnotations", "usedPercent", "containerID", "namespaces"}),
        (["check"], {"ok", "problems", "kind", "containerID", "message"}),
        (["repair"], {"ok", "containerIDs", "problems"}),
        (["release", "c1", "--force"], {"ok", "freed", "problems"}),
        (["deliver"], {"written", "dropped", "pending"}),
    ],
)
def test_keys_are_spelled_one_way_when_ports_prints_json(
    tmp_path: Path, printed: Any, words: list[str], known: set[str]
) -> None:
    node, file = Node(), tmp_path / "10.conflist"
    body = conf(kubernetes={"kubeconfig": "/k"})
    file.write_text(json.dumps({"cniVersion": "1.0.0", "name": "pods", "plugins": [body]}))
    node.pods.create("default", "web", uid="0a-1b")
    node.call("ADD", body, args=POD_ARGS)
    if words == ["check"]:
        node.portmap.attachments.clear()
    parser = argparse.ArgumentParser()
    add_commands(parser.add_subparsers(), node.wiring)
    args = parser.parse_args(["ports", *words, "--json", "--conf", str(file)])
    args.run(args)
    judge(printed(), known)


def test_keys_are_spelled_one_way_when_other_commands_print_json(tmp_path: Path, printed: Any) -> None:
    file, nets = tmp_path / "net.conflist", str(tmp_path)
    file.write_text('{"cniVersion": "1.0.0", "name": "net", "plugins": [{"type": "first"}]}')
    write_noop(str(tmp_path), "first", {"ADD": {"result": {"cniVersion": "1.0.0", "ips": [{"address": "10.0.0.2/8"}]}}})
    network = ["--conflist", str(file), "--bin-dir", str(tmp_path), "--cache-dir", str(tmp_path / "cache")]
    for words, known in (
        (["doctor", "--json", "--bin-dir", nets, "--net-dir", nets], {"what", "state", "message"}),
        (["run", "version", *network], {"name", "cniVersion", "plugins"}),
        (["run", "add", *network, "--netns", "/run/netns/x"], {"cniVersion", "ips"}),
        (["run", "check", *network], {"cniVersion", "code", "msg"}),
        (["conformance", str(tmp_path / "first"), "--conf", str(tmp_path / "conf"), "--json"], {"rule", "outcome"}),
        (["validate", str(file), "--json"], {"what", "state", "message"}),
        (["explain", "dataDir", "--json"], {"keys", "codes", "plugin", "names"}),
        (["sysdump", "--json", "--output", f"{nets}/dump", "--net-dir", nets, "--bin-dir", nets], {"file", "missing"}),
        (["wrap", str(file), "--json"], {"action", "file", "original"}),
    ):
        (tmp_path / "conf").write_text('{"type": "first"}')
        main(words)
        judge(printed(), known)
