"""The nftables form of port mappings, as data: base, elements, claims. Pure.

Every plain mapping is one element of a hash map, so a packet's look-up, an ADD and a DEL cost the same whatever is
mapped already. Table `inet cnimeta_hostports`:

    prerouting, output -> hostports   for packets to an address of this host (fib), never for others' addresses; what
                                      arrives for 127.0.0.0/8 is not looked up
    hostports                         conditional rules, then the maps, the narrowest first: host4/6, hostrange4/6
                                      (one host address), any4/6, range4/6
    postrouting -> masquerading       for translated connections only (conntrack tells): snat4/6, by container address,
                                      says what to do
    guard                             drops what arrives for 127.0.0.0/8 untranslated: route_localnet lets it in

No packet is marked: marks are everybody's, and others save them.

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
from cnimeta.host.nftables.values import Chain, Change, Element, Rule
from cnimeta.namedtuple import NamedTuple
from cnimeta.spec.fields import Fields
from cnimeta.spec.ip import Address, Cidr, parse_ip

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Mapping, Sequence

    from cnimeta.spec.jsonio import JSON
    from cnimeta_plugins.portmap.config import PortMapping
    from cnimeta_plugins.portmap.plan import FamilyPlan, Plan

TABLE = "cnimeta_hostports"
"""Never change: rules of an earlier version must be found."""

BASE_CHAIN = "hostports"
CONDITIONAL = "conditional"
MASQ_ALL = "masq-all"
_MASQ_ALL_RULES = ("masquerade",)
SHARED = "::"
LOOPBACK = "127.0.0.1"
"""As upstream: a client that took another 127.0.0.0/8 address for its own is not served, on any backend."""
_COMMENT_MAX = 127
ADDRESS = {4: "ipv4_addr", 6: "ipv6_addr"}
_SUBNET = "masq-"


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
        body: object = {"groups": self.groups, "conditions": self.conditions}
        return body  # type: ignore[return-value]  # records are meant as arrays here


class Condition(NamedTuple):
    """A container's own chain, entered by a rule with its conditions."""

    chain: str
    entry: str
    rules: tuple[str, ...]


class Subnet(NamedTuple):
    """The chain that masquerades for the containers of one subnet; they share it, and the last takes it along."""

    chain: str
    rules: tuple[str, ...]


def read_elements(value: JSON) -> Elements:
    """Read the payload of a record. CniError when it is damaged."""
    fields = Fields(value if isinstance(value, dict) else {}, "$.payload")
    if not fields.has("groups") or not fields.has("conditions"):
        raise CniError("the payload does not tell what is in the kernel")
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


def owner_comment(network: str, container_id: str, ifname: str, managed_by: str = "") -> str:
    """The attachment's name for a comment (128 bytes with its end): network and ID are cut when too long.

    The plugin on whose behalf it is mapped comes last; where it finds no room, nothing comes after the last `/`.
    An interface's name may have characters that would end the comment in nft's language: `_` stands for them.
    """
    text = _plain(f"{container_id}/{ifname}/{network}")
    whole = f"{text}/{_plain(managed_by)}" if managed_by else text
    if len(whole) > _COMMENT_MAX:
        whole = f"{text}/"
    return whole if len(whole) <= _COMMENT_MAX else text[: _COMMENT_MAX - 3] + "..."


def _plain(text: str) -> str:
    if text.isascii() and text.isprintable() and '"' not in text and "\\" not in text:
        return text
    return "".join(char if " " <= char <= "~" and char not in '"\\' else "_" for char in text)


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
    if not settings.snat:
        return ()
    if settings.masq_all:
        return (Subnet(MASQ_ALL, _MASQ_ALL_RULES),)
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
    if not plan.settings.snat:
        return Group(claim)
    chain = MASQ_ALL if plan.settings.masq_all else _subnet_chain(family.container)
    return Group(claim, (Element(f"snat{number}", address, f"goto {chain}"),))


def _subnet_chain(container: Cidr) -> str:
    """`masq-10.88.0.0/16`; in hexadecimal for IPv6, as a chain's name has no colons."""
    network = container.network
    if container.address.family == 4:
        return f"{_SUBNET}{network.text}"
    return f"{_SUBNET}{network.address.packed.hex()}/{network.prefix}"


def _subnet_rules(container: Cidr) -> tuple[str, ...]:
    """Clients of the container's own subnet (itself included) and of this host's loopback address.

    They would get the answer from an address they never wrote to (containernetworking/plugins#469).
    """
    network = container.network.text
    if container.address.family == 4:
        return (f"ip saddr {network} masquerade", f"ip saddr {LOOPBACK} masquerade")
    return (f"ip6 saddr {network} masquerade",)


def subnet_named(chain: str) -> Subnet | None:
    """The shared chain of this name; None for a name that none has."""
    if chain == MASQ_ALL:
        return Subnet(chain, _MASQ_ALL_RULES)
    head, _, prefix = chain.removeprefix(_SUBNET).partition("/")
    try:
        address = parse_ip(head) if "." in head else Address(6, bytes.fromhex(head))
        return Subnet(chain, _subnet_rules(Cidr(address, int(prefix)))) if chain.startswith(_SUBNET) else None
    except ValueError:
        return None


