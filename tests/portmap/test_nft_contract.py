"""One contract for every Nft: the fake, the kernel over netlink and the `nft` program."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from cnimeta.errors import CniError
from cnimeta.host.nftables.kernel import KernelNft
from cnimeta.host.nftables.program import NftProgram
from cnimeta.host.nftables.values import Chain, Change, Element, Hook, Map, Refusal, Rule, Table
from cnimeta.testing.netfilter import FakeNft
from cnimeta_plugins.portmap.nftables.rules import owner_comment

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from cnimeta.host.protocols import Nft
    from cnimeta.testing.netns import Namespace

TABLE = "contract"
PORTS = Map("ports", "inet_proto . inet_service", "ipv4_addr . inet_service")
RANGES = Map("ranges", "inet_proto . inet_service", "ipv4_addr", interval=True)
VERDICTS = Map("verdicts", "ipv4_addr", "verdict")
BASE = [
    Change("add", Table(TABLE)),
    Change("create", Chain("main", Hook("nat", "prerouting", "dstnat"))),
    Change("add", Chain("side")),
    *(Change("add", one) for one in (PORTS, RANGES, VERDICTS)),
]
ELEMENT, COMMENT = Element("ports", "tcp . 80", "10.0.0.2 . 8080"), "c1/eth0/net"


class NoProgram(NftProgram):
    """Whoever asks it was to do without."""

    def _find(self) -> str | None:
        raise AssertionError("nft was started")


@pytest.fixture(
    params=[
        pytest.param("fake", marks=pytest.mark.unit),
        *(pytest.param(name, marks=pytest.mark.kernel) for name in ("netlink", "program")),
    ]
)
def nft(request: pytest.FixtureRequest) -> Iterator[Nft]:
    if request.param == "fake":
        yield FakeNft()
        return
    make_netns: Callable[[str], Namespace] = request.getfixturevalue("make_netns")
    with make_netns("nft").entered():
        yield KernelNft(TABLE, program=NoProgram(TABLE)) if request.param == "netlink" else NftProgram(TABLE)


@pytest.fixture
def table(nft: Nft) -> Nft:
    nft.apply(BASE)
    return nft


def refused(nft: Nft, *changes: Change) -> tuple[str, int]:
    """The kind of the refusal and the place of the change it is about."""
    with pytest.raises(Refusal) as caught:
        nft.apply(changes)
    return caught.value.kind, caught.value.index


def test_nothing_is_there_when_nothing_was_made(nft: Nft) -> None:
    assert not nft.has_chain("main")
    assert nft.chain_uses() == {}
    assert nft.rules("main") == []
    assert nft.elements("ports") == {}


def test_the_table_must_be_there_when_anything_is_added(nft: Nft) -> None:
    assert refused(nft, Change("add", Chain("main"))) == ("missing", 0)


def test_chains_are_there_when_made(table: Nft) -> None:
    assert table.has_chain("main")
    assert table.has_chain("side")
    assert not table.has_chain("other")


def test_all_is_refused_when_the_base_is_made_twice(table: Nft) -> None:
    assert refused(table, Change("add", Chain("other")), *BASE) == ("exists", 2)
    assert not table.has_chain("other")


def test_elements_come_back_as_they_were_when_listed(table: Nft) -> None:
    others = [
        Element("ports", "udp . 53", "10.0.0.3 . 53"),
        Element("ranges", "tcp . 9000-9010", "10.0.0.2"),
        Element("verdicts", "10.0.0.2", "goto side"),
    ]
    table.apply([Change("add", ELEMENT, COMMENT), *(Change("add", other) for other in others)])
    assert table.elements("ports") == {ELEMENT: COMMENT, others[0]: ""}
    assert table.elements("ranges") == {others[1]: ""}
    assert table.elements("verdicts") == {others[2]: ""}
    assert table.elements("ports", {COMMENT, "c2/eth0/net"}) == {others[0]: ""}
    assert table.elements("ports", {""}) == {ELEMENT: COMMENT}
    assert table.elements("none", {""}) == {}


def test_elements_are_found_by_their_keys(table: Nft) -> None:
    ranged = Element("ranges", "tcp . 9000-9010", "10.0.0.2")
    table.apply(
        [Change("add", ELEMENT, COMMENT), Change("add", ranged), Change("add", ELEMENT._replace(key="udp . 1"))]
    )
    assert table.lookup("ports", ["tcp . 79", ELEMENT.key, "tcp . 81"]) == {ELEMENT: COMMENT}
    assert table.lookup("ranges", ["tcp . 9000-9010", "tcp . 8000-8010"]) == {ranged: ""}
    assert table.lookup("ports", []) == table.lookup("none", ["tcp . 80"]) == {}


def test_adding_changes_nothing_when_only_the_comment_differs(table: Nft) -> None:
    table.apply([Change("add", ELEMENT, COMMENT)])
    table.apply([Change("add", ELEMENT, "other"), Change("add", ELEMENT)])
    assert table.elements("ports") == {ELEMENT: COMMENT}


def test_an_element_is_refused_when_its_key_has_another_value(table: Nft) -> None:
    table.apply([Change("add", ELEMENT)])
    other, second = ELEMENT._replace(value="10.0.0.9 . 80"), Element("ports", "tcp . 81", "10.0.0.9 . 80")
    assert refused(table, Change("add", second), Change("add", other)) == ("exists", 1)
    assert table.elements("ports") == {ELEMENT: ""}


def test_an_element_goes_by_its_key_when_deleted(table: Nft) -> None:
    table.apply([Change("add", ELEMENT)])
    table.apply([Change("delete", ELEMENT._replace(value=""))])
    assert table.elements("ports") == {}
    assert refused(table, Change("delete", ELEMENT)) == ("missing", 0)


def test_ownership_is_verified_when_an_element_is_added_and_deleted_at_once(table: Nft) -> None:
    table.apply([Change("add", ELEMENT), Change("delete", ELEMENT)])
    assert table.elements("ports") == {}
    table.apply([Change("add", ELEMENT)])
    other = ELEMENT._replace(value="10.0.0.9 . 80")
    assert refused(table, Change("add", other), Change("delete", other)) == ("exists", 0)


@pytest.mark.parametrize(
    "change",
    [
        Change("add", Rule("other", "return")),
        Change("add", Element("other", "tcp . 80", "10.0.0.2 . 80")),
        Change("add", Element("verdicts", "10.0.0.2", "goto other")),
        Change("flush", Chain("other")),
        Change("delete", Chain("other")),
    ],
    ids=lambda change: f"{change.verb} {type(change.item).__name__}",
)
def test_a_change_is_refused_when_what_it_names_is_missing(table: Nft, change: Change) -> None:
    assert refused(table, Change("add", ELEMENT), change) == ("missing", 1)
    assert table.elements("ports") == {}


def test_rules_come_back_in_order_and_go_by_their_handles_when_listed(table: Nft) -> None:
    rules = [
        Rule("side", "ip saddr 10.0.0.0/8 return"),
        Rule("side", "tcp dport 80 dnat ip to 10.0.0.2:8080"),
        Rule("side", "masquerade"),
    ]
    table.apply([Change("add", rule, comment) for rule, comment in zip(rules, (COMMENT, "", COMMENT), strict=True)])
    listed = table.rules("side")
    assert [rule._replace(handle="") for rule in listed] == rules
    assert table.all_rules() == {"main": [], "side": listed}
    table.apply([Change("delete", listed[1])])
    assert [rule._replace(handle="") for rule in table.rules("side")] == [rules[0], rules[2]]
    assert refused(table, Change("delete", listed[1])) == ("missing", 0)


def test_nothing_is_made_when_anything_was_changed_since(table: Nft) -> None:
    seen = table.generation()
    table.apply([Change("add", ELEMENT)], seen)
    assert table.elements("ports") == {ELEMENT: ""}
    with pytest.raises(Refusal) as caught:
        table.apply([Change("delete", ELEMENT)], seen)
    assert (caught.value.kind, caught.value.index) == ("changed", -1)
    assert table.elements("ports") == {ELEMENT: ""}
    table.apply([Change("delete", ELEMENT)], table.generation())
    assert table.elements("ports") == {}


def test_a_chain_goes_with_its_rules_when_flushed_and_deleted(table: Nft) -> None:
    table.apply([Change("add", Rule("side", "masquerade"))])
    table.apply([Change("flush", Chain("side"))])
    assert table.has_chain("side")
    assert table.rules("side") == []
    table.apply([Change("delete", Chain("side"))])
    assert not table.has_chain("side")


def test_uses_count_rules_and_what_leads_to_a_chain(table: Nft) -> None:
    assert table.chain_uses() == {"main": 0, "side": 0}
    verdict = Element("verdicts", "10.0.0.2", "goto side")
    table.apply([Change("add", Rule("side", "return")), Change("add", Rule("main", "ct status dnat jump side"))])
    table.apply([Change("add", verdict)])
    assert table.chain_uses() == {"main": 1, "side": 3}
    assert [table.rule_count(chain) for chain in ("main", "side", "none")] == [1, 1, 0]
    table.apply([Change("delete", verdict), Change("flush", Chain("main"))])
    assert table.chain_uses() == {"main": 0, "side": 1}


def test_a_chain_stays_when_something_leads_to_it(table: Nft) -> None:
    verdict = Element("verdicts", "10.0.0.2", "goto side")
    table.apply([Change("add", verdict)])
    assert refused(table, Change("delete", Chain("side"))) == ("other", 0)
    table.apply([Change("delete", verdict), Change("flush", Chain("side")), Change("delete", Chain("side"))])
    assert not table.has_chain("side")


def test_nothing_is_kept_when_it_is_a_dry_run(table: Nft) -> None:
    table.dry_run([Change("add", ELEMENT)])
    assert table.elements("ports") == {}
    with pytest.raises(Refusal) as caught:
        table.dry_run([Change("delete", ELEMENT)])
    assert caught.value.kind == "missing"


@pytest.mark.kernel
def test_a_failed_listing_is_an_error_when_it_is_not_that_nothing_is_there(tmp_path) -> None:
    broken = tmp_path / "nft"
    broken.write_text(
        "#!/bin/sh\necho 'netlink: Error: cache initialization failed: Operation not supported' >&2\nexit 1\n"
    )
    broken.chmod(0o755)
    with pytest.raises(CniError, match=r"cannot list map inet contract ports: .*not supported"):
        NftProgram(TABLE, str(tmp_path)).elements("ports")
    with pytest.raises(CniError, match=r"cannot list ruleset inet: .*not supported"):
        NftProgram(TABLE, str(tmp_path)).rules("main")


@pytest.mark.unit
@pytest.mark.parametrize("comment", ['c1" ; flush ruleset', "c1\nflush ruleset", "c1\x00"])
def test_comment_that_would_end_itself_is_refused(comment: str) -> None:
    for item in (ELEMENT, Rule("main", "accept")):
        with pytest.raises(CniError, match="cannot carry the comment"):
            Change("add", item, comment).render(TABLE)


@pytest.mark.unit
@pytest.mark.parametrize("ifname", ['e"; flush', "e\\x", "é0"])
def test_name_of_an_interface_never_ends_a_comment(ifname: str) -> None:
    said = owner_comment("net", "c1", ifname)
    assert said.isascii()
    assert not set(said) & {'"', "\\"}
    Change("add", ELEMENT, said).render(TABLE)


@pytest.mark.parametrize("name", ["a}b", "a,b", "{x", "},", "elements={"])
def test_elements_are_all_listed_when_an_interface_has_a_name_of_nfts_own_signs(table: Nft, name: str) -> None:
    comment = f"c1/{name}/net"
    other = Element("ports", "udp . 81", "10.0.0.3 . 8081")
    table.apply([Change("add", ELEMENT, comment), Change("add", other, COMMENT)])
    assert table.elements("ports") == {ELEMENT: comment, other: COMMENT}
