"""The demo's steps, in order. Each says what it does, does it, and checks what can be seen from outside."""

from __future__ import annotations

import json
import uuid
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from cnimeta.testing.kube import PodServer
from demo import traffic
from demo.footprint import footprint, machine_footprint
from demo.stage import CLIENT_IP, DEBIAN_PLUGINS, NODE_IP, Attachment

if TYPE_CHECKING:
    from cnimeta.testing.netns import Namespace
    from demo.report import Report
    from demo.stage import Stage

CONFLIST = Path(__file__).parents[1] / "conflist" / "bridge.conflist"
PORTS = "cnimeta.io/hostports"
LIMIT_BPS = 20_000_000
BURST_BITS = 1_000_000
TRANSFER_S = 3
UNLIMITED_BYTES = 50_000_000

PROMISES = {"web-1": ["80/tcp"], "web-2": ["80/tcp", "games:9000/tcp"]}
"""What each container exposes: 80/tcp by the configuration, the rest by its Pod's annotation."""


class Container(NamedTuple):
    """One container: its namespace, and its Pod as the API server knows it."""

    name: str
    id: str
    netns: Namespace
    uid: str

    @property
    def attachment(self) -> Attachment:
        """The container with CNI_ARGS and capabilities as a kubelet's runtime sends them."""
        args = (
            f"IgnoreUnknown=1;K8S_POD_NAMESPACE=default;K8S_POD_NAME={self.name};"
            f"K8S_POD_UID={self.uid};K8S_POD_INFRA_CONTAINER_ID={self.id}"
        )
        annotations = {"cnimeta.io/expose": ",".join(PROMISES[self.name][1:])}
        found: dict[str, Any] = {"io.kubernetes.cri.pod-annotations": annotations}
        if self.name == "web-1":
            limits = dict.fromkeys(("ingressRate", "egressRate"), LIMIT_BPS)
            found["bandwidth"] = {**limits, **dict.fromkeys(("ingressBurst", "egressBurst"), BURST_BITS)}
        return Attachment(self.id, self.netns, args, found)


