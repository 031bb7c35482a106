"""The reference's `tuning`: settings and properties of the container's interface. Same keys, same results.

Beyond it: GC and STATUS, IFNAME in CHECK, a wrong value is found before anything was changed.
"""

from __future__ import annotations

from cnimeta.errors import CheckFailed, InvalidNetworkConfig, IoFailure, shown
from cnimeta.host.network.values import SetLink, SetSysctl, mac_of, sysctl_name
from cnimeta.namedtuple import NamedTuple
from cnimeta.plugin import Plugin, Request

TYPE_CHECKING = False
if TYPE_CHECKING:
    from cnimeta.host.links.values import Link
    from cnimeta.spec.fields import Fields
    from cnimeta.spec.result import Result
    from cnimeta.store.records import Records

ALLOWED = "/etc/cni/tuning/allowlist.conf"
"""Regular expressions, one a line: where there is such a file, the settings that may be changed."""


class Wanted(NamedTuple):
    """What the configuration asks for."""

    link: SetLink
    sysctls: tuple[SetSysctl, ...]


class Tuning(Plugin):
    name = "tuning"
    about = "sets kernel settings and properties of the container's interface"

    def add(self, request: Request) -> Result:
        attachment, wanted = request.attachment, read(request)
        result = request.conf.require_prev_result()
        with _records(request).locks.of(attachment.key).held(), request.host.network(attachment.netns) as network:
            link = network.link(attachment.ifname)
            if link is None:
                raise IoFailure(f"there is no interface {shown(attachment.ifname)} in {shown(attachment.netns)}")
            if _records(request).get(attachment.key) is None:  # else a repeated ADD takes its own work for the origin
                before = {key: getattr(link, key) for key in PROPERTIES}
                place = request.host.namespaces.identity(attachment.netns)
                _records(request).put(attachment.key, {"namespace": place, **before})
            network.apply(*wanted.sysctls, wanted.link)
        mac, mtu = wanted.link.mac or "", wanted.link.mtu or 0
        return result.with_changed(attachment.ifname, attachment.netns, mac=mac, mtu=mtu)

    def delete(self, request: Request) -> None:
        key, records = request.attachment.key, _records(request)
        with records.locks.of(key).held():
            before, netns = records.get(key), request.attachment.netns
            there = request.host.namespaces.identity(netns)
            if before is not None and there and before.text("namespace") == there:  # else the interface is gone too
                with request.host.network(netns) as network:
                    network.apply(*([put_back(key[2], before)] if network.link(key[2]) else []))
            records.remove(key)

    def check(self, request: Request) -> None:
        wanted, ifname = read(request), request.attachment.ifname
        with request.host.network(request.attachment.netns) as network:
            link = network.link(ifname)
            if link is None:
                raise CheckFailed(f"there is no interface {shown(ifname)}")
            wrong = [
                f"{one.name} is {shown(network.sysctl(one.name))} instead of {shown(one.value)}"
                for one in wanted.sysctls
                if network.sysctl(one.name).split() != one.value.split()
            ]
        if _records(request).get(request.attachment.key) is None:
            wrong.append("there is no record of how it was before")
        if wrong + differing(link, wanted.link):
            raise CheckFailed(f"interface {shown(ifname)}: " + "; ".join(wrong + differing(link, wanted.link)))

    def gc(self, request: Request) -> None:
        for key in _records(request).stale(request.conf):
            _records(request).remove(key)


PROPERTIES = ("mac", "mtu", "queue_length", "promiscuous", "all_multicast")
"""Those of `SetLink`, which are a `Link`'s too."""


def read(request: Request) -> Wanted:
    """The configuration. CNI_ARGS, then runtimeConfig, then args.cni go before the key `mac`, as there."""
    fields, ifname = request.conf.fields, request.attachment.ifname
    given = fields.object("args").object("cni").text("mac")
    mac = request.attachment.args.get("MAC") or request.conf.runtime_config.text("mac") or given or fields.text("mac")
    if mac:
        mac_of(mac)
    link = SetLink(
        ifname,
        mac=mac or None,
        mtu=fields.integer("mtu", 0, 65535) or None,
        queue_length=fields.integer("txQLen", 0, 2**31 - 1),
        promiscuous=fields.boolean("promisc") or None,
        all_multicast=fields.boolean("allmulti") if fields.has("allmulti") else None,
    )
    settings = fields.object("sysctl")
    allowed = request.host.files.read(ALLOWED)
    for name in settings.raw if allowed is not None else ():
        _require_allowed(name, allowed or b"")
    names = {name: sysctl_name(name, ifname=ifname) for name in settings.raw}
    return Wanted(link, tuple(SetSysctl(path, settings.text(name)) for name, path in names.items()))


def differing(link: Link, wanted: SetLink) -> list[str]:
    """What of the interface is not as wanted, a line each."""
    pairs = [(key, getattr(link, key), getattr(wanted, key)) for key in PROPERTIES]
    return [f"{key} is {shown(now)} instead of {shown(then)}" for key, now, then in pairs if not same(now, then)]


def same(now: object, then: object) -> bool:
    """Whether a property is as asked; the letters of a hardware address may be small or capital."""
    return then is None or str(now).lower() == str(then).lower()


def put_back(ifname: str, before: Fields) -> SetLink:
    """How it was."""
    return SetLink(
        ifname,
        mac=before.text("mac"),
        mtu=before.integer("mtu", 0, 2**31),
        queue_length=before.integer("queue_length", 0, 2**31),
        promiscuous=before.boolean("promiscuous"),
        all_multicast=before.boolean("all_multicast"),
    )


def _require_allowed(name: str, allowed: bytes) -> None:
    import re  # costs 6 ms, and hardly any node has the file

    lines = allowed.decode("utf-8", "replace").split("\n")
    if not any(re.search(line.strip(), name) for line in lines if line.strip()):
        raise InvalidNetworkConfig(f"$.sysctl: {shown(name)} is not allowed by {ALLOWED}")


def _records(request: Request) -> Records:
    return request.host.records(request.conf.fields.text("dataDir", "/run/cni/tuning-records"), log=request.log)
