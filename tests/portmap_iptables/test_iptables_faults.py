"""Failures and races: a batch that fails, other programs in between, many at once, a killed process."""

import os
import signal
import subprocess
import sys
import textwrap
import time

import pytest
from iptables_kit import Driver, Part, Target, mapping, rules_of

from cnimeta.errors import CniError, HostPortConflict
from cnimeta.host.iptables.adapters import open_variant
from cnimeta.host.iptables.values import RAW, Change, Refused, Table
from cnimeta.testing.iptables import FakeIptables
from cnimeta_plugins.portmap.config import Settings
from cnimeta_plugins.portmap.iptables.names import GUARD_CHAIN
from cnimeta_plugins.portmap.iptables.rules import GUARDED, JUMP_IN

DNAT = "CNI-HOSTPORT-DNAT"
HERE = os.path.dirname(__file__)
TARGET = Target("net", "c1", "eth0")
MAPPINGS = tuple(mapping(protocol, 8080, 8080, 80) for protocol in ("tcp", "udp", "sctp"))
PARTS = [Part(address, MAPPINGS, Settings()) for address in ("10.0.0.2/24", "2001:db8::2/64")]


def clean(tables) -> bool:
    return not any(
        "CNI-DN-" in name or "CNI-DN-" in str(rules) for f in (4, 6) for name, rules in tables.read(f).items()
    )


@pytest.mark.crash
@pytest.mark.parametrize("fail_at", range(1, 6))
@pytest.mark.parametrize("repeat", ["del", "add", "gc"])
def test_nothing_leaks_when_any_batch_fails_and_another_command_follows(fail_at, repeat):
    tables = FakeIptables()
    backend = Driver(tables)
    backend.add(Target("net", "first", "eth0"), [Part("10.0.0.9/24", (mapping("tcp", 1, 1, 1),), Settings())])
    backend.delete(Target("net", "first", "eth0"))
    tables.commits, tables.fail_at = 0, fail_at
    failed = False
    for step in (lambda: backend.add(TARGET, PARTS), lambda: backend.delete(TARGET)):
        try:
            step()
        except OSError:
            failed = True
    assert failed == (fail_at <= tables.commits)
    tables.fail_at = 0
    if repeat == "add":
        backend.add(TARGET, PARTS)
        backend.check(TARGET, PARTS)
        backend.delete(TARGET)
    elif repeat == "gc":
        backend.gc("net", set())
    else:
        backend.delete(TARGET)
    assert clean(tables)


@pytest.mark.unit
def test_add_takes_one_batch_a_family_when_the_shared_chains_are_there():
    tables = FakeIptables()
    backend = Driver(tables)
    backend.add(Target("net", "c0", "eth0"), [PARTS[0]._replace(mappings=(mapping("tcp", 1, 1, 1),))])
    tables.commits = 0
    backend.add(TARGET, PARTS[:1])
    assert tables.commits == 1
    backend.delete(TARGET)
    assert tables.commits == 2


@pytest.mark.unit
def test_add_starts_over_when_another_program_makes_the_shared_chain_first():
    tables = FakeIptables()

    def interfere():
        tables.on_commit = None
        tables.tables[4].chains[DNAT] = []
        tables.tables[4].chains["PREROUTING"].append(JUMP_IN)

    tables.others[4, RAW] = Table({"PREROUTING": [GUARDED], GUARD_CHAIN: []})
    tables.tables[4].chains[DNAT] = []  # as seen at first: the chain without its jumps
    tables.on_commit = interfere
    backend = Driver(tables)
    backend.add(TARGET, PARTS[:1])
    backend.check(TARGET, PARTS[:1])
    assert tables.chain(4, "PREROUTING") == [JUMP_IN]


@pytest.mark.unit
def test_delete_starts_over_when_another_program_took_the_entry_away():
    tables = FakeIptables()
    backend = Driver(tables)
    backend.add(TARGET, PARTS[:1])

    def interfere():
        tables.on_commit = None
        del tables.tables[4].chains[DNAT][0]

    tables.on_commit = interfere
    backend.delete(TARGET)
    assert clean(tables)


@pytest.mark.unit
def test_delete_removes_a_jump_from_elsewhere_when_someone_added_one():
    tables = FakeIptables()
    backend = Driver(tables)
    backend.add(TARGET, PARTS[:1])
    with tables.held():
        tables.commit(4, [Change("append", "OUTPUT", f"-j {TARGET.chain}")])
    backend.delete(TARGET)
    assert clean(tables)


@pytest.mark.unit
def test_the_error_is_raised_when_even_the_second_batch_is_refused():
    tables = FakeIptables()

    def interfere():
        tables.tables[4].chains.setdefault(TARGET.chain, []).append("-j RETURN")
        tables.tables[4].chains.pop(DNAT, None)
        if tables.commits > 1:
            tables.tables[4].chains.pop(TARGET.chain, None)

    backend = Driver(tables)
    tables.others[4, RAW] = Table({"PREROUTING": [GUARDED], GUARD_CHAIN: []})
    tables.tables[4].chains[DNAT] = []
    tables.on_commit = interfere
    with pytest.raises(Exception, match="does not exist"):
        backend.add(TARGET, PARTS[:1])


