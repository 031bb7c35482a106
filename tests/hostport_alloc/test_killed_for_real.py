"""The real process, killed by strace at every file operation of ADD and DEL, on a real kernel with real rules.

strace kills at the n-th call of a system call, before it has any effect; the next n kills after the one before.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest
from kernel_node import Failed, KernelNode, Killed, assert_nothing_left

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from cnimeta.testing.netns import Namespace

pytestmark = pytest.mark.crash

CALLS_MAX = 20


def killed_at(call: str, number: int) -> tuple[str, ...]:
    return ("strace", "-qq", "-o", "/dev/null", "-e", f"trace={call}", "-e", f"inject={call}:signal=KILL:when={number}")


@pytest.mark.parametrize("call", ["fsync", "rename", "unlink", "vfork,clone,clone3", "flock"])
@pytest.mark.parametrize("verb", ["ADD", "DEL"])
def test_nothing_is_left_when_del_comes_after_a_kill(
    verb: str, call: str, make_netns: Callable[[str], Namespace], tmp_path: Path
) -> None:
    node = KernelNode(make_netns, tmp_path, ("hostport_alloc", "portmap"))
    conf = node.conf(ranges={"default": "20000"}, quarantineSeconds=0)
    number = 0
    for number in range(1, CALLS_MAX):
        name = f"c{number}"
        if verb == "DEL":
            node.call("ADD", conf, name)
        try:
            node.call(verb, conf, name, under=killed_at(call, number))
        except Killed:
            rules = node.rules()
            assert rules == "" or node.record(name) is not None, "rule => record"
            node.call("DEL", conf, name, netns="")
            assert_nothing_left(node)
            continue
        except Failed as error:
            pytest.fail(f"{verb} after {number - 1} kills: {error} {error.details}")
        node.call("DEL", conf, name)
        break
    assert number < CALLS_MAX - 1
    assert_nothing_left(node)
