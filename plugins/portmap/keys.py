"""What is said of the keys of portmap's configuration. Pure."""

from __future__ import annotations

from cnimeta.spec.keys import OF_EVERY_PLUGIN, strangers, without_effect
from cnimeta_plugins.portmap.config import DEFAULTS, KEYS

TYPE_CHECKING = False
if TYPE_CHECKING:
    from cnimeta.spec.netconf import NetConf

_OF_SNAT = ("masqAll", "markMasqBit", "externalSetMarkChain")


def remarks(conf: NetConf) -> list[str]:
    """A line for each key that nobody reads, and for each that decides nothing beside the others. Of a valid one."""
    return strangers(conf.fields, (*OF_EVERY_PLUGIN, *KEYS)) + idle_keys(conf)


def idle_keys(conf: NetConf) -> list[str]:
    """A line for each key that decides nothing beside the others."""
    if conf.fields.boolean("snat", DEFAULTS.snat):
        return []
    return [line for key in _OF_SNAT for line in without_effect(conf.fields, key, "$.snat is false")]
