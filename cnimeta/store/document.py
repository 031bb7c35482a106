"""A record as text: JSON with a format version and a checksum, for the database has a checksum of no row.

`{"version":1,"crc":N,"record":{...}}`, where crc is the CRC-32 of `VERSION:` and the record's compact JSON: the version
is under the checksum, or a flipped digit of it would pass for a later version. Unknown keys are ignored, so a later
minor change can be read; a change that an older reader must not act on gets a new version number. Pure.
"""

from __future__ import annotations

from binascii import crc32

from cnimeta.errors import CniError, InvalidEnvironment
from cnimeta.spec.fields import Fields
from cnimeta.spec.jsonio import dumps, loads_object

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Mapping

    from cnimeta.spec.jsonio import JSON

_VERSION, _CHECKSUM, _RECORD = '{"version":', ',"crc":', ',"record":'
_DIGITS_MAX = 9


class Damaged(Exception):
    """The text is not a record: empty, cut off, altered, or of a shape no version has."""


class Later(Exception):
    """The text was written by a later version; `body` is what can be read of it."""

    def __init__(self, version: int, known: int, body: Fields) -> None:
        super().__init__(f"record format version {version}, this version reads up to {known}")
        self.version = version
        self.body = body


def encode(version: int, body: Mapping[str, JSON]) -> str:
    """The text of a record. Raises InvalidEnvironment (code 4) for bytes that are no UTF-8: they would be lost."""
    record = dumps(body)
    if "\\ud" in record and dumps(loads_object(record)) != record:
        raise InvalidEnvironment("a record cannot hold text that is not UTF-8")
    return f"{_VERSION}{version}{_CHECKSUM}{_sum(version, record)}{_RECORD}{record}}}"


def decode(version: int, text: str) -> Fields:
    """The record in a text of this version or an earlier one. Raises Damaged, Later."""
    head, marker, rest = text.partition(_RECORD)
    found, _, checksum = head.removeprefix(_VERSION).partition(_CHECKSUM)
    record = rest[:-1]
    if not marker or not (found.isascii() and found.isdigit() and len(found) <= _DIGITS_MAX):
        raise Damaged("it does not begin like a record")
    if f"{record}}}" != rest or checksum != str(_sum(found, record)):
        raise Damaged("its checksum does not match")
    try:
        body = Fields(loads_object(record, "the record"))
    except CniError as error:
        raise Damaged(error.msg) from None
    if int(found) > version:
        raise Later(int(found), version, body)
    return body


def _sum(version: int | str, record: str) -> int:
    return crc32(f"{version}:{record}".encode("utf-8", "surrogatepass"))
