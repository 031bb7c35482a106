"""`cnimeta doctor`: what the plugins need, looked for on this node.

Nothing is changed: what must be tried is tried in a network namespace of its own, and no kernel module is loaded.
"""

from __future__ import annotations

import os
import sys
from typing import TYPE_CHECKING, NamedTuple

from cnimeta import __version__
from cnimeta.errors import CniError
from cnimeta.plugin import launcher, registry

if TYPE_CHECKING:
    import argparse
    from collections.abc import Callable, Iterator

    from cnimeta.plugin.base import Commands
    from cnimeta.plugin.registry import Target

STATE_FOLDER = "/var/lib/cni/cnimeta"
_TIMEOUT_S = 30.0
_CLONE_NEWNET = 0x40000000
_MODULES = {"ifb", "sch_tbf", "sch_ingress", "cls_u32", "act_mirred"}
_PACKAGES = {
    "filelock": "hostport_alloc cannot lock its state",
    "kubernetes": "Pods are not annotated through a kubeconfig",
    "pyroute2": "bandwidth does not work",
    "python-iptables": "hosts with legacy iptables are not served",
}
"""What the plugins need beside the standard library, and what is missing without."""
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


def add_commands(commands: Commands) -> None:
    """Add `doctor`."""
    parser = commands.add_parser("doctor", help="look at what the plugins need on this node")
    parser.add_argument("--bin-dir", default="/opt/cni/bin", help="the runtime's plugin folder (%(default)s)")
    parser.add_argument("--net-dir", default="/etc/cni/net.d", help="the network configurations (%(default)s)")
    parser.add_argument("--json", action="store_true", help="print JSON")
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    """Print the findings; 1 when one of them is `fail`."""
    findings = list(examine(args.bin_dir, args.net_dir))
    if args.json:
        import json

        print(json.dumps([finding._asdict() for finding in findings], indent=2))
    else:
        width = max(len(finding.what) for finding in findings)
        for finding in findings:
            print(f"{finding.state:<5} {finding.what:<{width}}  {finding.message}")
    return 1 if any(finding.state == "fail" for finding in findings) else 0


def examine(bin_dir: str, net_dir: str) -> Iterator[Finding]:
    """Everything, in the order people look for it."""
    yield Finding("cnimeta", "ok", f"{__version__}, {launcher.package_folder()}")
    yield Finding("python", "ok", f"{sys.version.split()[0]}, {sys.executable}")
    root = os.geteuid() == 0
    yield Finding("root", "ok" if root else "fail", "plugins change the network: run as root" * (not root))
    for package, effect in _PACKAGES.items():
        yield _package(package, effect)
    for name, target in registry.installed().items():
        yield _plugin(name, target)
        yield _launcher(target, os.path.join(bin_dir, name))
    filters = [_asked("nftables", _nftables), _asked("iptables", _iptables)]
    yield from filters
    if all(finding.state != "ok" for finding in filters):
        yield Finding("port mapping", "fail", "neither nftables nor iptables can be used: portmap cannot work")
    yield _shaping(root)
    yield from _settings()
    yield from _networks(net_dir, bin_dir)


def _asked(what: str, look: Callable[[], Finding]) -> Finding:
    """What `look` finds; a program that cannot even be asked is a finding too."""
    try:
        return look()
    except CniError as error:
        return Finding(what, "warn", str(error))


def _package(name: str, effect: str) -> Finding:
    from importlib import metadata

    try:
        return Finding(f"package {name}", "ok", metadata.version(name))
    except metadata.PackageNotFoundError:
        return Finding(f"package {name}", "fail", f"not installed: {effect}")


def _plugin(name: str, target: Target) -> Finding:
    """An installed plugin can be loaded, whoever wrote it."""
    try:
        plugin = registry.load(target)
    except CniError as error:
        return Finding(f"plugin {name}", "fail", str(error))
    return Finding(f"plugin {name}", "ok", plugin.about)


def _launcher(registered: Target, path: str) -> Finding:
    """A launcher is there, is ours, and answers the way a runtime calls it."""
    from cnimeta.cli.install import is_launcher
    from cnimeta.delegate.call import Delegates
    from cnimeta.delegate.spawn import ProcessExec

    folder, name = os.path.split(path)
    what = f"launcher {name}"
    if not os.path.lexists(path):
        return Finding(what, "warn", f"not in {folder}: cnimeta install --bin-dir {folder}")
    if not is_launcher(path):
        return Finding(what, "warn", f"{path} is not of this installation, nor cnimeta's; install has --replace for it")
    try:
        spoken = Delegates(ProcessExec(_TIMEOUT_S), {}, [folder]).versions(name)
    except CniError as error:
        return Finding(what, "fail", f"{path} does not work: {error}")
    target = launcher.read_target(path)
    if target is None or target._replace(path=()) != registered:
        return Finding(what, "warn", f"{path} is not of this installation, but of another cnimeta")
    return Finding(what, "ok", f"{path}, {spoken[0]} to {spoken[-1]}")


