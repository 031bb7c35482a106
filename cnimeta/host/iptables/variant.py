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

from cnimeta.host import netlink
from cnimeta.host.iptables.netlink import mentions, table_names
from cnimeta.host.iptables.programs import PROGRAM_TIMEOUT_S, command_variant, program, run
from cnimeta.host.iptables.values import FAMILIES, Refused
from cnimeta.host.process import SYSTEM_PATH, find_program, run_program
from cnimeta.host.reading import read_file
from cnimeta.namedtuple import NamedTuple

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Sequence

    from cnimeta.host.netlink import Ask

_TABLES = frozenset({"filter", "nat", "mangle", "raw", "security"})
_HINTS = (":KUBE-IPTABLES-HINT ", ":KUBE-KUBELET-CANARY ")
_CONTAINER = "CNI-DN-"
_OURS = ("CNI-HOSTPORT-", _CONTAINER, "CNIMETA-")
_ENTRY = "-A CNI-HOSTPORT-DNAT "
_ENTRY_CHAIN = "CNI-HOSTPORT-DNAT"

_NAMES = {4: "ip_tables_names", 6: "ip6_tables_names"}
_NO_RULE = ("Bad rule", "No chain/target/match")
"""How iptables over nf_tables says that a rule, or its chain, is not there; the legacy one gives no reason."""


class Evidence(NamedTuple):
    """What one variant holds: container mappings, kubelet's hint, other rules."""

    mappings: bool = False
    hint: bool = False
    rules: int = 0


def loaded_tables(family: int, proc: str = "/proc/thread-self/net") -> list[str]:
    """The legacy tables registered in this network namespace; none when the module is not loaded.

    IoFailure (code 5) when unknown.
    """
    return (read_file(f"{proc}/{_NAMES[family]}") or b"").decode("ascii", "replace").split()


def detect(path: str = "", ask: Ask = netlink.ask) -> str:
    """The variant: "nft" or "legacy"; an empty text when no iptables is installed. IoFailure (code 5) when unknown."""
    command = command_variant(path)
    if not command:
        return next((variant for variant in ("nft", "legacy") if find_program(f"iptables-{variant}", path)), "")
    legacy_families = [family for family in FAMILIES if loaded_tables(family)]
    if command == "nft" and not legacy_families:
        return "nft"
    tables = table_names(ask)
    if command == "legacy" and not any(name in _TABLES for _, name in tables):
        return "legacy"
    legacy = evidence("legacy", legacy_families, path)
    if command == "nft" and legacy == Evidence():
        return "nft"
    if not legacy.mappings and any(mentions(family, _ENTRY_CHAIN, _CONTAINER, ask) for family in FAMILIES):
        return "nft"
    nft_families = [family for family in FAMILIES if any(other == family for other, _ in tables)]
    return decide(command, evidence("nft", nft_families, path), legacy)


def decide(command: str, nft: Evidence, legacy: Evidence) -> str:
    """The variant, from what each holds and what the `iptables` command is."""
    for kind in ("mappings", "hint", "rules"):
        held = getattr(nft, kind), getattr(legacy, kind)
        if held[0] != held[1]:
            return "nft" if held[0] > held[1] else "legacy"
    return command


def evidence(variant: str, families: Sequence[int], path: str = "") -> Evidence:
    """What a variant holds, from `iptables-save` of the families that it has tables of. Raises Refused."""
    lines = [line for family in families for line in run([program(family, variant, "-save", path)]).splitlines()]
    rules = [line for line in lines if line.startswith("-A")]
    return Evidence(
        any(line.startswith(_ENTRY) and _CONTAINER in line for line in rules),
        any(line.startswith(_HINTS) for line in lines),
        sum(not any(name in line for name in _OURS) for line in rules),
    )


def holds(family: int, variant: str, path: str, chain: str, rule: str) -> bool:
    """`iptables -C`: the kernel's form of the rule is compared, whatever the order of its words.

    Refused when the program fails for another reason than that the rule is not there.
    """
    batch = f"*nat\n-C {chain} {rule}\nCOMMIT\n"
    argv = [program(family, variant, "-restore", path), "--noflush", "-w"]
    done = run_program(argv, {"PATH": SYSTEM_PATH, "LC_ALL": "C"}, batch.encode(), PROGRAM_TIMEOUT_S)
    if done.status == 0:
        return True
    reason = done.complaint.partition("line 2 failed")[2]
    if done.complaint.endswith("line 2 failed") or reason.removeprefix(": ").startswith(_NO_RULE):
        return False
    raise Refused(f"cannot read chain {chain}: {argv[0]}: {done.complaint}")
