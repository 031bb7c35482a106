"""Which variant is taken, in namespaces prepared like hosts."""

import sys

import pytest

from cnimeta.host.iptables.programs import command_variant, program
from cnimeta.host.iptables.variant import Evidence, decide, detect

VARIANTS = ("nft", "legacy")
CHAIN = "CNI-HOSTPORT-DNAT"


def other(variant: str) -> str:
    return VARIANTS[variant == "nft"]


@pytest.fixture
def path_of(tmp_path):
    """A folder in which `iptables` is of the given variant."""

    def make(variant: str) -> str:
        folder = tmp_path / variant
        folder.mkdir()
        for stem in ("iptables", "ip6tables"):
            for suffix in ("", "-save", "-restore"):
                (folder / f"{stem}{suffix}").symlink_to(f"/usr/sbin/{stem}-{variant}{suffix}")
        return str(folder)

    return make


@pytest.mark.unit
@pytest.mark.parametrize("command", VARIANTS)
@pytest.mark.parametrize(
    ("nft", "legacy", "expected"),
    [
        (Evidence(), Evidence(), None),
        (Evidence(rules=3), Evidence(rules=3), None),
        (Evidence(rules=1), Evidence(), "nft"),
        (Evidence(rules=1), Evidence(rules=2), "legacy"),
        (Evidence(rules=1), Evidence(hint=True), "legacy"),
        (Evidence(hint=True), Evidence(rules=99), "nft"),
        (Evidence(hint=True, rules=99), Evidence(mappings=True), "legacy"),
        (Evidence(mappings=True), Evidence(hint=True), "nft"),
        (Evidence(mappings=True, rules=1), Evidence(mappings=True, rules=2), "legacy"),
    ],
)
def test_the_stronger_evidence_decides_when_both_variants_are_in_use(command, nft, legacy, expected):
    assert decide(command, nft, legacy) == (expected or command)


@pytest.mark.kernel
@pytest.mark.parametrize("variant", VARIANTS)
def test_the_command_decides_and_nothing_is_started_when_the_host_is_empty(make_netns, path_of, variant):
    host, path = make_netns("host"), path_of(variant)
    code = f"from cnimeta.host.iptables.adapters import installed; print(installed({path!r}).variant)"
    done = host.run("strace", "-f", "-qq", "-e", "trace=execve", sys.executable, "-c", code)
    assert done.stdout.strip() == variant
    assert len([line for line in done.stderr.splitlines() if "execve(" in line and "= 0" in line]) == 1


@pytest.mark.kernel
@pytest.mark.parametrize("variant", VARIANTS)
@pytest.mark.parametrize("version", ["iptables v1.8.9 (nf_tables)", "iptables v1.8.9 (legacy)", "iptables v1.6.1"])
def test_a_command_that_is_no_link_is_asked_when_its_name_says_nothing(tmp_path, variant, version):
    script = tmp_path / "iptables"
    script.write_text(f"#!/bin/sh\necho '{version}'\n")
    script.chmod(0o755)
    assert command_variant(str(tmp_path)) == ("nft" if "nf_tables" in version else "legacy")


@pytest.mark.kernel
@pytest.mark.parametrize("variant", VARIANTS)
def test_the_variant_with_rules_is_taken_when_the_command_is_the_other(make_netns, path_of, variant):
    host, path = make_netns("host"), path_of(other(variant))
    host.run(f"iptables-{variant}", "-A", "FORWARD", "-j", "ACCEPT")
    with host.entered():
        assert detect(path) == variant


@pytest.mark.kernel
@pytest.mark.parametrize("variant", VARIANTS)
@pytest.mark.parametrize("hint", ["KUBE-IPTABLES-HINT", "KUBE-KUBELET-CANARY"])
def test_kubelets_hint_is_followed_when_the_other_variant_has_more_rules(make_netns, path_of, variant, hint):
    host, path = make_netns("host"), path_of(other(variant))
    for _ in range(3):
        host.run(f"iptables-{other(variant)}", "-A", "FORWARD", "-j", "ACCEPT")
    host.run(f"ip6tables-{variant}", "-t", "mangle", "-N", hint)
    with host.entered():
        assert detect(path) == variant


@pytest.mark.kernel
@pytest.mark.parametrize("variant", VARIANTS)
def test_mappings_stay_in_one_variant_when_some_are_there_already(make_netns, path_of, variant):
    host, path = make_netns("host"), path_of(other(variant))
    host.run(f"iptables-{other(variant)}", "-t", "mangle", "-N", "KUBE-KUBELET-CANARY")
    for stem in ("iptables", "ip6tables"):
        host.run(f"{stem}-{other(variant)}", "-A", "FORWARD", "-j", "ACCEPT")
    for chain in (CHAIN, "CNI-DN-1"):
        host.run(f"iptables-{variant}", "-t", "nat", "-N", chain)
    host.run(f"iptables-{variant}", "-t", "nat", "-A", CHAIN, "-p", "tcp", "--dport", "80", "-j", "CNI-DN-1")
    with host.entered():
        assert detect(path) == variant


@pytest.mark.kernel
@pytest.mark.parametrize("variant", VARIANTS)
def test_the_command_decides_when_only_cnis_shared_chains_are_left_in_the_other(make_netns, path_of, variant):
    host, path = make_netns("host"), path_of(variant)
    left = f"iptables-{other(variant)}"
    for chain in (CHAIN, "CNI-HOSTPORT-MASQ"):
        host.run(left, "-t", "nat", "-N", chain)
    host.run(left, "-t", "nat", "-A", "PREROUTING", "-m", "addrtype", "--dst-type", "LOCAL", "-j", CHAIN)
    host.run(left, "-t", "nat", "-A", "POSTROUTING", "-j", "CNI-HOSTPORT-MASQ")
    host.run(left.replace("ip", "ip6", 1), "-t", "nat", "-N", CHAIN)
    host.run(left.replace("ip", "ip6", 1), "-t", "nat", "-A", CHAIN, "-d", "fe80::/10", "-j", "RETURN")
    with host.entered():
        assert detect(path) == variant


@pytest.mark.kernel
def test_the_program_of_the_variant_is_found_when_the_path_names_the_other(path_of):
    assert program(4, "nft", "-restore", path_of("legacy")) == "/usr/sbin/iptables-nft-restore"
    assert program(6, "legacy", "-save", path_of("nft")) == "/usr/sbin/ip6tables-legacy-save"
