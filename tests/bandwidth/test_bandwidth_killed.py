"""The real process, killed by strace at every netlink request and process start of ADD and DEL."""

from __future__ import annotations

import json
import os
import subprocess
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from test_bandwidth_kernel import IFB, RATES, Pair

from cnimeta.cli.install import install

if TYPE_CHECKING:
    from collections.abc import Callable

    from cnimeta.testing.netns import Namespace

pytestmark = pytest.mark.crash

CALLS = ("sendto", "fork,vfork,clone,clone3")
LIMITS = {"all": RATES, "subnets": {**RATES, "shapedSubnets": ["10.9.0.1/32", "fd09::1/128"]}}


class Programs:
    """The installed launcher, run as a runtime runs it, under strace or not."""

    def __init__(self, pair: Pair, folder: Path) -> None:
        self.pair = pair
        install(str(folder), ["bandwidth"])
        self.path = str(folder / "bandwidth")

    def call(self, verb: str, conf: dict[str, Any], call: str = "", number: int = 0) -> bool:
        """Whether it lived to its end."""
        environ = {"CNI_COMMAND": verb, "CNI_CONTAINERID": "c1", "CNI_IFNAME": "eth0", "CNI_PATH": "/usr/lib/cni"}
        environ |= {"CNI_NETNS": self.pair.container.path, "PATH": os.environ["PATH"]}
        inject = ["-e", f"trace={call}", "-e", f"inject={call}:signal=KILL:when={number}"]
        strace = ["strace", "-f", "-qq", "-o", "/dev/null", *inject] if call else []
        command = ["ip", "netns", "exec", self.pair.host.name, *strace, self.path]
        done = subprocess.run(command, input=json.dumps(conf).encode(), env=environ, capture_output=True, check=False)
        assert done.returncode in (0, -9, 137), done.stdout
        return done.returncode == 0


@pytest.fixture
def programs(make_netns: Callable[[str], Namespace], tmp_path: Path) -> Programs:
    return Programs(Pair(make_netns("bwhost"), make_netns("bwcont")), tmp_path)


@pytest.mark.parametrize("call", CALLS)
@pytest.mark.parametrize("limits", LIMITS)
@pytest.mark.parametrize("verb", ["ADD", "DEL"])
def test_nothing_is_left_and_add_serves_when_killed_before(
    programs: Programs, verb: str, limits: str, call: str
) -> None:
    pair, conf = programs.pair, programs.pair.conf(**LIMITS[limits])
    before = pair.tc("qdisc", "show")
    number, lived = 0, False
    while not lived:
        number += 1
        assert number < 30
        if verb == "DEL":
            programs.call("ADD", conf)
        lived = programs.call(verb, conf, call, number)
        if number % 2:  # the runtime's next command is DEL, or the same ADD again
            programs.call("ADD", conf)
            programs.call("CHECK", conf)
        programs.call("DEL", conf)
        assert IFB not in pair.names()
        assert pair.tc("qdisc", "show") == before
    assert number > 1 or (verb, call) == ("ADD", CALLS[1])
