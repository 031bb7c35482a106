"""bandwidth: the verbs. Behaviour and keys: docs/bandwidth.md."""

from __future__ import annotations

import os

from cnimeta.errors import CheckFailed, CniError, Failures, InvalidNetworkConfig, PluginNotAvailable, shown
from cnimeta.plugin.base import Plugin
from cnimeta.spec.version import ALL

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator
    from typing import TypeVar

    from cnimeta.host.links.values import Link
    from cnimeta.host.protocols import Links
    from cnimeta.plugin.described import Key
    from cnimeta.plugin.request import Attachment, Request
    from cnimeta.spec.jsonio import JSON
    from cnimeta.spec.netconf import NetConf
    from cnimeta.spec.result import Result
    from cnimeta_plugins.bandwidth.apply import Shaper
    from cnimeta_plugins.bandwidth.config import Settings

    T = TypeVar("T")


class Bandwidth(Plugin):
    """Limits how fast a container sends and receives."""

    name = "bandwidth"
    about = "limits a container's bandwidth with token bucket filters"
    reusable = True
    versions = tuple(version for version in ALL if version not in ("0.1.0", "0.2.0"))

    def __init__(self, links: Links | None = None) -> None:
        self._given = links

    def add(self, request: Request) -> Result:
        """Shape; the ifb, when there is one, is appended to the result's interfaces."""
        settings = _settings(request)
        result = request.conf.require_prev_result()
        if not settings.limited or request.conf.runtime_config.has("bandwidth"):
            from cnimeta_plugins.bandwidth.keys import idle_keys

            for text in idle_keys(request.conf):
                request.log(f"bandwidth: {text}")
        if not settings.limited:
            return result
        key = request.attachment.key
        made = self._at_place(
            request.attachment, result, settings, lambda shaper, device: shaper.shape(key, device, settings)
        )
        return result if made is None else result.with_interface(made)

    def check(self, request: Request) -> None:
        """Compare the kernel's queues, filters and ifb with what ADD would make."""
        settings = _settings(request)
        result = request.conf.require_prev_result()
        if not settings.limited:
            return
        from cnimeta_plugins.bandwidth.check import check

        key = request.attachment.key

        def compare(shaper: Shaper, device: Link) -> None:
            check(shaper.links, key, device, settings, inside=bool(shaper.netns))

        try:
            self._at_place(request.attachment, result, settings, compare)
        except InvalidNetworkConfig as error:
            raise CheckFailed(error.msg) from None

    def delete(self, request: Request) -> None:
        """Remove the ifb, and the queues of an interface that is still there. Neither needs readable rates."""
        shaper, failures = self._shaper(), Failures()
        with failures:
            _restore(shaper, request)
        with failures:
            shaper.unshape(request.attachment.key)
        failures.raise_any()

    def gc(self, request: Request) -> None:
        """Remove the ifbs of this network whose attachment is not listed; without a list, none."""
        valid = request.conf.valid_attachments()
        if valid is not None:
            self._shaper().collect(request.conf.name, valid)

    def status(self, request: Request) -> None:  # noqa: ARG002 - the kernel alone decides
        """Not ready (50) when the kernel has no ifb or no tbf."""
        try:
            self._shaper().probe()
        except CniError as error:
            raise PluginNotAvailable(f"bandwidth cannot shape: {error.msg}") from None

    def preload(self) -> Iterable[str]:
        """What its verbs import on their way."""
        own = (f"cnimeta_plugins.bandwidth.{name}" for name in ("config", "apply", "check"))
        return ("ctypes", "cnimeta.host.links.kernel", *own)

    def rehearsal(self) -> Iterable[dict[str, JSON]]:
        """Both ways; where ifb is a module that nobody has loaded, one: loading it makes interfaces on the node."""
        has_ifb = os.path.exists("/sys/module/ifb")  # unknown: it is not made use of
        has_ifb = has_ifb or not os.path.exists("/proc/modules")  # unknown: it is taken for one without modules
        ways = ("ingress", "egress") if has_ifb else ("ingress",)
        limits: dict[str, JSON] = {f"{way}{key}": 10**7 for way in ways for key in ("Rate", "Burst")}
        return ({"runtimeConfig": {"bandwidth": limits}},)

    def describe(self) -> Iterable[Key]:
        """Its keys."""
        from cnimeta_plugins.bandwidth.described import KEYS

        return KEYS

    def validate(self, conf: NetConf) -> Iterable[str]:
        """Keys and values."""
        from cnimeta_plugins.bandwidth.config import read_settings
        from cnimeta_plugins.bandwidth.keys import remarks

        read_settings(conf)
        return remarks(conf)

    def _shaper(self) -> Shaper:
        from cnimeta_plugins.bandwidth.apply import Shaper

        if self._given is not None:
            return Shaper(self._given)
        from cnimeta.host.links.kernel import RouteLinks

        return Shaper(RouteLinks())

    def _at_place(
        self, attachment: Attachment, result: Result, settings: Settings, work: Callable[[Shaper, Link], T]
    ) -> T:
        """Do `work` on the host's end of the container's veth, which must be an interface of prevResult.

        With shapeInside and no such end: in the container's namespace, on its interface.
        """
        shaper = self._shaper()
        if not result.interfaces:
            raise InvalidNetworkConfig("$.prevResult.interfaces: no interfaces provided")
        inside = shaper.links.in_container(attachment.netns, attachment.ifname)
        if inside is None:
            raise InvalidNetworkConfig(f"CNI_IFNAME: there is no interface {shown(attachment.ifname)} in CNI_NETNS")
        if not inside.peer and settings.inside:
            with shaper.links.within(attachment.netns) as links:
                return work(type(shaper)(links, attachment.netns), inside)
        if not inside.peer:
            raise InvalidNetworkConfig(
                f"container interface {attachment.ifname} has no veth peer: an interface of kind"
                f" {inside.kind or 'physical'} has no end on the host that could be shaped;"
                " set shapeInside to shape it in the container"
            )
        host = shaper.links.get(index=inside.peer)
        names = [interface.name for interface in result.interfaces if not interface.sandbox]
        if host is None or host.name not in names:
            listed = f" ({', '.join(names)})" if names else ""
            raise InvalidNetworkConfig(
                f"$.prevResult.interfaces: no veth peer of container interface found in host ns{listed}"
            )
        return work(shaper, host)