WORKER = """
    import sys
    sys.path.insert(0, sys.argv[4])
    from cnimeta.errors import HostPortConflict
    from cnimeta.host.iptables.adapters import open_variant
    from cnimeta_plugins.portmap.config import Settings
    from iptables_kit import Driver, Part, Target, mapping
    variant, number, port = sys.argv[1], int(sys.argv[2]), int(sys.argv[3])
    try:
        Driver(open_variant(variant)).add(
            Target("net", f"c{number}", "eth0"),
            [Part(f"10.0.0.{number + 2}/24", (mapping("tcp", port, port, 80),), Settings())],
        )
    except HostPortConflict as error:
        sys.exit(9)
"""


def start(host, variant: str, number: int, port: int) -> subprocess.Popen:
    return host.start(sys.executable, "-c", textwrap.dedent(WORKER), variant, str(number), str(port), HERE)


@pytest.mark.kernel
@pytest.mark.parametrize(("variant", "count"), [("nft", 24), ("legacy", 8)])
def test_every_mapping_is_there_when_many_add_at_once_on_an_empty_host(make_netns, variant, count):
    host = make_netns("host")
    workers = [start(host, variant, number, 8000 + number) for number in range(count)]
    ended = [(worker.communicate(), worker.returncode) for worker in workers]
    assert [status for _, status in ended] == [0] * count, ended
    with host.entered():
        tables = open_variant(variant)
        table = tables.read(4)
        expected = sorted(
            entry
            for number in range(count)
            for entry in rules_of(
                "net", f"c{number}", "10.0.0.2/24", [mapping("tcp", 8000 + number, 8000 + number, 80)], Settings()
            ).entries
        )
        assert sorted(table[DNAT]) == expected
        assert len(table["PREROUTING"]) == len(table["POSTROUTING"]) == 1


@pytest.mark.kernel
@pytest.mark.parametrize("variant", ["nft", "legacy"])
def test_one_container_has_the_port_when_several_ask_for_it_at_once(make_netns, variant):
    host = make_netns("host")
    workers = [start(host, variant, number, 8080) for number in range(6)]
    for worker in workers:
        worker.communicate()
    assert sorted(worker.returncode for worker in workers) == [0, 9, 9, 9, 9, 9]


@pytest.mark.crash
@pytest.mark.parametrize("variant", ["nft", "legacy"])
def test_delete_and_add_work_when_an_add_was_killed_at_any_moment(make_netns, variant):
    host = make_netns("host")
    for number in range(12):
        worker = start(host, variant, 1, 8080)
        time.sleep(0.02 + number * 0.02)
        os.kill(worker.pid, signal.SIGKILL)  # `ip netns exec` has become the interpreter
        worker.communicate()
        with host.entered():
            backend = Driver(open_variant(variant))
            target = Target("net", "c1", "eth0")
            parts = [Part("10.0.0.3/24", (mapping("tcp", 8080, 8080, 80),), Settings())]
            if number % 2:
                backend.add(target, parts)
                backend.check(target, parts)
            backend.delete(target)
            assert clean(backend.tables)


@pytest.mark.unit
def test_errors_of_one_family_do_not_keep_the_other_when_deleting():
    class Broken(FakeIptables):
        def commit(self, family, changes):
            if family == 4:
                raise Refused("the kernel said no")
            super().commit(family, changes)

    tables = Broken()
    good = Driver(FakeIptables())
    good.add(TARGET, PARTS)
    tables.tables = good.tables.tables
    with pytest.raises(Refused, match="the kernel said no"):
        Driver(tables).delete(TARGET)
    assert tables.has_chain(4, TARGET.chain)
    assert not tables.has_chain(6, TARGET.chain)


@pytest.mark.unit
def test_the_first_family_is_taken_back_when_the_second_is_refused():
    class Broken(FakeIptables):
        def commit(self, family, changes):
            if family == 6:
                raise Refused("the kernel said no")
            super().commit(family, changes)

    tables = Broken()
    with pytest.raises(CniError, match="the kernel said no"):
        Driver(tables).add(TARGET, PARTS)
    assert clean(tables)


@pytest.mark.unit
def test_conflicts_are_seen_when_the_other_container_has_many_ports():
    backend = Driver(FakeIptables())
    many = tuple(mapping("tcp", port, port, port) for port in range(1000, 1040))
    backend.add(Target("net", "many", "eth0"), [PARTS[0]._replace(mappings=many)])
    for port in (1000, 1014, 1015, 1039):
        with pytest.raises(HostPortConflict, match=f"host port {port}/tcp is taken by"):
            backend.add(TARGET, [PARTS[0]._replace(mappings=(mapping("tcp", port, port, 80),))])
