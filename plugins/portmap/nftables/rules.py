"""The nftables form of port mappings, as data: base, elements, claims. Pure.

Every plain mapping is one element of a hash map, so a packet's look-up, an ADD and a DEL cost the same whatever is
mapped already. Table `inet cnimeta_hostports`:

    prerouting, output -> hostports       for packets to an address of this host (fib), never for others' addresses
    hostports          -> translate       with a mark on the packet while it is there; it stays when translated
    translate             conditional rules, then the maps: host4/6 (one host address) before any4/6, then ranges
    postrouting        -> masquerading    for marked packets only: snat4/6, by container address, says what to do

| map             | key                              | value                       |
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

from cnimeta.errors import CniError
from cnimeta.host.digest import sha512_hex
from cnimeta.host.nftables.values import Chain, Change, Element, Hook, Map, Rule, Table
from cnimeta.namedtuple import NamedTuple
from cnimeta.spec.fields import Fields
from cnimeta.spec.ip import Address, parse_ip

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

    from cnimeta.spec.ip import Cidr
    from cnimeta.spec.jsonio import JSON
    from cnimeta_plugins.portmap.config import PortMapping
    from cnimeta_plugins.portmap.plan import FamilyPlan, Plan

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
    elements: tuple[Element, ...] = ()

    @property
    def all(self) -> tuple[Element, ...]:
        """The claim and the rest."""
        return (self.claim, *self.elements)


class Elements(NamedTuple):
    """What the kernel has of one attachment's own: the payload of its record."""

    groups: tuple[Group, ...] = ()
    conditions: tuple[str, ...] = ()
    """The names of its conditional chains."""

    def as_json(self) -> JSON:
        """The form in the record: a group is an array of its claim and its elements, an element of its three parts."""
        return {"groups": self.groups, "conditions": self.conditions}


class Condition(NamedTuple):
    """A container's own chain, entered by a rule with its conditions."""

    chain: str
    entry: str
    rules: tuple[str, ...]


class Subnet(NamedTuple):
    """The chain that masquerades for the containers of one subnet; they share it, and it is kept."""

    chain: str
    rules: tuple[str, ...]


def read_elements(value: JSON) -> Elements:
    """Read the payload of a record. CniError when it is damaged."""
    if not isinstance(value, dict):
        raise CniError("the payload is not an object")
    fields = Fields(value, "$.payload")
    return Elements(tuple(_group(rows) for rows in fields.items("groups")), tuple(fields.texts("conditions")))


def _group(value: JSON) -> Group:
    if isinstance(value, list) and len(value) == 2 and isinstance(value[1], list):
        return Group(_element(value[0]), tuple([_element(element) for element in value[1]]))
    raise CniError("a group is not an array of its claim and its elements")


def _element(value: JSON) -> Element:
    if isinstance(value, list) and len(value) == 3:
        name, key, data = value
        if isinstance(name, str) and isinstance(key, str) and isinstance(data, str):
            return Element(name, key, data)
    raise CniError("an element is not an array of map, key and value")


def owner_id(network: str, container_id: str, ifname: str) -> str:
    """The owner's number, as an IPv6 address. `/` occurs in none of the three, so no two attachments share a text."""
    digest = sha512_hex(f"{network}/{container_id}/{ifname}")[:32]
    return Address(6, bytes.fromhex(digest)).text


def owner_comment(network: str, container_id: str, ifname: str) -> str:
    """The attachment's name for a comment (128 bytes with its end): network and ID are cut when too long."""
    text = f"{container_id}/{ifname}/{network}"
    return text if len(text) <= _COMMENT_MAX else text[: _COMMENT_MAX - 3] + "..."


# --- the attachment's part -------------------------------------------------------------------------------


def plan_elements(plan: Plan) -> Elements:
    """What the attachment has of its own."""
    owner = owner_id(*plan.owner)
    groups: list[Group] = []
    for family in plan.families:
        groups += _mapping_groups(family, owner)
        groups.append(_address_group(family, owner, plan))
    chains = tuple(_conditional_chain(family.family, owner) for family in plan.families if family.conditions)
    return Elements(tuple(groups), chains)


def subnet_chains(plan: Plan) -> tuple[Subnet, ...]:
    """The shared chains that the elements lead to."""
    settings = plan.settings
    if settings.masq_all:
        return (Subnet(MASQ_ALL, ("masquerade",)),)
    if not settings.snat:
        return ()
    return tuple(Subnet(_subnet_chain(one.container), _subnet_rules(one.container)) for one in plan.families)


