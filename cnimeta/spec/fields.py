"""Typed reading of a JSON object with Go's rules: keys match in any case, null means unset, integers are integers.

containerd sends `HostPort` where the documents say `hostPort`; a case-sensitive reader would silently map nothing.
Every failure is an InvalidNetworkConfig (code 7) that names the JSON path and the value. (What the spec itself lays
down, the document, cniVersion, name, type, prevResult, results and GC's list, fails with code 6 instead: see
`cnimeta.spec.netconf` and `cnimeta.spec.convert`.) Stricter than Go in one point: a null inside an array of strings is
refused, not read as "".
"""

from __future__ import annotations

from cnimeta.errors import InvalidNetworkConfig, shown
from cnimeta.spec.jsonio import kind

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    from cnimeta.spec.jsonio import JSON


class Fields:
    """A read-only view of one JSON object. `path` is where it stands in its document, e.g. `$.runtimeConfig`."""

    __slots__ = ("_values", "path", "raw")

    def __init__(self, raw: Mapping[str, JSON], path: str = "$") -> None:
        self.raw = raw
        self.path = path
        # Of two spellings the later one wins unless it is null, as in encoding/json.
        self._values: dict[str, JSON] = {}
        for key, value in raw.items():
            if value is not None:
                self._values[key.lower()] = value

    def at(self, key: str) -> str:
        """The JSON path of `key`, for messages."""
        return f"{self.path}.{key}"

    def has(self, key: str) -> bool:
        """Whether `key` is present and not null."""
        return self._values.get(key.lower()) is not None

    def get(self, key: str) -> JSON:
        """The value as it stands; None when absent or null."""
        return self._values.get(key.lower())

    def wrong(self, key: str, wanted: str) -> InvalidNetworkConfig:
        """The error for a value of the wrong type or range, ready to raise."""
        value = self.get(key)
        return InvalidNetworkConfig(f"{self.at(key)} must be {wanted}, got {kind(value)}: {shown(value)}")

    def text(self, key: str, default: str = "") -> str:
        """A string."""
        value = self.get(key)
        if value is None:
            return default
        if not isinstance(value, str):
            raise self.wrong(key, "a string")
        return value

    def choice(self, key: str, allowed: tuple[str, ...], default: str) -> str:
        """A string that is one of `allowed`."""
        value = self.text(key, default)
        if value not in allowed:
            raise self.wrong(key, "one of " + ", ".join(allowed))
        return value

    def boolean(self, key: str, default: bool = False) -> bool:
        """True or false."""
        value = self.get(key)
        if value is None:
            return default
        if not isinstance(value, bool):
            raise self.wrong(key, "true or false")
        return value

    def integer(self, key: str, low: int, high: int) -> int | None:
        """A whole number in low..high; None when absent. Floats and strings are refused, as in Go."""
        value = self.get(key)
        if value is None:
            return None
        if isinstance(value, bool) or not isinstance(value, int) or not low <= value <= high:
            raise self.wrong(key, f"a whole number from {low} to {high}")
        return value

    def items(self, key: str) -> list[JSON]:
        """An array; empty when absent."""
        value = self.get(key)
        if value is None:
            return []
        if not isinstance(value, list):
            raise self.wrong(key, "an array")
        return value

    def texts(self, key: str) -> list[str]:
        """An array of strings; empty when absent."""
        found = []
        for index, value in enumerate(self.items(key)):
            if not isinstance(value, str):
                raise InvalidNetworkConfig(
                    f"{self.at(key)}[{index}] must be a string, got {kind(value)}: {shown(value)}"
                )
            found.append(value)
        return found

    def object(self, key: str) -> Fields:
        """A nested object; an empty one when absent."""
        value = self.get(key)
        if value is None:
            return Fields({}, self.at(key))
        if not isinstance(value, dict):
            raise self.wrong(key, "an object")
        return Fields(value, self.at(key))

    def objects(self, key: str) -> Iterator[Fields]:
        """The objects of an array; none when absent. A null entry reads as an empty object, as in Go."""
        for index, value in enumerate(self.items(key)):
            if value is not None and not isinstance(value, dict):
                raise InvalidNetworkConfig(
                    f"{self.at(key)}[{index}] must be an object, got {kind(value)}: {shown(value)}"
                )
            yield Fields(value or {}, f"{self.at(key)}[{index}]")


def without(raw: Mapping[str, JSON], *keys: str) -> dict[str, JSON]:
    """A copy of `raw` less `keys` in any spelling."""
    gone = {key.lower() for key in keys}
    return {key: value for key, value in raw.items() if key.lower() not in gone}
