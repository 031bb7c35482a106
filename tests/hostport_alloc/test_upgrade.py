"""docs/upgrade.md: containers come and go while the version goes up and down, and none of them notices."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from kernel_node import KernelNode, assert_nothing_left

from cnimeta import __version__

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from cnimeta.testing.netns import Namespace

pytestmark = pytest.mark.kernel

ROOT = Path(__file__).parents[2]
CONTAINERS = int(os.environ.get("CNIMETA_CONTAINERS", "12"))
"""The full run: CNIMETA_CONTAINERS=50."""


def installation(folder: Path, version: str) -> Path:
    """What `pip install --target` leaves, for this source tree called `version`."""
    for source, name in (("cnimeta", "cnimeta"), ("plugins", "cnimeta_plugins")):
        shutil.copytree(ROOT / source, folder / name, ignore=shutil.ignore_patterns("__pycache__"))
    init = folder / "cnimeta" / "__init__.py"
    init.write_text(init.read_text().replace(__version__, version))
    info = folder / f"cnimeta-{version}.dist-info"
    info.mkdir()
    (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: cnimeta\nVersion: {version}\n")
    names = {"portmap": "Portmap", "bandwidth": "Bandwidth", "hostport_alloc": "HostportAlloc"}
    lines = [f"{name} = cnimeta_plugins.{name}.main:{kind}" for name, kind in names.items()]
    (info / "entry_points.txt").write_text("\n".join(["[cnimeta.plugins]", *lines, ""]))
    return folder


def switch(to: Path, node: KernelNode, *more: str) -> None:
    """`cnimeta install`, by the command of that installation."""
    words = [sys.executable, "-P", "-m", "cnimeta.cli.main", "install", "--bin-dir", str(node.bin), *more]
    subprocess.run(words, check=True, capture_output=True, env={"PYTHONPATH": str(to), "PATH": os.environ["PATH"]})


@pytest.fixture
def node(make_netns: Callable[[str], Namespace], tmp_path: Path) -> Iterator[KernelNode]:
    made = KernelNode(make_netns, tmp_path, ("hostport_alloc", "portmap"))
    yield made
    made.close()


@pytest.mark.timeout(300)
def test_no_container_fails_when_the_version_goes_up_and_down(node: KernelNode, tmp_path: Path) -> None:
    versions = [installation(tmp_path / version, version) for version in ("0.1.7", "0.2.0")]
    names = [f"c{number}" for number in range(CONTAINERS)]
    for name in names:
        node.container(name)
    node.call("ADD", node.conf(), "c0")  # makes the bridge
    node.call("DEL", node.conf(), "c0")
    done, seen = threading.Event(), []

    def switching() -> None:
        while not done.is_set() or len(seen) < 2:
            number = len(seen)
            switch(versions[number % 2], node, "--agent" if number % 3 else "--no-agent")
            seen.append((node.bin / "hostport_alloc").read_text().splitlines()[1])

    def live(number: int) -> int:
        backends = ("nftables", "iptables") if number % 2 else ("iptables", "nftables")
        first, second = (node.conf(portmap={"type": "portmap", "backend": backend}) for backend in backends)
        node.call("ADD", first, names[number])
        node.call("CHECK", first, names[number])
        node.call("DEL", second, names[number])
        return number

    switcher = threading.Thread(target=switching)
    switcher.start()
    try:
        with ThreadPoolExecutor(3) as pool:
            assert list(pool.map(live, range(CONTAINERS))) == list(range(CONTAINERS))
    finally:
        done.set()
        switcher.join()
    assert len({line for line in seen if str(tmp_path) in line}) == 2
    assert_nothing_left(node)


def test_what_one_version_made_the_other_undoes_when_it_goes_up_and_back(node: KernelNode, tmp_path: Path) -> None:
    old, new = (installation(tmp_path / version, version) for version in ("0.1.7", "0.2.0"))
    switch(old, node)
    node.call("ADD", node.conf(), "c1")
    switch(new, node)
    node.call("CHECK", node.conf(), "c1")
    node.call("ADD", node.conf(), "c2")
    node.call("DEL", node.conf(), "c1")
    switch(old, node)
    shutil.rmtree(new)
    node.call("CHECK", node.conf(), "c2")
    node.call("DEL", node.conf(), "c2")
    assert_nothing_left(node)
