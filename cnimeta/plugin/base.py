"""The class a plugin author writes, and the table of the verbs it has."""

from __future__ import annotations

from cnimeta.errors import IncompatibleVersion, shown
from cnimeta.namedtuple import NamedTuple
from cnimeta.spec.version import ALL, at_least

TYPE_CHECKING = False
if TYPE_CHECKING:
    import argparse
    from collections.abc import Callable, Iterable, Mapping, Sequence
    from typing import TypeAlias

    from cnimeta.observe.metrics import Metric
    from cnimeta.plugin.described import Key
    from cnimeta.plugin.request import Request
    from cnimeta.ports.mapper import PortMapper
    from cnimeta.spec.fields import Fields
    from cnimeta.spec.jsonio import JSON
    from cnimeta.spec.netconf import NetConf
    from cnimeta.spec.result import Result

    Commands: TypeAlias = argparse._SubParsersAction[argparse.ArgumentParser]  # noqa: SLF001 - it has no public name
    """Where sub-commands are added: what `argparse.ArgumentParser.add_subparsers` returns."""
else:
    Commands = object


class Verb(NamedTuple):
    """A verb that acts: the method of `Plugin` that serves it, and what the specification lays down for it."""

    name: str
    """CNI_COMMAND."""
    method: str
    needs: tuple[str, ...]
    """The variables that must be set and not empty."""
    since: str = "0.1.0"
    """The first cniVersion that has it."""
    answers: bool = False
    """Whether it prints a result."""

    @property
    def of_attachment(self) -> bool:
        """Whether it is about one attachment, as opposed to a network or the plugin."""
        return "CNI_CONTAINERID" in self.needs

    def is_in(self, version: str) -> bool:
        """Whether the cniVersion has it."""
        return at_least(version, self.since)

    def require_in(self, version: str) -> None:
        """Raise IncompatibleVersion (code 1) unless the cniVersion has it."""
        if not self.is_in(version):
            raise IncompatibleVersion(
                f"config version {shown(version)} does not allow {self.name}, which came with {self.since}"
            )


VERBS = {
    verb.name: verb
    for verb in (
        Verb("ADD", "add", ("CNI_CONTAINERID", "CNI_NETNS", "CNI_IFNAME"), answers=True),
        Verb("DEL", "delete", ("CNI_CONTAINERID", "CNI_IFNAME")),
        Verb("CHECK", "check", ("CNI_CONTAINERID", "CNI_NETNS", "CNI_IFNAME"), since="0.4.0"),
        Verb("GC", "gc", ("CNI_PATH",), since="1.1.0"),
        Verb("STATUS", "status", (), since="1.1.0"),
    )
}
"""By name. VERSION is not among them: it acts on nothing and comes without a configuration."""


