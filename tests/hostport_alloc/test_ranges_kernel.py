"""Ranges by namespace, by ordinal and of the node, and quotas, on a real kernel: what is given out is reached."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest
from hostport_harness import pod_args
from kernel_node import Failed, KernelNode, assert_nothing_left

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from cnimeta.testing.netns import Namespace

pytestmark = pytest.mark.kernel


def test_pods_get_the_ports_that_are_theirs_and_no_more_than_their_quota(
    make_netns: Callable[[str], Namespace], tmp_path: Path
) -> None:
    node = KernelNode(make_netns, tmp_path, ("hostport_alloc", "portmap"))
    path = tmp_path / "ranges.json"
    db = {"ports": "9000-9099", "namespaces": ["db"], "by": "ordinal"}
    conf = node.conf(
        ranges={"default": "20000-20099", "db": db},
        defaultRange=[{"range": "db", "namespaces": ["db"]}],
        rangesFile=str(path),
        quotas={"namespace": 1, "namespaces": {"db": 2}},
    )
    with pytest.raises(Failed, match="there is no such file") as caught:
        node.call("ADD", conf, args=pod_args("db-1", "db"))
    assert caught.value.code == 11
    path.write_text('{"db": "9500-9509"}')
    path.chmod(0o666)
    with pytest.raises(Failed, match="nobody else may write to") as caught:
        node.call("ADD", conf, args=pod_args("db-1", "db"))
    assert caught.value.code == 104
    path.chmod(0o644)
    node.call("ADD", conf, args=pod_args("db-1", "db"))
    assert node.ports() == [9501]
    node.serve("c1")
    try:
        assert node.fetch(9501) == "hello from c1"
        node.call("ADD", conf, "c2", args=pod_args("web"))
        assert node.ports("c2")[0] // 1000 == 20
        for name, pod in (("c3", pod_args("web2")), ("c4", pod_args("db-1", "db"))):
            with pytest.raises(Failed) as caught:
                node.call("ADD", conf, name, args=pod)
            assert caught.value.code == 11
        with pytest.raises(Failed, match="is for Pods of the namespaces db") as caught:
            node.call("ADD", {**conf, "expose": ["db:80"]}, "c3", args=pod_args("db-2", "other"))
        assert caught.value.code == 7
        path.unlink()
        for name in ("c1", "c2", "c3", "c4"):
            node.call("DEL", conf, name)
        assert_nothing_left(node)
    finally:
        node.close()
