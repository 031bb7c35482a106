"""The spec's rules for names that come from outside. Whole strings, ASCII only, no regular expressions."""

from __future__ import annotations

from cnimeta.errors import InvalidEnvironment, InvalidNetworkConfig, shown

_ALNUM = frozenset("abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789")
_NAME = _ALNUM | frozenset("_.-")
_IFNAME_MAX_BYTES = 15  # IFNAMSIZ less the terminating zero


def is_identifier(text: str) -> bool:
    """`[a-zA-Z0-9][a-zA-Z0-9_.-]*`, the whole string (spec: container ID, network name)."""
    return bool(text) and text[0] in _ALNUM and _NAME.issuperset(text)


def container_id(text: str) -> str:
    """A valid CNI_CONTAINERID, or InvalidEnvironment (code 4)."""
    if not is_identifier(text):
        raise InvalidEnvironment(
            f"CNI_CONTAINERID {shown(text)} is invalid: use letters, digits, '_', '.', '-', a letter or digit first"
        )
    return text


def ifname(text: str) -> str:
    """A valid CNI_IFNAME, or InvalidEnvironment (code 4): 1-15 bytes, not '.' or '..', no '/', ':' or space."""
    if not text:
        raise InvalidEnvironment("CNI_IFNAME is empty")
    if text in (".", "..") or any(char in "/:" or char.isspace() or not char.isprintable() for char in text):
        raise InvalidEnvironment(f"CNI_IFNAME {shown(text)} is not a valid interface name")
    if len(text.encode()) > _IFNAME_MAX_BYTES:
        raise InvalidEnvironment(f"CNI_IFNAME {shown(text)} is longer than {_IFNAME_MAX_BYTES} bytes")
    return text


def utf8(name: str, text: str) -> str:
    """The text of an environment variable that is UTF-8, or InvalidEnvironment (code 4).

    Python keeps other bytes as halves of surrogate pairs, which no document can hold: a record would not be read back.
    """
    if not text.isascii():
        try:
            text.encode()
        except UnicodeEncodeError as error:
            raise InvalidEnvironment(f"{name} is not UTF-8 text: character {error.start} of {shown(text)}") from None
    return text


def network_name(text: str) -> str:
    """A valid network name, or InvalidNetworkConfig (code 7)."""
    if not text:
        raise InvalidNetworkConfig("$.name is missing: a network configuration needs a name")
    if not is_identifier(text):
        raise InvalidNetworkConfig(
            f"$.name {shown(text)} is invalid: use letters, digits, '_', '.', '-', a letter or digit first"
        )
    return text


def plugin_type(text: str, path: str = "$.type") -> str:
    """A plugin type that is safe to look up as a file name, or InvalidNetworkConfig (code 7)."""
    if not text:
        raise InvalidNetworkConfig(f"{path} is missing: it names the plugin executable")
    if "/" in text or text in (".", "..") or not text.isprintable():
        raise InvalidNetworkConfig(f"{path} {shown(text)} is not the name of a plugin executable")
    return text
