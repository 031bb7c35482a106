"""The nftables form of port mappings, as data: base, elements, claims. Pure.

Every plain mapping is one element of a hash map, so a packet's look-up, an ADD and a DEL cost the same whatever is
mapped already. Table `inet cnimeta_hostports`:

    prerouting, output -> hostports       for packets to an address of this host (fib), never for others' addresses
    hostports          -> translate       with a mark on the packet while it is there; it stays when translated
    translate             conditional rules, then the maps: host4/6 (one host address) before any4/6, then ranges
    postrouting        -> masquerading    for marked packets only: snat4/6, by container address, says what to do

| map             | key                              | data                        |
|-----------------|----------------------------------|-----------------------------|
| any4, any6      | protocol . port                  | container address . port    |
| host4, host6    | host address . protocol . port   | container address . port    |
| range4, range6, hostrange4, hostrange6 | the same with a port interval | container address: the port is kept |
| snat4, snat6    | container address                | goto the chain that masquerades for its subnet, or always |
| claims4, claims6 | protocol . port                 | the owner, or :: where owners have one address each |
| hostclaims4, hostclaims6 | host address . protocol . port | the owner            |
| addresses4, addresses6 | container address         | the owner                   |

The claims make ownership the kernel's business: an element with the same key and another owner fails with EEXIST and
undoes the whole transaction, so two containers can never both get a port, without a lock and without a look. The
owner is a digest of the attachment, written as an IPv6 address because that is the widest type with
plain data; elements also carry the attachment's name as a comment for people and for recovery.
"""

from __future__ import annotations

from cnimeta.host.digest import sha512_hex
from cnimeta.host.nftables.values import Chain, Change, Element, Hook, Map, Rule, Table
from cnimeta.namedtuple import NamedTuple
from cnimeta.spec.ip import Address, parse_ip

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

    from cnimeta.spec.ip import Cidr
    from cnimeta_plugins.portmap.config import PortMapping
    from cnimeta_plugins.portmap.forward import Forward, Half

TABLE = "cnimeta_hostports"
"""Never change: rules of an earlier version must be found."""

BASE_CHAIN = "hostports"
CONDITIONAL = "conditional"
MASQ_ALL = "masq-all"
SHARED = "::"
_MARK = 0x1000
"""Not 0x2000: upstream's iptables chains masquerade everything that carries it."""
_COMMENT_MAX = 127
_ADDRESS = {4: "ipv4_addr", 6: "ipv6_addr"}
_OWNER = "ipv6_addr"
_HOOKS = {
    "prerouting": Hook("nat", "prerouting", "dstnat"),
    "output": Hook("nat", "output", "-100"),
    "postrouting": Hook("nat", "postrouting", "srcnat"),
}


class Group(NamedTuple):
    """Elements that belong together, the claim on their key first: they come and go as one."""

    claim: Element
    elements: tuple[Element, ...]

    @property
    def all(self) -> tuple[Element, ...]:
        """The claim and the rest."""
        return (self.claim, *self.elements)


class Condition(NamedTuple):
    """A container's own chain, entered by a rule with its conditions."""

    chain: str
    entry: str
    rules: tuple[str, ...]


class Plan(NamedTuple):
    """What one attachment needs: groups of elements, subnet chains (shared, kept), conditional chains (its own)."""

    owner: str
    comment: str
    groups: tuple[Group, ...]
    subnets: tuple[tuple[str, tuple[str, ...]], ...]
    """(chain, rules) that the groups' verdicts go to."""
    conditions: tuple[Condition, ...] = ()


def owner_id(network: str, container_id: str, ifname: str) -> str:
    """The owner's number, as an IPv6 address. `/` occurs in none of the three, so no two attachments share a text."""
    digest = sha512_hex(f"{network}/{container_id}/{ifname}")[:32]
    return Address(6, bytes.fromhex(digest)).text


def owner_comment(network: str, container_id: str, ifname: str) -> str:
    """The attachment's name for a comment (128 bytes with its end): network and ID are cut when too long."""
    text = f"{container_id}/{ifname}/{network}"
    return text if len(text) <= _COMMENT_MAX else text[: _COMMENT_MAX - 3] + "..."


# --- the attachment's part -------------------------------------------------------------------------------


