"""bandwidth: the verbs. Behaviour and keys: docs/bandwidth.md."""

from __future__ import annotations

from cnimeta.errors import CheckFailed, CniError, InvalidNetworkConfig, PluginNotAvailable, joined, shown
from cnimeta.plugin.base import Plugin
from cnimeta.spec.version import ALL

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Iterable
    from typing import TypeVar

    from cnimeta.host.links.rtnetlink import Link
    from cnimeta.host.protocols import Links
    from cnimeta.plugin.request import Attachment, Request
    from cnimeta.spec.result import Result
    from cnimeta_plugins.bandwidth.config import Settings
    from cnimeta_plugins.bandwidth.shaper import Shaper

    T = TypeVar("T")


class Bandwidth(Plugin):
    """Limits how fast a container sends and receives."""

    name = "bandwidth"
    about = "limits a container's bandwidth with token bucket filters"
    versions = tuple(version for version in ALL if version not in ("0.1.0", "0.2.0"))

    def __init__(self, links: Links | None = None) -> None:
        self._given = links

    def add(self, request: Request) -> Result:
        """Shape; the ifb, when there is one, is appended to the result's interfaces."""
        settings = _settings(request)
        result = request.conf.require_prev_result()
        if not settings.limited:
            return result
        attachment = request.attachment
        made = self._at_place(
            attachment, result, settings, lambda shaper, link: shaper.shape(attachment.key, link, settings)
        )
        return result if made is None else result.with_interface(made)

    def check(self, request: Request) -> None:
        """Compare the kernel's queues, filters and ifb with what ADD would make."""
        settings = _settings(request)
        result = request.conf.require_prev_result()
        if settings.limited:
            key = request.attachment.key
            try:
                self._at_place(
                    request.attachment, result, settings, lambda shaper, link: shaper.check(key, link, settings)
                )
            except InvalidNetworkConfig as error:
                raise CheckFailed(error.msg) from None

    def delete(self, request: Request) -> None:
        """Remove the ifb, and the queues of an interface that is still there. Neither needs readable rates."""
        shaper, attachment = self._shaper(), request.attachment
        failures = []
        try:
            self._restore(shaper, attachment, request)
        except CniError as error:
            failures.append(error)
        try:
            shaper.unshape(attachment.key)
        except CniError as error:
            failures.append(error)
        failure = joined(failures)
        if failure is not None:
            raise failure

    @staticmethod
    def _restore(shaper: Shaper, attachment: Attachment, request: Request) -> None:
        """The veth is removed by its own plugin, mostly at once; a device lent to a container goes back to the host."""
        try:
            settings = _settings(request)
            limited, may_be_inside = settings.limited, settings.inside
        except CniError:
            limited = may_be_inside = True
        if not limited or not attachment.netns:
            return
        try:
            inside = shaper.links.in_container(attachment.netns, attachment.ifname)
        except CniError:
            return  # the namespace is gone, and every interface in it
        if inside is None:
            return
        host = shaper.links.get(index=inside.peer) if inside.peer else None
        if host is not None and host.peer == inside.ifindex:
            shaper.restore(attachment.key, host)
        elif not inside.peer and may_be_inside:
            with shaper.links.within(attachment.netns) as links:
                there = shaper.moved(links, attachment.netns)
                there.restore(attachment.key, inside)
                there.unshape(attachment.key)

    def gc(self, request: Request) -> None:
        """Remove the ifbs of this network whose attachment is not listed; without a list, none."""
        valid = request.conf.valid_attachments()
        if valid is not None:
            failure = joined(self._shaper().collect(request.conf.name, valid))
            if failure is not None:
                raise failure

    def status(self, request: Request) -> None:  # noqa: ARG002 - the kernel alone decides
        """Not ready (50) when the kernel has no ifb or no tbf."""
        try:
            self._shaper().probe()
        except CniError as error:
            raise PluginNotAvailable(f"bandwidth cannot shape: {error.msg}") from None

    def preload(self) -> Iterable[str]:
        """What its verbs import on their way; pyroute2's definitions of messages are made with the first of them."""
        from cnimeta.host.links.tc import token_bucket

        token_bucket(1, 1000, 1000, 1000, 15.625)
        own = ("cnimeta_plugins.bandwidth.config", "cnimeta_plugins.bandwidth.shaper")
        return ("pyroute2", "ctypes", "cnimeta.host.links.kernel", *own)

    def _shaper(self) -> Shaper:
        from cnimeta.host.links.kernel import RouteLinks, ticks_per_us
        from cnimeta_plugins.bandwidth.shaper import Shaper

        return Shaper(self._given or RouteLinks(), ticks_per_us())

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
                return work(shaper.moved(links, attachment.netns), inside)
        if not inside.peer:
            raise InvalidNetworkConfig(
                f"container interface {attachment.ifname} has no veth peer: an interface of kind"
                f" {inside.kind or 'physical'} has no end on the host that could be shaped;"
                " set shapeInside to shape it in the container"
            )
        host = shaper.links.get(index=inside.peer)
        names = [interface.name for interface in result.interfaces if not interface.sandbox]
        if host is None or host.name not in names:
            raise InvalidNetworkConfig(
                f"$.prevResult.interfaces: no veth peer of container interface found in host ns ({', '.join(names)})"
            )
        return work(shaper, host)


def _settings(request: Request) -> Settings:
    from cnimeta_plugins.bandwidth.config import read_settings

    return read_settings(request.conf)