def _restore(shaper: Shaper, request: Request) -> None:
    """Unshape the interface itself, which may outlive the attachment.

    The veth is removed by its own plugin, mostly at once; a device lent to a container goes back to the host.
    """
    try:
        settings = _settings(request)
        limited, may_be_inside = settings.limited, settings.inside
    except CniError:  # unknown: everything is looked for
        limited = may_be_inside = True
    from cnimeta_plugins.bandwidth.apply import find_ifb

    attachment, failures = request.attachment, Failures()
    if not limited and find_ifb(shaper.links, attachment.key)[1] is None:
        return
    inside = None
    with failures:
        inside = _inside(shaper.links, attachment)
    if inside is None:
        with failures:
            for device in _ends_on_host(shaper.links, request):
                with failures:
                    shaper.restore(attachment.key, device)
    elif inside.peer:
        with failures:
            host = shaper.links.get(index=inside.peer)
            if host is not None and host.peer == inside.ifindex:
                shaper.restore(attachment.key, host)
    elif may_be_inside:
        with shaper.links.within(attachment.netns) as links:
            there = type(shaper)(links, attachment.netns)
            with failures:
                there.restore(attachment.key, inside)
            with failures:
                there.unshape(attachment.key)
    failures.raise_any()


def _inside(links: Links, attachment: Attachment) -> Link | None:
    """The container's interface; None when it or its namespace is gone. IoFailure (code 5) when nobody can tell."""
    from cnimeta.host.values import NoNamespace

    try:
        return links.in_container(attachment.netns, attachment.ifname) if attachment.netns else None
    except NoNamespace:
        return None


def _ends_on_host(links: Links, request: Request) -> Iterator[Link]:
    """Where prevResult says the host's end is, if what arrives there goes to this attachment's ifb.

    For when the namespace cannot tell: another container's veth may have got the name since.
    """
    from cnimeta_plugins.bandwidth.apply import find_ifb

    try:
        result = request.conf.prev_result
    except CniError:  # unknown: then it names no device
        return
    _, ifb = find_ifb(links, request.attachment.key)
    if result is None or ifb is None:
        return
    for interface in result.interfaces:
        device = links.get(name=interface.name) if not interface.sandbox else None
        if device is not None and any(one.redirect == ifb.ifindex for one in links.ingress_filters(device.ifindex)):
            yield device


def _settings(request: Request) -> Settings:
    from cnimeta_plugins.bandwidth.config import read_settings

    return read_settings(request.conf)
