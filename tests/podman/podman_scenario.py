"""A container's life under podman's CNI backend, played inside a private network and mount namespace.

usage: podman_scenario.py FOLDER BIN_DIR

Prints one JSON object: what was seen while the container ran, and what was left after its removal.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import time
import urllib.request

NETWORK = {
    "cniVersion": "0.4.0",
    "name": "podtest",
    "plugins": [
        {
            "type": "hostport_alloc",
            "capabilities": {"portMappings": True, "bandwidth": True},
            "ranges": {"default": "21000-21099"},
            "expose": ["80/tcp"],
            "delegates": [
                {
                    "type": "bridge",
                    "bridge": "pt0",
                    "isGateway": True,
                    "ipMasq": True,
                    "ipam": {"type": "host-local", "ranges": [[{"subnet": "10.91.0.0/24"}]]},
                }
            ],
            "portmap": {"type": "portmap"},
        }
    ],
}
BUSYBOX = ("sh", "httpd", "mkdir", "sleep")


def run(*command: str, **kwargs: object) -> str:
    """The stdout of a command that must succeed."""
    done = subprocess.run(command, check=False, capture_output=True, text=True, **kwargs)
    if done.returncode != 0:
        raise RuntimeError(f"{command} failed: {done.stderr or done.stdout}")
    return done.stdout


def prepare(folder: str, bin_dir: str) -> list[str]:
    """Write podman's configuration and an image; the podman command line to use."""
    network = json.loads(json.dumps(NETWORK))
    entry = network["plugins"][0]
    entry["dataDir"] = f"{folder}/state"
    entry["portmap"]["dataDir"] = f"{folder}/state"
    entry["delegates"][0]["ipam"]["dataDir"] = f"{folder}/ipam"
    os.makedirs(f"{folder}/net")
    with open(f"{folder}/net/10-podtest.conflist", "w", encoding="utf-8") as file:
        json.dump(network, file)
    with open(f"{folder}/containers.conf", "w", encoding="utf-8") as file:
        file.write(
            f'[network]\nnetwork_backend="cni"\ncni_plugin_dirs=["{bin_dir}","/usr/lib/cni"]\n'
            f'network_config_dir="{folder}/net"\ndefault_network="podtest"\n'
            '[engine]\ncgroup_manager="cgroupfs"\nevents_logger="file"\n'
        )
    os.makedirs(f"{folder}/rootfs/bin")
    shutil.copy("/bin/busybox", f"{folder}/rootfs/bin/busybox")
    for name in BUSYBOX:
        os.symlink("busybox", f"{folder}/rootfs/bin/{name}")
    os.environ["CONTAINERS_CONF"] = f"{folder}/containers.conf"
    podman = ["podman", "--root", f"{folder}/root", "--runroot", f"{folder}/run", "--storage-driver", "vfs"]
    podman += ["--tmpdir", f"{folder}/tmp"]
    run("tar", "-C", f"{folder}/rootfs", "-cf", f"{folder}/image.tar", ".")
    run(*podman, "import", f"{folder}/image.tar", "bb:1")
    return podman


def fetch(url: str) -> str:
    """The body of a page, waiting a little for the server to come up."""
    for attempt in range(50):
        try:
            with urllib.request.urlopen(url, timeout=2) as answer:
                return answer.read().decode()
        except OSError:
            if attempt == 49:
                raise
            time.sleep(0.1)
    raise AssertionError("unreachable")


def main(folder: str, bin_dir: str) -> None:
    """Play the scenario."""
    run("mount", "-t", "cgroup2", "none", "/sys/fs/cgroup")
    run("ip", "link", "set", "lo", "up")
    podman = prepare(folder, bin_dir)
    page = "mkdir -p /w; echo page >/w/index.html; exec httpd -f -p 80 -h /w"
    limits = ["--ulimit", "nofile=1000:1000", "--ulimit", "nproc=1000:1000"]
    start = [*podman, "run", "-d", "--name", "web", "--network", "podtest", "-p", "18080:80", "--cgroups=disabled"]
    run(*start, "--runtime", "crun", *limits, "bb:1", "/bin/sh", "-c", page)
    ports = json.loads(run("cnimeta", "ports", "list", "--json", "--data-dir", f"{folder}/state"))
    during = {"ports": ports, "rules": run("nft", "list", "ruleset")}
    chosen = [int(port["hostPort"]) for port in ports if 21000 <= int(port["hostPort"]) <= 21099]
    during["random"] = [fetch(f"http://10.91.0.1:{port}/") for port in chosen]
    during["explicit"] = fetch("http://127.0.0.1:18080/")
    run(*podman, "rm", "-f", "-t", "0", "web")
    after = json.loads(run("cnimeta", "ports", "list", "--json", "--data-dir", f"{folder}/state"))
    print(json.dumps({"during": during, "after": {"ports": after, "rules": run("nft", "list", "ruleset")}}))


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2])
