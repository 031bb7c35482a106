"""The keys of hostport_alloc's configuration, and what is said of others. Pure."""

from __future__ import annotations

from cnimeta.errors import shown
from cnimeta.spec.fields import Fields
from cnimeta.spec.keys import OF_EVERY_PLUGIN, OF_LISTS, strangers, without_effect
from cnimeta_plugins.hostport_alloc.config import read_chain

TYPE_CHECKING = False
if TYPE_CHECKING:
    from cnimeta.spec.netconf import NetConf

KEYS = (
    *("ranges", "expose", "delegates", "delegate", "portmap", "hostIP", "kubernetes", "quarantineSeconds", "sticky"),
    *("stickySeconds", "forceOverlap", "nodePortRange", "maxPortsPerPod", "lockTimeout", "dataDir"),
    *("defaultRange", "rangesFile", "quotas", "reservePorts", "external", "notify"),
)
EXTERNAL_KEYS = ("address", "nodeAnnotation", "nodeName", "portOffset", "ports")
RANGE_KEYS = ("ports", "namespaces", "by", "otherwise")
RULE_KEYS = ("range", "namespaces", "labels")
QUOTA_KEYS = ("pod", "namespace", "namespaces")
NOTIFY_KEYS = ("program", "socket", "policy", "timeout")
API_KEYS = ("kubeconfig", "policy", "timeout", "readPod")
NESTED = {
    "kubernetes": API_KEYS,
    "ranges.NAME": RANGE_KEYS,
    "defaultRange": RULE_KEYS,
    "quotas": QUOTA_KEYS,
    "external": EXTERNAL_KEYS,
    "notify": NOTIFY_KEYS,
}
"""The keys of objects inside, by where they stand."""


def remarks(conf: NetConf) -> list[str]:
    """A line for each key that nobody reads, and for each that decides nothing beside the others. Of a valid one."""
    return unknown_keys(conf) + idle_keys(conf)


def idle_keys(conf: NetConf) -> list[str]:
    """A line for each key that decides nothing beside the others."""
    fields, found = conf.fields, []
    if not fields.has("kubernetes"):
        for key in ("hostIP", "external"):
            found += without_effect(fields, key, "it is for the annotation, and $.kubernetes is not set")
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


def inner_objects(fields: Fields) -> list[Fields]:
    """The values of an object that are objects themselves."""
    return [Fields(value, fields.at(key)) for key, value in fields.raw.items() if isinstance(value, dict)]


def unknown_keys(conf: NetConf) -> list[str]:
    """A line for each unknown key of the objects that are hostport_alloc's own; its delegates' keys are theirs."""
    fields = conf.fields
    found = strangers(fields, (*OF_EVERY_PLUGIN, *KEYS))
    found += strangers(fields.object("kubernetes"), API_KEYS)
    found += strangers(fields.object("quotas"), QUOTA_KEYS)
    found += strangers(fields.object("external"), EXTERNAL_KEYS)
    found += strangers(fields.object("notify"), NOTIFY_KEYS)
    for entry in inner_objects(fields.object("ranges")):
        found += strangers(entry, RANGE_KEYS)
    if isinstance(fields.get("defaultRange"), list):
        for entry in fields.objects("defaultRange"):
            found += strangers(entry, RULE_KEYS)
    delegate = fields.object("delegate")
    return found + (strangers(delegate, OF_LISTS) if delegate.has("plugins") else [])
