"""What `cnimeta ports top` tells at one moment: how full each range is, who has the most, what came last. Pure."""

from __future__ import annotations

from cnimeta.errors import counted
from cnimeta.namedtuple import NamedTuple
from cnimeta.terminal.table import age, table
from cnimeta_plugins.hostport_alloc.state.listed import EARLIER_BOOT
from cnimeta_plugins.hostport_alloc.state.schema import EXPLICIT

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Sequence

    from cnimeta_plugins.hostport_alloc.allocate.quotas import Quotas
    from cnimeta_plugins.hostport_alloc.operator.listing import Entry, RangeView

_BAR = 20
_NAMESPACES_MAX = 5
_NEWEST_MAX = 10
_NO_NAMESPACE = "(no Pod)"


class Overview(NamedTuple):
    """One look. `ranges`: those of the configuration; `entries`: every host port on record."""

    ranges: Sequence[RangeView]
    entries: Sequence[Entry]
    quotas: Quotas | None = None

    @property
    def containers(self) -> int:
        """How many containers have host ports."""
        return len({entry["containerID"] for entry in self.entries})

    @property
    def pending(self) -> list[Entry]:
        """An entry of each attachment whose Pod is not annotated yet."""
        waiting = [entry for entry in self.entries if entry["annotation"] == "pending"]
        return list({(entry["network"], entry["containerID"], entry["ifname"]): entry for entry in waiting}.values())

    @property
    def namespaces(self) -> list[tuple[str, int]]:
        """(namespace, host ports), those with the most first; empty for what belongs to no Pod."""
        found: dict[str, int] = {}
        for entry in self.entries:
            namespace = str(entry["pod"]).partition("/")[0]
            found[namespace] = found.get(namespace, 0) + 1
        return sorted(found.items(), key=lambda item: (-item[1], item[0]))

    @property
    def newest(self) -> list[Entry]:
        """The entries that came last, newest first."""
        return sorted(self.entries, key=lambda entry: int(entry["ageSeconds"]))[:_NEWEST_MAX]

    @property
    def outside(self) -> dict[str, int]:
        """Host ports by range, of what is not in the ranges of the configuration: `explicit` ones, renamed ranges."""
        found: dict[str, int] = {}
        known = {view.range.name for view in self.ranges}
        for entry in self.entries:
            if entry["range"] not in known:
                found[str(entry["range"])] = found.get(str(entry["range"]), 0) + 1
        return found

    @property
    def body(self) -> dict[str, object]:
        """What `--json` prints."""
        return {
            "hostPorts": len(self.entries),
            "containers": self.containers,
            "pendingAnnotations": len(self.pending),
            "ranges": [
                {"range": view.range.name, "ports": view.range.text, **view.counts, "usedPercent": percent(view)}
                for view in self.ranges
            ],
            "otherRanges": [{"range": name, "used": used} for name, used in self.outside.items()],
            "namespaces": [
                {"namespace": name, "hostPorts": count, **self._quota(name)} for name, count in self.namespaces
            ],
            "newest": self.newest,
        }

    def _quota(self, namespace: str) -> dict[str, int]:
        limit = self.quotas.of_namespace(namespace).limit if self.quotas is not None and namespace else -1
        return {"quota": limit, "quotaUsed": counted_by_quota(self.entries, namespace)} if limit >= 0 else {}

    def text(self, most: int | None = None) -> str:
        """For people, in lines of at most so many columns."""
        head = f"{counted(len(self.entries), 'host port')} of {counted(self.containers, 'container')}"
        reasons = {str(entry["annotationError"]) for entry in self.pending} - {""}
        waiting = f", {counted(len(self.pending), 'annotation')} pending" if self.pending else ""
        why = f": {min(reasons)}" if reasons else ""
        return "\n".join(part for part in (f"{head}{waiting}{why}\n", *self._tables(most)) if part)

    def _tables(self, most: int | None) -> list[str]:
        rows = [
            [
                *(view.range.name, view.range.text, f"[{bar(view)}] {percent(view)}%"),
                *(str(view.counts[key]) for key in ("used", "free", "quarantined", "blocked")),
            ]
            for view in self.ranges
        ]
        rows += [[name, "", "", str(used), "", "", ""] for name, used in self.outside.items()]
        heads = ("RANGE", "PORTS", "OCCUPANCY", "USED", "FREE", "QUARANTINED", "BLOCKED")
        ranking = [[name or _NO_NAMESPACE, str(count)] for name, count in self.namespaces[:_NAMESPACES_MAX]]
        columns: tuple[str, ...] = ("NAMESPACE", "HOST PORTS")
        if self.quotas is not None:
            columns = (*columns, "OF QUOTA")
            for row, (name, _) in zip(ranking, self.namespaces, strict=False):
                quota = self._quota(name)
                row.append(f"{quota['quotaUsed']} of {quota['quota']}" if quota else "")
        keys = ("hostPort", "protocol", "range", "pod", "annotation")
        newest = [[*(str(entry[key]) for key in keys), age(float(entry["ageSeconds"]))] for entry in self.newest]
        return [
            table(heads, rows, most) if rows else "",
            table(columns, ranking, most) if ranking else "",
            table(("NEWEST", "PROTOCOL", "RANGE", "POD", "ANNOTATION", "AGE"), newest, most) if newest else "",
        ]


def counted_by_quota(entries: Sequence[Entry], namespace: str) -> int:
    """How many ports of a namespace a quota counts: of this boot, and not asked for by number."""
    counting = [entry for entry in entries if entry["range"] != EXPLICIT and entry["state"] != EARLIER_BOOT]
    return sum(str(entry["pod"]).partition("/")[0] == namespace for entry in counting)


def percent(view: RangeView) -> int:
    """How full a range is; 100 only when no port is left unused, and 0 only when all are."""
    used, size = view.counts["used"], view.counts["size"]
    return max(1 * bool(used), used * 100 // size)


def bar(view: RangeView) -> str:
    """The same drawn: '#' used, 'x' kept back (blocked or in quarantine), '.' free."""
    counts = view.counts
    used = -(-counts["used"] * _BAR // counts["size"])
    free = -(-counts["free"] * _BAR // counts["size"])
    free = min(free, _BAR - used)
    return "#" * used + "x" * (_BAR - used - free) + "." * free
