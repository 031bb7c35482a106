"""What is fuzzed: each target takes bytes that somebody else decides, and may answer, or fail as it says; nothing else.

A target's steps are counted (calls of functions, C's included), and must stay within a multiple of the input's length:
that is time without a clock. Memory is bounded by the driver.
"""

from __future__ import annotations

import json
import os
import socket
import struct
import sys
import tempfile
from typing import TYPE_CHECKING, Any, NamedTuple
from zlib import crc32

sys.path.insert(0, os.path.join(os.path.dirname(os.path.dirname(os.path.abspath(__file__))), "hostport_alloc"))

from hostport_harness import POD_ARGS, Node, conf

from cnimeta.agent import client
from cnimeta.agent.wire import ACCEPTED, ANSWER, HELLO, REFUSED, REQUEST, Broken, identity
from cnimeta.agent.worker import Service, serve
from cnimeta.delegate.call import Delegates
from cnimeta.errors import CniError
from cnimeta.host import netlink
from cnimeta.host.addresses import RouteAddresses
from cnimeta.host.conntrack import KernelConntrack
from cnimeta.host.iptables.netlink import Unreadable, entry_rules, table_names
from cnimeta.host.iptables.values import Table, split
from cnimeta.host.kube.client import Client
from cnimeta.host.kube.credentials import _checked, server_of
from cnimeta.host.links.rtnetlink import every_link, route_interface
from cnimeta.host.nftables.kernel import KernelNft
from cnimeta.host.nftables.program import NftProgram
from cnimeta.host.portscan import RulesetScan
from cnimeta.host.sockets import NodeSockets
from cnimeta.host.values import Completed, PodApiError
from cnimeta.plugin.dispatch import run
from cnimeta.spec import cniargs
from cnimeta.spec.fields import Fields
from cnimeta.spec.ip import parse_ip
from cnimeta.store import document
from cnimeta_plugins.bandwidth.main import Bandwidth
from cnimeta_plugins.hostport_alloc.main import HostportAlloc
from cnimeta_plugins.hostport_alloc.state import record as records
from cnimeta_plugins.hostport_alloc.verbs.undo import decode_undo
from cnimeta_plugins.portmap import records as mappings
from cnimeta_plugins.portmap.config import read_settings
from cnimeta_plugins.portmap.main import Portmap
from cnimeta_plugins.portmap.nftables import upstream

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence


class Target(NamedTuple):
    """`feed` takes one input; `seeds` are inputs that are read to their end; `words` help to make others."""

    feed: Callable[[bytes], None]
    seeds: Sequence[bytes]
    words: Sequence[str] = ()
    steps: int = 3000
    """Calls that an empty input may cost; each byte may cost PER_BYTE more."""


PER_BYTE = 400


class TooManySteps(AssertionError):
    """An input costs out of proportion to its length."""


def warmed(target: Target) -> Target:
    """The target with everything imported that its seeds lead to: that is not an input's cost."""
    for seed in target.seeds:
        target.feed(seed)
    return target


def bounded(target: Target, data: bytes) -> None:
    """Feed one input, its steps counted."""
    left = target.steps + PER_BYTE * len(data)
    most = left

    def count(*_: object) -> None:
        nonlocal left
        left -= 1
        if left < 0:
            sys.setprofile(None)
            raise TooManySteps(f"more than {most} calls for {len(data)} bytes")

    sys.setprofile(count)
    try:
        target.feed(data)
    finally:
        sys.setprofile(None)


# --- an invocation of a plugin ----------------------------------------------------------------------------------


class Refusing:
    """A host that refuses everything."""

    def settings(self, conf: Any) -> Any:
        return read_settings(conf)

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__"):
            raise AttributeError(name)

        def refuse(*_: object, **__: object) -> Any:
            raise CniError(f"{name}: not on this host", code=5)

        return refuse


VERBS = ("ADD", "DEL", "CHECK", "GC", "STATUS", "VERSION")
ENVIRON = {
    "CNI_CONTAINERID": "c1",
    "CNI_IFNAME": "eth0",
    "CNI_NETNS": "/run/netns/none",
    "CNI_PATH": "/opt/cni/bin",
    "CNI_ARGS": POD_ARGS,
}


