"""The keys of hostport_alloc's configuration, and what is said of others. Pure."""

from __future__ import annotations

from cnimeta.spec.keys import OF_EVERY_PLUGIN, OF_LISTS, strangers

TYPE_CHECKING = False
if TYPE_CHECKING:
    from cnimeta.spec.netconf import NetConf

KEYS = (
    *("ranges", "expose", "delegates", "delegate", "portmap", "hostIP", "kubernetes", "quarantineSeconds", "sticky"),
    *("stickySeconds", "forceOverlap", "nodePortRange", "maxPortsPerPod", "lockTimeout", "dataDir"),
)
API_KEYS = ("kubeconfig", "policy", "timeout", "readPod")


def unknown_keys(conf: NetConf) -> list[str]:
    """A line for each unknown key of the objects that are hostport_alloc's own; its delegates' keys are theirs."""
    fields = conf.fields
    found = strangers(fields, (*OF_EVERY_PLUGIN, *KEYS))
    found += strangers(fields.object("kubernetes"), API_KEYS)
    delegate = fields.object("delegate")
    return found + (strangers(delegate, OF_LISTS) if delegate.has("plugins") else [])
