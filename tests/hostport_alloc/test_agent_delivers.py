"""What the agent does between invocations."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

import pytest
from kernel_node import POD_ARGS, KernelNode, assert_nothing_left

from cnimeta.testing.agent import RunningAgent, eventually
from cnimeta.testing.kube import PodServer

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from cnimeta.testing.netns import Namespace

pytestmark = pytest.mark.kernel


def test_pending_annotation_is_written_when_the_agent_reaches_the_server(
    make_netns: Callable[[str], Namespace], tmp_path: Path
) -> None:
    node = KernelNode(make_netns, tmp_path, ("hostport_alloc", "portmap"))
    with PodServer(tmp_path / "api") as server:  # on loopback, which the node's namespace does not reach
        server.pods.create("default", "web", uid="0a-1b")
        kubeconfig = server.kubeconfig(tmp_path / "kubeconfig", token=server.token("cnimeta"))
        conf = node.conf(kubernetes={"kubeconfig": kubeconfig, "timeout": 1})
        node.call("ADD", conf, args=POD_ARGS)
        assert "cnimeta.io/hostports" not in server.pods.annotations("default", "web")
        path = tmp_path / "net.conflist"
        path.write_text(json.dumps({"cniVersion": "1.0.0", "name": "pods", "plugins": [conf]}))
        agent = RunningAgent(tmp_path, "--deliver", "0.3", "--conf", str(path))
        try:
            eventually(lambda: "cnimeta.io/hostports" in server.pods.annotations("default", "web"))
        finally:
            agent.close()
        (entry,) = json.loads(server.pods.annotations("default", "web")["cnimeta.io/hostports"])
        assert [entry["hostPort"]] == node.ports()
    node.call("DEL", conf, args=POD_ARGS)
    assert_nothing_left(node)
