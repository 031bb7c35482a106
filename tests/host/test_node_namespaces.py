"""Telling a container's namespace from another, and whether it is gone."""

from __future__ import annotations

import os
import subprocess
from typing import TYPE_CHECKING

import pytest

from cnimeta.host.namespaces import HostNamespaces

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from cnimeta.testing.netns import Namespace

pytestmark = pytest.mark.kernel

sees_all = os.readlink("/proc/self/ns/pid") == "pid:[4026531836]"
"""Elsewhere there may be processes that are not seen: then nothing is known to be gone."""


def test_a_namespace_lives_when_it_is_mounted_somewhere(make_netns: Callable[[str], Namespace], tmp_path: Path) -> None:
    namespaces, path = HostNamespaces(), make_netns("alive").path
    identity = namespaces.identity(path)
    assert identity
    assert not namespaces.is_gone(path, identity)
    assert not namespaces.is_gone("/a/path/that/is/not/shown/here", identity)
    file = tmp_path / "no namespace"
    file.touch()
    assert namespaces.identity(str(file)) == ""
    assert not namespaces.is_gone(str(file), identity)


def test_a_namespace_is_gone_when_its_last_process_ended() -> None:
    namespaces = HostNamespaces()
    with subprocess.Popen(["unshare", "-n", "sleep", "60"]) as process:
        path = f"/proc/{process.pid}/ns/net"
        own = namespaces.identity("/proc/self/ns/net")
        while (identity := namespaces.identity(path)) in ("", own):
            pass
        assert not namespaces.is_gone(path, identity)
        process.kill()
    assert namespaces.is_gone(path, identity) == sees_all
    assert namespaces.is_gone("/proc/self/ns/net", identity) == sees_all


def test_nothing_is_gone_when_nothing_is_known() -> None:
    assert not HostNamespaces().is_gone("/nowhere", "")
    assert not HostNamespaces().is_gone("", "4:1")
