"""portmap: verbs and wiring."""

from __future__ import annotations

from cnimeta.plugin.base import Plugin


class Portmap(Plugin):
    """Maps host ports to container ports."""

    name = "portmap"
    about = "maps host ports to container ports with nftables or iptables"
