"""podman with its CNI backend on a node of its own, with one small image."""

from __future__ import annotations

import contextlib
import os
import shutil
from typing import TYPE_CHECKING

from private_node import PLUGINS, PrivateNode

if TYPE_CHECKING:
    from pathlib import Path

_TMPFS = ("/var/lib/containers", "/run/containers", "/run/libpod", "/run/crun", "/dev/shm")
_CONF = f"""
[network]
network_backend = "cni"
cni_plugin_dirs = ["{PLUGINS}"]
network_config_dir = "/etc/cni/net.d"
[engine]
cgroup_manager = "cgroupfs"
events_logger = "file"
runtime = "crun"
"""
_APPLETS = ("sh", "httpd", "hostname", "mkdir", "sleep")
_SERVE = "mkdir -p /www/cgi-bin; cd /www/cgi-bin; printf '#!/bin/sh\\necho; hostname' >name; chmod +x name"


class Refused(Exception):
    """podman's own words."""


class PodmanNode(PrivateNode):
    """A node with podman on it; each container serves its name as a page on port 80."""

    def __init__(self, folder: Path) -> None:
        super().__init__(folder, *_TMPFS)

    def prepare(self) -> None:
        """The node, podman's configuration and the image."""
        super().prepare()
        self.run("mount", "-t", "cgroup2", "none", "/sys/fs/cgroup")
        (self.folder / "containers.conf").write_text(_CONF)
        self.environ["CONTAINERS_CONF"] = str(self.folder / "containers.conf")
        rootfs = self.folder / "rootfs" / "bin"
        rootfs.mkdir(parents=True)
        shutil.copy("/bin/busybox", rootfs / "busybox")
        for name in _APPLETS:
            os.symlink("busybox", rootfs / name)
        self.run("tar", "-C", str(rootfs.parent), "-cf", "image.tar", ".")
        self.podman("import", "image.tar", "app:1")

    def close(self) -> None:
        """The containers end first."""
        with contextlib.suppress(Refused, AssertionError):  # or there is no node yet
            self.podman("rm", "-f", "-a", "-t", "0")
        super().close()

    def podman(self, *words: str) -> str:
        """What the command prints. Raises Refused."""
        done = self.run("podman", "--storage-driver", "vfs", *words, check=False)
        if done.returncode != 0:
            raise Refused(f"{words}: {done.stderr}")
        return done.stdout

    def container(self, name: str, *options: str) -> None:
        """Start a container."""
        limits = ["--cgroups=disabled", "--ulimit", "nofile=1000:1000", "--ulimit", "nproc=1000:1000"]
        serve = f"{_SERVE}; exec httpd -f -p 80 -h /www"
        self.podman(
            *("run", "-d", "--name", name, "--hostname", name, *limits, *options), "app:1", "/bin/sh", "-c", serve
        )

    def remove(self, name: str) -> None:
        """End a container and take its networks away."""
        self.podman("rm", "-f", "-t", "0", name)
