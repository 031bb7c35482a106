"""Which host ports somebody's rules redirect already: no bind test can see these, and the first rule wins.

The kernel is asked first whether there are rules of others at all. Then nftables' rules are read in the terse form,
which leaves out the elements of sets and maps (5 ms where the full listing of 20,000 mappings takes 130); the elements
only of those maps and sets that another's rule looks a destination port up in; iptables-save for rules of iptables-nft
that nft cannot spell out, and for iptables-legacy when its nat table is there. This project's own nftables tables are
left out: their ports are in the records.

Rules that are there and cannot be read are an error: nobody knows what they redirect.
"""

from __future__ import annotations

from cnimeta.errors import CniError, IoFailure
from cnimeta.host import netlink
from cnimeta.host.iptables.programs import program
from cnimeta.host.netlink import nft_tables
from cnimeta.host.process import SYSTEM_PATH, find_program, run_program
from cnimeta.host.reading import read_file
from cnimeta.spec.jsonio import loads_object

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
    from typing import TypeAlias

    from cnimeta.host.netlink import Ask
    from cnimeta.host.values import Completed
    from cnimeta.spec.jsonio import JSON

    Span: TypeAlias = tuple[str, int, int]
    """(protocol, empty for any; first port; last port)"""

OWN_TABLES = "cnimeta"
"""This project's nftables tables begin with this."""
_PROTOCOLS = ("tcp", "udp", "sctp")
_TIMEOUT_S = 5.0
_ATTEMPTS = 3  # what is listed may go while it is
_NAT_TARGETS = ("DNAT", "REDIRECT")


class RulesetScan:
    """The PortScan adapter. `run` runs programs, `ask` netlink requests; failed attempts are reported through `log`."""

    def __init__(
        self,
        log: Callable[[str], None] = lambda _: None,
        run: Callable[[Sequence[str], Mapping[str, str], bytes, float], Completed] = run_program,
        proc: str = "/proc/thread-self/net",
        ask: Ask = netlink.ask,
    ) -> None:
        self._log = log
        self._run = run
        self._proc = proc
        self._ask = ask

    def redirected(self) -> list[Span]:
        """(protocol, first, last) of every port that is redirected; an empty protocol stands for all.

        IoFailure (code 5) when rules are there that cannot be read.
        """
        for _ in range(_ATTEMPTS - 1):
            try:
                return self._redirected()
            except CniError as error:
                self._log(f"port scan, tried again: {error}")
        return self._redirected()

    def _redirected(self) -> list[Span]:
        foreign = any(not name.startswith(OWN_TABLES) for _, name in nft_tables(self._ask))
        ruleset = Ruleset(self._nft("-t", "-j", "list", "ruleset") if foreign else ())
        spans = list(ruleset.spans)
        for kind, family, table, name in ruleset.lookups:
            spans += elements(
                self._nft("-j", "list", kind, family, table, name), ruleset.lookups[kind, family, table, name]
            )
        for number, family in ((4, "ip"), (6, "ip6")):
            if family in ruleset.opaque:
                spans += read_save(self._save(number, "nft"))
            if b"nat" in (read_file(f"{self._proc}/{family}_tables_names") or b"").split():
                spans += read_save(self._save(number, "legacy"))
        return spans

    def _nft(self, *arguments: str) -> list[Mapping[str, JSON]]:
        nft = find_program("nft")
        if nft is None:
            raise IoFailure("there are nftables rules, and nft is not installed to read them")
        text = self._output(nft, arguments)
        try:
            entries = loads_object(text, "nft's answer").get("nftables")
        except CniError as error:
            raise IoFailure(f"cannot read the nftables rules: {error.msg}") from None
        return [entry for entry in entries if isinstance(entry, dict)] if isinstance(entries, list) else []

    def _save(self, family: int, variant: str) -> str:
        return self._output(program(family, variant, "-save"), ("-t", "nat")).decode("utf-8", "replace")

    def _output(self, path: str, arguments: Sequence[str]) -> bytes:
        """What a program prints."""
        done = self._run([path, *arguments], {"PATH": SYSTEM_PATH}, b"", _TIMEOUT_S)
        if done.status != 0:
            what = " ".join((path, *arguments))
            raise IoFailure(f"cannot read the rules that redirect ports: {what}: {done.complaint}")
        return done.stdout


# --- nft -j ----------------------------------------------------------------------------------------------


class Ruleset:
    """What `nft -t -j list ruleset` says of destination ports."""

    def __init__(self, entries: Iterable[Mapping[str, JSON]]) -> None:
        self.spans: list[Span] = []
        self.lookups: dict[tuple[str, str, str, str], _Key] = {}
        """(set or map, family, table, name) of what else must be read, and how its keys are built."""
        self.opaque: set[str] = set()
        """Families in which a rule has a part that only iptables can spell out."""
        kinds: dict[tuple[object, object, object], str] = {}
        rules: list[Mapping[str, JSON]] = []
        for entry in entries:
            for kind, body in entry.items():
                if not isinstance(body, dict) or str(body.get("table", "")).startswith(OWN_TABLES):
                    continue
                if kind in ("set", "map"):
                    kinds[body.get("family"), body.get("table"), body.get("name")] = kind
                elif kind == "rule":
                    rules.append(body)
        for rule in rules:
            self._read(rule, kinds)

    def _read(self, rule: Mapping[str, JSON], kinds: Mapping[tuple[object, object, object], str]) -> None:
        expressions = rule.get("expr")
        if not isinstance(expressions, list):
            return
        parts = [part for part in expressions if isinstance(part, dict)]
        names = {name for part in parts for name in part}
        if "xt" in names:
            self.opaque.add(str(rule.get("family")))
        protocol = _l4_protocol(parts)
        found: list[Span] = []
        for key, data in _lookups(parts):
            shape = _Key.of(key, protocol)
            if shape is None:
                continue
            if isinstance(data, str) and data.startswith("@"):
                where = rule.get("family"), rule.get("table"), data[1:]
                if where in kinds and names & {"dnat", "redirect", "vmap"}:
                    self.lookups[kinds[where], str(where[0]), str(where[1]), data[1:]] = shape
            else:
                found += shape.spans(data)
        if names & {"dnat", "redirect", "vmap"}:
            self.spans += found
        elif names & {"jump", "goto"}:  # a dispatch to the chain that redirects; a wide one says nothing
            self.spans += [span for span in found if span[1] == span[2]]


