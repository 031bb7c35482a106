"""IP addresses and CIDRs as text and bytes. `ipaddress` costs 4 ms to import; the C library knows the rules too."""

from __future__ import annotations

from _socket import AF_INET, AF_INET6, inet_ntop, inet_pton

from cnimeta.namedtuple import NamedTuple

_MAPPED = b"\0" * 10 + b"\xff\xff"
_ZEROS = b"\0" * 12
_MAPPED_BITS = 96


class Address(NamedTuple):
    """One address. `family` is 4 or 6; IPv4-mapped IPv6 counts as IPv4, as in Go."""

    family: int
    packed: bytes

    @property
    def text(self) -> str:
        """The canonical spelling (RFC 5952)."""
        if self.family == 6 and self.packed.startswith(_ZEROS) and any(self.packed[12:14]):
            # The C library writes ::1.2.3.4, a form long given up; Go and RFC 5952 write ::102:304.
            return f"::{int.from_bytes(self.packed[12:14], 'big'):x}:{int.from_bytes(self.packed[14:], 'big'):x}"
        return inet_ntop(AF_INET if self.family == 4 else AF_INET6, self.packed)

    @property
    def is_unspecified(self) -> bool:
        """0.0.0.0 or ::"""
        return not any(self.packed)

    @property
    def is_loopback(self) -> bool:
        """127.0.0.0/8 or ::1"""
        return self.packed[0] == 127 if self.family == 4 else self.packed == b"\0" * 15 + b"\x01"

    @property
    def is_link_local(self) -> bool:
        """fe80::/10"""
        return self.family == 6 and self.packed[0] == 0xFE and self.packed[1] & 0xC0 == 0x80


class Cidr(NamedTuple):
    """An address with a prefix length; host bits are kept ("10.0.0.2/24")."""

    address: Address
    prefix: int

    @property
    def text(self) -> str:
        """`10.0.0.2/24`"""
        return f"{self.address.text}/{self.prefix}"

    @property
    def network(self) -> Cidr:
        """The same with the host bits cleared."""
        bits = len(self.address.packed) * 8
        mask = ((1 << self.prefix) - 1) << (bits - self.prefix)
        number = int.from_bytes(self.address.packed, "big") & mask
        return Cidr(Address(self.address.family, number.to_bytes(bits // 8, "big")), self.prefix)

    def __contains__(self, other: object) -> bool:
        if not isinstance(other, Address) or other.family != self.address.family:
            return False
        return Cidr(other, self.prefix).network == self.network


def parse_ip(text: str) -> Address:
    """Read an IPv4 or IPv6 address. Raises ValueError."""
    try:
        return Address(4, inet_pton(AF_INET, text))
    except (OSError, ValueError):  # refused: it is no address
        pass
    try:
        packed = inet_pton(AF_INET6, text)
    except (OSError, ValueError):
        raise ValueError(f"not an IP address: {text!r}") from None
    if packed.startswith(_MAPPED):
        return Address(4, packed[12:])
    return Address(6, packed)


def parse_cidr(text: str) -> Cidr:
    """Read `address/prefix`; `::ffff:10.0.0.2/120` is `10.0.0.2/24`, as in Go. Raises ValueError."""
    head, slash, tail = text.partition("/")
    if not slash or not (tail.isascii() and tail.isdigit() and len(tail) <= 3):
        raise ValueError(f"not an address with a prefix length: {text!r}")
    address, prefix = parse_ip(head), int(tail)
    if address.family == 4 and ":" in head:
        prefix -= _MAPPED_BITS
    if not 0 <= prefix <= len(address.packed) * 8:
        raise ValueError(f"prefix length out of range: {text!r}")
    return Cidr(address, prefix)
