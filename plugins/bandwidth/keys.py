"""What is said of the keys of bandwidth's configuration. Pure."""

from __future__ import annotations

from cnimeta.spec.keys import OF_EVERY_PLUGIN, strangers, without_effect
from cnimeta_plugins.bandwidth.config import KEYS, RATE_KEYS

TYPE_CHECKING = False
if TYPE_CHECKING:
    from cnimeta.spec.netconf import NetConf


def remarks(conf: NetConf) -> list[str]:
    """A line for each key that nobody reads, and for each that decides nothing beside the others. Of a valid one."""
    return strangers(conf.fields, (*OF_EVERY_PLUGIN, *KEYS)) + idle_keys(conf)


def idle_keys(conf: NetConf) -> list[str]:
    """A line for each key that decides nothing beside the others."""
    fields, asked = conf.fields, conf.runtime_config.object("bandwidth")
    if any(fields.has(key) for key in RATE_KEYS):
        return without_effect(conf.runtime_config, "bandwidth", "the network's own rates go before it")
    found: list[str] = []
    if not any(asked.has(key) for key in RATE_KEYS):
        others = [key for key in KEYS if key not in RATE_KEYS]
        for key in others:
            found += without_effect(asked, key, "no rate is set")
            if not fields.object("capabilities").boolean("bandwidth"):
                found += without_effect(
                    fields, key, "no rate is set, and no Pod can ask for one: capabilities.bandwidth"
                )
    return found
