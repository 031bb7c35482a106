"""`cnimeta doctor`: what the plugins need, looked for on this node. Nothing is changed."""

from __future__ import annotations

import os
import sys
from typing import TYPE_CHECKING, NamedTuple

from cnimeta import launcher
from cnimeta.errors import CniError

if TYPE_CHECKING:
    import argparse
    from collections.abc import Callable, Iterator

STATE_FOLDER = "/var/lib/cni/cnimeta"
_DRY_RUN = (
    "add table inet cnimeta_doctor\n"
    "add map inet cnimeta_doctor m { type inet_proto . inet_service : ipv4_addr . inet_service; }\n"
    "add chain inet cnimeta_doctor c { type nat hook prerouting priority dstnat; }\n"
    "add rule inet cnimeta_doctor c fib daddr type local dnat ip to meta l4proto . th dport map @m\n"
)


class Finding(NamedTuple):
    """One thing looked at. state: ok, warn (something works less well) or fail (something does not work)."""

    what: str
    state: str
    message: str


def add_commands(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Add `doctor`."""
    parser = commands.add_parser("doctor", help="look at what the plugins need on this node")
    parser.add_argument("--bin-dir", default="/opt/cni/bin", help="the runtime's plugin folder (%(default)s)")
    parser.add_argument("--json", action="store_true", help="print JSON")
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    """Print the findings; 1 when one of them is `fail`."""
    findings = list(examine(args.bin_dir))
    if args.json:
        import json

        print(json.dumps([finding._asdict() for finding in findings], indent=2))
    else:
        width = max(len(finding.what) for finding in findings)
        for finding in findings:
            print(f"{finding.state:<5} {finding.what:<{width}}  {finding.message}")
    return 1 if any(finding.state == "fail" for finding in findings) else 0


def examine(bin_dir: str) -> Iterator[Finding]:
    """Everything, in the order people look for it."""
    yield Finding("python", "ok", f"{sys.version.split()[0]}, {sys.executable}")
    root = os.geteuid() == 0
    yield Finding("root", "ok" if root else "fail", "plugins change the network: run as root" * (not root))
    yield from _launchers(bin_dir)
    filters = [_asked("nftables", _nftables), _asked("iptables", _iptables)]
    yield from filters
    if all(finding.state != "ok" for finding in filters):
        yield Finding("port mapping", "fail", "neither nftables nor iptables can be used: portmap cannot work")
    yield _modules()
    yield _state()


def _asked(what: str, look: Callable[[], Finding]) -> Finding:
    """What `look` finds; a program that cannot even be asked is a finding too."""
    try:
        return look()
    except CniError as error:
        return Finding(what, "warn", str(error))


def _launchers(bin_dir: str) -> Iterator[Finding]:
    for name, plugin in launcher.PLUGINS.items():
        path = os.path.join(bin_dir, name)
        target = launcher.read_target(path)
        if target is not None and target.plugin == plugin:
            yield Finding(f"launcher {name}", "ok", path)
        elif os.path.exists(path):
            yield Finding(f"launcher {name}", "warn", f"{path} is not of this installation")
        else:
            yield Finding(f"launcher {name}", "warn", f"not in {bin_dir}: cnimeta install --bin-dir {bin_dir}")


def _nftables() -> Finding:
    """Maps, fib and NAT, judged by the kernel and not kept."""
    from cnimeta.host.program import find_program, run_program

    program = find_program("nft")
    if program is None:
        return Finding("nftables", "warn", "nft is not installed: portmap uses iptables")
    done = run_program([program, "-c", "-f", "-"], {}, _DRY_RUN.encode(), 30)
    if done.status != 0:
        return Finding("nftables", "warn", f"not usable, portmap uses iptables: {done.complaint}")
    return Finding("nftables", "ok", "maps, fib and NAT")


def _iptables() -> Finding:
    from cnimeta.host.iptables_variant import detect

    variant = detect()
    if not variant:
        return Finding("iptables", "warn", "not installed: only the nftables backend works")
    return Finding("iptables", "ok", f"variant {variant}")


def _modules() -> Finding:
    """Ifb and tbf, loaded, built in, or there to be loaded."""
    wanted = {"ifb", "sch_tbf", "sch_ingress", "cls_u32", "act_mirred"}
    found = {name for name in wanted if os.path.isdir(f"/sys/module/{name}")}
    folder = f"/lib/modules/{os.uname().release}"
    for index in ("modules.builtin", "modules.dep"):
        try:
            with open(os.path.join(folder, index), encoding="utf-8") as file:
                text = file.read()
        except OSError:
            continue
        found |= {name for name in wanted if f"/{name}.ko" in text}
    missing = sorted(wanted - found)
    if missing:
        return Finding("bandwidth", "warn", f"not seen (they may be built in): {', '.join(missing)}")
    return Finding("bandwidth", "ok", "ifb, tbf, u32 and mirred")


def _state() -> Finding:
    folder = STATE_FOLDER
    while not os.path.isdir(folder):
        folder = os.path.dirname(folder)
    if os.access(folder, os.W_OK | os.X_OK):
        return Finding("state", "ok", STATE_FOLDER)
    return Finding("state", "fail", f"{folder} cannot be written")
