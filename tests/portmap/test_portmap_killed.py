"""The real process and the programs it starts, killed by strace at every call that changes something."""

from __future__ import annotations

import json
import os
import re
import subprocess
from typing import TYPE_CHECKING, Any

import pytest

from cnimeta.cli.install import install

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from cnimeta.testing.netns import Namespace

pytestmark = pytest.mark.crash

CALLS = ("write", "mkdir", "rename", "unlink", "fork,vfork,clone,clone3", "sendto", "sendmsg")
ADDRESS, OTHER = "10.88.0.2", "10.88.0.3"
MAPPINGS = [
    {"hostPort": 8080, "containerPort": 80, "protocol": "tcp"},
    {"hostPort": 5353, "containerPort": 53, "protocol": "udp", "hostIP": "192.0.2.10"},
]


class Programs:
    """The launcher in a namespace of its own, with another container's mapping beside the one under test."""

    def __init__(self, host: Namespace, folder: Path, backend: str) -> None:
        self.host, self.state, self.backend = host, folder / "state", backend
        install(str(folder / "bin"), ["portmap"])
        self.path = str(folder / "bin" / "portmap")
        self.call("ADD", "other", OTHER, [{"hostPort": 9090, "containerPort": 90, "protocol": "tcp"}])

    def conf(self, address: str, mappings: list[dict[str, Any]]) -> bytes:
        interfaces = [{"name": "eth0", "sandbox": "/run/netns/x"}]
        result = {
            "cniVersion": "1.0.0",
            "interfaces": interfaces,
            "ips": [{"address": f"{address}/16", "interface": 0}],
        }
        keys = {"dataDir": str(self.state), "backend": self.backend, "runtimeConfig": {"portMappings": mappings}}
        conf = {"cniVersion": "1.0.0", "name": "net", "type": "portmap", "snat": True, "prevResult": result, **keys}
        return json.dumps(conf).encode()

    def call(
        self,
        verb: str,
        container: str = "c1",
        address: str = ADDRESS,
        mappings: list[dict[str, Any]] | None = None,
        strace: tuple[str, ...] = (),
    ) -> int:
        environ = {"CNI_COMMAND": verb, "CNI_CONTAINERID": container, "CNI_IFNAME": "eth0", "CNI_PATH": "/usr/lib/cni"}
        environ |= {"CNI_NETNS": "/run/netns/x", "PATH": os.environ["PATH"]}
        command = ["ip", "netns", "exec", self.host.name, *strace, self.path]
        data = self.conf(address, MAPPINGS if mappings is None else mappings)
        done = subprocess.run(command, input=data, env=environ, capture_output=True, check=False, timeout=60)
        assert b"Traceback" not in done.stderr
        assert strace or done.returncode == 0, done.stdout
        return done.returncode

    def rules(self) -> str:
        """Every rule, sorted; without times and counters."""
        program = ["nft", "list", "ruleset"] if self.backend == "nftables" else ["iptables-nft-save", "-t", "nat"]
        lines = (re.sub(r" \[\d+:\d+\]$", "", line) for line in self.host.run(*program).stdout.splitlines())
        return "\n".join(sorted(line for line in lines if not line.startswith("#")))

    def records(self) -> list[str]:
        return [name for name in os.listdir(self.state / "portmap") if not name.startswith(".tmp")]


@pytest.mark.parametrize("call", CALLS)
@pytest.mark.parametrize("verb", ["ADD", "DEL"])
@pytest.mark.parametrize("backend", ["nftables", "iptables"])
def test_nothing_is_left_and_add_serves_when_killed_before(
    make_netns: Callable[[str], Namespace], tmp_path: Path, backend: str, verb: str, call: str
) -> None:
    programs = Programs(make_netns("pmkill"), tmp_path, backend)
    for step in ("ADD", "DEL"):
        programs.call(step)
    before = programs.rules()
    number, status = 0, -9
    while status != 0:
        number += 1
        assert number < 40
        if verb == "DEL":
            programs.call("ADD")
        inject = ("-e", f"trace={call}", "-e", f"inject={call}:signal=KILL:when={number}")
        status = programs.call(verb, strace=("strace", "-f", "-qq", "-o", "/dev/null", *inject))
        if ADDRESS in programs.rules():
            assert len(programs.records()) == 2, "rule => record"
        if number % 2:  # the runtime's next command is DEL, or the same ADD again
            for step in ("ADD", "CHECK"):
                programs.call(step)
        programs.call("DEL")
        assert ADDRESS not in programs.rules()
        assert programs.rules() == before
        assert len(programs.records()) == 1
    programs.call("CHECK", "other", OTHER, [{"hostPort": 9090, "containerPort": 90, "protocol": "tcp"}])