def conditional_chains(plan: Plan) -> tuple[Condition, ...]:
    """The chains of a container with conditions, by the names that `plan_elements` gives them."""
    owner = owner_id(*plan.owner)
    return tuple(_condition(family, owner) for family in plan.families if family.conditions)


def _mapping_groups(plan: FamilyPlan, owner: str) -> Iterator[Group]:
    family = plan.family
    wildcard = {
        (mapping.protocol, port) for mapping in plan.mappings if mapping.is_wildcard for port in mapping.host_ports
    }
    for mapping in plan.mappings:
        where, everywhere = _where(mapping), mapping.is_wildcard
        claims = f"claims{family}" if everywhere else f"hostclaims{family}"
        interval = mapping.is_range and not mapping.shifted
        for port in mapping.host_ports:
            key = f"{mapping.protocol} . {port}"
            elements: list[Element] = []
            if not everywhere and (mapping.protocol, port) not in wildcard:
                elements.append(Element(f"claims{family}", key, SHARED))
            if plan.conditions:
                pass  # its own chain translates
            elif interval and port == mapping.first:
                elements.append(_interval(mapping, plan))
            elif not interval:
                elements.append(_single(mapping, port, plan))
            yield Group(Element(claims, where + key, owner), tuple(elements))


def _where(mapping: PortMapping) -> str:
    return f"{mapping.where} . " if mapping.where else ""


def _single(mapping: PortMapping, port: int, plan: FamilyPlan) -> Element:
    name = ("any" if mapping.is_wildcard else "host") + str(plan.family)
    value = f"{plan.container.address.text} . {mapping.target(port)}"
    return Element(name, f"{_where(mapping)}{mapping.protocol} . {port}", value)


def _interval(mapping: PortMapping, plan: FamilyPlan) -> Element:
    name = ("range" if mapping.is_wildcard else "hostrange") + str(plan.family)
    key = f"{_where(mapping)}{mapping.protocol} . {mapping.first}-{mapping.last}"
    return Element(name, key, plan.container.address.text)


def _address_group(family: FamilyPlan, owner: str, plan: Plan) -> Group:
    number, address = family.family, family.container.address.text
    claim = Element(f"addresses{number}", address, owner)
    if plan.settings.masq_all:
        return Group(claim, (Element(f"snat{number}", address, f"goto {MASQ_ALL}"),))
    if plan.settings.snat:
        return Group(claim, (Element(f"snat{number}", address, f"goto {_subnet_chain(family.container)}"),))
    return Group(claim)


def _subnet_chain(container: Cidr) -> str:
    """`masq-10.88.0.0/16`; in hexadecimal for IPv6, as a chain's name has no colons."""
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


def conditional_chain_names(owner: str) -> tuple[str, ...]:
    """The names that an owner's conditional chains have, if it has any."""
    return tuple(_conditional_chain(family, owner) for family in _ADDRESS)


def _conditional_chain(family: int, owner: str) -> str:
    return f"if{family}-{parse_ip(owner).packed.hex()}"


def _condition(plan: FamilyPlan, owner: str) -> Condition:
    ip = "ip" if plan.family == 4 else "ip6"
    address = plan.container.address.text
    address = address if plan.family == 4 else f"[{address}]"
    rules = []
    for mapping in plan.mappings:
        where = f"{ip} daddr {mapping.where} " if mapping.where else ""
        rules += [
            f"{where}{mapping.protocol} dport {port} dnat {ip} to {address}:{mapping.target(port)}"
            for port in mapping.host_ports
        ]
    chain = _conditional_chain(plan.family, owner)
    entry = f"meta nfproto ipv{plan.family} {' '.join(plan.conditions)} jump {chain}"
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


def add_changes(plan: Plan, elements: Elements, subnets: Iterable[Subnet]) -> list[Change]:
    """Put the elements in. `subnets` are its subnet chains that are not there yet. Repeating it changes nothing."""
    comment = owner_comment(*plan.owner)
    changes = []
    for subnet in subnets:
        changes.append(Change("create", Chain(subnet.chain)))
        changes += [Change("add", Rule(subnet.chain, text)) for text in subnet.rules]
    for group in elements.groups:
        changes += [Change("add", element, comment) for element in group.all]
    for condition in conditional_chains(plan):
        changes.append(Change("create", Chain(condition.chain)))
        changes += [Change("add", Rule(condition.chain, text)) for text in condition.rules]
        changes.append(Change("add", Rule(CONDITIONAL, condition.entry), comment))
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
