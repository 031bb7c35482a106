"""The iptables rules of a port mapping, as data: the chains, the rules and their order are upstream's, to the byte.

Rules are kept as `iptables-save` prints them (without `-A CHAIN`), so that what is planned can be compared with what
is read, and either written with `iptables-restore`. Layout (table nat, both families):

    PREROUTING, OUTPUT    -> CNI-HOSTPORT-DNAT     for packets to an address of this host
    CNI-HOSTPORT-DNAT     -> CNI-DN-<hash>         one rule per protocol and 15 ports of a container
    CNI-DN-<hash>            per mapping: mark hairpin, mark localhost, DNAT
    CNI-HOSTPORT-SETMARK     sets the mark
    POSTROUTING           -> CNI-HOSTPORT-MASQ     masquerades what carries the mark

Two things are not upstream's. In IPv6, CNI-HOSTPORT-DNAT begins with rules that leave ::1 and fe80::/10 alone. In IPv4,
table raw, stands a guard:

    PREROUTING            -> CNIMETA-LOCALNET      drops what arrives for 127.0.0.0/8: route_localnet lets it in

What is translated to such an address, by whomever, arrives for another one, so it passes; and what is for 127.0.0.0/8
never comes to be looked up.

Names and rules: https://github.com/containernetworking/plugins/blob/main/plugins/meta/portmap/portmap_iptables.go
"""

from __future__ import annotations

from cnimeta.host.digest import sha512_hex
from cnimeta.host.iptables.values import quote
from cnimeta.namedtuple import NamedTuple
from cnimeta_plugins.portmap.iptables.names import DNAT_CHAIN, GUARD_CHAIN, MASQ_CHAIN, SETMARK_CHAIN

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from cnimeta_plugins.portmap.config import PortMapping, Settings
    from cnimeta_plugins.portmap.plan import FamilyPlan, Owner, Plan

_DN_PREFIX = "CNI-DN-"
_SN_PREFIX = "CNI-SN-"
_CHAIN_NAME_LENGTH = 28
_COMMENT_MAX = 255
_COMMENT_KEPT = 253
_CUT = ".."  # upstream writes "...", which makes 256; the kernel keeps 255, and that is what is read again
_MULTIPORT_MAX = 15
_UNSPECIFIED = ("0.0.0.0/0", "::/0")


class ContainerRules(NamedTuple):
    """A container's own chain: its name, the rules that lead to it (in CNI-HOSTPORT-DNAT) and those in it."""

    chain: str
    entries: tuple[str, ...]
    rules: tuple[str, ...]


def chain_name(network: str, container_id: str, prefix: str = _DN_PREFIX) -> str:
    """The container's chain: the prefix and the first digits of sha512(network + container ID), 28 characters."""
    return (prefix + sha512_hex(network + container_id))[:_CHAIN_NAME_LENGTH]


def second_chain_name(owner: Owner) -> str:
    """The chain of a further interface of a container that already has mappings on this network.

    Upstream's name leaves the interface out. `/` occurs in none of the three, so this never is another's name.
    """
    return chain_name(f"{owner.network}/{owner.ifname}/", owner.container_id)


def old_snat_chain_name(network: str, container_id: str) -> str:
    """The chain that versions before 0.8 made beside the other; DEL removes it."""
    return chain_name(network, container_id, _SN_PREFIX)


def comment(network: str, container_id: str) -> str:
    """The comment on a container's entry rules, cut as upstream cuts it."""
    text = f'dnat name: "{network}" id: "{container_id}"'
    return text if len(text) <= _COMMENT_MAX else text[:_COMMENT_KEPT] + _CUT


def mark(bit: int) -> str:
    """`0x2000/0x2000` for bit 13."""
    return f"{1 << bit:#x}/{1 << bit:#x}"


# --- the shared part -------------------------------------------------------------------------------------

JUMP_IN = f"-m addrtype --dst-type LOCAL -j {DNAT_CHAIN}"
GUARDED = f"-d 127.0.0.0/8 ! -i lo -j {GUARD_CHAIN}"
GUARD = "-j DROP"
LEFT_ALONE = ("-d ::1/128 -j RETURN", "-d fe80::/10 -j RETURN", "-s fe80::/10 -j RETURN")
"""::1 cannot leave the host, fe80::/10 has no way beyond its link: a refusal is better than a timeout."""
JUMP_OUT = f'-m comment --comment "CNI portfwd requiring masquerade" -j {MASQ_CHAIN}'


