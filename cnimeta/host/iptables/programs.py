"""The iptables programs of either variant: finding and running them."""

from __future__ import annotations

import os

from cnimeta.errors import IoFailure
from cnimeta.host.iptables.values import Refused
from cnimeta.host.process import SYSTEM_PATH, find_program, run_program

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Sequence

PROGRAM_TIMEOUT_S = 30.0


def program(family: int, variant: str, suffix: str = "", path: str = "") -> str:
    """The absolute path of `iptables-nft-restore` and the like. Raises IoFailure when the host has none.

    Hosts from before iptables 1.8 have one variant, under the plain name.
    """
    stem = "iptables" if family == 4 else "ip6tables"
    found = find_program(f"{stem}-{variant}{suffix}", path)
    if found is None and command_variant(path) == variant:
        found = find_program(f"{stem}{suffix}", path)
    if found is None:
        raise IoFailure(f"{stem}-{variant}{suffix} is not installed: install iptables, or set backend to nftables")
    return found


def run(argv: Sequence[str], stdin: str = "") -> str:
    """Run an iptables program and return its stdout. Raises Refused with what it said when it fails."""
    done = run_program(argv, {"PATH": SYSTEM_PATH, "LC_ALL": "C"}, stdin.encode(), PROGRAM_TIMEOUT_S)
    if done.status:
        raise Refused(f"{os.path.basename(argv[0])} failed: {done.complaint}")
    return done.stdout.decode("utf-8", "replace")


def command_variant(path: str = "") -> str:
    """The variant of the host's plain `iptables` command: "nft", "legacy", or "" when there is none."""
    command = find_program("iptables", path)
    if command is None:
        return ""
    real = os.path.basename(os.path.realpath(command))
    if "-nft" in real:
        return "nft"
    if "-legacy" in real:
        return "legacy"
    return "nft" if "nf_tables" in run([command, "-V"]) else "legacy"
