"""containerd on a node of its own."""

from __future__ import annotations

import contextlib
import time
from pathlib import Path
from typing import TYPE_CHECKING

import image
from private_node import PLUGINS, PrivateNode, eventually

if TYPE_CHECKING:
    from collections.abc import Mapping

PAUSE = "local.test/pause:1"
SOCKET = "/run/containerd/containerd.sock"
_TMPFS = ("/var/lib/containerd", "/opt/containerd", "/run/containerd", "/var/log/pods", "/var/log/containers")
_SHIMS_END_S = 2  # containerd starts the shims of its containers, and ends them


class ContainerdNode(PrivateNode):
    """A node with containerd on it."""

    def __init__(self, folder: Path, *tmpfs: str) -> None:
        super().__init__(folder, *_TMPFS, *tmpfs)

    def start_containerd(self, runtimes: Mapping[str, str] | None = None) -> None:
        """containerd, up to where it answers. runtimes: handlers beside the default one, each with its network folder."""
        (self.folder / "containerd.toml").write_text(_config(runtimes or {}))
        self.restart_containerd()

    def restart_containerd(self) -> None:
        """A new process, where the old one has ended."""
        self.start("containerd", "containerd", "--config", str(self.folder / "containerd.toml"))
        eventually(lambda: " cri " in self.run("ctr", "plugins", "ls", check=False).stdout, "containerd")

    def load(self, name: str, entrypoint: list[str], files: Mapping[str, bytes] | None = None) -> None:
        """Make an image of busybox and these files known to containerd."""
        path = self.folder / f"{name.partition('/')[2]}.tar"
        image.save(path, name, entrypoint, files)
        self.run("ctr", "-n", "k8s.io", "images", "import", "--snapshotter", "native", str(path))

    def containerds(self, program: str) -> list[int]:
        """The children of containerd that run the program at this path."""
        found = []
        with contextlib.suppress(OSError):
            for thread in Path(f"/proc/{self.running['containerd'].pid}/task").iterdir():
                found += [int(pid) for pid in (thread / "children").read_text().split()]
        return [pid for pid in found if _runs(pid, program)]

    def close(self) -> None:
        """What drives containerd ends first, then the containers."""
        for name in [name for name in self.running if name != "containerd"]:
            self.end(name)
        if "containerd" in self.running:
            tasks = self.run("ctr", "-n", "k8s.io", "tasks", "ls", "-q", check=False).stdout.split()
            for task in tasks:
                self.run("ctr", "-n", "k8s.io", "tasks", "kill", "-s", "9", task, check=False)
            time.sleep(_SHIMS_END_S if tasks else 0)
        super().close()


def _runs(pid: int, program: str) -> bool:
    with contextlib.suppress(OSError):
        return program.encode() in Path(f"/proc/{pid}/cmdline").read_bytes().split(b"\0")[:4]
    return False


def _config(runtimes: Mapping[str, str]) -> str:
    cri = '[plugins."io.containerd.grpc.v1.cri"'
    lines = [
        *('version = 2\nroot = "/var/lib/containerd"\nstate = "/run/containerd"', f'[grpc]\naddress = "{SOCKET}"'),
        f'{cri}]\nsandbox_image = "{PAUSE}"\nrestrict_oom_score_adj = true',
        f'{cri}.containerd]\nsnapshotter = "native"',
        f'{cri}.cni]\nbin_dir = "{PLUGINS}"\nconf_dir = "/etc/cni/net.d"',
    ]
    for name, folder in {"runc": "/etc/cni/net.d", **runtimes}.items():
        lines.append(f'{cri}.containerd.runtimes.{name}]\nruntime_type = "io.containerd.runc.v2"')
        lines.append(f'cni_conf_dir = "{folder}"')
    return "\n".join(lines) + "\n"
