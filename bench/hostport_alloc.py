"""hostport_alloc: what a random host port costs. What its state costs is in `state`.

python bench/hostport_alloc.py
"""

from __future__ import annotations

import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

from common import REFERENCE, Row
from common import RUNS as MOST

from cnimeta.cli.install import install
from cnimeta.testing.agent import RunningAgent
from cnimeta.testing.netns import namespaces

if TYPE_CHECKING:
    from collections.abc import Iterator

    from cnimeta.testing.netns import Namespace

TITLE = "hostport_alloc as a wrapper"
NOTE = """
ADD and DEL of a container with one random host port, wrapped around the reference's bridge, as whole processes in a
namespace of their own, median of 15; the reference is the same container with a fixed host port by its bridge and
portmap, one process each. So the ratio holds the allocation, the record and the wrapper against Go's chain without any
of them.
"""
RUNS = min(MOST, 15)


# --- whole processes -----------------------------------------------------------------------------------------


def bridge(folder: str) -> dict[str, Any]:
    """The delegate's configuration."""
    ipam = {"type": "host-local", "ranges": [[{"subnet": "10.88.0.0/16"}]], "dataDir": f"{folder}/leases"}
    return {"type": "bridge", "bridge": "cni0", "isGateway": True, "ipam": ipam}


class Processes:
    """Plugins started as a runtime does."""

    def __init__(self, folder: str, host: Namespace, container: Namespace) -> None:
        self.folder, self.host, self.container = folder, host, container
        for kind in ("bin", "asking", "native"):
            install(f"{folder}/{kind}", ["hostport_alloc", "portmap"], agent=kind != "bin", native=kind == "native")
        self.agent = RunningAgent(Path(folder))
        self.base = {"cniVersion": "1.0.0", "name": "bench"}

    def run(self, path: str, verb: str, conf: dict[str, Any]) -> dict[str, Any]:
        """One plugin; its answer."""
        environ = {"CNI_COMMAND": verb, "CNI_CONTAINERID": "c1", "CNI_IFNAME": "eth0", "PATH": os.environ["PATH"]}
        folders = f"{self.folder}/bin:{REFERENCE}"
        environ |= {"CNI_NETNS": self.container.path, "CNI_PATH": folders, **self.agent.environ}
        with self.host.entered():
            done = subprocess.run(
                [path], input=json.dumps({**self.base, **conf}).encode(), env=environ, check=True, capture_output=True
            )
        return json.loads(done.stdout or b"{}")

    def ours(self, verb: str, programs: str = "bin") -> None:
        """The wrapper."""
        conf = {"type": "hostport_alloc", "dataDir": f"{self.folder}/state", "expose": ["80/tcp"]}
        self.run(f"{self.folder}/{programs}/hostport_alloc", verb, {**conf, "delegates": [bridge(self.folder)]})

    def asking(self, verb: str) -> None:
        """The wrapper, served by the agent."""
        self.ours(verb, "asking")

    def native(self, verb: str) -> None:
        """The wrapper, served by the agent, without Python in the launcher."""
        self.ours(verb, "native")

    def theirs(self, verb: str) -> None:
        """The chain with a fixed port."""
        mapping = {"hostPort": 8080, "containerPort": 80, "protocol": "tcp"}
        portmap = {"type": "portmap", "runtimeConfig": {"portMappings": [mapping]}}
        if verb == "ADD":
            result = self.run(f"{REFERENCE}/bridge", verb, bridge(self.folder))
            self.run(f"{REFERENCE}/portmap", verb, {**portmap, "prevResult": result})
        else:
            self.run(f"{REFERENCE}/portmap", verb, portmap)
            self.run(f"{REFERENCE}/bridge", verb, bridge(self.folder))

    def times(self) -> Iterator[Row]:
        """ADD and DEL of both, in turn."""
        spent: dict[tuple[str, str], list[float]] = {}
        for _ in range(RUNS):
            kinds = {"ours": self.ours, "asking": self.asking, "native": self.native, "theirs": self.theirs}
            for who, call in kinds.items():
                for verb in ("ADD", "DEL"):
                    started = time.perf_counter()
                    call(verb)
                    spent.setdefault((who, verb), []).append((time.perf_counter() - started) * 1000)
        self.agent.close()
        labels = {
            "ours": ("", (1.1, 0.45)),
            "asking": (", served by the agent", (None, None)),
            "native": (", native launcher and agent", (0.6, 0.3)),
        }
        for who, (label, bars) in labels.items():
            for verb, bar in zip(("ADD", "DEL"), bars, strict=True):
                ours, theirs = (statistics.median(spent[one, verb]) for one in (who, "theirs"))
                what = f"{verb}, bridge with a random port beside bridge and portmap{label}"
                yield Row(what, ours, theirs, "ms", bar)


def measure() -> list[Row]:
    """All of it."""
    with tempfile.TemporaryDirectory() as folder, namespaces("hphost", "hpcont") as (host, container):
        return list(Processes(folder, host, container).times())


def main() -> int:
    """Print the rows."""
    for row in measure():
        reference = "" if row.reference is None else f"{row.reference:12,.2f}"
        print(f"{row.what:72} {row.ours:10,.2f} {reference} {row.unit}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
