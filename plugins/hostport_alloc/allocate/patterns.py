"""Names of namespaces in a configuration: a name, or how it begins with a `*` after it. Pure."""

from __future__ import annotations

from cnimeta.errors import InvalidNetworkConfig, shown

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterable

_LETTERS = frozenset("abcdefghijklmnopqrstuvwxyz0123456789-")


def check_pattern(text: str, path: str) -> str:
    """The pattern. Raises InvalidNetworkConfig (code 7) naming `path` for what no namespace can be called."""
    name = text.removesuffix("*")
    if not text or len(name) > 63 or not set(name) <= _LETTERS:
        raise InvalidNetworkConfig(f'{path} must be a namespace, or how it begins such as "games-*", got {shown(text)}')
    return text


def matches(name: str, patterns: Iterable[str]) -> bool:
    """Whether one of the patterns means this name; none means what has no name."""
    return bool(name) and any(
        name.startswith(pattern[:-1]) if pattern.endswith("*") else name == pattern for pattern in patterns
    )
