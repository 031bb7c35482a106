"""`cnimeta ports check` and `repair` with many containers: one reading of the kernel held against the records.

python bench/checking.py [COUNT …]
"""

from __future__ import annotations

import os
import statistics
import subprocess
import sys
import tempfile
import time
from typing import TYPE_CHECKING

from run import Row

from cnimeta.cli.install import install
from cnimeta.delegate.inprocess import InProcessExec
from cnimeta.testing.delegates import FakeDelegate, FakeExec, address_result
from cnimeta.testing.memory import call
from cnimeta.testing.netns import namespaces
from cnimeta_plugins.hostport_alloc.main import HostportAlloc
from cnimeta_plugins.hostport_alloc.wiring import Wiring

if TYPE_CHECKING:
    from collections.abc import Sequence

    from cnimeta.testing.netns import Namespace

TITLE = "hostport_alloc: `cnimeta ports check` and `repair`"
NOTE = """
As whole processes in a namespace of their own, on a node with that many containers of a random host port each: nothing
is wrong, so repair has nothing to do. The quickest of three, and the median of the processor time of the three.
"""
COUNTS = (100, 2000)
ROUNDS = 3


class Delegates:
    """A bridge that only gives out addresses; portmap is the real one, in this process."""

    def __init__(self, programs: str) -> None:
        self.bridge = FakeDelegate("bridge")
        self.given = FakeExec(self.bridge)
        self.ours = InProcessExec(self.given, print)
        self.programs = programs

    def run(self, path: str, environ: dict[str, str], stdin: bytes) -> object:
        return (self.given if path.endswith("bridge") else self.ours).run(path, environ, stdin)

    def locate(self, name: str, _folders: Sequence[str]) -> str:
        return f"/opt/bridge/{name}" if name == "bridge" else f"{self.programs}/{name}"


def populate(folder: str, count: int) -> None:
    """ADD of so many containers."""
    delegates = Delegates(f"{folder}/bin")
    plugin = HostportAlloc(Wiring(executor=delegates, locate=delegates.locate))  # type: ignore[arg-type]
    conf = {"cniVersion": "1.0.0", "name": "bench", "type": "hostport_alloc", "dataDir": f"{folder}/state"}
    conf |= {"expose": ["80/tcp"], "delegates": [{"type": "bridge"}]}
    for number in range(count):
        delegates.bridge.result = address_result(f"10.88.{number // 250}.{number % 250 + 2}/16")
        call(
            plugin, "ADD", conf, container_id=f"{number:064x}", netns=f"/run/netns/bench-{number}", path=f"{folder}/bin"
        )


def timed(node: Namespace, folder: str, *words: str) -> tuple[float, float]:
    """Seconds on the wall, and of the processor."""
    argv = [f"{os.path.dirname(sys.executable)}/cnimeta", "ports", *words, "--data-dir", f"{folder}/state"]
    before, start = os.times(), time.perf_counter()
    with node.entered():
        subprocess.run(argv, check=True, stdout=subprocess.DEVNULL)
    after = os.times()
    spent = after.children_user + after.children_system - before.children_user - before.children_system
    return time.perf_counter() - start, spent


def measure(counts: Sequence[int] = COUNTS) -> list[Row]:
    """All of it."""
    found: list[Row] = []
    for count in counts:
        with namespaces("node") as (node,), tempfile.TemporaryDirectory(dir="/var/tmp") as folder:
            node.run("ip", "link", "add", "cni0", "type", "bridge")
            node.run("ip", "addr", "add", "10.88.0.1/16", "dev", "cni0")
            node.run("ip", "link", "set", "cni0", "up")
            install(f"{folder}/bin", ["portmap"])
            with node.entered():
                populate(folder, count)
            for words in (("check",), ("repair",)):
                times = [timed(node, folder, *words) for _ in range(ROUNDS)]
                what = f"ports {words[0]}, {count:,} containers"
                found.append(Row(what, min(wall for wall, _ in times), None, "s"))
                found.append(Row(f"{what}, processor", statistics.median(spent for _, spent in times), None, "s"))
    return found


def main() -> int:
    """Print the rows."""
    for row in measure([int(word) for word in sys.argv[1:]] or COUNTS):
        print(f"{row.what:60} {row.ours:10,.2f} {row.unit}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
