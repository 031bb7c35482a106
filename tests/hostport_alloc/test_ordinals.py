"""Ports by the ordinal of a StatefulSet's Pod."""

from __future__ import annotations

from typing import Any

import pytest
from hostport_harness import Node, conf, pod_args

from cnimeta.errors import CniError
from cnimeta_plugins.hostport_alloc.allocate.ordinal import ordinal_of

pytestmark = pytest.mark.unit


def by_ordinal(ports: str = "9000-9005,9010-9012", **keys: Any) -> dict[str, Any]:
    return {"ranges": {"default": "20000-20099", "db": {"ports": ports, "by": "ordinal", **keys}}, "expose": ["db:80"]}


@pytest.mark.parametrize(
    ("name", "ordinal"),
    [
        *(("db-0", 0), ("db-12", 12), ("a-1-2", 2), ("db-99999", 99999)),
        *(("db", None), ("db-", None), ("-3", None), ("db-01", None), ("db-x1", None), ("db-100000", None), ("", None)),
        ("db-\u0663", None),
    ],
)
def test_ordinal_is_the_number_at_the_end_of_the_name(name: str, ordinal: int | None) -> None:
    assert ordinal_of(name) == ordinal


def test_pods_have_the_ports_of_their_ordinals_over_a_gap_and_again_after_a_restart() -> None:
    node = Node()
    wanted = conf(**by_ordinal())
    for ordinal, port in ((7, 9011), (0, 9000), (5, 9005), (6, 9010)):
        node.call("ADD", wanted, args=pod_args(f"db-{ordinal}"), container_id=f"c{ordinal}")
        assert node.ports(f"c{ordinal}") == [port]
    node.call("DEL", wanted, args=pod_args("db-0"), container_id="c0")
    node.call("ADD", wanted, args=pod_args("db-0"), container_id="d0")  # the port is in quarantine
    assert node.ports("d0") == [9000]


def test_several_ports_of_a_pod_lie_beside_each_other_in_the_order_of_its_exposures() -> None:
    node = Node()
    wanted = conf(**{**by_ordinal("9000-9019"), "expose": ["80", "db:81/tcp+udp", "db:5000-5001/udp", "db:same/sctp"]})
    node.call("ADD", wanted, args=pod_args("db-2"))
    given = {(one["containerPort"], one["protocol"]): one["hostPort"] for one in node.mappings()}
    random = given.pop((80, "tcp"))
    assert 20000 <= random <= 20099
    assert given == {
        (81, "tcp"): 9008,
        (81, "udp"): 9008,
        (5000, "udp"): 9009,
        (5001, "udp"): 9010,
        (9011, "sctp"): 9011,
    }


@pytest.mark.parametrize("args", [pod_args("db"), pod_args("db-9"), ""])
def test_pod_without_a_port_by_its_ordinal_is_refused_or_gets_another(args: str) -> None:
    with pytest.raises(CniError, match=r'range "db" \(9000-9005,9010-9012\) gives ports by the Pod') as caught:
        Node().call("ADD", conf(**by_ordinal()), args=args)
    assert caught.value.code == 7
    node = Node()
    node.call("ADD", conf(**by_ordinal(otherwise="random")), args=args)
    assert 9000 <= node.ports()[0] <= 9012


def test_block_is_not_torn_apart_by_a_gap_of_the_range() -> None:
    wanted = {**by_ordinal("9000-9002,9010-9013"), "expose": ["db:80-81"]}
    Node().call("ADD", conf(**wanted), args=pod_args("db-0"))
    with pytest.raises(CniError, match="its numbers 2 to 3") as caught:
        Node().call("ADD", conf(**wanted), args=pod_args("db-1"))
    assert caught.value.code == 7


@pytest.mark.parametrize("by", ["container", "node", "probe"])
def test_taken_port_is_waited_for_or_another_is_given(by: str) -> None:
    for otherwise in ("refuse", "random"):
        node = Node()
        wanted = conf(**by_ordinal(otherwise=otherwise))
        if by == "container":
            node.call("ADD", wanted, args=pod_args("other-1"), container_id="c0")
        elif by == "node":
            node.sockets.busy.add(("tcp", 9001))
        else:
            node.sockets.can_listen = lambda protocol, port: port != 9001  # type: ignore[method-assign]
        if otherwise == "random":
            node.call("ADD", wanted, args=pod_args("db-1"))
            assert node.ports()[0] not in (0, 9001)
            continue
        with pytest.raises(CniError, match="host port 9001/tcp of range") as caught:
            node.call("ADD", wanted, args=pod_args("db-1"))
        assert (caught.value.code, "another container" in caught.value.msg) == (11, by == "container")