class Story:
    """The demo on one stage."""

    def __init__(self, stage: Stage, report: Report) -> None:
        self.stage = stage
        self.report = report
        self.conflist = stage.folder / CONFLIST.name
        self.containers: list[Container] = []
        self.mappings: dict[str, list[dict[str, Any]]] = {}
        self.addresses: dict[str, str] = {}
        self.shown = False
        self.machine = machine_footprint()

    def tell(self) -> None:
        """All of it."""
        self.report.say("Two containers that both listen on port 80, each reached through a random host port.")
        self.show_stage()
        self.install()
        with self.stage.client.entered():
            server = PodServer(self.stage.folder, CLIENT_IP, 6443)
        with server:
            self.configure(server)
            self.add(server)
            self.fetch()
            self.show_annotation(server)
            self.measure()
            self.delete(len(server.pods.requests), server)

    def show_stage(self) -> None:
        """Step: the network."""
        report, stage = self.report, self.stage
        report.step("A node, a client and two containers, as network namespaces of this demo's own")
        for name in PROMISES:
            netns = stage.namespace(name)
            self.containers.append(Container(name, f"{name}-{uuid.uuid4().hex[:12]}", netns, str(uuid.uuid4())))
        rows = [("node", NODE_IP, stage.node.name), ("client", CLIENT_IP, stage.client.name)]
        rows += [(found.name, "none yet", found.netns.name) for found in self.containers]
        report.table(("what", "address", "namespace"), rows)

    def install(self) -> None:
        """Step: the launchers."""
        report, stage = self.report, self.stage
        report.step("Install the plugins into a folder of their own")
        report.command(("cnimeta", "install", "--bin-dir", str(stage.bin)))
        stage.install()
        installed = sorted(path.name for path in stage.bin.iterdir())
        report.say(f"{stage.bin}: {', '.join(installed)}; bridge and host-local are Debian's, in {DEBIAN_PLUGINS}")
        report.check({"portmap", "bandwidth", "hostport_alloc"} <= set(installed), "the three launchers are there")

    def configure(self, server: PodServer) -> None:
        """Step: the configuration and the API server."""
        report, stage = self.report, self.stage
        report.step(f"The configuration: examples/conflist/{CONFLIST.name}, files moved into {stage.state}")
        self.conflist = stage.configure(CONFLIST)
        server.kubeconfig(stage.state / "kubeconfig", token=server.token("cnimeta"))
        wrapper = json.loads(self.conflist.read_text(encoding="utf-8"))["plugins"][0]
        around = " + ".join(part["type"] for part in wrapper["delegates"])
        report.say(f"hostport_alloc wraps {around}, then calls {wrapper['portmap']['type']}")
        report.say(f"ranges {json.dumps(wrapper['ranges'])}, expose {json.dumps(wrapper['expose'])}")
        report.say(f"a stand-in for the Kubernetes API server answers at {server.url}, as {'client'!r} sees it")
        for container in self.containers:
            server.pods.create("default", container.name, uid=container.uid)

    def add(self, server: PodServer) -> None:
        """Step: ADD, and the table."""
        report = self.report
        report.step("ADD for both containers")
        rows = []
        for container in self.containers:
            result = json.loads(self._run("add", container))
            self.addresses[container.name] = result["ips"][0]["address"].partition("/")[0]
            written = server.pods.annotations("default", container.name).get(PORTS, "[]")
            self.mappings[container.name] = sorted(json.loads(written), key=lambda found: int(found["containerPort"]))
            rows += [
                (
                    container.name,
                    f"{self.addresses[container.name]}:{found['containerPort']}/{found['protocol'].lower()}",
                    f"{found['hostIP']}:{found['hostPort']}",
                    found["range"],
                )
                for found in self.mappings[container.name]
            ]
        report.say("")
        report.table(("container", "container port", "host address", "range"), rows)
        report.say("")
        wanted = sum(len(promises) for promises in PROMISES.values())
        ports = {found["hostPort"] for found in self._all_mappings()}
        report.check(
            len(rows) == len(ports) == wanted, f"{wanted} ports exposed, {wanted} different host ports", f"{rows}"
        )
        ranges = {"default": range(20000, 25000), "games": range(7000, 8000)}
        inside = all(found["hostPort"] in ranges[found["range"]] for found in self._all_mappings())
        report.check(inside, "each host port is in its range")
        for container in self.containers:
            self.stage.serve(container.netns, container.name, 80, 9000)
            self._run("check", container)
        report.say("CHECK finds both in order")
        self._cnimeta("ports", "check", "--conf", str(self.conflist))
        report.say("so do rules, records, bits and sockets among each other")

    def fetch(self) -> None:
        """Step: pages, through the host ports."""
        report, stage = self.report, self.stage
        report.step("Fetch a page from each through its host port")
        for container in self.containers:
            for found in self.mappings[container.name]:
                page = f"hello from {container.name}, port {found['containerPort']}"
                for where, netns, host in (
                    ("the client", stage.client, found["hostIP"]),
                    ("the node", stage.node, found["hostIP"]),
                    ("the node", stage.node, "127.0.0.1"),
                    ("the container itself", container.netns, found["hostIP"]),
                ):
                    with netns.entered():
                        got = traffic.fetch(host, found["hostPort"])
                    claim = f'{where}, http://{host}:{found["hostPort"]}/ says "{page}"'
                    report.check(got == page, claim, got)

    def show_annotation(self, server: PodServer) -> None:
        """Step: what the API server got."""
        report = self.report
        report.step("The Pods' annotations, as the API server received them")
        requests = server.pods.requests
        for seen in requests:
            report.say(f"{seen.line}  ({seen.content_type}, user {seen.user})")
            report.say(json.dumps(seen.body))
        lines = [f"PATCH /api/v1/namespaces/default/pods/{found.name}/status" for found in self.containers]
        report.check(
            [seen.line for seen in requests] == lines, "one PATCH for each Pod and nothing else", f"{requests}"
        )
        uids = [seen.body["metadata"].get("uid") for seen in requests]
        report.check(uids == [found.uid for found in self.containers], "each names the Pod's uid", f"{uids}")

    def measure(self) -> None:
        """Step: bandwidth."""
        report, stage = self.report, self.stage
        report.step(f"Bandwidth: web-1 is limited to {_mbit(LIMIT_BPS)} both ways, web-2 is not")
        size = LIMIT_BPS * TRANSFER_S // 8
        ports = {name: found[0]["hostPort"] for name, found in self.mappings.items()}
        with stage.client.entered():
            down = traffic.download_bps(NODE_IP, ports["web-1"], size)
            up = traffic.upload_bps(NODE_IP, ports["web-1"], size)
            free = traffic.download_bps(NODE_IP, ports["web-2"], UNLIMITED_BYTES)
        report.table(
            ("transfer", "limit", "measured"),
            [
                ("from web-1 (egress)", _mbit(LIMIT_BPS), _mbit(down)),
                ("to web-1 (ingress)", _mbit(LIMIT_BPS), _mbit(up)),
                ("from web-2", "none", _mbit(free)),
            ],
        )
        for rate, way in ((down, "from"), (up, "to")):
            # What is measured is payload: 4 % below the wire's rate, plus the burst spread over the transfer.
            report.check(0.85 < rate / LIMIT_BPS < 1.1, f"{way} web-1 at the limit", _mbit(rate))
        report.check(free > 4 * LIMIT_BPS, "web-2 is not slowed down", _mbit(free))

    def delete(self, requests: int, server: PodServer) -> None:
        """Step: DEL, twice, and a look at what is left."""
        report = self.report
        report.step("DEL for both containers, twice")
        before = self._footprint()
        for attempt in ("DEL", "DEL again, as a runtime may at any time"):
            for container in self.containers:
                self._run("del", container)
            report.say(f"{attempt}: both succeeded")
        after = self._footprint()
        report.say("In the node, looked up in the kernel and on disk:")
        for kind, left in after.items():
            there = before[kind]
            report.check(bool(there) and not left, f"{kind}: {len(there)} before, none left", "; ".join(left))
        report.check(len(server.pods.requests) == requests, "DEL did not ask the API server for anything")
        with self.stage.client.entered():
            silent = all(traffic.refused(NODE_IP, found["hostPort"]) for found in self._all_mappings())
        report.check(silent, "nobody answers on the host ports any more")
        same = machine_footprint() == self.machine
        report.check(same, "the machine's own interfaces, firewall rules and CNI folders are as they were")

    def _footprint(self) -> dict[str, list[str]]:
        found = footprint(self.stage.node, self.stage.state, self.addresses.values())
        for name in ("default", "games"):
            shown = self.stage.cnimeta("ports", "show", name, "--conf", str(self.conflist), "--json")
            found.setdefault("host port bits", []).extend(str(port) for port in json.loads(shown)["usedPorts"])
        return found

    def _all_mappings(self) -> list[dict[str, Any]]:
        return [found for mappings in self.mappings.values() for found in mappings]

    def _run(self, verb: str, container: Container) -> str:
        """One `cnimeta run`, in the node; the first one in full, for the reader to see what it takes."""
        words = self.stage.run_words(verb, self.conflist, container.attachment)
        if not self.shown:
            self.shown = True
            return self._cnimeta(*words)
        self.report.say(f"$ cnimeta run {verb} --container-id {container.id} ...")
        return self.stage.cnimeta(*words)

    def _cnimeta(self, *words: str) -> str:
        """The command line tool, in the node, for the reader to see."""
        self.report.command(("cnimeta", *words))
        return self.stage.cnimeta(*words)


def _mbit(rate_bps: float) -> str:
    return f"{rate_bps / 1e6:,.1f} Mbit/s"