class Plugin:
    """A CNI plugin: override the verbs it has; the SDK does the protocol.

    By the time a verb runs, the environment and the configuration have been validated, the version is one of
    `versions`, and CNI_NETNS is not the host's. Raise a `cnimeta.errors.CniError` to fail; anything else
    that escapes is reported as an internal error. Never print: stdout belongs to the protocol.
    """

    name = ""
    about = ""
    """One line for people who run the executable by hand."""
    versions: tuple[str, ...] = ALL
    node_keys: tuple[str, ...] = ()
    """The keys of the section of its name in the node-wide configuration (`cnimeta.host.nodeconfig`)."""
    reusable = False
    """Whether an invocation leaves nothing in its process: no thread, no open file, no other namespace, nothing in the
    memory of modules that the next one must not see. A worker of the node agent then serves others after it, each with
    a plugin made anew; otherwise it ends, and another one is forked.
    """

    usual: tuple[str, ...] = ()
    """The modules that its ADD and DEL import on their way as a rule, so that a launcher has them at hand: written out
    as strings, for it is read from the source.
    """

    def __init_subclass__(cls) -> None:
        """Warn of a method that is hardly meant to be what it is: a misspelt verb does nothing, without a word."""
        super().__init_subclass__()
        for name, value in cls.__dict__.items():
            meant = "" if name in Plugin.__dict__ or not callable(value) else _meant(name)
            if meant and getattr(cls, meant) is getattr(Plugin, meant):
                from warnings import warn

                said = f"{cls.__name__}.{name} is no verb and is never called: did you mean {meant}?"
                warn(said, RuntimeWarning, stacklevel=2)

    def add(self, request: Request) -> Result:
        """Attach. A chained plugin returns prevResult, changed or not."""
        return request.conf.require_prev_result()

    def delete(self, request: Request) -> None:
        """Detach. Must succeed when repeated, and when anything it would remove is already gone."""

    def check(self, request: Request) -> None:
        """Raise if what ADD made is missing or wrong."""

    def gc(self, request: Request) -> None:
        """Remove everything of this network that is not in `request.conf.valid_attachments()` (None: keep all)."""

    def status(self, request: Request) -> None:
        """Raise PluginNotAvailable (50) or LimitedConnectivity (51) if ADD cannot be served in full."""

    def port_mapper(self) -> PortMapper | None:
        """For a plugin that maps host ports: what other plugins need of it beside the verbs."""
        return None

    # --- for operators: nothing of this is on the way of a container ---

    def describe(self) -> Iterable[Key]:
        """For `cnimeta explain`: its keys, in the order of its document."""
        return ()

    def validate(self, conf: NetConf) -> Iterable[str]:  # noqa: ARG002 - nothing is known of it here
        """For `cnimeta validate`: raise the CniError with which ADD would refuse this configuration on any node, and
        give a line for each thing that ADD takes but that is hardly meant. Looks at nothing else.
        """
        return ()

    def examine(self, conf: NetConf) -> Iterable[str]:
        """For `cnimeta doctor`: the same, with what this node alone can tell. Changes nothing."""
        return self.validate(conf)

    def examine_networks(self, net_dir: str) -> Iterable[str]:  # noqa: ARG002 - as above
        """For `cnimeta doctor`: a line for each thing of the node that is hardly meant, beside its configurations.

        Changes nothing. `net_dir`: where the runtime finds configurations. Raises a CniError for what does not work.
        """
        return ()

    def examine_node(self, section: Fields) -> str:  # noqa: ARG002 - as above
        """For `cnimeta doctor`: what the section of the node-wide configuration comes to, in a few words.

        Raise the CniError with which ADD would refuse a value.
        """
        return ""

    def delegates(self, conf: NetConf) -> Iterable[Mapping[str, JSON]] | None:  # noqa: ARG002 - as above
        """The configurations of the plugins that ADD calls; None: what the keys ipam, delegate and delegates name."""
        return None

    def in_use(self, confs: Sequence[NetConf]) -> Iterable[str]:  # noqa: ARG002 - as above
        """For `cnimeta uninstall`: the IDs of the containers that it has something of, which its DEL is to remove.

        `confs`: its configurations on this node. Raises a CniError when that cannot be told. Changes nothing.
        """
        return ()

    def leave(self, confs: Sequence[NetConf]) -> Iterable[str]:  # noqa: ARG002 - as above
        """For `cnimeta uninstall`: give back what it has changed of the node itself; a line for each thing.

        `confs` as for `in_use`. What is there for containers is not touched: it goes with their DEL.
        """
        return ()

    def metrics(self, net_dir: str) -> Iterable[Metric]:  # noqa: ARG002 - as above
        """For `cnimeta metrics`: what it knows now. Raises a CniError when that cannot be read: unknown is not zero."""
        return ()

    def keeper(self, net_dir: str, log: Callable[[str], None]) -> Callable[[], object] | None:  # noqa: ARG002 - as above
        """For `cnimeta agent --own`: what is to be called twice a second, so that configurations stay as they should.

        It raises nothing, and works beside another one. `log`: what it has done.
        """
        return None

    def dump(self, confs: Sequence[NetConf]) -> Iterable[tuple[str, Callable[[], JSON]]]:  # noqa: ARG002 - as above
        """For `cnimeta sysdump`: documents of what it keeps on this node, each with a name such as `records.json`.

        Reading one raises a CniError when it cannot be had. Secrets are taken out of what is read. Changes nothing.
        """
        return ()

    def add_commands(self, commands: Commands) -> None:
        """Add sub-commands of the plugin's own to `cnimeta`; each parser's default `run` takes the arguments."""

    def preload(self) -> Iterable[str]:
        """Called once, in the node agent: do what is slow the first time, and name modules to be imported then."""
        return ()

    def rehearsal(self) -> Iterable[dict[str, JSON]]:
        """For the node agent, which practises ADD, CHECK and DEL before the first container comes: the keys of
        configurations, beside name and prevResult (with `veth0` on the node and CNI_IFNAME in the container).

        It does so in namespaces of its own, with a dataDir of its own. Keep to what changes nothing beyond these.
        """
        return ()


_ALIASES = {"del": "delete", "remove": "delete", "teardown": "delete", "garbagecollect": "gc", "detach": "delete"}
_BY_CNI = ("cmd", "cni", "do", "on", "handle")
"""What people put in front of a verb, out of habit from other SDKs."""


def _meant(name: str) -> str:
    """The method that `name` may be meant for; empty for none. Cheap: it runs where a plugin starts."""
    plain = name.replace("_", "").lower()
    for prefix in _BY_CNI:
        rest = plain.removeprefix(prefix)
        if rest != plain and rest in (*_ALIASES, *(verb.method for verb in VERBS.values())):
            plain = rest
    if name.startswith("_"):
        return ""
    for verb in VERBS.values():
        if plain == verb.method or (len(verb.method) > 2 and _one_slip(plain, verb.method)):
            return verb.method
    return _ALIASES.get(plain, "")


def _one_slip(left: str, right: str) -> bool:
    """Whether one letter more, less, other, or two exchanged ones make the two alike."""
    at = 0
    while at < min(len(left), len(right)) and left[at] == right[at]:
        at += 1
    left, right = left[at:], right[at:]
    exchanged = len(left) > 1 and left[:2] == right[1::-1] and left[2:] == right[2:]
    return exchanged or left[1:] == right or left == right[1:] or left[1:] == right[1:]
