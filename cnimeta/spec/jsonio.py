"""JSON text in and out, as Go's encoding/json reads it, without the price of `import json`.

`json` pulls in `re`, which doubles the start-up of a small plugin; its C accelerator `_json` does not need it.
On an interpreter without that accelerator the standard module does the same work.

Read: NaN, Infinity and numbers too large for a float refused, the last of two equal keys wins, half a surrogate pair
becomes U+FFFD, text must be UTF-8, at most MAX_DEPTH levels (so that whatever was read can be written again).
Written: ASCII only, keys in insertion order, one line.
"""

from __future__ import annotations

from cnimeta.errors import DecodingFailure, shown

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping
    from typing import Protocol, SupportsIndex, TypeAlias, TypeVar

    T_co = TypeVar("T_co", covariant=True)

    class Array(Protocol[T_co]):
        """A list of whatever is JSON. No tuple: a record (a Result, say) is one, and would be written as an array."""

        def __iter__(self) -> Iterator[T_co]: ...
        def __len__(self) -> int: ...
        def __getitem__(self, index: SupportsIndex, /) -> T_co: ...
        def reverse(self) -> None: ...  # what neither tuples nor dictionaries have

    JSON: TypeAlias = "bool | int | float | str | Array[JSON] | Mapping[str, JSON] | None"
else:
    JSON = object
    """Anything, at run time: the name can be imported by whoever annotates with it."""

MAX_DEPTH = 100
"""Levels of nesting that are read. Go allows 10,000; a network configuration has about ten."""

_DOCUMENTS_MAX = 100
_WHITESPACE = " \t\n\r"
_INFINITY = float("inf")


def _refuse_constant(name: str) -> float:
    raise ValueError(f"{name} is not JSON")


def _finite(text: str) -> float:
    value = float(text)
    if abs(value) == _INFINITY:
        raise ValueError(f"{shown(text)} is out of range")
    return value


def _unknown(value: object) -> JSON:
    raise TypeError(f"{type(value).__name__} has no JSON form")


class _Rules:
    """What `_json.make_scanner` asks of its context."""

    strict = True
    object_hook = None
    object_pairs_hook = None
    parse_float = staticmethod(_finite)
    parse_int = int
    parse_constant = staticmethod(_refuse_constant)
    memo: dict[str, str] = {}  # noqa: RUF012 - the scanner wants this very attribute


def _stdlib_scan(text: str, start: int) -> tuple[JSON, int]:
    import json

    return json.JSONDecoder(parse_float=_finite, parse_constant=_refuse_constant).raw_decode(text, start)


def _stdlib_encode(value: JSON) -> str:
    import json

    return json.dumps(value, separators=(",", ":"), allow_nan=False)


def _accelerated() -> tuple[Callable[[str, int], tuple[JSON, int]], Callable[[JSON], str]]:
    try:
        import _json

        scan = _json.make_scanner(_Rules)  # type: ignore[arg-type]
        encode = _json.make_encoder(None, _unknown, _json.encode_basestring_ascii, None, ":", ",", False, False, False)
        if scan("[1]", 0) != ([1], 3) or "".join(encode({"a": [None]}, 0)) != '{"a":[null]}':
            return _stdlib_scan, _stdlib_encode
    except (ImportError, AttributeError, TypeError):
        return _stdlib_scan, _stdlib_encode
    return scan, lambda value: "".join(encode(value, 0))


_scan, _encode = _accelerated()


def loads(data: bytes | str, what: str = "document") -> JSON:
    """Read one JSON document. Raises DecodingFailure (code 6) naming `what`."""
    body = _text(data, what)
    if not body:
        raise DecodingFailure(f"{what} is empty, expected a JSON object")
    value, end = _document(body, 0, what)
    if end != len(body):
        raise DecodingFailure(f"{what} is not valid JSON: extra text at character {end}: {shown(body[end : end + 20])}")
    return value


def loads_all(data: bytes | str, what: str = "document") -> list[JSON]:
    """Read any number of documents, one after the other. Raises DecodingFailure (code 6) naming `what`."""
    found: list[JSON] = []
    body, position = _text(data, what), 0
    while position < len(body):
        if len(found) == _DOCUMENTS_MAX:
            raise DecodingFailure(f"{what} has more than {_DOCUMENTS_MAX} JSON documents")
        value, position = _document(body, position, what)
        found.append(value)
        while position < len(body) and body[position] in _WHITESPACE:
            position += 1
    return found


def loads_object(data: bytes | str, what: str = "document") -> dict[str, JSON]:
    """Read a document that must be a JSON object. Raises DecodingFailure (code 6)."""
    value = loads(data, what)
    if not isinstance(value, dict):
        raise DecodingFailure(f"{what} must be a JSON object, got {kind(value)}")
    return value


def _text(data: bytes | str, what: str) -> str:
    try:
        text = data.decode("utf-8") if isinstance(data, bytes) else data
    except UnicodeDecodeError as error:
        raise DecodingFailure(f"{what} is not UTF-8 text: byte {error.start}") from None
    return text.strip(_WHITESPACE)


def _document(body: str, start: int, what: str) -> tuple[JSON, int]:
    try:
        try:
            value, end = _scan(body, start)
        except SystemError:  # up to Python 3.11 the accelerator cannot raise its own error unless json is imported
            value, end = _stdlib_scan(body, start)
    except StopIteration as error:
        raise DecodingFailure(f"{what} is not valid JSON: unexpected text at character {error.value}") from None
    except RecursionError:
        raise DecodingFailure(f"{what} is nested deeper than {MAX_DEPTH} levels") from None
    except ValueError as error:
        raise DecodingFailure(f"{what} is not valid JSON: {error}") from None
    if body.count("{", start, end) + body.count("[", start, end) > MAX_DEPTH and not _is_shallow(value):
        raise DecodingFailure(f"{what} is nested deeper than {MAX_DEPTH} levels")
    if body.find("\\ud", start, end) >= 0 or body.find("\\uD", start, end) >= 0:
        value = _mended(value)
    return value, end


def _is_shallow(value: JSON) -> bool:
    level = [value]
    for _ in range(MAX_DEPTH):
        inner: list[JSON] = []
        for node in level:
            if isinstance(node, dict):
                inner += node.values()
            elif isinstance(node, list):
                inner += node
        level = [node for node in inner if isinstance(node, dict | list)]
        if not level:
            return True
    return False


def _mended(value: JSON) -> JSON:
    """A copy without halves of surrogate pairs, which no UTF-8 text, file name or program argument can hold."""
    if isinstance(value, str):
        return value.encode("utf-16", "surrogatepass").decode("utf-16", "replace")
    if isinstance(value, list):
        return [_mended(item) for item in value]
    if isinstance(value, dict):
        return {str(_mended(key)): _mended(item) for key, item in value.items()}
    return value


def dumps(value: JSON) -> str:
    """Write `value` as compact ASCII JSON."""
    return _encode(value)


def kind(value: object) -> str:
    """The JSON name of a value's type, for messages."""
    if value is None:
        return "null"
    if isinstance(value, bool):
        return "a boolean"
    if isinstance(value, int | float):
        return "a number"
    if isinstance(value, str):
        return "a string"
    return "an array" if isinstance(value, list | tuple) else "an object"
