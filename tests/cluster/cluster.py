"""A real node in namespaces of its own: etcd, API server (Node authorizer, RBAC, NodeRestriction), containerd, kubelet.

Every folder of the machine that these write to (/etc/cni, /opt/cni, /var/lib/cni, /var/lib/kubelet, …) is a tmpfs of a
private mount namespace, and the node's network is a network namespace; nothing of the machine itself is changed.
"""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

import image

from cnimeta.testing.certificates import Authority
from cnimeta.testing.netns import Namespace

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from typing import TypeVar

    T = TypeVar("T")

NODE, CLIENT = "10.200.0.1", "10.200.0.2"
SERVER = f"https://{NODE}:6443"
_TMPFS = (
    *("/etc/cni", "/etc/kubernetes", "/opt/cni", "/var/lib/cni", "/var/lib/kubelet", "/var/lib/containerd"),
    *("/run/containerd", "/var/log/pods", "/var/log/containers"),
)
_DEBIAN_PLUGINS = ("bridge", "host-local", "loopback")
_ETCD = "http://127.0.0.1:2379"
_AUDIT = {
    "apiVersion": "audit.k8s.io/v1",
    "kind": "Policy",
    "omitStages": ["RequestReceived"],
    "rules": [{"level": "Request", "verbs": ["patch"], "resources": [{"group": "", "resources": ["pods/status"]}]}],
}


