"""nftables on the wire: to the byte what nft writes, by meaning what nft lists; any element there and back."""

from __future__ import annotations

import errno
import os
import re
import struct
from typing import TYPE_CHECKING, Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cnimeta.errors import CniError
from cnimeta.host.netlink import attribute, attributes, messages, request
from cnimeta.host.nftables import batch, wire
from cnimeta.host.nftables.elements import Layout, Unwritable, elements_in
from cnimeta.host.nftables.expressions import expressions_of
from cnimeta.host.nftables.kernel import KernelNft
from cnimeta.host.nftables.listing import rule_in
from cnimeta.host.nftables.program import NftProgram
from cnimeta.host.nftables.values import Chain, Change, Element, Hook, Map, Refusal, Rule, Table
from cnimeta.spec.ip import Address

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from pathlib import Path

    from cnimeta.testing.netns import Namespace

TABLE = "wire"
MAPS = [
    Map("any4", "inet_proto . inet_service", "ipv4_addr . inet_service"),
    Map("host6", "ipv6_addr . inet_proto . inet_service", "ipv6_addr . inet_service"),
    Map("range4", "inet_proto . inet_service", "ipv4_addr", interval=True),
    Map("hostrange6", "ipv6_addr . inet_proto . inet_service", "ipv6_addr", interval=True),
    Map("snat4", "ipv4_addr", "verdict"),
    Map("owners6", "ipv6_addr", "ipv6_addr"),
]
RULES = [
    "ip daddr != 127.0.0.0/8 fib daddr type local jump side",
    "meta nfproto ipv6 fib daddr type local jump side",
    "fib daddr type local jump side",
    "ip6 daddr ::1 return",
    "ip6 daddr fe80::/10 return",
    "ip saddr 10.64.0.0/10 masquerade",
    "ip saddr 10.88.0.0/16 masquerade",
    "ip saddr 127.0.0.1 masquerade",
    "ip6 saddr fd00:88::/64 masquerade",
    "masquerade",
    "jump side",
    "meta nfproto ipv4 dnat ip to meta l4proto . th dport map @any4",
    "meta nfproto ipv4 dnat ip to meta l4proto . th dport map @range4",
    "dnat ip6 to ip6 daddr . meta l4proto . th dport map @host6",
    "dnat ip6 to ip6 daddr . meta l4proto . th dport map @hostrange6",
    "ct status dnat jump side",
    "ip daddr vmap @snat4",
    'iifname != "lo" ip daddr 127.0.0.0/8 ct direction original ct status ! dnat drop',
    "tcp dport 80 dnat ip to 10.0.0.2:8080",
    "ip daddr 192.0.2.1 udp dport 53 dnat ip to 10.0.0.2:5353",
    "ip6 daddr fd00::1 tcp dport 80 dnat ip6 to [fd00::2]:80",
]
ELEMENTS = [
    Element("any4", "tcp . 80", "10.88.0.2 . 8080"),
    Element("host6", "fd00::1 . udp . 53", "fd00::3 . 53"),
    Element("range4", "sctp . 9000-9010", "10.88.0.2"),
    Element("hostrange6", "::102:304 . tcp . 9000-9010", "fd00::3"),
    Element("snat4", "10.88.0.2", "goto side"),
    Element("owners6", "fd00::1", "::"),
]
COMMENT = "c1/eth0/net"


def chain_for(rule: str) -> str:
    """A chain where the kernel takes the rule."""
    if "masquerade" in rule:
        return "away"
    if "drop" in rule:
        return "in"
    return "main" if "jump" in rule or "vmap" in rule else "side"


MAKING: list[Change] = [
    Change("add", Table(TABLE)),
    Change("create", Chain("main", Hook("nat", "prerouting", "dstnat"))),
    Change("add", Chain("out", Hook("nat", "output", "-100"))),
    Change("add", Chain("in", Hook("filter", "input", "filter"))),
    *(Change("add", Chain(name)) for name in ("side", "away")),
    *(Change("add", one) for one in MAPS),
    *(Change("add", Rule(chain_for(text), text), COMMENT if "jump" in text else "") for text in RULES),
    *(Change("add", one, COMMENT) for one in ELEMENTS),
]
CHANGING: list[Change] = [
    *(Change("add", one) for one in ELEMENTS),
    *(Change("delete", one) for one in ELEMENTS),
    Change("flush", Chain("main")),
    Change("add", Chain("more")),
    Change("delete", Chain("more")),
]


