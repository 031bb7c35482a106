"""What the node offers: netfilter, forwarding, shaping, and the node-wide settings."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

from cnimeta.errors import CniError, IoFailure
from cnimeta.node.doctor.finding import Finding
from cnimeta.node.networks import loadable
from cnimeta.ports.mapper import DATA_DIR
from cnimeta.spec.keys import strangers

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

_TIMEOUT_S = 30.0
_CLONE_NEWNET = 0x40000000
_MODULES = {"ifb", "sch_tbf", "sch_ingress", "cls_u32", "act_mirred"}
_DRY_RUN = (
    "add table inet cnimeta_doctor\n"
    "add map inet cnimeta_doctor m { type inet_proto . inet_service : ipv4_addr . inet_service; }\n"
    "add chain inet cnimeta_doctor c { type nat hook prerouting priority dstnat; }\n"
    "add rule inet cnimeta_doctor c fib daddr type local dnat ip to meta l4proto . th dport map @m\n"
)


def mapping() -> Iterator[Finding]:
    """What portmap can map with."""
    filters = [_asked("nftables", _nftables), _asked("iptables", _iptables)]
    yield from filters
    if all(finding.state != "ok" for finding in filters):
        yield Finding("port mapping", "fail", "neither nftables nor iptables can be used: portmap cannot work")


def forwarding() -> Iterator[Finding]:
    """Whether packets pass through the node to a container at all."""
    yield _asked("forwarding", _ip_forward)
    yield _asked("forward hook", _forward_hook)


def _ip_forward() -> Finding:
    """Of IPv4, or of IPv6 on a node that has no other address."""
    from cnimeta.host.addresses import RouteAddresses

    primary = RouteAddresses().primary()
    only_six = bool(primary) and all(":" in address for address in primary)
    name = "net.ipv6.conf.all.forwarding" if only_six else "net.ipv4.ip_forward"
    path = "/proc/sys/" + name.replace(".", "/")
    try:
        with open(path, encoding="ascii") as file:
            value = file.read().strip()
    except OSError as error:
        raise IoFailure(f"cannot read {path}: {error.strerror}") from None
    if value == "0":
        return Finding("forwarding", "warn", f"{name} is 0: a mapped port reaches no container from afar")
    return Finding("forwarding", "ok", f"{name} is {value}")


def _forward_hook() -> Finding:
    """Base chains that drop what none of their rules accepts, as docker and ufw leave them."""
    dropping = [*_dropping_chains(), *_dropping_legacy()]
    if dropping:
        message = f"{', '.join(dropping)}: the policy is drop, and mapped ports work only where a rule accepts them"
        return Finding("forward hook", "warn", message)
    return Finding("forward hook", "ok", "no policy drop")


def _dropping_chains() -> Iterator[str]:
    """Those of nftables, iptables-nft's among them."""
    import json

    from cnimeta.host.process import find_program, run_program

    program = find_program("nft")
    if program is None:
        return
    done = run_program([program, "-j", "list", "chains"], {}, timeout_s=_TIMEOUT_S)
    if done.status != 0:
        raise IoFailure(f"cannot list the chains: {done.complaint}")
    for entry in json.loads(done.stdout)["nftables"]:
        chain = entry.get("chain", {})
        if chain.get("hook") == "forward" and chain.get("policy") == "drop":
            yield f"chain {chain['family']} {chain['table']} {chain['name']}"


def _dropping_legacy() -> Iterator[str]:
    """Those of legacy tables that are there already: asking for one that is not would load it."""
    from cnimeta.host.iptables.variant import loaded_tables
    from cnimeta.host.process import find_program, run_program

    for family in (4, 6):
        name = "iptables-legacy" if family == 4 else "ip6tables-legacy"
        program = find_program(name) if "filter" in loaded_tables(family) else None
        if program is None:
            continue
        done = run_program([program, "-S", "FORWARD"], {}, timeout_s=_TIMEOUT_S)
        if b"-P FORWARD DROP" in done.stdout.splitlines():
            yield f"chain FORWARD of {name}"


def _asked(what: str, look: Callable[[], Finding]) -> Finding:
    """What `look` finds; a program that cannot even be asked is a finding too."""
    try:
        return look()
    except CniError as error:
        return Finding(what, "warn", str(error))


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


def shaping(root: bool) -> Finding:
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


def settings() -> Iterator[Finding]:
    """The node-wide configuration, and the folder that the state is in."""
    from cnimeta.host.nodeconfig import read_section

    folder = DATA_DIR
    try:
        folder = read_section("portmap", os.environ).text("dataDir", DATA_DIR)
        yield from _known_settings()
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


def _known_settings() -> Iterator[Finding]:
    from cnimeta.host.nodeconfig import DEFAULT_PATH, VARIABLE, read_document

    path = os.environ.get(VARIABLE) or DEFAULT_PATH
    document = read_document(os.environ)
    readers = {name: plugin for name, plugin in loadable().items() if plugin.node_keys}
    told, meant = strangers(document, readers), []
    for name, plugin in readers.items():
        told += strangers(document.object(name), plugin.node_keys)
        meant.append(plugin.examine_node(document.object(name)))
    for text in told:
        yield Finding("settings", "warn", text)
    if not told:
        meaning = f"{path}: {', '.join(filter(None, meant))}"
        yield Finding("settings", "ok", meaning if os.path.exists(path) else f"no {path}")
