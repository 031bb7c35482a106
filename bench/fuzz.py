"""Feed generated environments and configurations to the plugins' dispatch, in process, with nothing real behind it.

    python bench/fuzz.py [--count 1000000] [--seed 1]

Every answer must be exit status 0 or 1, stdout empty or one JSON document, an error object exactly when the status is
1, and never code 999: an exception that nobody expected is a defect. All three plugins are fed in turn; what would
touch the host is replaced by fakes that fail.
"""

from __future__ import annotations

import argparse
import copy
import json
import random
import sys
import time

from cnimeta.errors import IoFailure
from cnimeta.plugin.dispatch import run
from cnimeta_plugins.bandwidth.main import Bandwidth
from cnimeta_plugins.hostport_alloc.config import read_settings
from cnimeta_plugins.hostport_alloc.main import HostportAlloc
from cnimeta_plugins.portmap.config import read_settings as read_portmap
from cnimeta_plugins.portmap.main import Portmap

ODD = [
    None, True, False, 0, 1, -1, 65535, 65536, 2**32, 2**63, 2**64, 1.5, 1e300, "", "x", "0", "80",
    "tcp", "TCP", "sctp",
    "10.0.0.2", "10.0.0.2/24", "::1", "fe80::1/64", "::ffff:1.2.3.4", "a\nb", "\x00", "\ufffd", "\ud800", "é" * 9, "-x",
    "../../etc", "a" * 5000, [], {}, [[]], [None], {"": ""}, {"a": {"b": []}}, "1.1.0", "0.1.0", "9.9.9", "20000-20010",
]  # fmt: skip
VERBS = ["ADD", "DEL", "CHECK", "GC", "STATUS", "VERSION", "add", "", "FROB"]
ENVIRON = {
    "CNI_CONTAINERID": "c1", "CNI_IFNAME": "eth0", "CNI_NETNS": "/run/netns/none", "CNI_PATH": "/opt/cni/bin",
    "CNI_ARGS": "K8S_POD_NAMESPACE=default;K8S_POD_NAME=web;K8S_POD_UID=u;IgnoreUnknown=1",
}  # fmt: skip
ENV_ODD = [
    "",
    "a\n",
    "-x",
    "..",
    "a/b",
    "\udcff",
    "é" * 9,
    "a" * 300,
    "/proc/self/ns/net",
    "x\0y",
    "A=1;B",
    ";;",
    "a=b=c",
]
CONF = {
    "cniVersion": "1.1.0", "name": "net", "type": "portmap", "snat": True, "masqAll": False, "backend": "auto",
    "markMasqBit": 13, "conditionsV4": ["ip saddr 10.0.0.0/8"], "conditionsV6": [], "ingressRate": 800,
    "ingressBurst": 800,
    "expose": ["80/tcp"], "ranges": {"default": "20000-20009"}, "hostIP": "192.0.2.1", "quarantineSeconds": 0,
    "dataDir": "/nonexistent/cnimeta", "delegate": {"type": "bridge"}, "delegates": [{"type": "bridge"}],
    "portmap": {"type": "portmap"}, "kubernetes": {"policy": "deferred", "timeout": 1}, "sticky": True,
    "unshapedSubnets": ["10.0.0.0/8"], "shapedSubnets": [], "capabilities": {"portMappings": True},
    "runtimeConfig": {
        "portMappings": [{"hostPort": 8080, "containerPort": 80, "protocol": "tcp", "hostIP": ""}],
        "bandwidth": {"ingressRate": 1000, "ingressBurst": 1000, "egressRate": 0, "egressBurst": 0},
        "io.kubernetes.cri.pod-annotations": {"cnimeta.io/expose": "80/tcp,games:9000/udp"},
    },
    "prevResult": {
        "cniVersion": "1.1.0",
        "interfaces": [{"name": "veth1"}, {"name": "eth0", "sandbox": "/run/netns/none", "mtu": 1500}],
        "ips": [{"address": "10.0.0.2/24", "gateway": "10.0.0.1", "interface": 1}],
        "routes": [{"dst": "0.0.0.0/0", "gw": "10.0.0.1", "mtu": 1400}],
        "dns": {"nameservers": ["1.1.1.1"]},
    },
    "cni.dev/valid-attachments": [{"containerID": "c1", "ifname": "eth0"}],
}  # fmt: skip


class PortmapReads(Portmap):
    """portmap with its configuration read and its backends refused."""

    def __init__(self):
        super().__init__(lambda _: Refusing())


class Refusing:
    """Reads settings as the real one does; every host operation fails as a refusing host does."""

    def settings(self, conf):
        return read_portmap(conf)

    def __getattr__(self, name):
        def refuse(*_, **__):
            raise IoFailure(f"{name}: not on this host")

        return refuse