def plan_rules(forward: Forward) -> Plan:
    """Everything `forward` needs in the kernel, base apart."""
    names = forward.network, forward.container_id, forward.ifname
    owner = owner_id(*names)
    groups: list[Group] = []
    subnets: dict[str, tuple[str, ...]] = {}
    conditions: list[Condition] = []
    for half in forward.halves:
        groups += _mapping_groups(half, owner)
        address = _address_group(half, owner, forward)
        groups.append(address)
        if forward.masq_all:
            subnets[MASQ_ALL] = ("masquerade",)
        elif forward.snat:
            subnets[subnet_chain(half.container)] = _subnet_rules(half.container)
        if half.conditions:
            conditions.append(_condition(half, owner))
    return Plan(owner, owner_comment(*names), tuple(groups), tuple(subnets.items()), tuple(conditions))


def _mapping_groups(half: Half, owner: str) -> Iterator[Group]:
    family = half.family
    wildcard = {
        (mapping.protocol, port)
        for mapping in half.mappings
        if mapping.is_wildcard
        for port in range(mapping.first, mapping.last + 1)
    }
    for mapping in half.mappings:
        interval = mapping.last > mapping.first and not mapping.shifted
        for port in range(mapping.first, mapping.last + 1):
            elements: list[Element] = []
            key = f"{mapping.protocol} . {port}"
            if mapping.is_wildcard:
                claim = Element(f"claims{family}", key, owner)
            else:
                claim = Element(f"hostclaims{family}", f"{_where(mapping)}{key}", owner)
                if (mapping.protocol, port) not in wildcard:
                    elements.append(Element(f"claims{family}", key, SHARED))
            if half.conditions:
                pass  # its own chain translates
            elif interval and port == mapping.first:
                elements.append(_interval(mapping, half))
            elif not interval:
                elements.append(_single(mapping, port, half))
            yield Group(claim, tuple(elements))


def _where(mapping: PortMapping) -> str:
    return f"{mapping.where} . " if mapping.where else ""


def _single(mapping: PortMapping, port: int, half: Half) -> Element:
    name = ("any" if mapping.is_wildcard else "host") + str(half.family)
    target = mapping.container_port + port - mapping.first
    return Element(name, f"{_where(mapping)}{mapping.protocol} . {port}", f"{half.container.address.text} . {target}")


def _interval(mapping: PortMapping, half: Half) -> Element:
    name = ("range" if mapping.is_wildcard else "hostrange") + str(half.family)
    key = f"{_where(mapping)}{mapping.protocol} . {mapping.first}-{mapping.last}"
    return Element(name, key, half.container.address.text)


def _address_group(half: Half, owner: str, forward: Forward) -> Group:
    family, address = half.family, half.container.address.text
    claim = Element(f"addresses{family}", address, owner)
    if forward.masq_all:
        return Group(claim, (Element(f"snat{family}", address, f"goto {MASQ_ALL}"),))
    if forward.snat:
        return Group(claim, (Element(f"snat{family}", address, f"goto {subnet_chain(half.container)}"),))
    return Group(claim, ())


def subnet_chain(container: Cidr) -> str:
    """The chain that masquerades for containers of one subnet: `masq-10.88.0.0/16`."""
    network = container.network
    if container.address.family == 4:
        return f"masq-{network.text}"
    return f"masq-{network.address.packed.hex()}/{network.prefix}"


def _subnet_rules(container: Cidr) -> tuple[str, ...]:
    """Clients of the container's own subnet (itself included) and of this host's loopback addresses.

    They would get the answer from an address they never wrote to (containernetworking/plugins#469).
    """
    network = container.network.text
    if container.address.family == 4:
        return (f"ip saddr {{ {network}, 127.0.0.0/8 }} masquerade",)
    return (f"ip6 saddr {network} masquerade",)


def _condition(half: Half, owner: str) -> Condition:
    family = half.family
    ip = "ip" if family == 4 else "ip6"
    chain = f"if{family}-{parse_ip(owner).packed.hex()}"
    rules = []
    for mapping in half.mappings:
        where = f"{ip} daddr {mapping.where} " if mapping.where else ""
        for port in range(mapping.first, mapping.last + 1):
            target = f"{half.container.address.text}:{mapping.container_port + port - mapping.first}"
            if family == 6:
                target = f"[{half.container.address.text}]:{mapping.container_port + port - mapping.first}"
            rules.append(f"{where}{mapping.protocol} dport {port} dnat {ip} to {target}")
    entry = f"meta nfproto ipv{family} {' '.join(half.conditions)} jump {chain}"
    return Condition(chain, entry, tuple(rules))


# --- changes ---------------------------------------------------------------------------------------------


