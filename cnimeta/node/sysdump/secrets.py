"""Taking secrets out of what is shown to others: of JSON by the names of keys, of any text by how secrets look. Pure.

Too much is taken out rather than too little: a name that sounds like a secret is enough.
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from cnimeta.spec.jsonio import JSON

TAKEN_OUT = "(taken out)"

_WORDS = (
    *("token", "secret", "passw", "passphrase", "credential", "bearer", "authorization", "cookie", "apikey"),
    *("privatekey", "clientkey", "keydata", "certificatedata", "presharedkey", "accesskey", "etcdkey"),
)
_WHOLE = ("auth", "key", "pass", "pwd", "psk")
_PLACES = ("file", "path", "dir", "folder")
"""A key that ends like this names a place, which is no secret."""

_IN_TEXT = (
    re.compile(r"-----BEGIN [^-]{1,64}-----.*?(-----END [^-]{1,64}-----|\Z)", re.DOTALL),
    re.compile(r"\beyJ[\w-]{8,}\.[\w-]{8,}(\.[\w-]*)?"),  # a JSON web token
    re.compile(r"(?i)(?<=\bbearer )[^\s\"',]+"),
    re.compile(r"(?i)(?<=\bbasic )[A-Za-z0-9+/=]{8,}"),
    re.compile(r"(?<=://)[^\s/@\"']+(?=@)"),  # the user and password of a URL
    re.compile(
        r"(?i)(?<![\w-])[\w.-]*(?:token|secret|passw(?:or)?d|passphrase|credential|api[_-]?key|private[_-]?key)"
        r"[\w.-]*[\"']?\s*[:=]\s*(?P<value>\"[^\"\n]*\"|'[^'\n]*'|[^\s\"',;&]+)"
    ),
)


def without_secrets(value: JSON, key: str = "") -> JSON:
    """The value with each secret replaced by TAKEN_OUT; `key`: what it stands under."""
    if isinstance(value, dict):
        return {name: without_secrets(inner, name) for name, inner in value.items()}
    if isinstance(value, list):
        return [without_secrets(inner, key) for inner in value]
    if _is_secret(key) and value not in (None, "", True, False):
        return TAKEN_OUT
    return text_without_secrets(value) if isinstance(value, str) else value


def text_without_secrets(text: str) -> str:
    """The text with what looks like a secret replaced by TAKEN_OUT."""
    for pattern in _IN_TEXT:
        text = pattern.sub(_replaced, text)
    return text


def _replaced(found: re.Match[str]) -> str:
    value = found.groupdict().get("value")
    if value is None:
        return TAKEN_OUT
    return found.group(0)[: found.start("value") - found.start(0)] + TAKEN_OUT


def _is_secret(key: str) -> bool:
    plain = re.sub(r"[^a-z0-9]", "", key.lower())
    if plain.endswith(_PLACES):
        return False
    return plain in _WHOLE or any(word in plain for word in _WORDS)
