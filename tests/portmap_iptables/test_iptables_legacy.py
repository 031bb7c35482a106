"""What is particular to python-iptables and to the xtables lock."""

import os
import subprocess
import sys

import pytest
from iptables_kit import Driver, Part, Target, mapping

from cnimeta.errors import CheckFailed, TryAgainLater
from cnimeta.host.iptables.legacy import UNABLE, Inexpressible, LegacyIptables, parse_rule, run_in_child
from cnimeta.host.iptables.lock import XtablesLock
from cnimeta.host.iptables.values import Change, Refused
from cnimeta_plugins.portmap.config import Settings


@pytest.mark.unit
def test_a_rule_is_taken_apart_when_it_has_heads_matches_and_a_target():
    text = '! -s 10.0.0.0/8 -p tcp -m comment --comment "a b" -m conntrack ! --ctstate NEW -j MARK --set-xmark 0x1/0x1'
    assert parse_rule(text) == (
        [("src", "!10.0.0.0/8"), ("protocol", "tcp")],
        [
            ("match", "comment", [("comment", ("a b",), False)]),
            ("match", "conntrack", [("ctstate", ("NEW",), True)]),
            ("target", "MARK", [("set-xmark", ("0x1/0x1",), False)]),
        ],
    )


@pytest.mark.unit
@pytest.mark.parametrize("text", ["", "-p tcp", "--dport 80 -j X", "-f -j X", "-j X -j Y", "-4 -j X", "! -j X", "-m"])
def test_a_rule_is_inexpressible_when_a_word_has_no_place(text):
    with pytest.raises(Inexpressible):
        parse_rule(text)


@pytest.mark.kernel
def test_import_starts_no_program_when_the_libraries_are_installed():
    code = "from cnimeta.host.iptables.legacy import import_iptc; print(import_iptc().Table.NAT)"
    done = subprocess.run(
        ["strace", "-f", "-qq", "-e", "trace=execve", sys.executable, "-c", code],
        capture_output=True,
        text=True,
        check=True,
    )
    started = [line for line in done.stderr.splitlines() if "execve(" in line and "= 0" in line]
    assert done.stdout == "nat\n"
    assert len(started) == 1, started  # the interpreter itself


@pytest.mark.kernel
@pytest.mark.parametrize("word", ["-m", "--no-such-option"])
def test_the_rule_is_refused_with_the_programs_words_when_nobody_understands_it(make_netns, word):
    tables = LegacyIptables()
    with make_netns("host").entered(), pytest.raises(Refused, match="iptables-legacy-restore"), tables.held():
        tables.commit(4, [Change("append", "OUTPUT", f"{word} nonsense -j ACCEPT")])


@pytest.mark.kernel
def test_the_program_writes_the_rules_when_python_iptables_cannot_be_loaded(make_netns, tmp_path):
    def missing(_work):
        raise ImportError("no libip4tc here")

    backend = Driver(LegacyIptables(lock=XtablesLock(str(tmp_path / "lock")), in_child=missing))
    parts = [Part("10.0.0.2/24", (mapping("tcp", 8080, 8080, 80),), Settings())]
    target = Target("net", "c1", "eth0")
    with make_netns("host").entered():
        backend.add(target, parts)
        backend.check(target, parts)
        backend.delete(target)
        with pytest.raises(CheckFailed):
            backend.check(target, parts)


@pytest.mark.kernel
def test_the_lock_is_free_again_when_the_program_wrote(make_netns, tmp_path):
    path = str(tmp_path / "lock")
    tables = LegacyIptables(lock=XtablesLock(path), in_child=lambda _: (UNABLE, ""))
    with make_netns("host").entered():
        with tables.held():
            tables.commit(4, [Change("new", "A")])
            with pytest.raises(TryAgainLater), XtablesLock(path, timeout_s=0.02):
                pass
        with XtablesLock(path, timeout_s=0.02):
            assert tables.has_chain(4, "A")


@pytest.mark.kernel
def test_code_11_is_answered_when_the_lock_is_not_had_again_after_the_program(make_netns, tmp_path):
    path = str(tmp_path / "lock")
    other = XtablesLock(path)

    class Contended(XtablesLock):
        def __exit__(self, *error):
            super().__exit__(*error)
            if other._fd < 0:
                other.__enter__()

    tables = LegacyIptables(lock=Contended(path, timeout_s=0.02), in_child=lambda _: (UNABLE, ""))
    with make_netns("host").entered():
        with pytest.raises(TryAgainLater), tables.held():
            tables.commit(4, [Change("new", "A")])
        assert tables.has_chain(4, "A")
    other.__exit__()


@pytest.mark.kernel
def test_the_program_does_the_work_when_libxtables_ends_the_child(make_netns, tmp_path):
    tables = LegacyIptables(
        lock=XtablesLock(str(tmp_path / "lock")), in_child=lambda _: run_in_child(lambda: os.kill(os.getpid(), 9))
    )
    with make_netns("host").entered():
        with tables.held():
            tables.commit(4, [Change("new", "A"), Change("append", "A", "-j RETURN")])
        assert tables.chain(4, "A") == ["-j RETURN"]


@pytest.mark.kernel
def test_iptables_legacy_waits_when_the_lock_is_held(make_netns):
    host = make_netns("host")
    with XtablesLock():
        done = host.run("iptables-legacy", "-w", "1", "-t", "nat", "-N", "A", check=False)
    assert done.returncode == 4
    assert "xtables lock" in done.stderr


@pytest.mark.unit
def test_the_lock_is_refused_with_code_11_when_it_is_held_too_long(tmp_path):
    path = str(tmp_path / "lock")
    with XtablesLock(path), pytest.raises(TryAgainLater, match="another program has it"):
        XtablesLock(path, timeout_s=0.02).__enter__()
    with XtablesLock(path, timeout_s=0.02):
        assert os.stat(path).st_size == 0