def base_changes() -> list[Change]:
    """The table with its chains and maps. It fails with EEXIST at the first chain when it is there already."""
    return [
        Change("add", Table(TABLE)),
        Change("create", Chain(BASE_CHAIN)),
        *(Change("add", one) for one in base_maps()),
        *(Change("add", Chain(name, hook)) for name, hook in _HOOKS.items()),
        *(Change("add", Chain(name)) for name in ("translate", CONDITIONAL, "masquerading")),
        *(Change("add", rule) for rule in base_rules()),
    ]


def base_maps() -> Iterator[Map]:
    """Every map."""
    service = "inet_proto . inet_service"
    for family, address in _ADDRESS.items():
        yield Map(f"any{family}", service, f"{address} . inet_service")
        yield Map(f"host{family}", f"{address} . {service}", f"{address} . inet_service")
        yield Map(f"range{family}", service, address, interval=True)
        yield Map(f"hostrange{family}", f"{address} . {service}", address, interval=True)
        yield Map(f"snat{family}", address, "verdict")
        yield Map(f"claims{family}", service, _OWNER)
        yield Map(f"hostclaims{family}", f"{address} . {service}", _OWNER)
        yield Map(f"addresses{family}", address, _OWNER)


def base_rules() -> Iterator[Rule]:
    """Every rule of the base, in order, as nft prints them."""
    marked = f"meta mark & {_MARK:#010x} == {_MARK:#010x}"
    for hook in ("prerouting", "output"):
        yield Rule(hook, f"fib daddr type local jump {BASE_CHAIN}")
    yield Rule(BASE_CHAIN, f"{marked} goto translate")
    yield Rule(BASE_CHAIN, f"meta mark set meta mark | {_MARK:#010x}")
    yield Rule(BASE_CHAIN, "jump translate")
    yield Rule(BASE_CHAIN, f"meta mark set meta mark & {0xFFFFFFFF ^ _MARK:#010x}")
    yield Rule("translate", f"jump {CONDITIONAL}")
    # IPv6 loopback packets cannot leave the host, so ::1 is left alone: a refusal is better than a timeout.
    for family, ip, every in ((4, "ip", "meta nfproto ipv4"), (6, "ip6", "ip6 daddr != ::1")):
        for host, anywhere in (("host", "any"), ("hostrange", "range")):
            yield Rule("translate", f"dnat {ip} to {ip} daddr . meta l4proto . th dport map @{host}{family}")
            yield Rule("translate", f"{every} dnat {ip} to meta l4proto . th dport map @{anywhere}{family}")
    yield Rule("postrouting", f"{marked} jump masquerading")
    yield Rule("masquerading", "ip daddr vmap @snat4")
    yield Rule("masquerading", "ip6 daddr vmap @snat6")


def add_changes(plan: Plan, subnets: Iterable[str], comment: str) -> list[Change]:
    """Put the plan in. `subnets` names its subnet chains that are not there yet. Repeating it changes nothing."""
    missing = set(subnets)
    changes = []
    for chain, rules in plan.subnets:
        if chain in missing:
            changes.append(Change("create", Chain(chain)))
            changes += [Change("add", Rule(chain, rule)) for rule in rules]
    for group in plan.groups:
        changes += [_put(element, comment) for element in group.all]
    for condition in plan.conditions:
        changes.append(Change("create", Chain(condition.chain)))
        changes += [Change("add", Rule(condition.chain, rule)) for rule in condition.rules]
        changes.append(Change("add", Rule(CONDITIONAL, condition.entry, comment)))
    return changes


def remove_changes(groups: Iterable[Group]) -> list[Change]:
    """Take groups out if they are ours, missing ones included.

    Each element is added before it is deleted: that changes nothing when it is there with this very value, makes the
    deletion succeed when it is not there, and fails with EEXIST when the key is another owner's.
    """
    changes = []
    for group in groups:
        for element in group.all:
            if element.value != SHARED:
                changes += [Change("add", element), Change("delete", element)]
    return changes


def presence_changes(groups: Iterable[Group]) -> list[Change]:
    """For a dry run: fails with ENOENT when an element is missing."""
    return [Change("delete", element) for group in groups for element in _own(group)]


def content_changes(groups: Iterable[Group]) -> list[Change]:
    """For a dry run: fails with EEXIST when an element has another value."""
    return [Change("add", element) for group in groups for element in _own(group)]


def _own(group: Group) -> tuple[Element, ...]:
    return tuple(element for element in group.all if element.value != SHARED)


def shared_keys(groups: Iterable[Group]) -> list[Element]:
    """The claims that owners with one host address each share."""
    return [element for group in groups for element in group.elements if element.value == SHARED]


def _put(element: Element, comment: str) -> Change:
    return Change("add", Element(element.map, element.key, element.value, comment))
