"""Which Iptables adapter this host needs; the adapters are imported when they are."""

from __future__ import annotations

TYPE_CHECKING = False
if TYPE_CHECKING:
    from cnimeta.host.protocols import Iptables


def installed(path: str = "") -> Iptables | None:
    """The adapter for the variant this host uses, or None when no iptables is installed."""
    from cnimeta.host.iptables.variant import detect

    variant = detect(path)
    return open_variant(variant, path) if variant else None


def open_variant(variant: str, path: str = "") -> Iptables:
    """The adapter of one variant."""
    if variant == "legacy":
        from cnimeta.host.iptables.legacy import LegacyIptables

        return LegacyIptables(path)
    from cnimeta.host.iptables.restore import NftIptables

    return NftIptables(path)
