"""How many host ports a Pod, or a namespace, may hold at once."""

from __future__ import annotations

from typing import Any

import pytest
from hostport_harness import Node, conf, pod_args

from cnimeta.errors import CniError
from cnimeta.spec.netconf import NetConf
from cnimeta_plugins.hostport_alloc.config import read_settings
from cnimeta_plugins.hostport_alloc.operator.looking import overview

pytestmark = pytest.mark.unit


def refused(node: Node, wanted: dict[str, Any], **how: Any) -> CniError:
    with pytest.raises(CniError) as caught:
        node.call("ADD", wanted, **how)
    return caught.value


def test_namespace_gets_no_more_than_its_quota_and_again_what_it_gave_back() -> None:
    node = Node()
    wanted = conf(expose=["80/tcp+udp"], quotas={"namespace": 4})
    for name in ("a", "b"):
        node.call("ADD", wanted, args=pod_args(name), container_id=name)
    node.executor.calls.clear()
    error = refused(node, wanted, args=pod_args("c"), container_id="c")
    assert (error.code, node.executor.calls, node.ports("c")) == (11, [], [])
    assert error.msg == (
        '$.quotas.namespace allows namespace "default" 4 host ports on this node: 4 used, 2 asked for;'
        " remove Pods, expose fewer or raise it"
    )
    node.call("ADD", wanted, args=pod_args("c", "other"), container_id="d")
    node.call("ADD", wanted, container_id="e")  # of no Pod
    node.call("DEL", wanted, args=pod_args("a"), container_id="a")
    node.call("ADD", wanted, args=pod_args("c"), container_id="c")


def test_pod_is_counted_over_its_networks_and_not_with_another_of_its_name() -> None:
    node = Node()
    wanted = conf(quotas={"pod": 1})
    node.call("ADD", wanted, args=pod_args("web", uid="1"))
    error = refused(node, {**wanted, "name": "second"}, args=pod_args("web", uid="1"))
    assert (error.code, "allows Pod" in error.msg, "1 used, 1 asked for" in error.msg) == (11, True, True)
    node.call("ADD", wanted, args=pod_args("web", uid="2"), container_id="c2")
    assert refused(node, wanted, args=pod_args("web"), container_id="c3").code == 11


def test_explicit_ports_and_those_of_an_earlier_boot_do_not_count() -> None:
    node = Node()
    wanted = conf(quotas={"namespace": 1})
    explicit = {"portMappings": [{"hostPort": 8080, "containerPort": 80}]}
    node.call("ADD", conf(expose=[], runtimeConfig=explicit), args=pod_args("a"))
    node.call("ADD", wanted, args=pod_args("b"), container_id="c2")
    node.boot = "boot-2"
    node.call("ADD", wanted, args=pod_args("c"), container_id="c3")


def test_repeated_add_of_the_same_container_is_no_second_one() -> None:
    node = Node()
    wanted = conf(quotas={"namespace": 1, "pod": 1})
    node.call("ADD", wanted, args=pod_args("a"))
    node.call("ADD", {**wanted, "expose": ["81/tcp"]}, args=pod_args("a"))
    assert len(node.ports()) == 1


def test_namespace_of_its_own_quota_and_one_that_may_have_none() -> None:
    node = Node()
    wanted = conf(quotas={"namespace": 0, "namespaces": {"games": 1, "arena-*": 2}})
    assert refused(node, wanted, args=pod_args("a")).code == 7
    for namespace, limit in (("games", 1), ("arena-1", 2)):
        for number in range(limit):
            node.call("ADD", wanted, args=pod_args("a", namespace), container_id=f"{namespace}{number}")
        error = refused(node, wanted, args=pod_args("b", namespace), container_id="x")
        assert (error.code, "$.quotas.namespaces." in error.msg) == (11, True)


def test_what_can_never_be_had_is_a_wrong_configuration() -> None:
    error = refused(Node(), conf(expose=["80-83/tcp"], quotas={"pod": 3}), args=pod_args("a"))
    assert (error.code, "0 used, 4 asked for" in error.msg) == (7, True)


def test_quota_holds_when_two_hold_ports_at_the_same_time() -> None:
    """The other command comes between the look and the transaction."""
    node = Node()
    wanted, args = conf(quotas={"namespace": 1}), pod_args("a")
    probing = node.sockets.can_listen

    def other_first(protocol: str, port: int) -> bool:
        node.sockets.can_listen = probing  # type: ignore[method-assign]
        node.call("ADD", wanted, args=args, container_id="c2")
        return True

    node.sockets.can_listen = other_first  # type: ignore[method-assign]
    assert refused(node, wanted, args=args).code == 11
    assert sum(len(node.ports(name)) for name in ("c1", "c2")) == 1


@pytest.mark.parametrize(
    ("quotas", "path"),
    [
        (3, "$.quotas must be an object"),
        ({"pod": 0}, "$.quotas.pod must be a whole number"),
        ({"namespace": "3"}, "$.quotas.namespace must be a whole number"),
        ({"namespaces": {"a": -1}}, "$.quotas.namespaces.a must be a whole number"),
        ({"namespaces": {"A b": 1}}, "$.quotas.namespaces: the key must be a namespace"),
    ],
)
def test_wrong_value_is_refused_with_its_path(quotas: Any, path: str) -> None:
    error = refused(Node(), conf(quotas=quotas))
    assert (error.code, error.msg[: len(path)]) == (7, path)


def test_top_shows_how_much_of_its_quota_a_namespace_has_used() -> None:
    node = Node()
    wanted = conf(quotas={"namespaces": {"default": 3}})
    node.call("ADD", wanted, args=pod_args("a"))
    node.call("ADD", wanted, args=pod_args("b", "free"), container_id="c2")
    found = overview(node.wiring, read_settings(NetConf(wanted)), node.store)
    assert "default    1           1 of 3" in found.text()
    assert found.body["namespaces"] == [
        {"namespace": "default", "hostPorts": 1, "quota": 3, "quotaUsed": 1},
        {"namespace": "free", "hostPorts": 1},
    ]
