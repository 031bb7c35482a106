"""JSON text in and out, as Go's encoding/json reads it, without the price of `import json`.

`json` pulls in `re`, which doubles the start-up of a small plugin; its C accelerator `_json` does not need it.
On an interpreter without that accelerator the standard module does the same work.

Read: NaN and Infinity refused, the last of two equal keys wins, text must be UTF-8.
Written: ASCII only, keys in insertion order, one line.
"""

from __future__ import annotations

from cnimeta.errors import DecodingFailure, shown

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence
    from typing import TypeAlias

    JSON: TypeAlias = "bool | int | float | str | Sequence[JSON] | Mapping[str, JSON] | None"

_WHITESPACE = " \t\n\r"


def _refuse_constant(name: str) -> float:
    raise ValueError(f"{name} is not JSON")


def _unknown(value: object) -> JSON:
    raise TypeError(f"{type(value).__name__} has no JSON form")


class _Rules:
    """What `_json.make_scanner` asks of its context."""

    strict = True
    object_hook = None
    object_pairs_hook = None
    parse_float = float
    parse_int = int
    parse_constant = staticmethod(_refuse_constant)
    memo: dict[str, str] = {}  # noqa: RUF012 - the scanner wants this very attribute


def _stdlib_scan(text: str, start: int) -> tuple[JSON, int]:
    import json

    return json.JSONDecoder(parse_constant=_refuse_constant).raw_decode(text, start)


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
    try:
        text = data.decode("utf-8") if isinstance(data, bytes) else data
    except UnicodeDecodeError as error:
        raise DecodingFailure(f"{what} is not UTF-8 text: byte {error.start}") from None
    body = text.strip(_WHITESPACE)
    if not body:
        raise DecodingFailure(f"{what} is empty, expected a JSON object")
    try:
        value, end = _scan(body, 0)
    except StopIteration as error:
        raise DecodingFailure(f"{what} is not valid JSON: unexpected text at character {error.value}") from None
    except (ValueError, RecursionError) as error:
        raise DecodingFailure(f"{what} is not valid JSON: {error}") from None
    if end != len(body):
        raise DecodingFailure(f"{what} is not valid JSON: extra text at character {end}: {shown(body[end : end + 20])}")
    return value


def loads_object(data: bytes | str, what: str = "document") -> dict[str, JSON]:
    """Read a document that must be a JSON object. Raises DecodingFailure (code 6)."""
    value = loads(data, what)
    if not isinstance(value, dict):
        raise DecodingFailure(f"{what} must be a JSON object, got {kind(value)}")
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