# --- beside nft ----------------------------------------------------------------------------------------------


def sent_by_nft(place: Namespace, folder: Path, changes: Sequence[Change]) -> bytes:
    """The transaction that nft sends for the changes."""
    script, trace = folder / "script", folder / "trace"
    script.write_text("".join(change.render(TABLE) + "\n" for change in changes))
    place.run("strace", "-e", "trace=sendmsg", "-e", "write=all", "-o", str(trace), "nft", "-f", str(script))
    sent: list[bytearray] = []
    for line in trace.read_text().splitlines():
        if line.startswith("sendmsg"):
            sent.append(bytearray())
        elif re.match(r" \| [0-9a-f]+  ", line):
            sent[-1] += bytes.fromhex(line[10:59].replace(" ", ""))
    return next(bytes(one) for one in sent if struct.unpack_from("=H", one, 4)[0] == wire.BATCH_BEGIN)


def sent_by_us(changes: Sequence[Change]) -> bytes:
    made = [request(0, wire.BATCH_BEGIN, 0, wire.BATCH)]
    made += [request(at, *order) for at, order in enumerate(wire.orders(TABLE, changes), 1)]
    return b"".join([*made, request(len(made), wire.BATCH_END, 0, wire.BATCH)])


@pytest.mark.kernel
def test_a_transaction_is_what_nft_writes_to_the_byte(make_netns: Callable[[str], Namespace], tmp_path: Path) -> None:
    place = make_netns("nftwire")
    theirs, ours = sent_by_nft(place, tmp_path, MAKING), sent_by_us(MAKING)
    assert [body.hex() for _, _, _, body in messages(ours)] == [body.hex() for _, _, _, body in messages(theirs)]
    assert ours == theirs
    # nft numbers the maps of its cache, too; the kernel goes by their names.
    theirs, ours = sent_by_nft(place, tmp_path, CHANGING), sent_by_us(CHANGING)
    numbered = rb"\x08\0\x04\0\0\0\0."
    assert [(kind, flags, body) for kind, flags, _, body in messages(ours)] == [
        (kind, flags, re.sub(numbered, b"", body, count=1, flags=re.DOTALL) if kind == wire.NEW_ELEMENT else body)
        for kind, flags, _, body in messages(theirs)
    ]


@pytest.mark.kernel
def test_a_listing_says_what_nft_lists(make_netns: Callable[[str], Namespace]) -> None:
    from cnimeta_plugins.portmap.nftables.meaning import meaning

    with make_netns("nftlist").entered():
        program, kernel = NftProgram(TABLE), KernelNft(TABLE)
        program.apply(MAKING)
        for name in [one.name for one in MAPS]:
            assert kernel.elements(name) == program.elements(name) != {}
        listed, wanted = kernel.all_rules(), program.all_rules()
        assert {chain: [rule.handle for rule in rules] for chain, rules in listed.items()} == {
            chain: [rule.handle for rule in rules] for chain, rules in wanted.items()
        }
        for chain, rules in wanted.items():
            assert [meaning(rule.text) for rule in listed[chain]] == [meaning(rule.text) for rule in rules]
            assert kernel.rules(chain) == listed[chain]


@pytest.mark.kernel
def test_what_is_beyond_netlink_goes_to_the_program(make_netns: Callable[[str], Namespace]) -> None:
    condition = Rule("side", "ip saddr { 10.0.0.0/8, 192.0.2.0/24 } counter accept")
    with make_netns("nftmore").entered():
        kernel = KernelNft(TABLE)
        kernel.apply(MAKING)
        kernel.apply([Change("add", condition)])
        listed = kernel.rules("side")
        assert listed == NftProgram(TABLE).rules("side")
        assert kernel.all_rules() == NftProgram(TABLE).all_rules()
        assert "10.0.0.0/8" in listed[-1].text
        with pytest.raises(Refusal, match="syntax error"):
            kernel.apply([Change("add", Rule("side", "no such word"))])
        kernel.apply([Change("delete", listed[-1])])
        assert len(kernel.rules("side")) == len(listed) - 1


# --- there and back ------------------------------------------------------------------------------------------

