"""Going to another network namespace and back, and every path that leads to none."""

from __future__ import annotations

import os
import socket
import threading
import time
from typing import TYPE_CHECKING

import pytest

from cnimeta.errors import IoFailure
from cnimeta.host.netns import entered
from cnimeta.host.values import NoNamespace

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from cnimeta.testing.netns import Namespace

pytestmark = pytest.mark.kernel


def here() -> tuple[int, int]:
    found = os.stat("/proc/thread-self/ns/net")
    return found.st_dev, found.st_ino


def test_block_runs_there_and_what_follows_here(make_netns: Callable[[str], Namespace]) -> None:
    space, home = make_netns("there"), here()
    with entered(space.path):
        assert here() != home
        assert [name for _, name in socket.if_nameindex()] == ["lo"]
    assert here() == home
    with pytest.raises(ValueError, match="words"), entered(space.path):
        raise ValueError("words")
    assert here() == home


def test_other_threads_stay_where_they_are(make_netns: Callable[[str], Namespace]) -> None:
    home, seen = here(), []
    with entered(make_netns("there").path):
        thread = threading.Thread(target=lambda: seen.append(os.stat(f"/proc/{os.getpid()}/ns/net").st_ino))
        thread.start()
        thread.join()
        assert here() != home
    assert here() == home


@pytest.mark.parametrize(
    "kind", ["missing", "below a file", "fifo", "file", "folder", "device", "socket", "mount namespace", "nul", "empty"]
)
def test_path_that_leads_to_no_network_namespace_is_told_at_once(tmp_path: Path, kind: str) -> None:
    path = str(tmp_path / "netns")
    if kind == "fifo":
        os.mkfifo(path)
    elif kind in ("file", "below a file"):
        (tmp_path / "netns").write_text("")
    elif kind == "folder":
        os.mkdir(path)
    path = {"below a file": f"{path}/x", "device": "/dev/null", "mount namespace": "/proc/self/ns/mnt"}.get(kind, path)
    path = {"nul": "a\0b", "empty": ""}.get(kind, path)
    home, before, started = here(), set(os.listdir("/proc/self/fd")), time.monotonic()
    with socket.socket(socket.AF_UNIX) as listener:
        if kind == "socket":
            listener.bind(path)
        with pytest.raises(NoNamespace, match="network namespace"), entered(path):
            pytest.fail("entered")
    assert time.monotonic() - started < 5
    assert here() == home
    assert set(os.listdir("/proc/self/fd")) <= before


def test_namespace_that_cannot_be_reached_is_not_taken_for_gone(tmp_path: Path) -> None:
    loop = tmp_path / "loop"
    loop.symlink_to(loop)
    with pytest.raises(IoFailure, match="cannot enter the network namespace") as caught, entered(str(loop)):
        pytest.fail("entered")
    assert not isinstance(caught.value, NoNamespace)
