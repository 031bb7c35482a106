"""How many host ports a Pod, or all Pods of a namespace, may hold at once on this node. Pure."""

from __future__ import annotations

from cnimeta.errors import InvalidNetworkConfig, TryAgainLater, counted, shown
from cnimeta.namedtuple import NamedTuple
from cnimeta_plugins.hostport_alloc.allocate.patterns import check_pattern, matches

TYPE_CHECKING = False
if TYPE_CHECKING:
    from cnimeta.spec.fields import Fields

UNLIMITED = -1
_MOST = 3 * 65535


class Quotas(NamedTuple):
    """The limits of a configuration; UNLIMITED for none. A port for two protocols counts as two, as it is held."""

    pod: int = UNLIMITED
    namespace: int = UNLIMITED
    namespaces: tuple[tuple[str, int], ...] = ()
    """Limits of their own, by namespace or pattern; the first that matches."""

    def of_namespace(self, name: str) -> Quota:
        """What holds for a namespace."""
        for pattern, limit in self.namespaces:
            if matches(name, (pattern,)):
                return Quota(f"$.quotas.namespaces.{pattern}", limit)
        return Quota("$.quotas.namespace", self.namespace)

    @property
    def of_pod(self) -> Quota:
        """What holds for a Pod."""
        return Quota("$.quotas.pod", self.pod)


class Quota(NamedTuple):
    """One limit, and the key it stands under."""

    key: str
    limit: int

    def refuse(self, whose: str, used: int, asked: int) -> None:
        """Raise QuotaExceeded when what is asked for is more than what is left."""
        if self.limit != UNLIMITED and used + asked > self.limit:
            raise QuotaExceeded(self, whose, used, asked)


class QuotaExceeded(TryAgainLater):
    """A quota has no room for what is asked (code 11): it may have, once others are gone. Code 7 when it never has."""

    def __init__(self, quota: Quota, whose: str, used: int, asked: int) -> None:
        super().__init__(
            f"{quota.key} allows {whose} {counted(quota.limit, 'host port')} on this node: {used} used, {asked} asked"
            " for; remove Pods, expose fewer or raise it",
            code=InvalidNetworkConfig.code if asked > quota.limit else TryAgainLater.code,
        )
        self.limit, self.used, self.asked = quota.limit, used, asked


def read_quotas(fields: Fields) -> Quotas:
    """`quotas`. Raises InvalidNetworkConfig (code 7)."""
    pod, namespace = fields.integer("pod", 1, _MOST), fields.integer("namespace", 0, _MOST)
    own, limits = fields.object("namespaces"), []
    for name in own.raw:
        limit = own.integer(name, 0, _MOST)
        if limit is not None:
            limits.append((check_pattern(name, f"{own.path}: the key"), limit))
    return Quotas(UNLIMITED if pod is None else pod, UNLIMITED if namespace is None else namespace, tuple(limits))


def whose_namespace(name: str) -> str:
    """How a message names a namespace."""
    return f"namespace {shown(name)}"


def whose_pod(namespace: str, name: str) -> str:
    """How a message names a Pod."""
    return f"Pod {shown(f'{namespace}/{name}')}"