class AllocReads(HostportAlloc):
    """hostport_alloc up to the point where state and host are touched."""

    def _read(self, request):
        read_settings(request.conf)
        raise IoFailure("not on this host")

    add = check = status = _read

    def delete(self, request):
        request.conf.fields.text("dataDir")

    def gc(self, request):
        request.conf.valid_attachments()


def plugins():
    return [PortmapReads(), Bandwidth(Refusing()), AllocReads()]


def inputs(seed, count):
    """Pairs of environment and stdin; the same for the same seed."""
    rnd = random.Random(seed)
    for _ in range(count):
        environ = {**ENVIRON, "CNI_COMMAND": rnd.choice(VERBS[:6]) if rnd.random() < 0.9 else rnd.choice(VERBS)}
        for _ in range(rnd.choice((0, 0, 0, 1, 2))):
            environ[rnd.choice(list(environ))] = rnd.choice(ENV_ODD)
        if rnd.random() < 0.1:
            environ.pop(rnd.choice(list(environ)))
        yield environ, stdin(rnd)


def stdin(rnd):
    conf = {
        key: copy.deepcopy(value) for key, value in CONF.items() if key in ("cniVersion", "name") or rnd.random() < 0.6
    }
    conf["cniVersion"] = rnd.choice(("1.1.0", "1.1.0", "1.0.0", "0.4.0", "0.3.1", "0.1.0"))
    if "prevResult" in conf:
        conf["prevResult"]["cniVersion"] = conf["cniVersion"]
    for _ in range(rnd.choice((0, 1, 1, 2, 4))):
        mutate(rnd, conf)
    data = json.dumps(conf).encode()
    if rnd.random() < 0.1:
        at = rnd.randrange(len(data))
        data = rnd.choice(
            (data[:at], data[:at] + bytes([rnd.randrange(256)]) + data[at + 1 :], data + data, b"[" * 9999)
        )
    return data


def mutate(rnd, node):
    """Change one place: a value, a missing key, another spelling, a doubled entry."""
    while True:
        keys = list(node) if isinstance(node, dict) else list(range(len(node)))
        if not keys:
            return
        key = rnd.choice(keys)
        if isinstance(node[key], dict | list) and node[key] and rnd.random() < 0.7:
            node = node[key]
            continue
        break
    kind = rnd.random()
    if kind < 0.7:
        node[key] = copy.deepcopy(rnd.choice(ODD))
    elif isinstance(node, list):
        node.append(copy.deepcopy(node[key]))
    elif kind < 0.85:
        del node[key]
    else:
        node[key.upper() if rnd.random() < 0.5 else key[:1].upper() + key[1:]] = node.pop(key)


def fault(environ, outcome):
    """What is wrong with an answer, or None."""
    if outcome.status not in (0, 1):
        return f"status {outcome.status}"
    if not outcome.stdout:
        return None if outcome.status == 0 else "status 1 with nothing on stdout"
    try:
        body = json.loads(outcome.stdout)
    except ValueError:
        return "stdout is not one JSON document"
    if outcome.status == 0:
        return None if environ.get("CNI_COMMAND") in ("ADD", "VERSION") else "chatter on stdout"
    if not isinstance(body.get("code"), int) or not isinstance(body.get("msg"), str):
        return "not an error object"
    return f"code 999: {body['msg']} {body.get('details')}" if body["code"] == 999 else None


def fuzz(seed, count):
    """Feed `count` inputs; returns (faults, error codes seen)."""
    fed, faults, codes = plugins(), [], {}
    for number, (environ, data) in enumerate(inputs(seed, count)):
        plugin = fed[number % len(fed)]
        try:
            outcome = run(plugin, environ, data, lambda _: None)
            wrong = fault(environ, outcome)
        except BaseException as error:  # noqa: BLE001 - whatever escapes is what is looked for
            wrong, outcome = f"{type(error).__name__} escaped: {error}", None
        if wrong is not None:
            faults.append((plugin.name, wrong, environ, data))
        elif outcome.status == 1:
            code = json.loads(outcome.stdout)["code"]
            codes[code] = codes.get(code, 0) + 1
        else:
            codes[0] = codes.get(0, 0) + 1
    return faults, codes


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--count", type=int, default=1_000_000)
    parser.add_argument("--seed", type=int, default=1)
    args = parser.parse_args()
    started = time.monotonic()
    faults, codes = fuzz(args.seed, args.count)
    took = time.monotonic() - started
    print(f"{args.count} inputs, seed {args.seed}: {took:.1f} s, {args.count / took:.0f}/s, {len(faults)} faults")
    print("answers by code (0: success): " + ", ".join(f"{code}: {codes[code]}" for code in sorted(codes)))
    for name, wrong, environ, data in faults[:10]:
        print(f"{name}: {wrong}\n  {environ}\n  {data[:400]!r}")
    sys.exit(1 if faults else 0)


if __name__ == "__main__":
    main()