class _Key:
    """How a lookup key holds a destination port: its place in a concatenation, if it is one, and the protocol."""

    def __init__(self, protocol: str, place: int | None = None, protocol_place: int | None = None) -> None:
        self.protocol = protocol
        self.place = place
        self.protocol_place = protocol_place

    @classmethod
    def of(cls, key: JSON, protocol: str) -> _Key | None:
        """The shape of a key, None when there is no destination port in it."""
        if not isinstance(key, dict):
            return None
        named = _dport_protocol(key)
        if named is not None:
            return cls(named or protocol)
        parts = key.get("concat")
        if not isinstance(parts, list):
            return None
        for place, part in enumerate(parts):
            named = _dport_protocol(part)
            if named is not None:
                carriers = [index for index, other in enumerate(parts) if _is_l4_protocol(other)]
                return cls(named or protocol, place, carriers[0] if carriers else None)
        return None

    def spans(self, data: JSON) -> Iterator[Span]:
        """The ports in a value, a set of values, or the keys of a map."""
        if isinstance(data, dict) and isinstance(data.get("set"), list):
            for item in data["set"]:
                yield from self.spans(item[0] if isinstance(item, list) else item)
            return
        if isinstance(data, dict) and isinstance(data.get("elem"), dict):
            yield from self.spans(data["elem"].get("val"))
            return
        protocol = self.protocol
        if self.place is not None:
            values = data.get("concat") if isinstance(data, dict) else None
            if not isinstance(values, list) or len(values) <= self.place:
                return
            if self.protocol_place is not None and values[self.protocol_place] in _PROTOCOLS:
                protocol = str(values[self.protocol_place])
            data = values[self.place]
        ends = data.get("range") if isinstance(data, dict) else [data, data]
        if isinstance(ends, list) and len(ends) == 2 and all(isinstance(end, int) for end in ends):
            yield protocol, int(ends[0]), int(ends[1])


def elements(entries: Iterable[Mapping[str, JSON]], key: _Key) -> list[Span]:
    """The ports in the keys of a set or map, from `nft -j list set|map`."""
    found: list[Span] = []
    for entry in entries:
        for body in entry.values():
            if isinstance(body, dict) and isinstance(body.get("elem"), list):
                found += key.spans({"set": body["elem"]})
    return found


def _lookups(parts: Sequence[Mapping[str, JSON]]) -> Iterator[tuple[JSON, JSON]]:
    """(key, values) of every comparison and every map in a rule."""
    for part in parts:
        for name, body in part.items():
            if not isinstance(body, dict):
                continue
            if name == "match" and body.get("op") in ("==", "in"):
                yield body.get("left"), body.get("right")
            elif name == "vmap":
                yield body.get("key"), body.get("data")
            elif name in ("dnat", "redirect"):
                for value in body.values():
                    if isinstance(value, dict) and isinstance(value.get("map"), dict):
                        yield value["map"].get("key"), value["map"].get("data")


def _dport_protocol(part: JSON) -> str | None:
    """The protocol of a destination port field, empty for any; None when it is something else."""
    payload = part.get("payload") if isinstance(part, dict) else None
    if not isinstance(payload, dict) or payload.get("field") != "dport":
        return None
    return str(payload["protocol"]) if payload.get("protocol") in _PROTOCOLS else ""


def _is_l4_protocol(part: JSON) -> bool:
    if not isinstance(part, dict):
        return False
    meta, payload = part.get("meta"), part.get("payload")
    return (isinstance(meta, dict) and meta.get("key") == "l4proto") or (
        isinstance(payload, dict) and payload.get("field") in ("protocol", "nexthdr")
    )


def _l4_protocol(parts: Sequence[Mapping[str, JSON]]) -> str:
    """The one protocol a rule is limited to, empty when there are several or none."""
    for part in parts:
        match = part.get("match")
        if isinstance(match, dict) and _is_l4_protocol(match.get("left")) and match.get("right") in _PROTOCOLS:
            return str(match["right"])
    return ""


# --- iptables-save ---------------------------------------------------------------------------------------


def read_save(text: str) -> list[Span]:
    """The redirected ports in what iptables-save prints."""
    spans: list[Span] = []
    for line in text.splitlines():
        if line.startswith("-A "):
            spans += _read_rule("".join(line.split('"')[::2]).split())  # quoted parts are comments
    return spans


def _read_rule(words: Sequence[str]) -> Iterator[Span]:
    protocol, ports, target = "", "", ""
    for place, word in enumerate(words[:-1]):
        value = words[place + 1]
        if word == "-p":
            protocol = value if value in _PROTOCOLS else ""
        elif word in ("--dport", "--dports"):
            ports = "" if words[place - 1] == "!" else value
        elif word in ("-j", "-g"):
            target = value
    for part in ports.split(",") if ports and target else ():
        first, colon, last = part.partition(":")
        if first.isdigit() and (not colon or last.isdigit()):
            span = protocol, int(first), int(last if colon else first)
            if target in _NAT_TARGETS or (target not in ("RETURN", "ACCEPT", "MARK") and span[1] == span[2]):
                yield span
