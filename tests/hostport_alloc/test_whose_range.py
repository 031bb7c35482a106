"""Which range is whose: by namespace, by label, by the node's own file; and who may not have it."""

from __future__ import annotations

import errno
from typing import Any

import pytest
from hostport_harness import Node, conf, pod_args

from cnimeta.errors import CniError
from cnimeta.testing.kube import ANNOTATE
from cnimeta_plugins.hostport_alloc.operator.examine import examine

pytestmark = pytest.mark.unit

GAMES = {"ports": "7000-7009", "namespaces": ["games", "arena-*"]}
RANGES = {"default": "20000-20099", "games": GAMES}


def asking(text: str) -> dict[str, Any]:
    return {"io.kubernetes.cri.pod-annotations": {"cnimeta.io/expose": text}}


@pytest.mark.parametrize("namespace", ["games", "arena-", "arena-7"])
def test_pod_gets_a_port_of_a_range_that_is_for_its_namespace(namespace: str) -> None:
    node = Node()
    wanted = conf(ranges=RANGES, expose=[], runtimeConfig=asking("games:80"))
    node.call("ADD", wanted, args=pod_args("web", namespace))
    assert 7000 <= node.ports()[0] <= 7009


@pytest.mark.parametrize("args", [pod_args("web", "game"), pod_args("web", "xgames"), pod_args("games", "arena"), ""])
@pytest.mark.parametrize("asked", [{"runtimeConfig": asking("games:80")}, {"expose": ["games:same/udp"]}])
def test_range_is_refused_to_everybody_else_whoever_names_it(args: str, asked: dict[str, Any]) -> None:
    node = Node()
    with pytest.raises(CniError, match=r'range "games" is for Pods of the namespaces games, arena-\*') as caught:
        node.call("ADD", conf(ranges=RANGES, **{"expose": [], **asked}), args=args)
    assert caught.value.code == 7
    assert node.executor.calls == []