def set_mark_rule(bit: int) -> str:
    """The rule of CNI-HOSTPORT-SETMARK."""
    return f'-m comment --comment "CNI portfwd masquerade mark" -j MARK --set-xmark {mark(bit)}'


def masquerade_rule(bit: int) -> str:
    """The rule of CNI-HOSTPORT-MASQ."""
    return f"-m mark --mark {mark(bit)} -j MASQUERADE"


# --- a container's part ----------------------------------------------------------------------------------


def container_rules(plan: Plan, family: FamilyPlan, chain: str) -> ContainerRules:
    """Everything of one container in one family.

    Entry rules list the ports of every mapping, those of the other family included, as upstream's do; such a mapping
    just has no rule in the container's chain.
    """
    said = f"-m comment --comment {quote(comment(plan.owner.network, plan.owner.container_id))}"
    extra = " ".join(quote(word) for word in family.conditions)
    mappings = plan.settings.mappings
    entries = [
        _joined(f"-p {protocol}", said, f"-m multiport --dports {ports}", extra, f"-j {chain}")
        for protocol in sorted({mapping.protocol for mapping in mappings})
        for ports in port_lists(mapping for mapping in mappings if mapping.protocol == protocol)
    ]
    rules: list[str] = []
    for mapping in _narrowest_first(family.mappings):
        rules += _mapping_rules(mapping, family, plan.settings)
    return ContainerRules(chain, tuple(entries), tuple(rules))


def _narrowest_first(mappings: Sequence[PortMapping]) -> Sequence[PortMapping]:
    """The first rule wins, so one address goes before every address; in upstream's order when no port is in both."""
    wide = {(one.protocol, port) for one in mappings if one.is_wildcard for port in one.host_ports}
    if any((one.protocol, port) in wide for one in mappings if not one.is_wildcard for port in one.host_ports):
        return sorted(mappings, key=lambda one: one.is_wildcard)
    return mappings


def port_lists(mappings: Iterable[PortMapping]) -> list[str]:
    """Multiport lists of at most 15 places each, in order; a range takes two."""
    lists: list[str] = []
    words: list[str] = []
    used = 0
    for mapping in mappings:
        places = 2 if mapping.is_range else 1
        if used + places > _MULTIPORT_MAX:
            lists.append(",".join(words))
            words, used = [], 0
        words.append(_ports(mapping))
        used += places
    return [*lists, ",".join(words)] if words else lists


def _ports(mapping: PortMapping) -> str:
    return f"{mapping.first}:{mapping.last}" if mapping.is_range else str(mapping.first)


def _mapping_rules(mapping: PortMapping, plan: FamilyPlan, settings: Settings) -> list[str]:
    """Mark hairpin traffic, mark localhost's (IPv4), translate: in this order."""
    to_host = f"-d {mapping.where}/{32 if plan.family == 4 else 128}" if mapping.where else ""
    port = f"-p {mapping.protocol} -m {mapping.protocol} --dport {_ports(mapping)}"
    rules = []
    if settings.snat:
        set_mark = settings.external_set_mark_chain or SETMARK_CHAIN
        source = _UNSPECIFIED[plan.family == 6] if settings.masq_all else plan.container.network.text
        from_net = "" if source in _UNSPECIFIED else f"-s {source}"
        rules.append(_joined(from_net, to_host, port, f"-j {set_mark}"))
        if plan.family == 4 and not settings.masq_all:
            rules.append(_joined("-s 127.0.0.1/32", to_host, port, f"-j {set_mark}"))
    target = f"-j DNAT --to-destination {_destination(mapping, plan)}"
    return [*rules, _joined(to_host, port, target)]


def _destination(mapping: PortMapping, plan: FamilyPlan) -> str:
    """`10.0.0.2:80`, `[2001:db8::2]:80`; for a range `10.0.0.2:9000-9010/8000`, port by port from 8000 to 9000."""
    address = plan.container.address.text
    text = f"[{address}]" if plan.family == 6 else address
    if not mapping.is_range:
        return f"{text}:{mapping.container_port}"
    if not mapping.shifted:
        return address  # the port stays
    return f"{text}:{mapping.container_port}-{mapping.target(mapping.last)}/{mapping.first}"


def _joined(*parts: str) -> str:
    return " ".join(part for part in parts if part)
