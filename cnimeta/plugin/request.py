"""What a plugin is asked: the attachment, its configuration, and where its words go."""

from __future__ import annotations

from cnimeta.namedtuple import NamedTuple
from cnimeta.plugin.host import Host

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from cnimeta.spec.netconf import NetConf
    from cnimeta.spec.result import Result
    from cnimeta.spec.trace import TraceContext


class Attachment(NamedTuple):
    """One interface of one container on one network: the unit ADD, CHECK and DEL work on.

    `network`, `container_id` and `ifname` identify it and have been validated. `netns` is a path, empty on a
    DEL after the namespace is gone. `args` are CNI_ARGS: untrusted text.
    """

    network: str
    container_id: str
    ifname: str
    netns: str
    args: Mapping[str, str]

    @property
    def key(self) -> tuple[str, str, str]:
        """(network, container ID, ifname)"""
        return self.network, self.container_id, self.ifname


class Request(NamedTuple):
    """One invocation. `attachment` is there for ADD, CHECK and DEL only."""

    verb: str
    conf: NetConf
    target: Attachment | None
    environ: Mapping[str, str]
    """The whole environment as received, for delegates: they must see the same (spec §4)."""
    log: Callable[[str], None]
    """Writes one line to stderr."""
    host: Host = Host()
    """The node; in tests, `cnimeta.testing.node.FakeHost`."""

    @property
    def attachment(self) -> Attachment:
        """The attachment of an ADD, CHECK or DEL."""
        if self.target is None:
            raise RuntimeError(f"{self.verb} has no attachment")
        return self.target

    @property
    def prev_result(self) -> Result | None:
        """Short for `conf.prev_result`."""
        return self.conf.prev_result

    @property
    def trace(self) -> TraceContext | None:
        """The trace that this invocation belongs to, if its caller is in one; delegates are told by the environment."""
        from cnimeta.spec.trace import TraceContext

        return TraceContext.of(self.environ)

    @property
    def cni_path(self) -> tuple[str, ...]:
        """The folders of CNI_PATH, in order."""
        return tuple(folder for folder in self.environ.get("CNI_PATH", "").split(":") if folder)