def _nftables() -> Finding:
    """Maps, fib and NAT, judged by the kernel and not kept."""
    from cnimeta.host.process import find_program, run_program

    program = find_program("nft")
    if program is None:
        return Finding("nftables", "warn", "nft is not installed: portmap uses iptables")
    done = run_program([program, "-c", "-f", "-"], {}, _DRY_RUN.encode(), _TIMEOUT_S)
    if done.status != 0:
        return Finding("nftables", "warn", f"not usable, portmap uses iptables: {done.complaint}")
    return Finding("nftables", "ok", "maps, fib and NAT")


def _iptables() -> Finding:
    from cnimeta.host.iptables.variant import detect

    variant = detect()
    if not variant:
        return Finding("iptables", "warn", "not installed: only the nftables backend works")
    return Finding("iptables", "ok", f"variant {variant}")


def _shaping(root: bool) -> Finding:
    """Ifb, tbf and what leads traffic there: loaded, there to be loaded, or built in, which only trying can tell."""
    missing = {name for name in _MODULES if not os.path.isdir(f"/sys/module/{name}")}
    try:
        with open(f"/lib/modules/{os.uname().release}/modules.dep", encoding="utf-8") as file:
            known = file.read()
    except OSError:
        known = ""
    waiting = {name for name in missing if f"/{name}.ko" in known}
    if waiting:
        return Finding("shaping", "ok", f"modules are loaded when first needed: {', '.join(sorted(waiting))}")
    if not root:
        return Finding("shaping", "warn", "only root can try it")
    complaint = _tried_apart()
    if complaint:
        return Finding("shaping", "warn", f"bandwidth does not work here: {complaint}")
    return Finding("shaping", "ok", "ifb, tbf and redirection were tried")


def _tried_apart() -> str:
    """Shape traffic in a namespace that ends with its process; the complaint, if any."""
    reader, writer = os.pipe()
    child = os.fork()
    if child == 0:
        complaint = "ended early"
        try:
            complaint = _try_shaping()
        except BaseException as error:  # noqa: BLE001 - whatever it is, the parent shows it
            complaint = str(error) or type(error).__name__
        finally:
            os.write(writer, complaint.encode("utf-8", "replace")[:4096])
            os._exit(0)
    os.close(writer)
    with open(reader, "rb") as file:
        complaint = file.read().decode("utf-8", "replace")
    os.waitpid(child, 0)
    return complaint


def _try_shaping() -> str:
    import ctypes

    from cnimeta.host.links.kernel import RouteLinks

    if ctypes.CDLL(None, use_errno=True).unshare(_CLONE_NEWNET) != 0:
        return f"no network namespace can be made: {os.strerror(ctypes.get_errno())}"
    links = RouteLinks()
    outer, inner = links.add_ifb("cnimeta0", 1500, "doctor"), links.add_ifb("cnimeta1", 1500, "doctor")
    links.set_bucket(inner.ifindex, 125_000, 12_500, 25_000)
    links.add_ingress(outer.ifindex)
    links.add_redirect(outer.ifindex, inner.ifindex, 1)
    return ""


def _settings() -> Iterator[Finding]:
    """The node-wide configuration, and the folder that the state is in."""
    from cnimeta.host.nodeconfig import DEFAULT_PATH, VARIABLE, read_section

    path = os.environ.get(VARIABLE) or DEFAULT_PATH
    folder = STATE_FOLDER
    try:
        section = read_section("portmap", os.environ)
        folder = section.text("dataDir", STATE_FOLDER)
        backend = section.choice("backend", ("auto", "nftables", "iptables"), "auto")
        yield Finding("settings", "ok", f"{path}: portmap on {backend}" if os.path.exists(path) else f"no {path}")
    except CniError as error:
        yield Finding("settings", "fail", str(error))
    existing = folder
    while not os.path.lexists(existing):
        existing = os.path.dirname(existing) or "/"
    if not os.path.isdir(existing):
        yield Finding("state", "fail", f"{folder}: {existing} is not a folder")
    elif not os.access(existing, os.W_OK | os.X_OK):
        yield Finding("state", "fail", f"{folder}: {existing} cannot be written")
    else:
        yield Finding("state", "ok", folder)


def _networks(net_dir: str, bin_dir: str) -> Iterator[Finding]:
    """Every network configuration can be read, and its plugins are there."""
    from cnimeta.delegate.find import find
    from cnimeta.runtime.conf import LIST_SUFFIX, SINGLE_SUFFIXES, config_names, load_file

    try:
        names = config_names(net_dir, LIST_SUFFIX, *SINGLE_SUFFIXES)
    except CniError:
        names = []
    if not names:
        yield Finding("networks", "warn", f"no configuration in {net_dir}")
    for name in names:
        what, missing = f"network {name}", []
        try:
            network = load_file(os.path.join(net_dir, name))
        except CniError as error:
            yield Finding(what, "fail", str(error))
            continue
        for plugin in dict.fromkeys(str(plugin["type"]) for plugin in network.plugins):
            try:
                find(plugin, [bin_dir])
            except CniError:
                missing.append(plugin)
        if missing:
            yield Finding(what, "warn", f"{network.name}: not in {bin_dir}: {', '.join(missing)}")
        else:
            yield Finding(what, "ok", f"{network.name}, {network.cni_version}")