def test_first_rule_that_is_met_names_the_range_of_exposures_without_one() -> None:
    rules = [{"range": "games", "namespaces": ["games"]}, {"range": "web"}]
    ranges = {**RANGES, "web": "8000-8009"}
    node = Node()
    wanted = conf(ranges=ranges, defaultRange=rules, expose=["80/tcp", "default:81/tcp"])
    zero = {**asking("82"), "portMappings": [{"hostPort": 0, "containerPort": 83}]}
    for name, args, first in (("c1", pod_args("a", "games"), 7), ("c2", pod_args("a"), 8), ("c3", "", 8)):
        node.call("ADD", {**wanted, "runtimeConfig": zero}, args=args, container_id=name)
        assert [port // 1000 for port in node.ports(name)] == [first, first, first, 20]


def test_one_range_can_be_the_default_by_its_name() -> None:
    node = Node()
    node.call("ADD", conf(ranges={"web": "8000-8009"}, defaultRange="web", expose=["80"]))
    assert node.ports()[0] // 1000 == 8


def test_container_that_no_rule_means_is_refused_when_there_is_no_default() -> None:
    node = Node()
    rules = [{"range": "games", "namespaces": ["games"]}]
    with pytest.raises(CniError, match=r'is of "default" by \$\.defaultRange; \$\.ranges has games') as caught:
        node.call("ADD", conf(ranges={"games": GAMES}, defaultRange=rules, expose=["80"]))
    assert caught.value.code == 7


def test_labels_of_the_pod_choose_the_range() -> None:
    node = Node()
    node.pods.roles["cnimeta"] = ANNOTATE | {"get pods"}
    for name, labels in (("server", {"app": "server", "x": "y"}), ("other", {"App": "server"})):
        node.pods.create("default", name, uid="0a")["metadata"]["labels"] = labels
    rules = [{"range": "games", "labels": {"app": "server"}}]
    ranges = {**RANGES, "games": "7000-7009"}
    wanted = conf(ranges=ranges, defaultRange=rules, kubernetes={"readPod": True}, runtimeConfig=asking("81"))
    for name, first in (("server", 7), ("other", 20)):
        node.call("ADD", wanted, args=pod_args(name, uid="0a"), container_id=name)
        assert [port // 1000 for port in node.ports(name)] == [first, first]


@pytest.mark.parametrize(
    ("keys", "message"),
    [
        ({"ranges": {"a": {}}}, r"\$\.ranges\.a\.ports is missing"),
        ({"ranges": {"a": {"ports": "1-0"}}}, r"\$\.ranges\.a\.ports must be ports"),
        ({"ranges": {"a": {"ports": 1}}}, r"\$\.ranges\.a\.ports must be a string"),
        ({"ranges": {"a": {"ports": "1", "namespaces": []}}}, r"\$\.ranges\.a\.namespaces must be an array with"),
        (
            {"ranges": {"a": {"ports": "1", "namespaces": ["a", "b/c"]}}},
            r"\$\.ranges\.a\.namespaces\[1\] must be a name",
        ),
        ({"ranges": {"a": {"ports": "1", "namespaces": [""]}}}, r"\$\.ranges\.a\.namespaces\[0\] must be a name"),
        ({"ranges": {"a": {"ports": "1", "by": "name"}}}, r"\$\.ranges\.a\.by must be one of random, ordinal"),
        ({"ranges": {"a": {"ports": "1", "otherwise": "x"}}}, r"\$\.ranges\.a\.otherwise must be one of"),
        ({"ranges": {"a": {"ports": "5-6"}, "b": "6"}}, r"\$\.ranges\.b \(6\) overlaps \$\.ranges\.a"),
        ({"ranges": {"explicit": "5-6"}}, r"\$\.ranges\.explicit: lists and quotas call so"),
        ({"defaultRange": 7}, r"\$\.defaultRange must be the name of a range"),
        ({"defaultRange": "web"}, r'\$\.defaultRange names the range "web"'),
        ({"defaultRange": [{}]}, r"\$\.defaultRange\[0\]\.range names the range"),
        ({"defaultRange": [{"range": "default", "labels": {"a": 1}}]}, r'label "a" must be a string'),
        ({"defaultRange": [{"range": "default", "labels": {"a": "b"}}]}, r"set kubernetes\.readPod to true"),
        ({"rangesFile": "ranges.json"}, r"\$\.rangesFile must be an absolute path"),
    ],
)
def test_wrong_value_is_refused_with_its_path(keys: dict[str, Any], message: str) -> None:
    with pytest.raises(CniError, match=message) as caught:
        Node().call("ADD", conf(**keys))
    assert caught.value.code == 7


FILE = "/etc/cnimeta/ranges.json"


def test_file_of_the_node_says_which_numbers_a_range_has_there() -> None:
    node = Node()
    node.files.content[FILE] = b'{"default": "9000-9001"}'
    wanted = conf(rangesFile=FILE, expose=["80/tcp", "games:81"])
    node.call("ADD", wanted)
    assert [port // 1000 for port in node.ports()] == [9, 7]
    node.call("STATUS", {**wanted, "cniVersion": "1.1.0"})
    node.files.content[FILE] = b'{"default": "9100"}'
    node.call("ADD", wanted, container_id="c2")
    assert node.ports("c2")[0] == 9100
    with pytest.raises(CniError, match=r'range "default" \(9100, 1 port\) has no free tcp port'):
        node.call("STATUS", {**wanted, "cniVersion": "1.1.0"})


@pytest.mark.parametrize(
    ("text", "code", "message"),
    [
        (None, 11, "there is no such file"),
        (errno.EIO, 11, "Input/output error"),
        (b"", 7, "cannot be used"),
        (b"[]", 7, "cannot be used"),
        (b'{"web": "1-2"}', 7, r"\$\.web is no range of the configuration"),
        (b'{"default": 7}', 7, r"\$\.default must be text"),
        (b'{"default": "7-6"}', 7, r"\$\.default must be ports"),
        (b'{"default": "7000"}', 7, r"overlaps"),
        (b'{"default": "32000"}', 7, "overlaps the NodePort range"),
        (b" " * 70000, 7, "at most 65536"),
    ],
)
def test_container_that_wants_ports_fails_when_the_file_cannot_be_used(text: Any, code: int, message: str) -> None:
    node = Node()
    if isinstance(text, int):
        node.files.unreadable[FILE] = text
    elif text is not None:
        node.files.content[FILE] = text
    wanted = conf(rangesFile=FILE)
    with pytest.raises(CniError, match=message) as caught:
        node.call("ADD", wanted)
    assert caught.value.code == code
    assert node.executor.calls == []
    with pytest.raises(CniError) as caught:
        node.call("STATUS", {**wanted, "cniVersion": "1.1.0"})
    assert caught.value.code == 50
    node.call("ADD", {**wanted, "expose": []})  # whoever writes the file may be a Pod itself
    node.call("DEL", wanted)


def test_doctor_tells_of_misspelt_keys_inside() -> None:
    from cnimeta.spec.netconf import NetConf

    ranges = {"default": {"ports": "20000-20009", "namespace": ["a"]}}
    rules = [{"range": "default", "namespces": ["a"]}]
    told = examine(Node().wiring, NetConf(conf(ranges=ranges, defaultRange=rules, quotas={"pods": 1}, expose=[])))
    assert told == [
        '$.quotas has a key "pods" that nothing reads: did you mean pod?',
        '$.ranges.default has a key "namespace" that nothing reads: did you mean namespaces?',
        '$.defaultRange[0] has a key "namespces" that nothing reads: did you mean namespaces?',
    ]