V4 = st.binary(min_size=4, max_size=4).map(lambda data: Address(4, data).text)
V6 = (
    st.binary(min_size=16, max_size=16)
    .filter(lambda data: not data.startswith(bytes(10)))
    .map(lambda data: Address(6, data).text)
)
PROTOCOL, PORT = st.sampled_from(["tcp", "udp", "sctp"]), st.integers(0, 65535).map(str)
RANGE = st.tuples(st.integers(0, 65534), st.integers(1, 100)).map(lambda at: f"{at[0]}-{min(at[0] + at[1], 65535)}")
PARTS = {7: V4, 8: V6, 12: PROTOCOL, 13: PORT | RANGE}
SAYING = st.text(st.characters(min_codepoint=32, max_codepoint=126, exclude_characters='"\\'), max_size=127)


@st.composite
def elements(draw: st.DrawFn) -> tuple[Layout, Element, str]:
    key = draw(st.sampled_from([(12, 13), (7, 12, 13), (8, 12, 13), (7,), (8,)]))
    value = draw(st.sampled_from([(), (7,), (8,), (7, 13), (8, 13)]))
    joined = " . ".join(draw(PARTS[kind]) for kind in key)
    if value:
        data = " . ".join(draw(PORT if kind == 13 else PARTS[kind]) for kind in value)
    else:
        data = draw(st.sampled_from(["goto side", "jump a-b/1", "return", "accept", "drop"]))
    return Layout(key, value), Element("m", joined, data), draw(SAYING)


@pytest.mark.unit
@settings(deadline=None)
@given(elements())
def test_an_element_comes_back_as_it_was(drawn: tuple[Layout, Element, str]) -> None:
    layout, element, comment = drawn
    _, _, body = wire.orders(TABLE, [Change("add", element, comment)])[0]
    assert list(elements_in("m", layout, body)) == [(element, comment)]


@pytest.mark.unit
@pytest.mark.parametrize("text", RULES)
def test_a_rule_comes_back_with_its_meaning(text: str) -> None:
    body = wire.INET + wire.text(2, "side") + attribute(3, bytes(7) + b"\7") + wire.nested(4, expressions_of(text))
    found = rule_in(body)
    assert (found.chain, found.handle) == ("side", "7")
    assert expressions_of(found.text) == expressions_of(text)


@pytest.mark.unit
@settings(deadline=None)
@given(st.binary(max_size=200))
def test_garbage_is_unwritable_and_nothing_worse(data: bytes) -> None:
    for kind in ("meta", "cmp", "payload", "nat", "lookup", "immediate", "bitwise", "fib", "ct", "byteorder", "masq"):
        expression = attribute(1, kind.encode() + b"\0") + attribute(2, data)
        body = wire.INET + wire.text(2, "side") + attribute(3, bytes(8)) + attribute(4, attribute(1, expression))
        try:
            rule_in(body)
        except Unwritable:
            continue


@pytest.mark.unit
@pytest.mark.parametrize(
    "text",
    [
        *("", "accept all", "ip daddr 10.0.0.0/0 return", "ip daddr fd00::1 return", "tcp dport 80-90 return"),
        *("dnat ip to meta l4proto . th dport map @any4", "dnat ip to 10.0.0.1", 'iifname "eth*" drop', "log", "jump"),
    ],
)
def test_a_rule_that_nft_alone_can_write_is_left_to_it(text: str) -> None:
    if not text:
        assert expressions_of(text) == b""
        return
    with pytest.raises(Unwritable):
        expressions_of(text)


# --- what the kernel says ------------------------------------------------------------------------------------


class Script:
    """A socket whose answers are given, a datagram or an errno each; `sent` is what was sent."""

    def __init__(self, *answers: bytes | int) -> None:
        self.answers = list(answers)
        self.sent: list[bytes] = []

    def __call__(self, *_: int) -> Any:
        return self

    def setsockopt(self, *_: object) -> None:
        pass

    def send(self, data: bytes) -> int:
        self.sent.append(data)
        return len(data)

    def recv(self, *_: int) -> bytes:
        answer = self.answers.pop(0) if self.answers else errno.EAGAIN
        if isinstance(answer, int):
            raise OSError(answer, os.strerror(answer))
        return answer

    def close(self) -> None:
        pass


def said(sequence: int, number: int) -> bytes:
    return struct.pack("=IHHIIi", 36, 2, 0, sequence, 0, -number) + bytes(16)


