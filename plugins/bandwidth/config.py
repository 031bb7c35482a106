"""bandwidth's network configuration, read once into typed settings. Pure; the keys are in docs/bandwidth.md."""

from __future__ import annotations

from cnimeta.errors import InvalidNetworkConfig, UnsupportedField
from cnimeta.host.links.values import largest_packet
from cnimeta.namedtuple import NamedTuple
from cnimeta.spec.ip import Cidr, parse_cidr

TYPE_CHECKING = False
if TYPE_CHECKING:
    from cnimeta.spec.fields import Fields
    from cnimeta.spec.netconf import NetConf

RATE_KEYS = ("ingressRate", "ingressBurst", "egressRate", "egressBurst")
_SUBNET_KEYS = ("shapedSubnets", "unshapedSubnets")
KEYS = (*RATE_KEYS, *_SUBNET_KEYS, "latency", "shapeInside")
"""The keys of a configuration that are bandwidth's own."""
_RATE_MAX_BPS = 10**16
"""Ten petabit a second: beyond, no burst that has a place in the kernel's fields would last a microsecond."""
_BURST_MAX_BITS = 2**64 - 1
_BURST_MAX_BYTES = 2**32 - 1
UNSPECIFIED_BURST_BITS = 2**32 - 1
"""containerd's burst for a Pod annotation, which has none: not to be taken literally (53 s at 10 Mbit/s)."""
DEFAULT_LATENCY_MS = 25


class Limit(NamedTuple):
    """One direction: rate in bit/s, burst in bits; both 0 for no limit."""

    rate_bps: int = 0
    burst_bits: int = 0


class Settings(NamedTuple):
    """Both directions as the container sees them, and which traffic they are for."""

    ingress: Limit
    egress: Limit
    latency_ms: int
    shaped: tuple[Cidr, ...] = ()
    """Only traffic with these subnets is limited; none: all traffic."""
    unshaped: tuple[Cidr, ...] = ()
    """Traffic with these subnets is not limited."""
    inside: bool = False
    """Whether an interface without an end on the host may be shaped in the container's namespace."""

    @property
    def limited(self) -> bool:
        """Whether there is anything to do."""
        return bool(self.ingress.rate_bps or self.egress.rate_bps)


def read_settings(conf: NetConf) -> Settings:
    """The static rates if any of them is there, else runtimeConfig.bandwidth's; so with the subnets, which a network
    may fix for the rates that Pods ask for. With static rates, runtimeConfig is not read, as upstream.

    Raises InvalidNetworkConfig (code 7).
    """
    fields = conf.fields
    fixed = any(fields.has(key) for key in RATE_KEYS)
    source = fields if fixed else conf.runtime_config.object("bandwidth")
    chosen = fields if fixed or any(fields.has(key) for key in _SUBNET_KEYS) else source
    shaped, unshaped = (_subnets(chosen, key) for key in _SUBNET_KEYS)
    if shaped and unshaped:
        raise UnsupportedField(
            f"{chosen.at('shapedSubnets')} and {chosen.at('unshapedSubnets')} are both set: keep one of them"
        )
    latency = fields.integer("latency", 1, 10_000)
    return Settings(
        _limit(source, "ingress"),
        _limit(source, "egress"),
        DEFAULT_LATENCY_MS if latency is None else latency,
        shaped,
        unshaped,
        fields.boolean("shapeInside"),
    )


def _limit(source: Fields, direction: str) -> Limit:
    rate = source.integer(f"{direction}Rate", 0, _RATE_MAX_BPS) or 0
    burst = source.integer(f"{direction}Burst", 0, _BURST_MAX_BITS) or 0
    if rate and not burst:
        raise InvalidNetworkConfig("if rate is set, burst must also be set")  # these three to the letter as upstream
    if burst and not rate:
        raise InvalidNetworkConfig("if burst is set, rate must also be set")
    if burst // 8 >= _BURST_MAX_BYTES:
        raise InvalidNetworkConfig("burst cannot be more than 4GB")
    if rate and rate < 8:
        raise source.wrong(f"{direction}Rate", "at least 8 bit/s")
    if rate and burst != UNSPECIFIED_BURST_BITS and not largest_packet(rate // 8, max(burst // 8, 1)):
        least = 8 * (2 + rate // 8_000_000)
        raise source.wrong(f"{direction}Burst", f"at least {least} bits at a rate of {rate} bit/s")
    return Limit(rate, burst)


def _subnets(source: Fields, key: str) -> tuple[Cidr, ...]:
    found = []
    for index, text in enumerate(source.texts(key)):
        try:
            found.append(parse_cidr(text).network)
        except ValueError:
            raise InvalidNetworkConfig(
                f'{source.at(key)}[{index}] must be a subnet such as "10.0.0.0/8", got "{text}"'
            ) from None
    return tuple(found)