def invocation(data: bytes) -> None:
    """First byte: plugin and verb. Then CNI_ARGS up to a newline; the rest is stdin."""
    first, arguments, stdin = data[:1] or b"\0", *([*data[1:].split(b"\n", 1), b""])[:2]
    verb = VERBS[first[0] % len(VERBS)]
    node = Node()
    node.pods.create("default", "web", uid="0a-1b", annotations={"cnimeta.io/expose": "80"})
    plugins = HostportAlloc(node.wiring), Portmap(lambda *_: Refusing()), Bandwidth(Refusing())  # type: ignore[arg-type]
    plugin = plugins[first[0] // len(VERBS) % len(plugins)]
    environ = {**ENVIRON, "CNI_COMMAND": verb}
    if arguments:
        environ["CNI_ARGS"] = arguments.replace(b"\0", b"").decode("utf-8", "surrogateescape")
    lines: list[str] = []
    outcome = run(plugin, environ, stdin, lines.append)
    assert all(line.isprintable() for line in lines), lines
    if not outcome.stdout:
        assert outcome.status == 0
        return
    body = json.loads(outcome.stdout)
    if outcome.status == 0:
        assert verb in ("ADD", "VERSION")
        return
    assert body["code"] != 999, body
    assert body["msg"].isprintable()
    if verb == "ADD" and plugin is plugins[0]:
        assert list(node.store.records()) == []
        assert node.bridge.attachments == node.portmap.attachments == {}


def a_call(plugin: int, verb: str, **keys: Any) -> bytes:
    body = conf(cniVersion="1.1.0", **keys)
    return bytes([plugin * len(VERBS) + VERBS.index(verb)]) + POD_ARGS.encode() + b"\n" + json.dumps(body).encode()


PREV = {
    "ips": [{"address": "10.0.0.2/24", "interface": 1}],
    "interfaces": [{"name": "v"}, {"name": "eth0", "sandbox": "/n"}],
}
CALLS = [
    *(a_call(0, verb, kubernetes={"readPod": True}) for verb in VERBS),
    a_call(0, "ADD", runtimeConfig={"portMappings": [{"hostPort": 0, "containerPort": 80, "hostIP": "::"}]}),
    a_call(
        0, "ADD", runtimeConfig={"io.kubernetes.cri.pod-annotations": {"cnimeta.io/expose": "80/tcp+udp,games:1-3"}}
    ),
    a_call(0, "ADD", delegates=None, delegate={"name": "x", "plugins": [{"type": "bridge"}]}, sticky=False),
    a_call(0, "ADD", delegates=None, prevResult={**PREV, "cniVersion": "1.1.0"}),
    *(a_call(1, verb, type="portmap", prevResult=PREV, conditionsV4=["-s", "10.0.0.0/8"]) for verb in VERBS[:4]),
    *(
        a_call(2, verb, type="bandwidth", prevResult=PREV, ingressRate=8000, ingressBurst=8000, shapedSubnets=["::/0"])
        for verb in VERBS[:4]
    ),
    a_call(0, "GC", **{"cni.dev/valid-attachments": [{"containerID": "c", "ifname": "e"}]}),
]


# --- what Pods and runtimes write --------------------------------------------------------------------------------


def annotation(data: bytes) -> None:
    """The Pod's annotation, whole ADD round it."""
    text = data.decode("utf-8", "replace")
    node = Node()
    given = {"io.kubernetes.cri.pod-annotations": {"cnimeta.io/expose": text}}
    try:
        node.call("ADD", conf(expose=[], runtimeConfig=given))
        assert len(node.ports()) <= 64
    except CniError as error:
        assert error.code in (7, 11), error
        assert node.executor.calls == []


def arguments(data: bytes) -> None:
    """CNI_ARGS."""
    text = data.decode("utf-8", "surrogateescape")
    cniargs.parse(text, strict=False)
    try:
        cniargs.require_known(cniargs.parse(text), cniargs.KUBERNETES)
    except CniError as error:
        assert error.code == 4
        assert error.msg.isprintable()


def delegate(data: bytes) -> None:
    """What another plugin answers: first byte its status, the rest its stdout."""

    class Answering:
        def run(self, *_: object) -> Completed:
            return Completed(data[0] % 2 if data else 0, data[1:])

    delegates = Delegates(Answering(), ENVIRON, ["/bin"], lambda *_: "/bin/x")
    for call in (
        lambda: delegates.add({"type": "x", "cniVersion": "1.1.0"}),
        lambda: delegates.delete({"type": "x"}),
        lambda: delegates.versions("x"),
    ):
        try:
            call()
        except CniError as error:
            assert str(error).isprintable()


# --- what is on disk ----------------------------------------------------------------------------------------------


def port_record(data: bytes) -> None:
    """A document of hostport_alloc's, with the right checksum, and as it is."""
    text = data.decode("utf-8", "replace")
    for whole in (text, f'{{"version":1,"crc":{crc32(f"1:{text}".encode("utf-8", "surrogatepass"))},"record":{text}}}'):
        try:
            decode_undo(records.decode(whole).undo)
        except (document.Damaged, document.Later, CniError):
            pass


def mapping_record(data: bytes) -> None:
    """A document of portmap's, with the right checksum, and as it is."""
    wholes = [data]
    try:
        body = json.dumps(json.loads(data), separators=(",", ":"))
        wholes.append(f'{{"version":2,"crc":{crc32(f"[2,{body}]".encode())},"record":{body}}}'.encode())
    except (ValueError, RecursionError):
        pass
    for whole in wholes:
        try:
            mappings.decode(whole)
        except (mappings.DamagedRecord, mappings.NewerRecord):
            pass


# --- what the host and its programs say ----------------------------------------------------------------------------


def listing(data: bytes) -> None:
    """What nft and iptables-save print, and what the kernel has in /proc/net."""
    table = netlink.Message(0, bytes((2, 0, 0, 0)) + netlink.attribute(1, b"other\0"))
    text = data.decode("utf-8", "replace")
    scan = RulesetScan(run=lambda *_: Completed(0, data), proc="/nowhere", ask=lambda *_: [table])
    try:
        for _, first, last in scan.redirected():
            assert isinstance(first, int)
            assert isinstance(last, int)
    except CniError as error:
        assert error.code == 5

    class Listed(NftProgram):
        def _listing(self, *_: str) -> str:
            return text

    Listed("t").all_rules()
    Listed("t").elements("m")
    upstream._handles(text, "c1")
    Table.parse(text)
    split(text)


def netlink_answer(data: bytes) -> None:
    """What the kernel answers, message for message."""
    found = [netlink.Message(kind, body) for kind, _, body in netlink.split(data)]

    def ask(*_: object) -> list[netlink.Message]:
        return found

    for call in (
        lambda: netlink.nft_tables(ask),
        lambda: KernelNft("t", ask=ask, program=Refusing()).elements("m"),
        lambda: KernelNft("t", ask=ask, program=Refusing()).all_rules(),
        lambda: netlink.nft_chain_uses("inet", "t", ask),
        lambda: table_names(ask),
        lambda: entry_rules(4, "PREROUTING", (), ask),
        lambda: every_link(ask),
        lambda: route_interface(parse_ip("10.0.0.2"), ask),
        lambda: RouteAddresses(ask=ask).primary(),
        lambda: set(NodeSockets(proc="/nowhere", ask=ask).in_use()),
        lambda: KernelConntrack(ask=ask, tell=lambda *_: None).forget_udp(4, [(53, 53, b""), (1, 9, b"")], None),
    ):
        try:
            call()
        except Unreadable:
            pass  # iptables' own program is asked then
        except CniError as error:
            assert error.code == 5, error


# --- the API server and its credentials ------------------------------------------------------------------------------


class Answered(Client):
    """A client whose server has answered."""

    def __init__(self, status: int, body: bytes, retry_after: str) -> None:
        self._url = self._shown = "https://h"
        self._authorization = {"Authorization": "Bearer token-of-a-test"}
        self._answer = status, body, retry_after

    def _exchange(self, *_: object) -> tuple[int, bytes, str]:
        return self._answer


def api_answer(data: bytes) -> None:
    """First byte: the status; then Retry-After up to a newline; the rest is the body."""
    retry_after, _, body = data[1:].partition(b"\n")
    status = (200, 201, 400, 401, 403, 404, 409, 422, 429, 500, 503, 302)[(data[0] if data else 0) % 12]
    try:
        pod = Answered(status, body, retry_after.decode("latin-1")).request("GET", "/", None, 1)
        assert set(pod) == {"metadata"}
    except PodApiError as error:
        again = PodApiError.decoded(Fields(error.encoded()))
        assert str(again) == str(error)
        assert str(error).isprintable()
        assert "token-of-a-test" not in str(error)
        assert len(str(error)) < 1000


_KUBECONFIG = os.path.join(tempfile.gettempdir(), f"cnimeta-fuzz-{os.getpid()}")


def kubeconfig(data: bytes) -> None:
    """A kubeconfig, before the loader sees it."""
    server_of(data.decode("utf-8", "replace"))
    with open(_KUBECONFIG, "wb") as file:
        file.write(data)
    try:
        _checked(_KUBECONFIG)
    except PodApiError as error:
        assert error.reason == "NoCredentials"
        assert str(error).isprintable()
    finally:
        os.unlink(_KUBECONFIG)


# --- the agent ------------------------------------------------------------------------------------------------------


class _Same:
    """The code of an installation that nobody changes."""

    def is_current(self) -> bool:
        return True


_STATE = Service({}, _Same(), 0, lambda _: None)  # type: ignore[arg-type]


def agent_request(data: bytes) -> None:
    """What a stranger sends to the agent: first byte the number of descriptors, the rest the bytes."""
    before = set(os.listdir("/proc/self/fd"))
    theirs, ours = socket.socketpair()
    with theirs, ours:
        ours.setblocking(False)
        descriptors = [0] * ((data[0] if data else 0) % 12)
        if data[1:]:
            socket.send_fds(ours, [data[1:]], descriptors)
        ours.shutdown(socket.SHUT_WR)
        try:
            serve(theirs, _STATE, lambda _: None)
            assert ours.recv(2) == REFUSED  # there is no plugin of any name
        except Broken:
            pass
    for name in set(os.listdir("/proc/self/fd")) - before:  # a worker ends after one request
        try:
            os.close(int(name))
        except OSError:
            pass


def agent_answer(data: bytes) -> None:
    """What something that listens where an agent would says to the launcher in Python."""
    theirs, ours = socket.socketpair()
    lifeline: list[int] = []
    with theirs, ours:
        ours.setblocking(False)
        ours.sendall(data)
        ours.shutdown(socket.SHUT_WR)
        try:
            client._ask(theirs, os.getpid(), "portmap", lifeline)
            status, answer = client._outcome(theirs)
            assert data.startswith(HELLO + ACCEPTED)
            said = data[len(HELLO) + 1 :]
            length = int.from_bytes(said[4:8], "little")
            whole = len(said) >= ANSWER.size and len(said) - ANSWER.size >= length
            assert answer == said[ANSWER.size : ANSWER.size + length] if whole else status == 1
        except Broken:
            pass
        finally:
            for descriptor in lifeline:
                os.close(descriptor)


# --- the table ----------------------------------------------------------------------------------------------------


def _message(kind: int, body: bytes) -> bytes:
    return struct.pack("=IHHII", 16 + len(body), kind, 0, 1, 0) + body + b"\0" * (-len(body) % 4)


_OWNER = {"network": "n", "containerID": "c", "ifname": "e", "netns": "/n", "bootID": "b", "netnsID": "4:5"}
_LINK = struct.pack("=BxHiII", 0, 1, 7, 0x1043, 0) + netlink.attribute(3, b"eth0\0")
_POD = {"kind": "Pod", "metadata": {"uid": "u", "annotations": {"a": "b"}}}
_RULE = {"family": "ip", "table": "nat", "chain": "c", "expr": [
    {"match": {"op": "==", "left": {"payload": {"protocol": "tcp", "field": "dport"}}, "right": {"set": [80, {"range": [1, 9]}]}}},
    {"vmap": {"key": {"concat": [{"meta": {"key": "l4proto"}}, {"payload": {"protocol": "th", "field": "dport"}}]}, "data": "@m"}},
    {"dnat": {"addr": "10.0.0.2"}},
]}  # fmt: skip
_KEYS = (
    *("cniVersion", "name", "type", "prevResult", "runtimeConfig", "portMappings", "hostPort", "containerPort"),
    *("protocol", "hostIP", "ranges", "default", "expose", "delegates", "delegate", "plugins", "portmap", "kubernetes"),
    *("policy", "required", "timeout", "readPod", "kubeconfig", "sticky", "stickySeconds", "quarantineSeconds", "snat"),
    *("interfaces", "ips", "address", "interface", "sandbox", "routes", "dst", "dns", "capabilities", "20000-20010"),
    *("io.kubernetes.cri.pod-annotations", "cnimeta.io/expose", "cni.dev/valid-attachments", "10.0.0.2/24", "1.1.0"),
    *("null", "true", "\\ud800", "1e999", "{}", "[]", "K8S_POD_NAME=", "IgnoreUnknown=1"),
)

_IDENTITY, _ENVIRONMENT = identity("/usr/lib/python3/cnimeta", "portmap"), b"CNI_COMMAND=ADD\0CNI_IFNAME=eth0"

TARGETS: dict[str, Target] = {
    "agent_request": Target(
        agent_request,
        [
            b"\7" + REQUEST.pack(HELLO, 0o22, len(_IDENTITY), len(_ENVIRONMENT)) + _IDENTITY + _ENVIRONMENT,
            b"\0" + HELLO,
            b"\7" + REQUEST.pack(HELLO, 0, 1 << 31, 1 << 26),
        ],
        ("cnimeta-agent 3", "cnimeta", "\0portmap", "CNI_COMMAND="),
    ),
    "agent_answer": Target(
        agent_answer,
        [
            HELLO + ACCEPTED + ANSWER.pack(0, 3) + b"{}\n",
            HELLO + ACCEPTED + ANSWER.pack(-1, 1 << 31),
            HELLO + REFUSED,
        ],
        ("cnimeta-agent 3",),
    ),
    "invocation": Target(invocation, CALLS, _KEYS, 60_000),
    "annotation": Target(
        annotation, [b"80", b"80/tcp+udp,games:9000-9003/udp", b" 1 , ,2/sctp"], ("tcp", "games:", "-65535"), 40_000
    ),
    "arguments": Target(arguments, [POD_ARGS.encode(), b"A=b;;", b"IgnoreUnknown=x;B=c"], ("IgnoreUnknown=", ";")),
    "delegate": Target(
        delegate,
        [
            b"\0" + json.dumps({"cniVersion": "1.1.0", **PREV}).encode(),
            b'\0{"cniVersion":"0.2.0","ip4":{"ip":"10.0.0.2/24","routes":[{"dst":"0.0.0.0/0"}]}}',
            b'\1{}{"code":7,"msg":"m","details":"d"}',
            b'\0{"supportedVersions":["1.0.0"]}',
        ],
        _KEYS,
    ),
    "port_record": Target(
        port_record,
        [
            records.encode(records.Record("n", "c", "e", undo={"steps": []})).partition(',"record":')[2][:-1].encode(),
            json.dumps({**_OWNER, "token": "t", "created": 1, "phase": "mapped", "pod": None, "salvaged": False,
                        "explicit": [], "undo": {"steps": [{"conf": {"type": "x"}}], "version": "1.0.0"},
                        "annotation": {"state": "none", "patch": None, "error": ""},
                        "ports": [{"containerPort": 1, "protocol": "tcp", "hostPort": 2, "range": "r", "hostIP": ""}]}).encode(),
        ],
        ("steps", "conf", "result", "undo"),
    ),
    "mapping_record": Target(
        mapping_record,
        [json.dumps({**_OWNER, "addresses": ["10.0.0.2/24"], "mappings": [{"hostPort": 1, "endPort": 2, "containerPort": 3}],
                     "backend": "nftables", "payload": None, "conf": {}, "interfaces": ["v"], "waiting": []}).encode()],
        ("endPort", "payload", "waiting"),
    ),
    "listing": Target(
        listing,
        [
            json.dumps({"nftables": [{"map": {"family": "ip", "table": "nat", "name": "m", "elem": [[{"concat": ["tcp", 80]}, 1]]}},
                                     {"rule": _RULE}, {"rule": {**_RULE, "expr": [{"xt": None}]}}]}).encode(),
            b'-A CNI -d 1.2.3.4/32 -p tcp -m multiport --dports 80,90:95 -m comment --comment "a b" -j DNAT --to 1.2.3.4:80',
            b'table inet t { # handle 1\n\tchain c { # handle 2\n\t\ttcp dport 80 accept comment "x" # handle 3\n\t}\n}',
            b'\t\telements = { tcp . 80 comment "a" : 10.0.0.2 . 80,\n\t\t\t     udp . 1 : ::102:304 . 2 }',
            b":PREROUTING ACCEPT [0:0]\n-N X\n-P Y ACCEPT\n-A X ! -p udp --dport 1 -g Z",
        ],
        ("elements = {", "comment", "# handle ", "--dports", "dnat", "vmap", "concat", "payload", "@m", "xt"),
        20_000,
    ),
    "netlink_answer": Target(
        netlink_answer,
        [
            _message(16, _LINK + netlink.attribute(18 | 0x8000, netlink.attribute(1, b"veth\0"))),
            _message(0xA00, bytes((2, 0, 0, 0)) + netlink.attribute(1, b"nat\0") + netlink.attribute(2, b"\0" * 4)),
            _message(0xA03, bytes((1, 0, 0, 0)) + netlink.attribute(1, b"t\0") + netlink.attribute(3, b"c\0")
                     + netlink.attribute(6, b"\0\0\0\1")),
            _message(24, struct.pack("=BBBBBBBBI", 2, 32, 0, 0, 254, 3, 0, 1, 0) + netlink.attribute(4, b"\7\0\0\0")
                     + netlink.attribute(7, b"\x0a\0\0\1")),
            _message(20, struct.pack("=BBBBI", 2, 24, 0, 0, 7) + netlink.attribute(1, b"\x0a\0\0\1")),
            _message(20, struct.pack(">BBBBHH", 2, 10, 0, 0, 80, 0) + b"\0" * 64) * 3,
        ],
        (),
        20_000,
    ),
    "api_answer": Target(
        api_answer,
        [
            b"\0\n" + json.dumps(_POD).encode(),
            b'\4 7\n{"kind":"Status","reason":"Forbidden","message":"Bearer token-of-a-test"}',
            b"\x0a9999\n<html>",
        ],
        ("metadata", "annotations", "Status", "message"),
    ),
    "kubeconfig": Target(
        kubeconfig,
        [
            (b'current-context: x\ncontexts: [{name: x, context: {cluster: c, user: u}}]\nclusters:\n- name: c\n  cluster: '
            b'{server: "https://u:p@h:1"}\nusers: [{name: u, user: {tokenFile: /t, exec: {command: x}}}]\n'),
            b"&a [*a, *a]",
        ],
        ("current-context", "certificate-authority", "client-key", "tokenFile", "https://", "&a", "*a", "<<:"),
        20_000,
    ),
}  # fmt: skip


def every(data: bytes) -> None:
    """All targets in one: the first byte says which, the rest is its input."""
    names = list(TARGETS)
    bounded(TARGETS[names[(data[0] if data else 0) % len(names)]], data[1:])


EVERY = Target(
    every,
    [bytes([place]) + seed for place, target in enumerate(TARGETS.values()) for seed in target.seeds],
    [word for target in TARGETS.values() for word in target.words],
)
"""For a short run of everything."""
