"""The keys of hostport_alloc's configuration, and what is said of others. Pure."""

from __future__ import annotations

from cnimeta.errors import shown
from cnimeta.spec.keys import OF_EVERY_PLUGIN, OF_LISTS, strangers, without_effect
from cnimeta_plugins.hostport_alloc.config import read_chain

TYPE_CHECKING = False
if TYPE_CHECKING:
    from cnimeta.spec.netconf import NetConf

KEYS = (
    *("ranges", "expose", "delegates", "delegate", "portmap", "hostIP", "kubernetes", "quarantineSeconds", "sticky"),
    *("stickySeconds", "forceOverlap", "nodePortRange", "maxPortsPerPod", "lockTimeout", "dataDir"),
)
API_KEYS = ("kubeconfig", "policy", "timeout", "readPod")


def remarks(conf: NetConf) -> list[str]:
    """A line for each key that nobody reads, and for each that decides nothing beside the others. Of a valid one."""
    return unknown_keys(conf) + idle_keys(conf)


def idle_keys(conf: NetConf) -> list[str]:
    """A line for each key that decides nothing beside the others."""
    fields, found = conf.fields, []
    if not fields.has("kubernetes"):
        found += without_effect(fields, "hostIP", "it is for the annotation, and $.kubernetes is not set")
    if not fields.boolean("sticky", True):
        found += without_effect(fields, "stickySeconds", "$.sticky is false")
    if fields.boolean("forceOverlap"):
        found += without_effect(fields, "nodePortRange", "$.forceOverlap is true")
    if fields.has("portmap"):
        chain = read_chain(conf)
        if chain.mapper >= 0:
            mapper = chain.plugins[chain.mapper].get("type")
            found += without_effect(fields, "portmap", f"the delegate {shown(mapper)} maps ports itself")
    return found


def unknown_keys(conf: NetConf) -> list[str]:
    """A line for each unknown key of the objects that are hostport_alloc's own; its delegates' keys are theirs."""
    fields = conf.fields
    found = strangers(fields, (*OF_EVERY_PLUGIN, *KEYS))
    found += strangers(fields.object("kubernetes"), API_KEYS)
    delegate = fields.object("delegate")
    return found + (strangers(delegate, OF_LISTS) if delegate.has("plugins") else [])
