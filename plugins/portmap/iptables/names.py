"""The shared chains that upstream's portmap makes. Never change: other versions and other programs look for them."""

from cnimeta_plugins.portmap.iptables import DNAT_CHAIN as DNAT_CHAIN

SETMARK_CHAIN = "CNI-HOSTPORT-SETMARK"
MASQ_CHAIN = "CNI-HOSTPORT-MASQ"
OLD_SNAT_CHAIN = "CNI-HOSTPORT-SNAT"
"""Of versions before 0.8."""