ORDERS = [(wire.NEW_ELEMENT, 0, b"")] * 3


@pytest.mark.unit
@pytest.mark.parametrize(
    ("answers", "verdict"),
    [
        ([said(3, 0)], (0, -1)),
        ([said(2, errno.EEXIST), said(3, 0)], (errno.EEXIST, 1)),
        ([said(1, errno.ENOENT) + said(2, errno.EEXIST), said(3, errno.EEXIST)], (errno.ENOENT, 0)),
        ([said(0, errno.ENOMEM)], (errno.ENOMEM, -1)),
        ([errno.ENOBUFS, said(2, errno.EEXIST)], (errno.EEXIST, 1)),
        ([errno.ENOBUFS, said(3, 0)], (0, -1)),
    ],
    ids=["made", "second", "first of many", "none's", "some lost", "others lost"],
)
def test_the_first_refusal_names_its_request(answers: list[bytes | int], verdict: tuple[int, int]) -> None:
    assert batch.transact(ORDERS, keep=True, connect=Script(*answers)) == verdict


@pytest.mark.unit
@pytest.mark.parametrize("answers", [[], [errno.ENOBUFS], [errno.ECONNREFUSED]], ids=["none", "all lost", "refused"])
def test_what_became_of_it_is_unknown_when_no_answer_comes(answers: list[bytes | int]) -> None:
    with pytest.raises(OSError, match=r"answer|buffer|refused"):
        batch.transact(ORDERS, keep=True, connect=Script(*answers))
    nft = KernelNft(
        TABLE, transact=lambda orders, keep, since: batch.transact(orders, keep=keep, connect=Script(*answers))
    )
    with pytest.raises(CniError, match="nftables did not answer") as caught:
        nft.apply([Change("add", Chain("side"))])
    assert not isinstance(caught.value, Refusal)


@pytest.mark.unit
def test_nothing_is_kept_without_the_end_of_the_batch() -> None:
    for keep in (True, False):
        script = Script(said(3, 0))
        batch.transact(ORDERS, keep=keep, connect=script)
        kinds = [kind for kind, _, _, _ in messages(script.sent[0])]
        assert (wire.BATCH_END in kinds) is keep


class Recording(NftProgram):
    """The program, with what it was asked for in `made`."""

    def __init__(self, *, there: bool = True) -> None:
        super().__init__(TABLE)
        self.there = there
        self.made: list[Change] = []

    def available(self) -> bool:
        return self.there

    def apply(self, changes: Sequence[Change], since: int = 0) -> None:
        self.made += changes


@pytest.mark.unit
@pytest.mark.parametrize("number", [errno.EINVAL, errno.EOPNOTSUPP])
def test_a_form_that_this_kernel_does_not_take_is_tried_by_the_program(number: int) -> None:
    changes = [Change("add", ELEMENTS[0])]
    program = Recording()
    KernelNft(TABLE, transact=lambda *_, **__: batch.Verdict(number, 0), program=program).apply(changes)
    assert program.made == changes
    program = Recording(there=False)
    with pytest.raises(Refusal, match=os.strerror(number)) as caught:
        KernelNft(TABLE, transact=lambda *_, **__: batch.Verdict(number, 0), program=program).apply(changes)
    assert (caught.value.kind, caught.value.index) == ("other", 0)


@pytest.mark.unit
@pytest.mark.parametrize("number", [errno.EPERM, errno.ENOMEM, errno.EINVAL, errno.EAGAIN])
def test_an_element_that_cannot_be_read_is_unknown(number: int) -> None:
    """Its map was told a moment before, so EINVAL does not mean that there is no nf_tables."""
    told = wire.INET + wire.text(2, "any4") + attribute(4, struct.pack(">I", 0x30D)) + attribute(6, bytes(3) + b"\7")

    def ask(_: int, kind: int, *__: object) -> Any:
        if kind == wire.GET_SET:
            from cnimeta.host.netlink import Message

            return [Message(kind, told)]
        raise OSError(number, os.strerror(number))

    for read in (lambda nft: nft.elements("any4"), lambda nft: nft.lookup("any4", ["tcp . 80"])):
        with pytest.raises(CniError, match="cannot read") as caught:
            read(KernelNft(TABLE, ask=ask))
        assert caught.value.code == 5
    assert attributes(told[4:])[6] == b"\0\0\0\7"
