"""A real node in namespaces of its own: etcd, API server (Node authorizer, RBAC, NodeRestriction), containerd, kubelet."""

from __future__ import annotations

import contextlib
import json
import shutil
import signal
from typing import TYPE_CHECKING, Any

from containerd_node import PAUSE, SOCKET, ContainerdNode
from private_node import NODE, eventually

from cnimeta.testing.certificates import Authority

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

SERVER = f"https://{NODE}:6443"
APP = "local.test/app:1"
_ETCD = "http://127.0.0.1:2379"
_AUDIT = {
    "apiVersion": "audit.k8s.io/v1",
    "kind": "Policy",
    "omitStages": ["RequestReceived"],
    "rules": [{"level": "Request", "verbs": ["patch"], "resources": [{"group": "", "resources": ["pods/status"]}]}],
}


class Cluster(ContainerdNode):
    """One node and a client beside it. `programs` has kube-apiserver and kubelet; the rest comes from PATH."""

    def __init__(self, folder: Path, programs: Path) -> None:
        super().__init__(folder, "/etc/kubernetes", "/var/lib/kubelet")
        self.programs = programs

    def kubectl(self, *words: str, stdin: str = "", check: bool = True) -> str:
        """As the cluster's administrator."""
        keys = ("--kubeconfig", str(self.folder / "admin.kubeconfig"))
        return self.run("kubectl", *keys, *words, stdin=stdin, check=check).stdout

    def boot(self, network: dict[str, Any]) -> None:
        """Up to a node that is Ready."""
        self.prepare()
        self.run("mount", "--make-rshared", "/var/lib/kubelet")
        self.run("mkdir", "-p", "/etc/kubernetes/manifests")
        self._credentials()
        self.configure(network)
        self.start("etcd", "etcd", *_etcd_flags(self.folder))
        self.start("kube-apiserver", str(self.programs / "kube-apiserver"), *self._server_flags())
        self.start_containerd()
        self.load(PAUSE, ["/bin/sleep", "100000"])
        self.load(APP, ["/bin/sh"])
        eventually(lambda: "ok" in self.kubectl("get", "--raw", "/readyz", check=False), "the API server", 120)
        self.start("kubelet", str(self.programs / "kubelet"), *self._kubelet_flags())
        ready = "jsonpath={.status.conditions[?(@.type=='Ready')].status}"
        eventually(lambda: self.kubectl("get", "node", "node1", "-o", ready, check=False) == "True", "the node")

    def freeze(self, name: str, *, frozen: bool) -> None:
        """Stop a program without ending it: it accepts connections and answers none."""
        self.running[name].send_signal(signal.SIGSTOP if frozen else signal.SIGCONT)

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
        return [
            f"--config={path}",
            "--kubeconfig=/etc/kubernetes/kubelet.conf",
            "--container-runtime=remote",
            f"--container-runtime-endpoint=unix://{SOCKET}",
            "--hostname-override=node1",
            f"--node-ip={NODE}",
        ]


def _etcd_flags(folder: Path) -> list[str]:
    clients = [f"--listen-client-urls={_ETCD}", f"--advertise-client-urls={_ETCD}"]
    return [f"--data-dir={folder}/etcd", *clients, "--listen-peer-urls=http://127.0.0.1:2380"]


@contextlib.contextmanager
def cluster(folder: Path, programs: Path, network: dict[str, Any]) -> Iterator[Cluster]:
    """A cluster for a block."""
    made = Cluster(folder, programs)
    try:
        made.boot(network)
        yield made
    finally:
        made.close()
