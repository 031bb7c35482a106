"""Which iptables variant a host uses, decided as the iptables-wrappers project does, but without a process as a rule.

https://github.com/kubernetes-sigs/iptables-wrappers looks, in this order, for the chains that kubelet leaves as a hint
and then for the variant with more rules. Around that:

1. A variant that already carries container mappings keeps them: all mappings of a host are in one variant.
2. kubelet's hint (KUBE-IPTABLES-HINT, KUBE-KUBELET-CANARY).
3. The variant with more rules, CNI's own port mapping rules not counted: they stay behind when a host is switched over.
4. On a tie, what the `iptables` command is; that also is what the other implementations use.

Nothing needs to be counted while only one variant has tables at all, which the kernel tells at once.
"""

from __future__ import annotations

from cnimeta.host.iptables.netlink import has_rules, table_names
from cnimeta.host.iptables.programs import command_variant, program, run
from cnimeta.host.iptables.values import FAMILIES, Refused
from cnimeta.host.process import SYSTEM_PATH, find_program, run_program
from cnimeta.namedtuple import NamedTuple

_TABLES = frozenset({"filter", "nat", "mangle", "raw", "security"})
_HINTS = (":KUBE-IPTABLES-HINT ", ":KUBE-KUBELET-CANARY ")
_OURS = ("CNI-HOSTPORT-", "CNI-DN-")
_ENTRY = "-A CNI-HOSTPORT-DNAT "
_ENTRY_CHAIN = "CNI-HOSTPORT-DNAT"

_NAMES = {4: "/proc/net/ip_tables_names", 6: "/proc/net/ip6_tables_names"}


class Evidence(NamedTuple):
    """What one variant holds: container mappings, kubelet's hint, other rules."""

    mappings: bool = False
    hint: bool = False
    rules: int = 0


def loaded_tables(family: int) -> list[str]:
    """The legacy tables registered in this network namespace; none when the module is not loaded."""
    try:
        with open(_NAMES[family], encoding="ascii") as file:
            return file.read().split()
    except OSError:
        return []


def detect(path: str = "") -> str:
    """The variant: "nft" or "legacy"; an empty text when no iptables is installed."""
    command = command_variant(path)
    if not command:
        return next((variant for variant in ("nft", "legacy") if find_program(f"iptables-{variant}", path)), "")
    legacy_used = any(loaded_tables(family) for family in FAMILIES)
    if command == "nft" and not legacy_used:
        return "nft"
    if command == "legacy" and not any(name in _TABLES for _, name in table_names()):
        return "legacy"
    legacy = evidence("legacy", path) if legacy_used else Evidence()
    if command == "nft" and legacy == Evidence():
        return "nft"
    if not legacy.mappings and any(has_rules(family, _ENTRY_CHAIN) for family in FAMILIES):
        return "nft"
    return decide(command, evidence("nft", path), legacy)


def decide(command: str, nft: Evidence, legacy: Evidence) -> str:
    """The variant, from what each holds and what the `iptables` command is."""
    for kind in ("mappings", "hint", "rules"):
        held = getattr(nft, kind), getattr(legacy, kind)
        if held[0] != held[1]:
            return "nft" if held[0] > held[1] else "legacy"
    return command


def evidence(variant: str, path: str = "") -> Evidence:
    """What a variant holds, from `iptables-save` of both families; nothing for a family that cannot be read."""
    lines: list[str] = []
    for family in FAMILIES:
        try:
            lines += run([program(family, variant, "-save", path)]).splitlines()
        except Refused:
            continue
    rules = [line for line in lines if line.startswith("-A")]
    return Evidence(
        any(line.startswith(_ENTRY) for line in rules),
        any(line.startswith(_HINTS) for line in lines),
        sum(not any(name in line for name in _OURS) for line in rules),
    )


def holds(family: int, variant: str, path: str, chain: str, rule: str) -> bool:
    """`iptables -C`: the kernel's form of the rule is compared, whatever the order of its words."""
    batch = f"*nat\n-C {chain} {rule}\nCOMMIT\n"
    argv = [program(family, variant, "-restore", path), "--noflush", "-w"]
    return run_program(argv, {"PATH": SYSTEM_PATH}, batch.encode(), 30.0).status == 0