def idle_chains(uses: Mapping[str, int], gone: Mapping[str, int] | None = None) -> list[Change]:
    """Changes that remove shared chains which nobody needs: of the kernel's `uses` only their own rules are left.

    With `gone`, those of these chains alone, when so many uses of each go at the same time.
    """
    changes = []
    for chain in sorted(uses if gone is None else gone):
        subnet = subnet_named(chain)
        if subnet is not None and chain in uses and uses[chain] - (gone or {}).get(chain, 0) <= len(subnet.rules):
            changes += [Change("flush", Chain(chain)), Change("delete", Chain(chain))]
    return changes


def masquerading_uses(groups: Iterable[Group]) -> dict[str, int]:
    """How many elements of the groups lead to each shared chain."""
    found: dict[str, int] = {}
    for group in groups:
        for element in group.elements:
            if element.value.startswith("goto "):
                chain = element.value.removeprefix("goto ")
                found[chain] = found.get(chain, 0) + 1
    return found


def conditional_chain_names(owner: str) -> tuple[str, ...]:
    """The names that an owner's conditional chains have, if it has any."""
    return tuple(_conditional_chain(family, owner) for family in ADDRESS)


def is_conditional_entry(rule: str) -> bool:
    """Whether a rule of the chain `conditional` leads to the chain of some container."""
    return rule.rpartition("jump ")[2].startswith(tuple(f"if{family}-" for family in ADDRESS))


def _conditional_chain(family: int, owner: str) -> str:
    return f"if{family}-{parse_ip(owner).packed.hex()}"


def _condition(plan: FamilyPlan, owner: str) -> Condition:
    ip = "ip" if plan.family == 4 else "ip6"
    address = plan.container.address.text
    address = address if plan.family == 4 else f"[{address}]"
    rules = []
    for mapping in sorted(plan.mappings, key=lambda one: one.is_wildcard):  # the narrowest first, as in the maps
        where = f"{ip} daddr {mapping.where} " if mapping.where else ""
        rules += [
            f"{where}{mapping.protocol} dport {port} dnat {ip} to {address}:{mapping.target(port)}"
            for port in mapping.host_ports
        ]
    chain = _conditional_chain(plan.family, owner)
    entry = f"meta nfproto ipv{plan.family} {' '.join(plan.conditions)} jump {chain}"
    return Condition(chain, entry, tuple(rules))


# --- changes ---------------------------------------------------------------------------------------------


def add_changes(plan: Plan, elements: Elements, subnets: Iterable[Subnet]) -> list[Change]:
    """Put the elements in. `subnets` are its subnet chains that are not there whole. Repeating it changes nothing."""
    comment = owner_comment(*plan.owner, plan.settings.managed_by)
    changes = []
    for subnet in subnets:
        changes += [Change("add", Chain(subnet.chain)), Change("flush", Chain(subnet.chain))]
        changes += [Change("add", Rule(subnet.chain, text)) for text in subnet.rules]
    for group in elements.groups:
        changes += [Change("add", element, comment) for element in group.all]
    for condition in conditional_chains(plan):
        changes.append(Change("create", Chain(condition.chain)))
        changes += [Change("add", Rule(condition.chain, text)) for text in condition.rules]
        changes.append(Change("add", Rule(CONDITIONAL, condition.entry), comment))
    return changes


def still_held(before: Elements | None, refused: Element, wanted: Elements) -> Elements | None:
    """What there may be of `before` when an element of it is another's; all of it when the element is a wanted one."""
    if before is None or any(refused in group.all for group in wanted.groups):
        return before
    return before._replace(groups=tuple(group for group in before.groups if refused not in group.all))


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


def orphan_changes(groups: Sequence[Group], lost: Iterable[Group]) -> list[list[Change]]:
    """For each element of groups whose claim another owner has by now: changes that remove it, if it is the owner's.

    It is when it leads to an address that nobody else claims, which is tried in the same transaction.
    """
    claims = {group.claim.key: group.claim for group in groups if group.claim.map.startswith("addresses")}
    found = []
    for group in lost:
        for element in group.elements:
            claim = claims.get(element.value.partition(" . ")[0])
            if claim is not None and not group.claim.map.startswith("addresses"):
                found.append([Change(verb, one) for one in (claim, element) for verb in ("add", "delete")])
    return found


def own_elements(groups: Iterable[Group]) -> dict[str, list[Element]]:
    """The elements of the groups by their maps, without claims that others share."""
    found: dict[str, list[Element]] = {}
    for group in groups:
        for element in group.all:
            if element.value != SHARED:
                found.setdefault(element.map, []).append(element)
    return found


def is_claim(element: Element) -> bool:
    """Whether an element tells whose a key is, and leads nowhere."""
    return element.map.rstrip("46") in ("claims", "hostclaims", "addresses")


def shared_keys(groups: Iterable[Group]) -> list[Element]:
    """The claims that owners with one host address each share."""
    return [element for group in groups for element in group.elements if element.value == SHARED]