class Cluster:
    """One node and a client beside it. `programs` has kube-apiserver and kubelet; the rest comes from PATH."""

    def __init__(self, folder: Path, programs: Path) -> None:
        self.folder, self.programs = folder, programs
        self.node, self.client = Namespace("knode"), Namespace("kclient")
        self.running: dict[str, subprocess.Popen[bytes]] = {}
        self._holder: subprocess.Popen[bytes] | None = None
        self._namespaces = set(os.listdir("/run/netns"))

    # --- commands on the node --------------------------------------------------------------------------

    def command(self, *words: str) -> list[str]:
        """The words as a command in the node's namespaces."""
        assert self._holder is not None
        where = ["--target", str(self._holder.pid), "--mount", f"--net={self.node.path}", f"--wd={self.folder}"]
        return ["nsenter", *where, *words]

    def run(self, *words: str, stdin: str = "", check: bool = True) -> subprocess.CompletedProcess[str]:
        """Run a program on the node."""
        done = subprocess.run(
            self.command(*words), input=stdin, check=False, capture_output=True, text=True, timeout=120
        )
        assert not check or done.returncode == 0, (words, done.stdout, done.stderr)
        return done

    def kubectl(self, *words: str, stdin: str = "", check: bool = True) -> str:
        """As the cluster's administrator."""
        keys = ("--kubeconfig", str(self.folder / "admin.kubeconfig"))
        return self.run("kubectl", *keys, *words, stdin=stdin, check=check).stdout

    def cnimeta(self, *words: str) -> subprocess.CompletedProcess[str]:
        """The command on the node."""
        return self.run(str(Path(sys.executable).with_name("cnimeta")), *words, check=False)

    # --- life --------------------------------------------------------------------------------------------

    def start(self, network: dict[str, Any]) -> None:
        """Up to a node that is Ready."""
        self._link()
        self._isolate()
        self._credentials()
        self.configure(network)
        for name, entrypoint in ((image.PAUSE, ["/bin/sleep", "100000"]), (image.APP, ["/bin/sh"])):
            image.save(self.folder / f"{name.partition('/')[2]}.tar", name, entrypoint)
        self._start("etcd", "etcd", *_etcd_flags(self.folder))
        self._start("kube-apiserver", str(self.programs / "kube-apiserver"), *self._server_flags())
        self._start("containerd", "containerd", "--config", self._containerd_config())
        eventually(lambda: self.run("ctr", "version", check=False).returncode == 0, "containerd")
        for path in sorted(self.folder.glob("*:1.tar")):
            self.run("ctr", "-n", "k8s.io", "images", "import", "--snapshotter", "native", str(path))
        eventually(lambda: "ok" in self.kubectl("get", "--raw", "/readyz", check=False), "the API server")
        self._start("kubelet", str(self.programs / "kubelet"), *self._kubelet_flags())
        ready = "jsonpath={.status.conditions[?(@.type=='Ready')].status}"
        eventually(lambda: self.kubectl("get", "node", "node1", "-o", ready, check=False) == "True", "the node")

    def configure(self, network: dict[str, Any]) -> None:
        """Write the network configuration list."""
        self.run("tee", "/etc/cni/net.d/10-pods.conflist", stdin=json.dumps(network))

    def close(self) -> None:
        """End everything that was started; the tmpfs and the network go with their namespaces."""
        for name in ("kubelet", "kube-apiserver", "etcd"):
            self._end(name)
        if "containerd" in self.running:
            for task in self.run("ctr", "-n", "k8s.io", "tasks", "ls", "-q", check=False).stdout.split():
                self.run("ctr", "-n", "k8s.io", "tasks", "kill", "-s", "9", task, check=False)
            time.sleep(2)  # until the shims have gone, which containerd starts and ends
            self._end("containerd")
        if self._holder is not None:
            self._holder.kill()
            self._holder.wait()
        self.node.close()
        self.client.close()
        for name in set(os.listdir("/run/netns")) - self._namespaces:
            if name.startswith("cni-"):  # of Pods that were there to the end
                subprocess.run(["ip", "netns", "del", name], check=False)

    def freeze(self, name: str, *, frozen: bool) -> None:
        """Stop a program without ending it: it accepts connections and answers none."""
        self.running[name].send_signal(signal.SIGSTOP if frozen else signal.SIGCONT)

    def _end(self, name: str) -> None:
        process = self.running.pop(name, None)
        if process is not None:
            process.send_signal(signal.SIGCONT)
            process.terminate()
            with contextlib.suppress(subprocess.TimeoutExpired):
                process.wait(15)
            process.kill()
            process.wait()

    def _start(self, name: str, *words: str) -> None:
        with open(self.folder / f"{name}.log", "wb") as log:
            # nsenter becomes the program, so the process is the program's own
            self.running[name] = subprocess.Popen(self.command(*words), stdout=log, stderr=log)

    def _link(self) -> None:
        self.client.veth("kcl0", self.node, "eth0")
        self.node.run("ip", "addr", "add", f"{NODE}/24", "dev", "eth0")
        self.client.run("ip", "addr", "add", f"{CLIENT}/24", "dev", "kcl0")
        self.node.run("ip", "route", "add", "default", "via", CLIENT)

    def _isolate(self) -> None:
        keep = ["unshare", "--mount", "--propagation", "private", "sleep", "100000"]
        self._holder = subprocess.Popen(["nsenter", f"--net={self.node.path}", *keep])
        time.sleep(0.5)
        for place in _TMPFS:
            os.makedirs(place, exist_ok=True)
            self.run("mount", "-t", "tmpfs", "tmpfs", place)
        self.run("mount", "--make-rshared", "/var/lib/kubelet")
        self.run("mkdir", "-p", "/etc/cni/net.d", "/opt/cni/bin", "/etc/kubernetes/manifests")
        self.run("cp", *(f"/usr/lib/cni/{name}" for name in _DEBIAN_PLUGINS), "/opt/cni/bin")
        assert self.cnimeta("install", "--bin-dir", "/opt/cni/bin").returncode == 0
        self.run("sysctl", "-qw", "net.ipv4.ip_forward=1")

    # --- credentials and flags ---------------------------------------------------------------------------

    def _credentials(self) -> None:
        authority = Authority(self.folder / "pki")
        pki = {
            "server": authority.issue("apiserver", [NODE, "127.0.0.1"]),
            "admin": authority.issue("admin", groups=["system:masters"]),
            "node": authority.issue("system:node:node1", groups=["system:nodes"]),
            "accounts": authority.issue("accounts"),
        }
        for name, path in pki.items():
            shutil.copy(path, self.folder / f"{name}.pem")
        for name in ("admin", "node"):
            user = {"client-certificate": f"{self.folder}/{name}.pem", "client-key": f"{self.folder}/{name}.pem"}
            self.kubeconfig(name, user)
        self.run("cp", str(self.folder / "node.kubeconfig"), "/etc/kubernetes/kubelet.conf")

    def kubeconfig(self, name: str, user: dict[str, str]) -> str:
        """A kubeconfig for these credentials; its path."""
        conf = {
            "apiVersion": "v1",
            "kind": "Config",
            "clusters": [
                {"name": "c", "cluster": {"server": SERVER, "certificate-authority": f"{self.folder}/pki/ca.pem"}}
            ],
            "users": [{"name": "u", "user": user}],
            "contexts": [{"name": "x", "context": {"cluster": "c", "user": "u"}}],
            "current-context": "x",
        }
        path = self.folder / f"{name}.kubeconfig"
        path.write_text(json.dumps(conf))
        return str(path)

    def _server_flags(self) -> list[str]:
        (self.folder / "audit.json").write_text(json.dumps(_AUDIT))
        here = self.folder
        return [
            f"--etcd-servers={_ETCD}",
            f"--client-ca-file={here}/pki/ca.pem",
            f"--tls-cert-file={here}/server.pem",
            f"--tls-private-key-file={here}/server.pem",
            "--service-account-issuer=https://kubernetes",
            f"--service-account-signing-key-file={here}/accounts.pem",
            f"--service-account-key-file={here}/accounts.pem",
            "--authorization-mode=Node,RBAC",
            "--enable-admission-plugins=NodeRestriction",
            "--disable-admission-plugins=ServiceAccount",
            "--service-cluster-ip-range=10.96.0.0/16",
            f"--advertise-address={NODE}",
            f"--audit-policy-file={here}/audit.json",
            f"--audit-log-path={here}/audit.log",
        ]

    def _containerd_config(self) -> str:
        path = self.folder / "containerd.toml"
        path.write_text(
            'version = 2\nroot = "/var/lib/containerd"\nstate = "/run/containerd"\n'
            '[grpc]\naddress = "/run/containerd/containerd.sock"\n'
            f'[plugins."io.containerd.grpc.v1.cri"]\nsandbox_image = "{image.PAUSE}"\nrestrict_oom_score_adj = true\n'
            '[plugins."io.containerd.grpc.v1.cri".containerd]\nsnapshotter = "native"\n'
            '[plugins."io.containerd.grpc.v1.cri".cni]\nbin_dir = "/opt/cni/bin"\nconf_dir = "/etc/cni/net.d"\n'
        )
        return str(path)

    def _kubelet_flags(self) -> list[str]:
        conf = {
            "apiVersion": "kubelet.config.k8s.io/v1beta1",
            "kind": "KubeletConfiguration",
            "authentication": {"anonymous": {"enabled": True}, "webhook": {"enabled": False}},
            "authorization": {"mode": "AlwaysAllow"},
            "cgroupDriver": "cgroupfs",
            "failSwapOn": False,
            "address": NODE,
            "staticPodPath": "/etc/kubernetes/manifests",
            "resolvConf": "",
            "enforceNodeAllocatable": [],
            "evictionHard": {"memory.available": "1Mi", "nodefs.available": "1%", "imagefs.available": "1%"},
        }
        path = self.folder / "kubelet.json"
        path.write_text(json.dumps(conf))
        socket = "unix:///run/containerd/containerd.sock"
        return [
            f"--config={path}",
            "--kubeconfig=/etc/kubernetes/kubelet.conf",
            "--container-runtime=remote",
            f"--container-runtime-endpoint={socket}",
            "--hostname-override=node1",
            f"--node-ip={NODE}",
        ]


def _etcd_flags(folder: Path) -> list[str]:
    clients = [f"--listen-client-urls={_ETCD}", f"--advertise-client-urls={_ETCD}"]
    return [f"--data-dir={folder}/etcd", *clients, "--listen-peer-urls=http://127.0.0.1:2380"]


def eventually(look: Callable[[], T], what: str, seconds: float = 60) -> T:
    """The first true answer of `look`."""
    until = time.monotonic() + seconds
    while not (found := look()):
        assert time.monotonic() < until, f"no {what} after {seconds:g} s"
        time.sleep(0.3)
    return found


@contextlib.contextmanager
def cluster(folder: Path, programs: Path, network: dict[str, Any]) -> Iterator[Cluster]:
    """A cluster for a block."""
    made = Cluster(folder, programs)
    try:
        made.start(network)
        yield made
    finally:
        made.close()
