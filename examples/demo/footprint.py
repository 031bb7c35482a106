"""What containers leave in a node: looked up in the kernel and on disk, not in anybody's records of it."""

from __future__ import annotations

import json
import subprocess
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Iterable

    from cnimeta.testing.netns import Namespace

_STAYING_LINKS = {"lo", "eth0", "cni0"}
"""What a node has without any container; the bridge plugin leaves its bridge for the next one."""


def footprint(node: Namespace, state: Path, addresses: Iterable[str]) -> dict[str, list[str]]:
    """Everything in the node that belongs to a container, by kind. Empty lists when there is no container."""
    ruleset = _ruleset(node)
    links = [link["ifname"] for link in json.loads(node.run("ip", "-j", "link").stdout)]
    return {
        "firewall rules": _rules(ruleset, tuple(addresses)),
        "nft map and set elements": _elements(ruleset),
        "veth pairs": [name for name in links if name not in _STAYING_LINKS and not name.startswith("bwp")],
        "ifb devices (bandwidth)": [name for name in links if name.startswith("bwp")],
        "records": _files(state / "cnimeta", "records") + _files(state / "cnimeta", "portmap"),
        "addresses (host-local)": _leases(state / "host-local"),
        "cached results": _files(state, "results"),
    }


def machine_footprint() -> dict[str, list[str]]:
    """What there is in the machine's own namespace and folders of the kinds of things that CNI plugins make."""
    ruleset = subprocess.run(["nft", "list", "ruleset"], check=True, capture_output=True, text=True).stdout
    links = json.loads(subprocess.run(["ip", "-j", "link"], check=True, capture_output=True, text=True).stdout)
    return {
        "firewall rules": [line for line in ruleset.splitlines() if "CNI-" in line or "cni" in line],
        "links": sorted(link["ifname"] for link in links if link["ifname"].startswith(("cni", "bwp", "veth"))),
        **{folder: _files(Path(folder), "") for folder in ("/etc/cni", "/opt/cni/bin", "/var/lib/cni")},
    }


def _ruleset(node: Namespace) -> list[dict[str, Any]]:
    listed: list[dict[str, Any]] = json.loads(node.run("nft", "-j", "list", "ruleset").stdout)["nftables"]
    return listed


def _rules(ruleset: list[dict[str, Any]], addresses: tuple[str, ...]) -> list[str]:
    """Rules that name a container's address; the rules all containers share name none."""
    rules = [json.dumps(entry["rule"]) for entry in ruleset if "rule" in entry]
    return [rule for rule in rules if any(f'"{address}"' in rule for address in addresses)]


def _elements(ruleset: list[dict[str, Any]]) -> list[str]:
    found = []
    for entry in ruleset:
        for kind in ("map", "set"):
            if kind in entry:
                found += [f"{entry[kind]['name']}: {json.dumps(element)}" for element in entry[kind].get("elem", ())]
    return found


def _files(folder: Path, below: str) -> list[str]:
    return sorted(str(path.relative_to(folder)) for path in (folder / below).rglob("*") if path.is_file())


def _leases(folder: Path) -> list[str]:
    """host-local keeps a file for each address, beside its lock and its last-address files."""
    return sorted(path.name for path in folder.glob("*/*") if path.name[:1].isdigit())
